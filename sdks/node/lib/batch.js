"use strict";

const { BadPayload, ProtocolError } = require("./errors");
const { Reader, TextCache } = require("./msgpack/reader");
const { Writer } = require("./msgpack/writer");

/** The body of a record batch: runs of events in columns. Only what a handler asks for is decoded. */

const HEAD = 16;

const keyTexts = new TextCache(65_536);

/** Stands in a column for data that could not be read. */
class Unreadable {
  constructor(error) {
    this.error = error;
  }
}

/** Values of a column in their order, decoded as far as they are asked for; every node has its own to change. */
class DataColumn {
  /** `isArray`: `packed` is an array, else values one after the other. */
  constructor(packed, isArray = true) {
    this.reader = new Reader(packed);
    if (isArray) this.reader.arrayLength();
    this.index = 0;
  }

  /** The value at `index`, which never goes back. */
  at(index) {
    const reader = this.reader;
    while (this.index < index) {
      reader.skip();
      this.index++;
    }
    this.index++;
    const start = reader.pos;
    try {
      return reader.value();
    } catch (error) {
      reader.depth = 0;
      reader.pos = start;
      reader.skip();
      return new Unreadable(error);
    }
  }
}

/** One run as it stands in a body. `keys`: a list, null where no event has one; `data`: msgpack. */
class Run {
  constructor(count, meta, keys, data) {
    this.count = count;
    this.names = meta.names;
    this.index = meta.index ?? null;
    this.hops = meta.hops ?? 0;
    this.only = meta.only ?? null;
    this.ids = meta.ids ?? null;
    this.contexts = meta.contexts ?? null;
    this.data = data;
    this.keys = keys;
    this.offsets = null;
  }

  nameOf(index) {
    return this.index === null ? this.names[0] : this.names[this.index[index]];
  }

  hopsOf(index) {
    return typeof this.hops === "number" ? this.hops : this.hops[index];
  }

  /** An id that does not follow from the batch's. */
  idOf(index) {
    const ids = this.ids;
    if (ids === null) return undefined;
    return ids instanceof Map ? ids.get(index) : ids[index];
  }

  /** A reader of the values for one node; null: all are nil. */
  column() {
    return this.data.length ? new DataColumn(this.data) : null;
  }

  /** The value as msgpack, as it stands in the log; null: nil. */
  raw(index) {
    return this.data.length ? this.#values(index, index + 1) : null;
  }

  /** The values from `start` to `end`, as they stand in the log. */
  #values(start, end) {
    if (this.offsets === null) {
      const reader = new Reader(this.data);
      reader.arrayLength();
      this.offsets = new Array(this.count + 1);
      for (let i = 0; i < this.count; i++) {
        this.offsets[i] = reader.pos;
        reader.skip();
      }
      this.offsets[this.count] = reader.pos;
    }
    return this.data.subarray(this.offsets[start], this.offsets[end]);
  }

  /**
   * As runs whose names all lead to the same, events in order: older code may have stored it, in which its names had the
   * same listeners. `leadsTo(name)`: what it leads to, as text.
   */
  split(leadsTo) {
    if (this.index === null) return [this];
    const targets = this.names.map(leadsTo);
    if (targets.every((target) => target === targets[0])) return [this];
    const runs = [];
    for (let start = 0, end; start < this.count; start = end) {
      const target = targets[this.index[start]];
      for (end = start + 1; end < this.count && targets[this.index[end]] === target; ) end++;
      runs.push(this.#part(start, end));
    }
    return runs;
  }

  /** The events from `start` to `end` alone. */
  #part(start, end) {
    const index = this.index.subarray(start, end);
    const used = [...new Set(index)];
    const meta = {
      names: used.map((name) => this.names[name]),
      index: used.length > 1 ? Uint8Array.from(index, (name) => used.indexOf(name)) : null,
      hops: typeof this.hops === "number" ? this.hops : this.hops.slice(start, end),
      only: this.only,
      contexts: this.contexts?.slice(start, end),
    };
    if (this.ids !== null) {
      meta.ids = new Map();
      for (let i = start; i < end; i++) if (this.idOf(i) !== undefined) meta.ids.set(i - start, this.idOf(i));
    }
    const head = new Writer(8);
    head.array(end - start);
    const data = this.data.length ? Buffer.concat([head.written(), this.#values(start, end)]) : this.data;
    return new Run(end - start, meta, this.keys?.slice(start, end) ?? null, data);
  }
}

function keysOf(packed, count) {
  const reader = new Reader(packed);
  if (reader.arrayLength() !== count) throw new ProtocolError("a run with another number of keys");
  const keys = new Array(count);
  for (let i = 0; i < count; i++) keys[i] = reader.textOrNil(keyTexts);
  return keys;
}

/** The runs of a body, in order. */
function runsOf(body) {
  const runs = [];
  let at = 0;
  while (at < body.length) {
    if (body.length - at < HEAD) throw new ProtocolError("a run is cut off in its header");
    const count = body.readUInt32LE(at);
    const metaEnd = at + HEAD + body.readUInt32LE(at + 4);
    const keysEnd = metaEnd + body.readUInt32LE(at + 8);
    const dataEnd = keysEnd + body.readUInt32LE(at + 12);
    if (dataEnd > body.length) throw new ProtocolError("a run is longer than its batch");
    try {
      const meta = new Reader(body.subarray(at + HEAD, metaEnd), true).value();
      const keys = keysEnd > metaEnd ? keysOf(body.subarray(metaEnd, keysEnd), count) : null;
      runs.push(new Run(count, meta, keys, body.subarray(keysEnd, dataEnd)));
    } catch (error) {
      if (error instanceof BadPayload) throw new ProtocolError(`a run cannot be read: ${error.message}`);
      throw error;
    }
    at = dataEnd;
  }
  return runs;
}

const scratch = new Writer(4096);

/** The body of a single event. `data`: msgpack, or null for nil. `context`: whether it has the first of the body's. */
function oneEvent(name, key, data, hops, context = false) {
  const writer = scratch;
  writer.pos = HEAD;
  writer.map(1 + (hops ? 1 : 0) + (context ? 1 : 0));
  writer.str("names");
  writer.array(1);
  writer.str(name);
  if (hops) {
    writer.str("hops");
    writer.int(hops);
  }
  if (context) {
    writer.str("contexts");
    writer.array(1);
    writer.int(0);
  }
  const metaEnd = writer.pos;
  if (key !== null) {
    writer.array(1);
    writer.str(key);
  }
  const keysEnd = writer.pos;
  if (data !== null) {
    writer.array(1);
    writer.raw(data);
  }
  const buffer = writer.buffer;
  buffer.writeUInt32LE(1, 0);
  buffer.writeUInt32LE(metaEnd - HEAD, 4);
  buffer.writeUInt32LE(keysEnd - metaEnd, 8);
  buffer.writeUInt32LE(writer.pos - keysEnd, 12);
  const body = Buffer.from(writer.written());
  if (buffer.length > 1 << 20) scratch.buffer = Buffer.allocUnsafeSlow(4096); // one large event is not kept
  return body;
}

module.exports = { DataColumn, HEAD, Run, Unreadable, runsOf, oneEvent };
