"use strict";

const fs = require("node:fs");
const path = require("node:path");

const { Declaration } = require("./declare");
const { GrapeError, UsageError } = require("./errors");
const { blame, userStack } = require("./failures");
const messages = require("./messages");
const { Session } = require("./session");

/** Lines of a stack: what Node keeps of them, and what we do. */
const NODES_LIMIT = 10;
const STACK_LIMIT = 50;

/** What the engine has put on the command line: `--config-fd N --fd N --parent PID`. fd -1: it has not. */
function commandLine(argv) {
  const options = { fd: -1, parent: 0, config: {} };
  for (let i = 0; i + 1 < argv.length; i++) {
    if (argv[i] === "--fd") options.fd = Number(argv[++i]);
    else if (argv[i] === "--parent") options.parent = Number(argv[++i]);
    else if (argv[i] === "--config") options.config = JSON.parse(argv[++i]);
    else if (argv[i] === "--config-fd") options.config = configuration(Number(argv[++i]));
  }
  return options;
}

let read = null;

/** What a descriptor holds, as JSON: on a command line everybody could read it. It can be read once. */
function configuration(fd) {
  read ??= JSON.parse(fs.readFileSync(fd, "utf8") || "{}");
  return read;
}

/** The nodes of one pool, as its author declares them, and the process that runs them. */
class Worker {
  #options = commandLine(process.argv.slice(2));
  #session = null;
  #setup = [];
  #teardown = [];

  constructor() {
    this.declaration = new Declaration();
    // Also what goes wrong before `run` has to reach the engine, and through it the author.
    if (this.#options.fd < 0) return;
    process.on("uncaughtException", (error) => this.#failed(error));
    // A promise that a handler started and did not wait for: it is said, and the events beside it go on.
    process.on("unhandledRejection", (error) => {
      if (!this.#session?.isReady) this.#failed(error);
      else console.error(`a promise that nobody waits for failed: ${userStack(error) || blame(error).text}`);
    });
  }

  /** The app's configuration. */
  get config() {
    return this.#options.config;
  }

  /** Let `handler` listen to `event`. */
  slot(event, options, handler) {
    if (typeof options === "function" && handler === undefined) [options, handler] = [{}, options];
    this.declaration.add(event, options, handler, callSite());
    return this;
  }

  /** Call `hook` before the first event. */
  setup(hook) {
    this.#setup.push(hook);
    return this;
  }

  /** Call `hook` after the last event. */
  teardown(hook) {
    this.#teardown.push(hook);
    return this;
  }

  async runSetup() {
    for (const hook of this.#setup) await hook();
  }

  async runTeardown() {
    for (const hook of this.#teardown) await hook();
  }

  /** Serve the engine. */
  run() {
    const { fd, parent } = this.#options;
    if (fd < 0) {
      throw new UsageError(
        "this is a worker of a Grape app, started by its engine (add_pool(..., runtime=\"node\", entry=...)); " +
          "it cannot be run by itself",
      );
    }
    if (parent && process.ppid !== parent) process.exit(0); // the engine has died meanwhile
    // A handler's own lines may stand under many of a library's.
    if (Error.stackTraceLimit === NODES_LIMIT) Error.stackTraceLimit = STACK_LIMIT;
    process.on("SIGINT", () => {}); // Ctrl-C reaches everybody in the terminal; the engine ends its workers
    this.#session = new Session(this, { fd, parent });
    this.#session.start();
  }

  #failed(error) {
    if (this.#session !== null) {
      this.#session.fail(error);
      return;
    }
    const isOurs = error instanceof GrapeError;
    const text = isOurs ? error.message : error instanceof Error ? userStack(error) : String(error);
    try {
      fs.writeSync(this.#options.fd, messages.refusal(isOurs ? error.kind : "start", text));
    } catch {
      // The engine is gone: nobody is left to be told.
    }
    process.stderr.write(`${text}\n`);
    process.exit(2);
  }
}

/** file:line where the author called us. */
function callSite() {
  const lines = new Error().stack.split("\n").slice(1);
  const line = lines.find((one) => !one.includes(__dirname) && !one.includes("(node:")) ?? "";
  const match = /\(?([^()\s][^()]*):(\d+):\d+\)?$/.exec(line.trim().replace(/^at /, ""));
  if (match === null) return "";
  const file = match[1].replace(/^.*file:\/\//, "").replace(/^.* \(/, "");
  return `${path.relative(process.cwd(), file)}:${match[2]}`;
}

module.exports = { Worker };
