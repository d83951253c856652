"use strict";

const { ProtocolError } = require("./errors");
const { Reader } = require("./msgpack/reader");
const { Writer } = require("./msgpack/writer");
const { Progress } = require("./progress");

/** The messages of the protocol: those of the engine as objects, those of the worker as frames. */

const VERSION = 1;
const MAX_FRAME = 96 << 20;

const TAG = { welcome: 1, assign: 2, revoke: 3, work: 4, values: 5, drain: 6, peersChanged: 7, leased: 9, fetched: 10, levelsChanged: 11 };
const HELLO = 32;
const REFUSAL = 33;
const ASK = 34;
const ANNOUNCE = 35;
const BEAT = 36;
const STUCK = 37;
const RESULT = 38;
const LEASE = 40;
const FETCH = 41;
const KEEP = 42;

const OCTETS = "application/octet-stream";
const NONE = Buffer.alloc(0);

const DEFAULT_LIMITS = {
  max_event: 8 << 20,
  batch_target: 128 << 10,
  batch_max: 512 << 10,
  max_result: 64 << 20,
  max_hops: 10_000,
  cache_bytes: 64 << 20,
  named_deaths: 3,
};

/** A message of the engine: `{ kind, ... }`. */
function decode(bytes) {
  let fields;
  try {
    fields = new Reader(bytes, true).value();
  } catch (error) {
    throw new ProtocolError(`a frame of ${bytes.length} bytes is not a message: ${error.message}`);
  }
  if (!Array.isArray(fields)) throw new ProtocolError("a message that is no array");
  switch (fields[0]) {
    case TAG.welcome:
      return welcome(fields);
    case TAG.assign: {
      const [, partition, epoch, held = [], empty = false, chainNew = true] = fields;
      return { kind: "assign", partition, epoch, held, empty, chainNew };
    }
    case TAG.revoke:
      return { kind: "revoke", partition: fields[1], epoch: fields[2] };
    case TAG.work:
      return work(fields);
    case TAG.values:
      return { kind: "values", values: fields[1] };
    case TAG.drain:
      return { kind: "drain" };
    case TAG.peersChanged:
      return { kind: "peers", peers: fields[1] };
    case TAG.leased:
      return { kind: "leased", event: fields[1], node: fields[2], count: fields[3] };
    case TAG.fetched: {
      const [, id, stored = null, data = NONE, items = [], position = "", error = null] = fields;
      const shown = items.map(([key, item]) => [key, storedOf(item)]);
      return { kind: "fetched", id, stored: stored && storedOf(stored), data, items: shown, position, error };
    }
    case TAG.levelsChanged:
      return { kind: "levels", levels: fields[1] };
    default:
      throw new ProtocolError(`a message with the unknown tag ${String(fields[0])}`);
  }
}

function welcome(fields) {
  const [, version, pool, worker, partitions, limits, taken, unchained = [], bootOffset = 0, heartbeat = 30, most = 1000] =
    fields;
  return {
    kind: "welcome",
    version,
    pool,
    worker,
    partitions,
    limits: { ...DEFAULT_LIMITS, ...limits },
    taken: new Set(taken),
    unchained,
    bootOffset,
    heartbeat,
    concurrency: most,
    topology: fields[11] ?? null,
    peers: fields[12] ?? {},
    namespaces: new Map(Object.entries(fields[13] ?? {})),
    levels: fields[14] ?? {},
  };
}

/** An object as it lies there. */
function storedOf(fields) {
  const [number, size, checksum = NONE, time = 0, contentType = OCTETS, tags = [], user = {}, expires = 0] = fields;
  const [version = "", told = ""] = fields.slice(10);
  return { number, size, checksum, time, contentType, tags, user, expires, version, told };
}

/** Whether a frame holds a `Fetched`, which somebody may wait for who keeps all else from going on. */
function isFetched(frame) {
  return frame.length > 1 && frame[0] >> 4 === 9 && frame[1] === TAG.fetched;
}

function work(fields) {
  const [, partition, epoch, seq, batches = [], retries = [], careful = false, named = [], contextBase = 0, due, traced] =
    fields;
  return {
    kind: "work",
    partition,
    epoch,
    seq,
    batches: batches.map(batchItem),
    retries: retries.map(retryItem),
    careful,
    named: named.map(([id, node, kind, text, death, trace = ""]) => ({ id, node, kind, text, death, trace })),
    contextBase,
    deadlines: due instanceof Map ? due : null,
    traced: traced instanceof Map ? traced : null,
  };
}

function batchItem([position, idPrefix, created, events, body, done = [], contexts = 0, calls = false]) {
  const [first = 0, behind] = done;
  return { position, idPrefix, created, events, body, progress: new Progress(first, behind), contexts, calls };
}

function retryItem([hold, node, id, attempt, namedDeaths, created, body, rest = false, context = -1, given = []]) {
  const answers = given.map(([digest, data, isError = false]) => ({ digest, data, isError }));
  return { hold, node, id, attempt, namedDeaths, created, body, rest, context, answers };
}

/** A frame that is being written: `start`, then the fields, then `finish`. */
class Frame extends Writer {
  start(tag, fields) {
    this.pos = 4;
    this.array(fields + 1);
    this.int(tag);
    return this;
  }

  /** The frame as bytes: valid until the next one is started. */
  finish() {
    const size = this.pos - 4;
    if (size > MAX_FRAME) throw new ProtocolError(`a frame of ${size} bytes is over the limit of ${MAX_FRAME}`);
    this.buffer.writeUInt32LE(size, 0);
    return this.written();
  }
}

function hello(pid, topology) {
  const frame = new Frame().start(HELLO, 5);
  frame.int(VERSION);
  frame.int(pid);
  frame.str("javascript");
  frame.value(topology);
  frame.value(["partition", "cache", "chain", "timers", "calls", "peers", "rates", "objects", "logs"]);
  return frame.finish();
}

function refusal(kind, text) {
  const frame = new Frame().start(REFUSAL, 2);
  frame.str(kind);
  frame.str(text);
  return frame.finish();
}

function ask(partition, epoch, node, keys) {
  const frame = new Frame().start(ASK, 4);
  frame.int(partition);
  frame.int(epoch);
  frame.str(node);
  frame.array(keys.length);
  for (const key of keys) frame.textBytes(key);
  return frame.finish();
}

function announce(partition, epoch, id, node) {
  const frame = new Frame(256).start(ANNOUNCE, 4);
  frame.int(partition);
  frame.int(epoch);
  frame.str(id);
  frame.str(node);
  return frame.finish();
}

/** `isRunning`: a handler runs, or nobody knows. */
function beat(isRunning = true) {
  const frame = new Frame(16).start(BEAT, 1);
  frame.bool(isRunning);
  return frame.finish();
}

function stuck(partition, epoch, id, node, text, trace) {
  const frame = new Frame().start(STUCK, 6);
  frame.int(partition);
  frame.int(epoch);
  frame.str(id);
  frame.str(node);
  frame.str(text);
  frame.str(trace);
  return frame.finish();
}

function lease(event, node, count) {
  const frame = new Frame(256).start(LEASE, 3);
  frame.str(event);
  frame.str(node);
  frame.int(count);
  return frame.finish();
}

function fetch({ number, epoch }, id, what, namespace, key, start, end, position) {
  const frame = new Frame(512).start(FETCH, 9);
  frame.int(number);
  frame.int(epoch);
  frame.int(id);
  frame.str(what);
  frame.str(namespace);
  frame.str(key);
  frame.int(start);
  frame.int(end);
  frame.str(position);
  return frame.finish();
}

function keep({ number, epoch }, id, data, isLast, upload, isGivenUp) {
  const frame = new Frame(data.length + 64).start(KEEP, 7);
  frame.int(number);
  frame.int(epoch);
  frame.int(id);
  frame.bytes(data);
  frame.bool(isLast);
  frame.int(upload);
  frame.bool(isGivenUp);
  return frame.finish();
}

module.exports = {
  VERSION,
  MAX_FRAME,
  RESULT,
  Frame,
  decode,
  isFetched,
  hello,
  refusal,
  ask,
  announce,
  beat,
  stuck,
  lease,
  fetch,
  keep,
};
