"use strict";

const path = require("node:path");
const { Worker: Thread } = require("node:worker_threads");

const { Lock } = require("./lock");

/**
 * What the watchdog looks at: who runs, in memory that both threads share. To say which event runs costs a store; the
 * rest is said once for many events.
 */

const CELLS = { lock: 0, version: 1, running: 2, index: 3, progress: 4, size: 5, current: 6, stop: 7, ready: 8, jobs: 9, waits: 10 };
const FLOATS = { timeout: 0 };
const HEAD = 128;
const FLOATS_AT = 64;
const TEXT = 1 << 20;
/** Bytes for who an async event is. */
const JOB_TEXT = 512;
const MAX_JOBS = 4096;
/** Numbers that say from which events chained ones come. */
const MAX_PATH = 1 << 18;

/** The shared memory, as both sides see it. */
class Board {
  constructor(memory) {
    this.memory = memory ?? {
      main: new SharedArrayBuffer(HEAD + TEXT),
      deadlines: new SharedArrayBuffer(8 * MAX_JOBS),
      jobs: new SharedArrayBuffer(JOB_TEXT * MAX_JOBS),
      path: new SharedArrayBuffer(4 * MAX_PATH),
    };
    this.cells = new Int32Array(this.memory.main, 0, Object.keys(CELLS).length);
    this.floats = new Float64Array(this.memory.main, FLOATS_AT, 1);
    this.text = Buffer.from(this.memory.main, HEAD, TEXT);
    /** When each async event is over its time (ms of `steadyMs`); 0: there is none in this place. */
    this.deadlines = new Float64Array(this.memory.deadlines);
    this.jobs = Buffer.from(this.memory.jobs);
    this.path = new Int32Array(this.memory.path);
    this.lock = new Lock(this.cells, CELLS.lock);
  }

  /** What `Watch.begin` said of the events that run. */
  running() {
    return JSON.parse(this.text.toString("utf8", 0, this.cells[CELLS.size]));
  }

  /** The id of one of them; `about`: what was said. undefined: nobody knows. */
  idOf({ id, prefix, offset, ids, stages }, index) {
    if (stages === null) return undefined;
    let place = index;
    let tail = "";
    let end = 0;
    for (const count of stages) {
      const start = end;
      end += 2 * count;
      tail = `.${this.path[start + count + place]}${tail}`;
      place = this.path[start + place];
    }
    return (id ?? ids?.[place] ?? `${prefix}${offset + place}`) + tail;
  }

  job(place) {
    const start = place * JOB_TEXT;
    return JSON.parse(this.jobs.toString("utf8", start + 2, start + 2 + this.jobs.readUInt16LE(start)));
  }
}

/** The main thread's side. */
class Watch {
  constructor(board) {
    this.board = board;
    this.cells = board.cells;
    this.free = [];
    this.used = 0;
  }

  /** Start the watchdog's thread. `beat`: seconds between two signs of life; `parent`: see `watchdog.js`. */
  start(fd, beat, parent) {
    const thread = new Thread(path.join(__dirname, "watchdog.js"), {
      workerData: { memory: this.board.memory, fd, beat, parent },
    });
    thread.unref();
    thread.on("error", (error) => {
      throw error;
    });
  }

  /** The app has set itself up: from now on there have to be signs of life. */
  ready() {
    Atomics.store(this.cells, CELLS.ready, 1);
  }

  stop() {
    Atomics.store(this.cells, CELLS.stop, 1);
  }

  /** The events `start` to `end` of `source` are about to run at `unit`. */
  begin(part, unit, source, start, end) {
    const { cells, board } = this;
    cells[CELLS.version]++;
    const slots = unit.slotsOf(source.run);
    let timeout = slots[0].timeout;
    let each;
    if (source.run.index !== null && slots.some((slot) => slot.timeout !== timeout)) {
      each = Array.from({ length: end - start }, (_, i) => slots[source.run.index[start + i]].timeout);
      timeout = Math.min(...each.filter((seconds) => seconds > 0), Infinity);
    }
    const about = { partition: part.number, epoch: part.epoch, node: unit.node, start, timeout, each };
    if (end - start === 1) {
      about.id = source.idOf(start);
      about.stages = [];
    } else this.#tellIds(about, source);
    const text = JSON.stringify(about);
    const fits = Buffer.byteLength(text) <= TEXT; // else they are not watched: who they are could not be told
    cells[CELLS.size] = fits ? board.text.write(text) : 0;
    board.floats[FLOATS.timeout] = fits && Number.isFinite(timeout) ? timeout : 0;
    cells[CELLS.index] = start;
    cells[CELLS.version]++;
    cells[CELLS.running] = 1;
  }

  /** What the ids of many events follow from: those of root events, and the way from there. */
  #tellIds(about, source) {
    const { path: way } = this.board;
    about.stages = [];
    let end = 0;
    let root = source;
    for (; root.parent !== undefined; root = root.parent) {
      const { count, origins, ordinals } = root;
      if (end + 2 * count > way.length) {
        about.stages = null;
        return;
      }
      way.set(origins, end);
      way.set(ordinals, end + count);
      about.stages.push(count);
      end += 2 * count;
    }
    if (root.retry !== null) {
      about.id = root.retry.id;
      return;
    }
    about.prefix = root.item.idPrefix;
    about.offset = root.offset;
    const { ids } = root.run;
    if (ids !== null) about.ids = ids instanceof Map ? Object.fromEntries(ids) : ids;
  }

  /** Of those, this one starts. */
  at(index) {
    this.cells[CELLS.index] = index;
  }

  /** Which one runs, of those. */
  get index() {
    return this.cells[CELLS.index];
  }

  end() {
    this.cells[CELLS.running] = 0;
  }

  progress() {
    this.cells[CELLS.progress]++;
  }

  // ---------------------------------------------------------------- async events

  /** Watch an async event; returns its place. */
  place(part, node, id, timeout) {
    const place = this.free.pop() ?? (this.used < MAX_JOBS ? this.used++ : -1);
    if (place < 0) return place;
    const text = JSON.stringify({ partition: part.number, epoch: part.epoch, node, id, timeout });
    const { jobs } = this.board;
    const start = place * JOB_TEXT;
    if (Buffer.byteLength(text) > JOB_TEXT - 2) {
      this.free.push(place);
      return -1;
    }
    jobs.writeUInt16LE(jobs.write(text, start + 2), start);
    return place;
  }

  /** From now on it is over its time at `deadline`. */
  setDeadline(place, deadline) {
    if (place >= 0) this.board.deadlines[place] = deadline;
  }

  leave(place) {
    if (place < 0) return;
    this.board.deadlines[place] = 0;
    this.free.push(place);
  }

  /** So many async handlers have begun and not ended. */
  jobs(count) {
    this.cells[CELLS.jobs] = count;
  }

  /** So many events wait for their turn. */
  waits(count) {
    this.cells[CELLS.waits] = count;
  }

  /** The handler of this one runs right now; -1: none does. */
  current(place) {
    this.cells[CELLS.current] = place + 1;
  }
}

/** Milliseconds of a clock that all threads share. */
function steadyMs() {
  const [seconds, nanos] = process.hrtime();
  return seconds * 1000 + nanos / 1e6;
}

module.exports = { Board, CELLS, FLOATS, Watch, steadyMs };
