"use strict";

const { TopologyError } = require("./errors");
const { rateOf } = require("./rates");
const { didYouMean } = require("./similar");

/** Nodes and slots as a user declares them, checked, and as the engine is told. */

const MAX_NAME_BYTES = 255;
const MAX_SECONDS = 1e12;
const MAX_BURST = 1_000_000;

const isSeconds = (value) => typeof value === "number" && value >= 0 && value <= MAX_SECONDS;
const isBoolean = (value) => typeof value === "boolean";
const isCount = (least, most = Infinity) => (value) => Number.isSafeInteger(value) && value >= least && value <= most;

/** Options of a slot that the engine knows: name here, name there, what they may be. */
const OPTIONS = {
  retries: ["retries", isCount(0), "a whole number from 0 on"],
  backoff: ["backoff", isSeconds, "a number of seconds"],
  backoffMax: ["backoff_max", isSeconds, "a number of seconds"],
  timeout: ["timeout", isSeconds, "a number of seconds (0: none)"],
  onFail: ["on_fail", (value) => value === "dead" || value === "stop", '"dead" or "stop"'],
  ordered: ["ordered", isBoolean, "true or false"],
  chain: ["chain", isBoolean, "true or false"],
  eager: ["eager", isBoolean, "true or false"],
  concurrency: ["concurrency", isCount(1), "a whole number from 1 on"],
  burst: ["burst", isCount(1, MAX_BURST), `a whole number from 1 to ${MAX_BURST}`],
};
const OTHERS = ["node", "states", "emits", "async", "rate"];

/** What the engine takes where nothing is said, as far as the worker has to know it. */
const DEFAULTS = { retries: 3, timeout: 60, on_fail: "dead", ordered: true, concurrency: 100, rate: 0 };

const AsyncFunction = (async () => {}).constructor;

/** A slot: an event, its options, its handler. */
class Slot {
  constructor(event, node, spec, handler) {
    this.event = event;
    this.node = node;
    this.spec = spec;
    this.handler = handler;
    const { retries, timeout, on_fail: onFail, ordered, concurrency, rate } = { ...DEFAULTS, ...spec };
    Object.assign(this, { retries, timeout, onFail, ordered, concurrency, rate });
  }
}

class Node {
  constructor(name) {
    this.name = name;
    this.isAsync = false;
    /** `{ name, ttl }`, in the order in which they were first named. */
    this.states = [];
    /** event -> Slot */
    this.slots = new Map();
  }

  addState(state) {
    const known = this.states.find(({ name }) => name === state.name);
    if (known === undefined) this.states.push(state);
    else if (known.ttl !== state.ttl) throw new TopologyError(`state '${state.name}' of '${this.name}' has two ttls`);
  }
}

class Declaration {
  constructor() {
    /** name -> Node */
    this.nodes = new Map();
    this.slots = [];
  }

  /** Declare that a node's `handler` listens to `event`. `where`: file:line. */
  add(event, options, handler, where) {
    checkName(event, "an event");
    if (typeof handler !== "function") throw new TopologyError(`slot '${event}' needs a function as its handler`);
    if (typeof options !== "object" || options === null) {
      throw new TopologyError(`the options of slot '${event}' are an object: worker.slot(event, { node }, handler)`);
    }
    const nodeName = options.node ?? handler.name;
    checkName(nodeName, `the node of slot '${event}' ({ node: "..." }, or a handler with a name)`);
    const at = `slot '${event}' of node '${nodeName}'`;
    const spec = { event, node: nodeName, ...readOptions(options, at), where };
    const emits = readNames(options.emits, `emits of ${at}`);
    if (emits.length) spec.emits = emits;
    const states = readStates(options.states, at);
    if (options.async !== undefined && !isBoolean(options.async)) {
      throw new TopologyError(`async of ${at} is true or false`);
    }

    let node = this.nodes.get(nodeName);
    if (node === undefined) this.nodes.set(nodeName, (node = new Node(nodeName)));
    if (node.slots.has(event)) throw new TopologyError(`${at} stands there twice`);
    for (const state of states) node.addState(state);
    if (options.async ?? handler instanceof AsyncFunction) node.isAsync = true;
    const slot = new Slot(event, nodeName, spec, handler);
    node.slots.set(event, slot);
    this.slots.push(slot);
  }

  /** TopologySpec of what is declared here; the engine knows the rest. */
  topology() {
    if (!this.slots.length) throw new TopologyError("the worker declares no slots: worker.slot(event, { node }, handler)");
    return {
      name: "",
      nodes: [...this.nodes.values()].map((node) => ({
        name: node.name,
        states: node.states.map(({ name, ttl }) => (ttl === undefined ? { name } : { name, ttl })),
        is_async: node.isAsync,
      })),
      slots: this.slots.map((slot) => slot.spec),
      pools: [],
    };
  }
}

function readOptions(options, at) {
  const spec = {};
  for (const [name, value] of Object.entries(options)) {
    if (OTHERS.includes(name) || value === undefined) continue;
    const known = Object.hasOwn(OPTIONS, name) ? OPTIONS[name] : undefined;
    if (known === undefined) {
      throw new TopologyError(`${at} has no option '${name}'${didYouMean(name, [...Object.keys(OPTIONS), ...OTHERS])}`);
    }
    const [field, fits, what] = known;
    if (!fits(value)) throw new TopologyError(`${name} of ${at} is ${what}, not ${String(value)}`);
    spec[field] = value;
  }
  readRate(options.rate, spec, at);
  return spec;
}

function readRate(rate, spec, at) {
  if (rate === undefined) {
    if (spec.burst > 1) throw new TopologyError(`burst: ${spec.burst} of ${at} belongs to a rate, and there is none`);
    return;
  }
  spec.rate = rateOf(rate);
  if (!spec.rate) {
    const such = "a rate is events a second, or text such as '100/s', '20/min' or '500/h'";
    throw new TopologyError(`rate of ${at}: ${such}, not ${typeof rate === "string" ? `'${rate.slice(0, 60)}'` : String(rate)}`);
  }
}

function readNames(names = [], what) {
  if (!Array.isArray(names)) throw new TopologyError(`${what} is a list of names`);
  for (const name of names) checkName(name, `a name in ${what}`);
  return names;
}

function readStates(states = [], at) {
  if (!Array.isArray(states)) throw new TopologyError(`states of ${at} is a list: names, or { name, ttl }`);
  return states.map((state) => {
    const { name, ttl, ...others } = typeof state === "string" ? { name: state } : (state ?? {});
    checkName(name, `a state of ${at}`);
    for (const other of Object.keys(others)) {
      throw new TopologyError(`state '${name}' of ${at} has no option '${other}'${didYouMean(other, ["name", "ttl"])}`);
    }
    if (ttl !== undefined && !(isSeconds(ttl) && ttl > 0)) {
      throw new TopologyError(`ttl of state '${name}' of ${at} is a number of seconds above 0`);
    }
    return { name, ttl };
  });
}

function checkName(name, what) {
  if (typeof name !== "string" || name === "") throw new TopologyError(`${what} needs a name`);
  if (Buffer.byteLength(name) > MAX_NAME_BYTES) {
    throw new TopologyError(`the name of ${what} is over ${MAX_NAME_BYTES} bytes: ${name.slice(0, 40)}...`);
  }
}

module.exports = { Declaration };
