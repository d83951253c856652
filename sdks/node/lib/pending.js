"use strict";

const { createHash } = require("node:crypto");

const { oneEvent } = require("./batch");
const {
  BadPayload,
  BadValue,
  CallFailed,
  HandlerError,
  NoAnswer,
  NoKey,
  Suspended,
  TooLarge,
  UnknownEvent,
} = require("./errors");
const { Reader } = require("./msgpack/reader");
const { Writer } = require("./msgpack/writer");
const { HandlerObjects } = require("./objects");
const { checkOptions, microseconds } = require("./options");
const { branchOf } = require("./routing");
const { didYouMean } = require("./similar");
const { Storage } = require("./storage");

/**
 * What one running event emits and replies: encoded at the line that says it, so that what cannot travel is an error
 * there, and handed to the effects of its partition only when the event has succeeded.
 */

const FINAL = Symbol("final reply");
const PART = Symbol("partial reply");
const CANCEL = Symbol("cancelled timer");

/** A buffer that one event has made larger than this is not kept. */
const KEPT = 1 << 20;
/** Bytes of an emit beside its data. */
const PER_EMIT = 24;
const MAX_WAIT = 2 ** 61;
/** Bytes of a timer beside what it emits. */
const PER_TIMER = 64;
const MAX_TIMER = 255;
const MAX_CALLS = 1000;
const DIGEST = 8;
const NO_ANSWERS = [];

const EMIT = { key: true, delay: true, timer: true };
const EMIT_MANY = { keys: true, data: true };
const REPLY = { final: true };
const CALL = { key: true, timeout: true };

class Pending {
  /**
   * `routing`, `partitions`, `limits` and `access` (to objects) of the worker; `onProgress`: called by `event.progress()`.
   */
  constructor(routing, partitions, limits, access, onProgress) {
    this.routing = routing;
    this.partitions = partitions;
    this.limits = limits;
    this.access = access;
    this.progress = onProgress;
    this.writer = new Writer(1024);
    this.node = "";
    this.own = 0;
    this.part = null;
    this.chains = null;
    this.count = 0;
    /** About how many bytes of a result it is. */
    this.size = 0;
    /** By what the event was left; it stays if the handler has caught that. */
    this.suspended = null;
    /** How many calls the event has come to. */
    this.called = 0;
    // Columns, one entry an emit: a route (or a symbol for replies and cancelled timers), its key, the partition, the
    // delay (-1: none), the name of the timer (null: none), and where its data ends.
    this.what = [];
    this.keys = [];
    this.numbers = [];
    this.delays = [];
    this.timers = [];
    this.ends = [];
    /** Objects that are written. */
    this.written = [];
  }

  /** An event of `unit` in `part` begins. */
  start(unit, part) {
    this.node = unit.node;
    this.own = part.number;
    this.part = part;
    this.chains = unit.chains[part.chainNew ? 1 : 0];
    this.suspended = null;
    this.called = 0;
    this.clear();
  }

  /** Forget what was emitted. */
  clear() {
    this.count = this.size = 0;
    if (this.written.length) this.written = [];
    this.writer.pos = 0;
    if (this.writer.buffer.length > KEPT) this.writer = new Writer(1024);
  }

  /** Sync handlers cannot be interrupted. */
  get signal() {
    return undefined;
  }

  // ---------------------------------------------------------------- what handlers call

  emit(event, name, data, options) {
    const route = this.routing.routes.get(name) ?? this.#other(name);
    if (options === undefined) this.#put(route, data, event.key, this.own, -1, null);
    else this.#emitAs(event, route, data, options);
  }

  #emitAs(event, route, data, options) {
    checkOptions("emit", options, EMIT);
    const key = options.key === undefined ? event.key : options.key;
    const delay = options.delay === undefined ? -1 : microseconds(options.delay);
    const timer = options.timer === undefined ? null : this.#timerName(event, options.timer);
    if (timer !== null && delay < 0) {
      throw new HandlerError(`timer: '${timer}' names an emit with a delay, and this one has none`);
    }
    this.#put(route, data, key, this.#partitionOf(event, key), delay, timer);
  }

  #partitionOf(event, key) {
    return key === null || key === event.key ? this.own : this.partitions.of(key);
  }

  emitMany(event, name, columns = {}) {
    checkOptions("emitMany", columns, EMIT_MANY);
    const { keys, data } = columns;
    const route = this.routing.routes.get(name) ?? this.#other(name);
    const count = keys?.length ?? data?.length;
    if (count === undefined || (keys && data && keys.length !== data.length)) {
      throw new HandlerError("emitMany takes { keys, data }: one of them, or both of the same length");
    }
    const { count: before, size } = this;
    const end = this.writer.pos;
    try {
      for (let i = 0; i < count; i++) {
        const key = keys === undefined ? event.key : keys[i];
        this.#put(route, data?.[i], key, this.#partitionOf(event, key), -1, null);
      }
    } catch (error) {
      this.count = before; // all or nothing, should the handler go on
      this.size = size;
      this.writer.pos = end;
      throw error;
    }
  }

  reply(event, data, options) {
    checkOptions("reply", options, REPLY);
    this.#put(options?.final === false ? PART : FINAL, data, null, this.own, -1, null);
  }

  cancelTimer(event, name) {
    this.#put(CANCEL, null, null, this.own, 0, this.#timerName(event, name));
  }

  #timerName(event, name) {
    if (typeof name !== "string") throw new HandlerError(`the name of a timer is a string, not a ${typeof name}`);
    const size = Buffer.byteLength(name);
    if (size < 1 || size > MAX_TIMER) {
      throw new HandlerError(`the name of a timer has 1 to ${MAX_TIMER} bytes of UTF-8, this one has ${size}`);
    }
    if (/\p{Surrogate}/u.test(name)) throw new BadValue("the name of a timer has a lone surrogate");
    if (event.key === null) {
      throw new NoKey(
        `node '${this.node}' used timer '${name}' in an event that has no key: a timer's name is one of a (node, key); ` +
          `emit the event with a key, or feed it with one`,
      );
    }
    return name;
  }

  // ---------------------------------------------------------------- objects

  storage(event) {
    return new Storage(event, this.access.own);
  }

  mayUse(event, namespace, what) {
    this.access.mayUse(this.node, namespace, what);
  }

  objects() {
    return new HandlerObjects(this.access, this.part);
  }

  /** An object is to be so; later events of the partition see it from now on. */
  write(written) {
    const { weight } = written;
    if (this.size + weight > this.limits.max_result) {
      throw tooMuch(this.limits.max_result, `${this.written.length + 1} objects`);
    }
    this.size += weight;
    this.written.push(written);
    this.part.note(written);
  }

  /** The event has failed. */
  undo() {
    for (const written of this.written) written.isUndone = true;
  }

  // ---------------------------------------------------------------- calls

  /**
   * Ask another node. The first time the handler is left here (`Suspended`); with the answer it runs once more from its
   * beginning, and this returns it. Calls are told apart by their order.
   */
  call(event, name, data, options = {}) {
    checkOptions("call", options, CALL);
    const { key: given, timeout = 30 } = options;
    const route = this.routing.routes.get(name) ?? this.#other(name, "calls");
    if (route.isOutput && !route.isForeign) {
      throw new UnknownEvent(`node '${this.node}' calls '${name}', which is an output: nothing answers there`);
    }
    const key = given === undefined ? event.key : given;
    const number = route.isForeign ? this.own : this.#partitionOf(event, key);
    const wait = microseconds(timeout, "timeout", MAX_WAIT);
    if (wait === 0) throw new HandlerError("timeout: 0: an answer takes longer than that");
    const { digest, packed } = this.#asked(name, given, data);
    if (this.suspended !== null) throw this.suspended; // beside another call of an async handler, which was first
    const answers = event._source.retry?.answers ?? NO_ANSWERS;
    const ordinal = this.called++;
    if (ordinal < answers.length) return this.#answer(answers[ordinal], ordinal, digest, name);
    if (ordinal >= MAX_CALLS) throw new HandlerError(`node '${this.node}' has made ${MAX_CALLS} calls for one event`);
    this.suspended = new Suspended(name, { route, key, number, data: packed, digest, timeout: wait });
    throw this.suspended;
  }

  /** What is asked, as a digest, and its data as msgpack. */
  #asked(name, key, data) {
    const { writer } = this;
    const start = writer.pos;
    try {
      writer.array(3);
      writer.str(name);
      if (key === undefined) writer.nil();
      else writer.value([key]);
      const at = writer.pos;
      this.#write(data);
      const digest = createHash("sha256").update(writer.buffer.subarray(start, writer.pos)).digest().subarray(0, DIGEST);
      return { digest, packed: Buffer.from(writer.buffer.subarray(at, writer.pos)) };
    } finally {
      writer.pos = start;
    }
  }

  #answer({ digest, data, isError }, ordinal, asked, name) {
    if (!asked.equals(digest)) {
      throw new HandlerError(
        `call ${ordinal + 1} of node '${this.node}' was another one when its event ran before: up to its last call a ` +
          `handler must do the same every time (no time, no chance, nothing from outside)`,
      );
    }
    let value;
    try {
      value = new Reader(data).value();
    } catch (error) {
      if (error instanceof BadPayload) throw new BadPayload(`the answer to '${name}' cannot be read: ${error.message}`);
      throw error;
    }
    if (!isError) return value;
    const { code, text, node } = value.error;
    throw code === "no-answer" ? new NoAnswer(text) : new CallFailed(code, text, node);
  }

  /** What the event fails with, or is left by, if its handler threw `error`; null: it has returned. */
  leftBy(error) {
    const { suspended } = this;
    if (error instanceof Suspended && error !== suspended) {
      return new HandlerError(`node '${this.node}' was left by a call that another event has made`);
    }
    if (suspended === null || error === suspended) return error;
    return new HandlerError(
      `node '${this.node}' caught what ends its handler while it waits for the answer to '${suspended.event}': a catch ` +
        `has to throw again what is no CallFailed and no NoAnswer`,
    );
  }

  /** Append a value; returns how many bytes it has. */
  #write(data) {
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
    return size;
  }

  #put(what, data, key, number, delay, timer) {
    const { writer, limits } = this;
    const start = writer.pos;
    const size = this.#write(data);
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
    this.timers[at] = timer;
    this.ends[at] = writer.pos;
  }

  /** Where a name leads that the app itself does not have: to another app, or nowhere. */
  #other(name, does = "emits") {
    if (typeof name !== "string" || !name.includes("@")) throw this.#unknown(name, does);
    const problem = this.routing.problemOf(name);
    if (problem) throw new UnknownEvent(`node '${this.node}' ${does} '${name}', but ${problem}`);
    return this.routing.routeTo(name);
  }

  #unknown(name, does = "emits") {
    if (typeof name !== "string") return new HandlerError(`the name of an event is a string, not a ${typeof name}`);
    const { app, routes } = this.routing;
    const hint = didYouMean(name, routes.keys());
    return new UnknownEvent(`node '${this.node}' ${does} '${name}', neither a slot nor an output of '${app}'${hint}`);
  }

  // ---------------------------------------------------------------- when it has succeeded

  /** Hand everything to `effects`: event `index` of `source` has succeeded. */
  commit(effects, source, index) {
    const { what, keys, numbers, delays, ends, chains } = this;
    const buffer = this.writer.buffer;
    const hops = source.hopsOf(index) + 1;
    const context = source.contextOf(index);
    const branch = chains === null ? "" : branchOf(this.routing, source.nameOf(index), this.node);
    let start = 0;
    for (let i = 0; i < this.count; i++) {
      const route = what[i];
      const end = ends[i];
      if (route === CANCEL) this.#cancel(effects, source.keyOf(index), this.timers[i]);
      else if (typeof route === "symbol") {
        if (context >= 0) {
          const data = Buffer.from(buffer.subarray(start, end));
          effects.replies.push({ context, data, isFinal: route === FINAL });
          effects.size += data.length + 16;
        }
      } else {
        effects.emits++;
        effects.emitted[route.id]++;
        const timer = this.timers[i];
        if (timer !== null) this.#cancel(effects, source.keyOf(index), timer); // it takes the place of the one before
        if (!route.isDropped) {
          if (delays[i] < 0) {
            const number = route.isOutput ? this.own : numbers[i];
            const chain = chains === null || number !== this.own ? null : (chains[route.id] ?? null);
            if (chain !== null) {
              for (const unit of chain.units) {
                const chained = effects.chainedInto(unit, source);
                effects.size += chained.add(route, keys[i], hops, context, index, branch + i, buffer, start, end);
              }
            }
            for (const target of chain === null ? route.targets : chain.targets) {
              effects.size += effects.outbox.add(target, number, route, keys[i], hops, context, buffer, start, end);
            }
          } else this.#delay(effects, route, i, start, end, context, source.keyOf(index));
        }
      }
      start = end;
    }
    for (const written of this.written) {
      effects.objects.push(written);
      effects.size += written.weight;
    }
  }

  #cancel(effects, key, timer) {
    effects.timers.push({ delay: 0, log: null, name: { node: this.node, key, timer } });
    effects.size += PER_TIMER;
  }

  #delay(effects, route, index, start, end, context, key) {
    const timer = this.timers[index];
    const name = timer === null ? null : { node: this.node, key, timer };
    const data = this.writer.buffer.subarray(start, end);
    const isNil = data.length === 1 && data[0] === 0xc0;
    const body = oneEvent(route.name, this.keys[index], isNil ? null : data, 0, context >= 0);
    for (const { log } of route.targets) {
      effects.timers.push({ delay: this.delays[index], log, partition: this.numbers[index], body, context, name });
      effects.size += body.length + PER_TIMER;
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

module.exports = { Pending, tooMuch };
