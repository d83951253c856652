"use strict";

const { HEAD } = require("./batch");
const { Writer } = require("./msgpack/writer");

/** What is emitted, by target log and partition, in columns that are msgpack already. */

const MAX_NAMES = 255;
/** Bytes that an event may take in the columns of a run's meta: index of its name, hops and context. */
const PER_EVENT = 16;
/** Bytes that a run takes beside events and names. */
const PER_RUN = 96;
/** A lane's buffers are kept for the next one up to this size. */
const KEPT = 1 << 20;

/** A run that grows. */
class Lane {
  constructor() {
    this.keys = new Writer(512);
    this.data = new Writer(1024);
    this.meta = new Writer(128);
  }

  start(target, partition) {
    this.target = target;
    this.partition = partition;
    this.keys.pos = this.data.pos = 0;
    this.count = 0;
    this.namesSize = 0;
    this.head = PER_RUN + sizeOf(target.only);
    this.size = this.head;
    this.names = [];
    this.index = null;
    this.route = null;
    this.nameIndex = 0;
    this.hasKeys = this.hasData = false;
    this.hops = -1;
    this.hopsEach = null;
    this.contexts = null;
    return this;
  }

  /** Whether one more event of this size may be added. */
  fits(target, route, size, limits) {
    return (
      this.target.group === target.group &&
      this.size < limits.batch_target &&
      this.size + size + 3 * route.name.length < limits.batch_max &&
      (route === this.route || this.names.length < MAX_NAMES)
    );
  }

  /** Append an event, whose data stands in `from`, from `start` to `end`. */
  add(route, key, hops, context, from, start, end) {
    if (route !== this.route) this.#turnTo(route);
    if (this.index !== null) this.index.push(this.nameIndex);
    if (key !== null) {
      if (!this.hasKeys) this.hasKeys = fillNils(this.keys, this.count);
      this.keys.str(key);
    } else if (this.hasKeys) this.keys.nil();
    if (end - start !== 1 || from[start] !== 0xc0) {
      if (!this.hasData) this.hasData = fillNils(this.data, this.count);
      this.data.copy(from, start, end);
    } else if (this.hasData) this.data.nil();
    if (this.hopsEach !== null) this.hopsEach.push(hops);
    else if (hops !== this.hops) this.#differInHops(hops);
    if (this.contexts !== null) this.contexts.push(context);
    else if (context >= 0) {
      this.contexts = new Array(this.count).fill(-1);
      this.contexts.push(context);
    }
    this.count++;
    this.size = this.head + this.namesSize + this.keys.pos + this.data.pos + this.count * PER_EVENT;
  }

  #turnTo(route) {
    this.route = route;
    let at = this.names.indexOf(route.name);
    if (at < 0) {
      at = this.names.length;
      this.names.push(route.name);
      this.namesSize += 3 + 3 * route.name.length;
    }
    this.nameIndex = at;
    if (this.names.length > 1 && this.index === null) this.index = new Array(this.count).fill(0);
  }

  #differInHops(hops) {
    if (this.count === 0) this.hops = hops;
    else {
      this.hopsEach = new Array(this.count).fill(this.hops);
      this.hopsEach.push(hops);
    }
  }

  /** Encode the meta; `numbers`: the contexts of the body so far, as number -> index. Returns the size of the run. */
  seal(numbers) {
    const meta = this.meta;
    meta.pos = 0;
    // No event is without a byte: a body that says more events than it has bytes is refused.
    if (!this.hasKeys && !this.hasData && this.count > 1) this.hasData = fillNils(this.data, this.count);
    const hasHops = this.hopsEach !== null || this.hops > 0;
    const { only } = this.target;
    const fields = [this.index !== null, hasHops, only !== null, this.contexts !== null];
    meta.map(1 + fields.filter(Boolean).length);
    meta.str("names");
    meta.array(this.names.length);
    for (const name of this.names) meta.str(name);
    if (this.index !== null) {
      meta.str("index");
      meta.bytes(this.index);
    }
    if (hasHops) {
      meta.str("hops");
      if (this.hopsEach === null) meta.int(this.hops);
      else writeInts(meta, this.hopsEach);
    }
    if (only !== null) {
      meta.str("only");
      meta.array(only.length);
      for (const node of only) meta.str(node);
    }
    if (this.contexts !== null) {
      meta.str("contexts");
      writeInts(meta, this.contexts.map((number) => (number < 0 ? -1 : placeOf(numbers, number))));
    }
    return HEAD + meta.pos + this.#columnSize(this.hasKeys, this.keys) + this.#columnSize(this.hasData, this.data);
  }

  #columnSize(has, column) {
    return has ? column.pos + (this.count < 16 ? 1 : this.count < 0x10000 ? 3 : 5) : 0;
  }

  /** Write the sealed run. */
  write(frame) {
    frame.u32le(this.count);
    frame.u32le(this.meta.pos);
    frame.u32le(this.#columnSize(this.hasKeys, this.keys));
    frame.u32le(this.#columnSize(this.hasData, this.data));
    frame.raw(this.meta.written());
    if (this.hasKeys) {
      frame.array(this.count);
      frame.raw(this.keys.written());
    }
    if (this.hasData) {
      frame.array(this.count);
      frame.raw(this.data.written());
    }
  }

  get isWorthKeeping() {
    return this.data.buffer.length <= KEPT && this.keys.buffer.length <= KEPT;
  }
}

/** At most so many bytes names are. */
function sizeOf(names) {
  return (names ?? []).reduce((size, name) => size + 5 + 3 * name.length, 0);
}

function fillNils(column, count) {
  for (let i = 0; i < count; i++) column.nil();
  return true;
}

function writeInts(writer, numbers) {
  writer.array(numbers.length);
  for (const number of numbers) writer.int(number);
}

function placeOf(numbers, number) {
  let at = numbers.get(number);
  if (at === undefined) numbers.set(number, (at = numbers.size));
  return at;
}

const spare = [];

class Outbox {
  #limits;
  #partitions;
  #open = new Map();
  #lanes = [];

  constructor(limits, partitions) {
    this.#limits = limits;
    this.#partitions = partitions;
  }

  get isEmpty() {
    return this.#lanes.length === 0;
  }

  /** Append one event to a log; returns about how many bytes it is. */
  add(target, partition, route, key, hops, context, from, start, end) {
    const place = target.order * this.#partitions + partition;
    const size = end - start + PER_EVENT + (key === null ? 0 : 3 * key.length);
    let lane = this.#open.get(place);
    if (lane === undefined || !lane.fits(target, route, size, this.#limits)) {
      lane = (spare.pop() ?? new Lane()).start(target, partition);
      this.#open.set(place, lane);
      this.#lanes.push(lane);
    }
    lane.add(route, key, hops, context, from, start, end);
    return size;
  }

  /** Forget everything. */
  clear() {
    for (const lane of this.#lanes) if (spare.length < 1024 && lane.isWorthKeeping) spare.push(lane);
    this.#lanes = [];
    this.#open.clear();
  }

  /** Write everything as a list of Emitted, and start anew. */
  pack(frame) {
    const bodies = this.#bodies();
    frame.array(bodies.length);
    for (const { lanes, size, events, contexts } of bodies) {
      const { target, partition } = lanes[0];
      frame.array(contexts.size ? 5 : 4);
      frame.str(target.log);
      frame.int(partition);
      frame.int(events);
      frame.binHead(size);
      for (const lane of lanes) lane.write(frame);
      if (contexts.size) writeInts(frame, [...contexts.keys()]);
    }
    this.clear();
  }

  /** The lanes of each log's partition together, in the order in which they were begun, in bodies of allowed size. */
  #bodies() {
    const bodies = [];
    const last = new Map();
    for (const lane of this.#lanes) {
      const place = lane.target.logId * this.#partitions + lane.partition;
      let body = last.get(place);
      if (body === undefined || body.size + lane.size > this.#limits.batch_max) {
        body = { lanes: [], size: 0, events: 0, contexts: new Map() };
        last.set(place, body);
        bodies.push(body);
      }
      body.lanes.push(lane);
      body.size += lane.seal(body.contexts);
      body.events += lane.count;
    }
    return bodies;
  }
}

module.exports = { Outbox };
