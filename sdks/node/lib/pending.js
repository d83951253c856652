"use strict";

const { oneEvent } = require("./batch");
const { BadValue, HandlerError, TooLarge, UnknownEvent } = require("./errors");
const { Writer } = require("./msgpack/writer");
const { didYouMean } = require("./similar");

/**
 * What one running event emits and replies: encoded at the line that says it, so that what cannot travel is an error
 * there, and handed to the effects of its partition only when the event has succeeded.
 */

const FINAL = Symbol("final reply");
const PART = Symbol("partial reply");

/** A buffer that one event has made larger than this is not kept. */
const KEPT = 1 << 20;
/** Bytes of an emit beside its data. */
const PER_EMIT = 24;
const MAX_DELAY = 2 ** 62;

const EMIT = { key: true, delay: true };
const EMIT_MANY = { keys: true, data: true };
const REPLY = { final: true };

/** A wrong name would be an emit without what it was meant to have. */
function check(method, options, known) {
  for (const name in options) {
    if (known[name] !== true) {
      throw new HandlerError(`${method} has no option '${name}'${didYouMean(name, Object.keys(known))}`);
    }
  }
}

class Pending {
  /**
   * `routing`, `partitions` and `limits` of the worker; `onProgress`: called by `event.progress()`.
   */
  constructor(routing, partitions, limits, onProgress) {
    this.routing = routing;
    this.partitions = partitions;
    this.limits = limits;
    this.progress = onProgress;
    this.writer = new Writer(1024);
    this.node = "";
    this.own = 0;
    this.count = 0;
    /** About how many bytes of a result it is. */
    this.size = 0;
    // Columns, one entry an emit: a route (or a symbol for replies), its key, the partition, the delay (-1: none), and
    // where its data ends.
    this.what = [];
    this.keys = [];
    this.numbers = [];
    this.delays = [];
    this.ends = [];
  }

  /** An event of `node` in partition `own` begins. */
  start(node, own) {
    this.node = node;
    this.own = own;
    this.clear();
  }

  /** Forget what was emitted. */
  clear() {
    this.count = this.size = 0;
    this.writer.pos = 0;
    if (this.writer.buffer.length > KEPT) this.writer = new Writer(1024);
  }

  /** Sync handlers cannot be interrupted. */
  get signal() {
    return undefined;
  }

  // ---------------------------------------------------------------- what handlers call

  emit(event, name, data, options) {
    const route = this.routing.routes.get(name);
    if (route === undefined) throw this.#unknown(name);
    if (options === undefined) this.#put(route, data, event.key, this.own, -1);
    else this.#emitAs(event, route, data, options);
  }

  #emitAs(event, route, data, options) {
    check("emit", options, EMIT);
    const key = options.key === undefined ? event.key : options.key;
    const delay = options.delay === undefined ? -1 : microseconds(options.delay);
    this.#put(route, data, key, this.#partitionOf(event, key), delay);
  }

  #partitionOf(event, key) {
    return key === null || key === event.key ? this.own : this.partitions.of(key);
  }

  emitMany(event, name, columns = {}) {
    check("emitMany", columns, EMIT_MANY);
    const { keys, data } = columns;
    const route = this.routing.routes.get(name);
    if (route === undefined) throw this.#unknown(name);
    const count = keys?.length ?? data?.length;
    if (count === undefined || (keys && data && keys.length !== data.length)) {
      throw new HandlerError("emitMany takes { keys, data }: one of them, or both of the same length");
    }
    const { count: before, size } = this;
    const end = this.writer.pos;
    try {
      for (let i = 0; i < count; i++) {
        const key = keys === undefined ? event.key : keys[i];
        this.#put(route, data?.[i], key, this.#partitionOf(event, key), -1);
      }
    } catch (error) {
      this.count = before; // all or nothing, should the handler go on
      this.size = size;
      this.writer.pos = end;
      throw error;
    }
  }

  reply(event, data, options) {
    check("reply", options, REPLY);
    this.#put(options?.final === false ? PART : FINAL, data, null, this.own, -1);
  }

  #put(what, data, key, number, delay) {
    const { writer, limits } = this;
    const start = writer.pos;
    try {
      writer.value(data);
    } catch (error) {
      writer.pos = start;
      if (error instanceof BadValue) Error.captureStackTrace(error); // it may have been found deep in the value
      throw error;
    }
    const size = writer.pos - start;
    if (size > limits.max_event) {
      writer.pos = start;
      throw new TooLarge(`data of ${size} encoded bytes are over max-event (${limits.max_event})`);
    }
    const copies = typeof what === "symbol" ? 1 : what.isDropped ? 0 : what.targets.length;
    if (this.size + copies * (size + PER_EMIT) > limits.max_result) {
      writer.pos = start;
      throw tooMuch(limits.max_result, `${this.count + 1} emits`);
    }
    this.size += copies * (size + PER_EMIT);
    const at = this.count++;
    this.what[at] = what;
    this.keys[at] = key;
    this.numbers[at] = number;
    this.delays[at] = delay;
    this.ends[at] = writer.pos;
  }

  #unknown(name) {
    if (typeof name !== "string") return new HandlerError(`the name of an event is a string, not a ${typeof name}`);
    const { app, routes } = this.routing;
    const hint = didYouMean(name, routes.keys());
    return new UnknownEvent(`node '${this.node}' emits '${name}', neither a slot nor an output of '${app}'${hint}`);
  }

  // ---------------------------------------------------------------- when it has succeeded

  /** Hand everything to `effects`: event `index` of `source` has succeeded. */
  commit(effects, source, index) {
    const { what, keys, numbers, delays, ends } = this;
    const buffer = this.writer.buffer;
    const hops = source.hopsOf(index) + 1;
    const context = source.contextOf(index);
    let start = 0;
    for (let i = 0; i < this.count; i++) {
      const route = what[i];
      const end = ends[i];
      if (typeof route === "symbol") {
        if (context >= 0) {
          const data = Buffer.from(buffer.subarray(start, end));
          effects.replies.push({ context, data, isFinal: route === FINAL });
          effects.size += data.length + 16;
        }
      } else {
        effects.emits++;
        effects.emitted[route.id]++;
        if (!route.isDropped) {
          if (delays[i] < 0) {
            const number = route.isOutput ? this.own : numbers[i];
            for (const target of route.targets) {
              effects.size += effects.outbox.add(target, number, route, keys[i], hops, context, buffer, start, end);
            }
          } else this.#delay(effects, route, i, start, end, context);
        }
      }
      start = end;
    }
  }

  #delay(effects, route, index, start, end, context) {
    const data = this.writer.buffer.subarray(start, end);
    const isNil = data.length === 1 && data[0] === 0xc0;
    const body = oneEvent(route.name, this.keys[index], isNil ? null : data, 0, context >= 0);
    for (const { log } of route.targets) {
      effects.timers.push({ delay: this.delays[index], log, partition: this.numbers[index], body, context });
      effects.size += body.length + 32;
    }
  }
}

/** The error for an event whose effects are more than a result can hold. */
function tooMuch(maxResult, what) {
  return new TooLarge(
    `one event had effects of over ${maxResult >> 20} MiB (max-result): ${what}; do less, or emit events to itself ` +
      `that go on with the rest`,
  );
}

function microseconds(delay) {
  const us = Math.round(Number(delay) * 1e6);
  if (typeof delay !== "number" || !(us >= 0 && us <= MAX_DELAY)) {
    throw new HandlerError(`delay is a number of seconds, from 0 on, not ${String(delay)}`);
  }
  return us;
}

module.exports = { Pending, tooMuch };
