"use strict";

const { DataColumn } = require("./batch");
const { Writer } = require("./msgpack/writer");
const { pairOf } = require("./routing");

/**
 * Chains: what a node emits to another one of its pool runs at once, if the pair is declared and the key stays in the
 * partition. What a stage (some events at one node) has emitted so is the next stage.
 */

/** Bytes that a chained event costs beside its data. */
const PER_EVENT = 48;

/** The effects of several root events are more than a result can hold: they have to run one by one. */
class TooMuch extends Error {}

/** Where a name leads within its partition: nodes that run at once, and logs for all the others. */
class Chain {
  constructor(units, targets) {
    this.units = units;
    this.targets = targets;
  }
}

/**
 * The chains of one node, by the number of the route; null: it has none. `pairs`: those that may chain; `units`: the
 * nodes of this worker.
 */
function chainsOf(node, routing, pairs, units) {
  const chains = new Array(routing.routes.size).fill(null);
  for (const [event, listeners] of routing.here) {
    const isChained = (target) => units.has(target) && pairs.has(pairOf(node, target));
    const near = listeners.filter(isChained);
    if (!near.length) continue;
    const rest = listeners.filter((target) => !isChained(target));
    const route = routing.routes.get(event);
    const targets = route.targets.filter((target) => target.log !== routing.pool || rest.length);
    chains[route.id] = new Chain(
      near.map((target) => units.get(target)),
      targets.map((target) => (target.log === routing.pool ? target.for(rest) : target)),
    );
  }
  return chains.some((chain) => chain !== null) ? chains : null;
}

/**
 * The events that chain into one node, as a run and the source of its events in one. Their ids, their times and what they
 * are emitted by follow from `parent`, the source of the stage before.
 */
class Chained {
  #data = new Writer(512);
  #places = new Map();
  #last = null;
  #name = 0;
  #ends = [];

  constructor(unit, parent) {
    this.unit = unit;
    this.parent = parent;
    this.run = this;
    this.retry = null;
    this.attempt = 1;
    this.ids = null;
    this.count = 0;
    this.names = [];
    /** One an event: which of the names; null if there is one. */
    this.index = null;
    this.keys = [];
    this.hops = [];
    this.hasContexts = false;
    this.contexts = [];
    /** One an event: the index of its parent, and which emit of it this is. */
    this.origins = [];
    this.ordinals = [];
  }

  /** One event more, whose data stands in `from`, from `start` to `end`; returns about how many bytes it is. */
  add(route, key, hops, context, origin, ordinal, from, start, end) {
    if (route !== this.#last) this.#turnTo(route);
    if (this.index !== null) this.index.push(this.#name);
    this.keys.push(key);
    this.hops.push(hops);
    this.contexts.push(context);
    if (context >= 0) this.hasContexts = true;
    this.origins.push(origin);
    this.ordinals.push(ordinal);
    this.#data.copy(from, start, end);
    this.#ends.push(this.#data.pos);
    this.count++;
    return end - start + PER_EVENT + (key === null ? 0 : key.length);
  }

  #turnTo(route) {
    this.#last = route;
    let place = this.#places.get(route);
    if (place === undefined) {
      this.#places.set(route, (place = this.names.length));
      this.names.push(route.name);
    }
    this.#name = place;
    if (this.names.length > 1 && this.index === null) this.index = new Array(this.count).fill(0);
  }

  get created() {
    return this.parent.created;
  }

  idOf(index) {
    return `${this.parent.idOf(this.origins[index])}.${this.ordinals[index]}`;
  }

  nameOf(index) {
    return this.names[this.index === null ? 0 : this.index[index]];
  }

  keyOf(index) {
    return this.keys[index];
  }

  hopsOf(index) {
    return this.hops[index];
  }

  contextOf(index) {
    return this.contexts[index];
  }

  /** The value as msgpack; null: nil. */
  raw(index) {
    const data = this.#data.buffer.subarray(index === 0 ? 0 : this.#ends[index - 1], this.#ends[index]);
    return data.length === 1 && data[0] === 0xc0 ? null : data;
  }

  column() {
    return new DataColumn(this.#data.written(), false);
  }
}

module.exports = { Chained, TooMuch, chainsOf };
