"use strict";

const { Core } = require("./core");
const { GrapeError, ProtocolError } = require("./errors");
const { userStack } = require("./failures");
const { JobPool } = require("./jobs");
const { setLevels } = require("./logs");
const messages = require("./messages");
const output = require("./output");
const { Inbox, writeAll } = require("./socket");
const { SyncPool } = require("./sync");
const { Board, Watch } = require("./watch");

const GONE = new Set(["EPIPE", "ECONNRESET", "EBADF"]);

/** The life of a worker: one socket to the engine, from the hello to the end. */
class Session {
  #worker;
  #fd;
  #parent;
  #core;
  #pool = null;
  #watch;
  #topology;
  #inbox = null;
  #answer = null;
  #asking = Promise.resolve();
  #isEnding = false;
  /** What fails beside the events ends nothing from now on. */
  isReady = false;

  /** `worker`: declaration and hooks of the user; `fd` and `parent`: from the command line. */
  constructor(worker, { fd, parent }) {
    this.#worker = worker;
    this.#fd = fd;
    this.#parent = parent;
    const board = new Board();
    this.#watch = new Watch(board);
    const link = {
      send: (frame) => this.#send(frame),
      ask: (frame) => this.#ask(frame),
      waitUntil: (done) => this.#inbox.waitUntil(done),
    };
    this.#core = new Core(worker.declaration, link, this.#watch);
  }

  /** Say hello, and serve the engine from then on. */
  start() {
    this.#topology = this.#worker.declaration.topology();
    output.install(
      () => JobPool.speaker() || this.#core.speaker,
      () => JobPool.who() || this.#core.who(),
    );
    this.#send(messages.hello(process.pid, this.#topology));
    this.#inbox = new Inbox(this.#fd, {
      got: (bytes) => this.#received(messages.decode(bytes)),
      isUrgent: messages.isFetched,
      ended: () => this.#exit(0),
      failed: (error) => this.fail(error),
    });
  }

  /** Something that no event can be blamed for: tell the engine, and end. */
  fail(error) {
    if (this.#isEnding) return;
    if (GONE.has(error?.code) && error.syscall === "write") {
      this.#exit(0);
      return;
    }
    const kind = error instanceof GrapeError ? error.kind : "start";
    const lines = error instanceof Error ? userStack(error) : String(error);
    const text = /^\s+at /m.test(lines) ? lines : (error?.stack ?? lines); // no line of the author: it is our fault
    try {
      this.#send(messages.refusal(kind, error instanceof GrapeError ? error.message : text));
    } catch {
      // The engine is gone: nobody is left to be told.
    }
    process.stderr.write(`${text}\n`);
    this.#exit(1);
  }

  #exit(code) {
    this.#isEnding = true;
    process.exit(code);
  }

  #send(frame) {
    this.#watch.board.lock.with(() => writeAll(this.#fd, frame));
  }

  /** One question at a time. */
  #ask(frame) {
    const answer = this.#asking.then(
      () =>
        new Promise((resolve) => {
          this.#answer = resolve;
          this.#send(frame);
        }),
    );
    this.#asking = answer;
    return answer;
  }

  #received(message) {
    switch (message.kind) {
      case "work":
        this.#pool.work(message);
        return;
      case "values": {
        const resolve = this.#answer;
        if (resolve === null) throw new ProtocolError("an answer without a question");
        this.#answer = null;
        resolve(message.values);
        return;
      }
      case "fetched":
        this.#core.objects.fetched(message);
        return;
      case "assign":
        this.#core.assign(message);
        return;
      case "revoke":
        this.#core.revoke(message);
        return;
      case "leased":
        this.#core.pacer.leased(message.event, message.node, message.count);
        return;
      case "welcome":
        this.#welcome(message);
        return;
      case "peers":
        this.#core.routing.changePeers(message.peers);
        return;
      case "levels":
        setLevels(message.levels);
        return;
      case "drain":
        this.#drain().catch((error) => this.fail(error));
        return;
    }
  }

  #welcome(message) {
    if (message.version !== messages.VERSION) {
      throw new ProtocolError(`the engine speaks protocol ${message.version}, this worker ${messages.VERSION}`);
    }
    setLevels(message.levels);
    this.#core.welcome(message, this.#topology);
    this.#watch.start(this.#fd, message.heartbeat / 6, this.#parent); // before the setup: Grape may end meanwhile
    const failed = (error) => this.fail(error);
    this.#pool = this.#core.isAsync ? new JobPool(this.#core, failed) : new SyncPool(this.#core, failed);
    const ready = () => {
      this.isReady = true;
      this.#send(messages.beat());
      this.#watch.ready();
    };
    this.#worker.runSetup().then(ready).catch(failed);
  }

  async #drain() {
    await this.#pool?.drain();
    await this.#worker.runTeardown();
    this.#watch.stop();
    this.#exit(0);
  }
}

module.exports = { Session };
