"use strict";

const inspector = require("node:inspector");
const { workerData } = require("node:worker_threads");

const { userLines } = require("./failures");
const messages = require("./messages");
const { writeAll } = require("./socket");
const { Board, CELLS, FLOATS, steadyMs } = require("./watch");

/**
 * The watchdog: a thread that shows that this process lives, and ends it when a handler overruns its time, or when the
 * engine is gone.
 */

const SAMPLE_MS = 50;
/** Milliseconds that an async handler may take to end after its signal has been aborted. */
const GRACE_MS = 1000;
const STACK_MS = 500;

const { memory, fd, beat, parent } = workerData;
const board = new Board(memory);
const { cells } = board;

let lastBeat = steadyMs();
let seen = "";
let since = lastBeat;
let isReporting = false;

const timer = setInterval(look, SAMPLE_MS);

function look() {
  if (Atomics.load(cells, CELLS.stop)) {
    clearInterval(timer);
    return;
  }
  // What a stuck handler keeps the main thread from noticing: the engine has ended. (0: the jail sees to it.)
  if (parent && process.ppid !== parent) end();
  const now = steadyMs();
  if (Atomics.load(cells, CELLS.ready) && now - lastBeat >= beat * 1000) {
    lastBeat = now;
    send(messages.beat([CELLS.running, CELLS.jobs, CELLS.waits].some((cell) => Atomics.load(cells, cell) > 0)));
  }
  if (isReporting) return;
  const late = lateEvent(now) ?? lateJob(now);
  if (late !== null) report(late);
}

/** The synchronous event that has run for too long, or null. */
function lateEvent(now) {
  const place = [CELLS.version, CELLS.running, CELLS.index, CELLS.progress].map((cell) => Atomics.load(cells, cell));
  if (!place[1] || String(place) !== seen) {
    seen = String(place);
    since = now;
    return null;
  }
  const least = board.floats[FLOATS.timeout];
  if (!least || now - since <= least * 1000) return null;
  const about = board.running();
  const { partition, epoch, node, start, timeout, each } = about;
  const index = place[2];
  const allowed = each === undefined ? timeout : each[index - start];
  if (!allowed || now - since <= allowed * 1000) return null;
  const id = board.idOf(about, index);
  if (id === undefined) {
    end(); // its works run again carefully: then it is known
    return null;
  }
  return { partition, epoch, node, timeout: allowed, id };
}

/** The async event that aborting has not ended: it ignores that, or keeps the thread for itself; or null. */
function lateJob(now) {
  const { deadlines } = board;
  for (let place = 0; place < deadlines.length; place++) {
    if (deadlines[place] > 0 && now > deadlines[place] + GRACE_MS) {
      const current = Atomics.load(cells, CELLS.current);
      return board.job(current > 0 ? current - 1 : place);
    }
  }
  return null;
}

function report({ partition, epoch, node, id, timeout }) {
  isReporting = true;
  const text = `'${node}' ran over its timeout of ${timeout} s (timeout: on its slot)`;
  mainStack().then((trace) => {
    send(messages.stuck(partition, epoch, id, node, text, trace));
    end();
  });
}

/** Where the main thread is, as far as the inspector can tell (it interrupts what runs). */
function mainStack() {
  return new Promise((resolve) => {
    setTimeout(resolve, STACK_MS, "");
    try {
      const session = new inspector.Session();
      session.connectToMainThread();
      const urls = new Map();
      session.on("Debugger.scriptParsed", ({ params }) => urls.set(params.scriptId, params.url));
      session.on("Debugger.paused", ({ params }) => resolve(showStack(params.callFrames, urls)));
      session.post("Debugger.enable");
      session.post("Debugger.pause");
    } catch {
      resolve(""); // this version of Node cannot
    }
  });
}

function showStack(frames, urls) {
  const lines = frames.map(({ functionName, location }) => {
    const file = (urls.get(location.scriptId) ?? "").replace(/^file:\/\//, "");
    return `    at ${functionName || "<anonymous>"} (${file}:${location.lineNumber + 1}:${(location.columnNumber ?? 0) + 1})`;
  });
  return userLines(["Running:", ...lines].join("\n"));
}

function send(frame) {
  try {
    board.lock.with(() => writeAll(fd, frame));
  } catch {
    end(); // the engine is gone
  }
}

/** End the process: from a thread nothing else does, whatever the main thread is at. */
function end() {
  process.kill(process.pid, "SIGKILL");
}
