"use strict";

const { createHash } = require("node:crypto");
const { spawn } = require("node:child_process");
const path = require("node:path");

const { Reader } = require("../lib/msgpack/reader");
const { Writer } = require("../lib/msgpack/writer");
const { FrameReader } = require("../lib/socket");

/**
 * An engine for tests: starts a real worker process over a real socket pair, speaks the protocol with it and shows what
 * it says as plain objects.
 */

const NAMES = { 32: "hello", 33: "refusal", 34: "ask", 35: "announce", 36: "beat", 37: "stuck", 38: "result", 40: "lease", 41: "fetch", 42: "keep" };

const FAILURE = [
  "node",
  "event",
  "id",
  "key",
  "created",
  "body",
  "hold",
  "behind",
  "context",
  "kind",
  "text",
  "trace",
  "named",
  "final",
  "call",
];

class Engine {
  /** Start the app in `fixtures/NAME.js`. */
  constructor(name, { config = {}, env = {} } = {}) {
    const entry = path.join(__dirname, "fixtures", `${name}.js`);
    const line = [entry, "--config", JSON.stringify(config), "--fd", "3", "--parent", String(process.pid)];
    this.process = spawn(process.execPath, line, {
      stdio: ["ignore", "pipe", "pipe", "pipe"],
      env: { ...process.env, ...env },
    });
    this.output = "";
    this.errors = "";
    /** Those who wait for the next piece of either. */
    this.readers = [];
    for (const [stream, said] of [[this.process.stdout, "output"], [this.process.stderr, "errors"]]) {
      stream.on("data", (data) => {
        this[said] += data;
        for (const resolve of this.readers.splice(0)) resolve();
      });
    }
    this.exited = new Promise((resolve) => this.process.on("close", (code, signal) => resolve({ code, signal })));
    this.socket = this.process.stdio[3];
    this.messages = [];
    this.waiting = [];
    this.beats = 0;
    /** What the signs of life said. */
    this.running = [];
    /** (node, key) -> record, for the questions of the worker. */
    this.store = new Map();
    this.asked = [];
    /** Questions wait for `answer()`. */
    this.isMute = false;
    this.unanswered = null;
    this.askers = [];
    /** "namespace/key" -> bytes */
    this.objects = new Map();
    this.blobs = new Map();
    this.coming = new Map();
    /** What was asked of objects, and whether answers take a while. */
    this.stored = [];
    this.isSlow = false;
    this.seq = 0;
    const frames = new FrameReader();
    this.socket.on("data", (data) => frames.feed(data, (frame) => this.#received(frame)));
    this.socket.on("error", () => {});
  }

  #received(frame) {
    const [tag, ...fields] = new Reader(frame, true).value();
    const kind = NAMES[tag];
    if (kind === "beat") {
      this.beats++;
      this.running.push(fields[0] ?? true);
      return;
    }
    if (kind === "fetch" || kind === "keep") {
      this.stored.push([kind, ...fields]);
      if (this.isSlow) setTimeout(() => this.fetched(kind, fields), 20);
      else this.fetched(kind, fields);
      return;
    }
    const message = { kind, fields };
    if (kind === "ask") {
      const [, , node, keys] = fields;
      this.asked.push(keys.map(String));
      this.unanswered = [keys.map((key) => this.store.get(`${node}/${key}`) ?? null)];
      this.askers.splice(0).forEach((resolve) => resolve());
      if (!this.isMute) this.answer();
      return;
    }
    if (kind === "result") Object.assign(message, showResult(fields));
    const waiter = this.waiting.shift();
    if (waiter) waiter(message);
    else this.messages.push(message);
  }

  /** The answer to a question for objects. */
  fetched(kind, [, , id, ...fields]) {
    if (kind === "keep") {
      const [data, last, upload, isGivenUp] = fields;
      const parts = [...(this.coming.get(upload) ?? []), data];
      if (last) this.coming.delete(upload);
      else this.coming.set(upload, parts);
      let digest = Buffer.alloc(0);
      if (last && !isGivenUp) {
        const whole = Buffer.concat(parts);
        digest = digestOf(whole);
        this.blobs.set(digest.toString("hex"), whole);
      }
      this.send(10, [id, null, digest]);
      return;
    }
    const [what, namespace, key, start, end, position] = fields;
    const known = (bytes) => [1, bytes.length, digestOf(bytes), 1_700_000_000_000_000, "text/plain"];
    if (what === "page") {
      const keys = [...this.objects.keys()].filter((one) => one.startsWith(`${namespace}/${key}`)).sort();
      this.send(10, [id, null, Buffer.alloc(0), keys.map((one) => [one.slice(namespace.length + 1), known(this.objects.get(one))])]);
      return;
    }
    const found = position ? this.blobs.get(position) : this.objects.get(`${namespace}/${key}`);
    if (found === undefined) this.send(10, [id]);
    else this.send(10, [id, known(found), what === "read" ? found.subarray(start, end < 0 ? undefined : end).subarray(0, 1 << 20) : Buffer.alloc(0)]);
  }

  /** Wait until the worker's "output" or "errors" match: pipes of their own, not in step with the socket. */
  async said(stream, pattern) {
    while (!pattern.test(this[stream])) {
      const more = new Promise((resolve) => this.readers.push(() => resolve(true)));
      if ((await Promise.race([more, this.exited])) === true) continue;
      if (!pattern.test(this[stream])) throw new Error(`the worker ended, and its ${stream} is without ${pattern}: ${this[stream]}`);
    }
  }

  /** Wait until it has asked. */
  asking() {
    return this.unanswered === null ? new Promise((resolve) => this.askers.push(resolve)) : Promise.resolve();
  }

  answer() {
    this.send(5, this.unanswered);
    this.unanswered = null;
  }

  async next(kind) {
    const message =
      this.messages.shift() ??
      (await Promise.race([
        new Promise((resolve) => this.waiting.push(resolve)),
        this.exited.then(({ code, signal }) => {
          throw new Error(`the worker ended (${code ?? signal}): ${this.errors}${this.output}`);
        }),
      ]));
    if (kind && message.kind !== kind) throw new Error(`${message.kind} instead of ${kind}: ${JSON.stringify(message)}`);
    return message;
  }

  send(tag, fields) {
    const writer = new Writer();
    writer.pos = 4;
    writer.value([tag, ...fields]);
    writer.buffer.writeUInt32LE(writer.pos - 4, 0);
    this.socket.write(Buffer.from(writer.written()));
  }

  /** Take the hello, welcome the worker and give it partition 0. Returns its topology. */
  async welcome({ limits = {}, taken = [], outputs = [], extra = {}, partitions = 1, held = [], empty = true, beat = 30, namespaces = { app: "write" } } = {}) {
    const hello = await this.next("hello");
    const own = hello.fields[3];
    this.topology = {
      name: "app",
      nodes: [...own.nodes.map((node) => ({ ...node, pool: "js" })), ...(extra.nodes ?? [])],
      slots: [...own.slots, ...(extra.slots ?? [])],
      outputs,
      pools: [{ name: "js" }],
    };
    this.send(1, [1, "js", "js-1", partitions, limits, taken, [], 0, beat, 1000, this.topology, {}, namespaces]);
    for (let number = 0; number < partitions; number++) this.assign(number, 1, held, empty);
    return own;
  }

  assign(number, epoch, held = [], empty = true) {
    this.send(2, [number, epoch, held, empty, true]);
  }

  /** A work of one batch of `events`: [name, key, data] or, as `bodies`, several batches. */
  work({ events, bodies, retries = [], careful = false, named = [], partition = 0, epoch = 1, ...more }) {
    const seq = ++this.seq;
    const list = bodies ?? (events ? [{ body: bodyOf(events, more), events: events.length }] : []);
    const batches = list.map((item, i) => [
      100 * seq + i,
      `b${seq}.${i}-`,
      1_700_000_000_000_000,
      item.events,
      item.body,
      more.done ?? [0, Buffer.alloc(0)],
      more.contexts ?? 0,
      more.calls ?? false,
    ]);
    this.send(4, [partition, epoch, seq, batches, retries, careful, named, 0, new Map(more.deadlines ?? [])]);
    return seq;
  }

  /** Run events, and return all that they did as one result. */
  async run(events, more = {}) {
    const seq = this.work({ events, ...more });
    const all = { emitted: [], states: [], failures: [], timers: [], replies: [], retried: [], objects: [], counts: {}, emits: {}, done: [] };
    for (;;) {
      const result = await this.next("result");
      if (result.epoch !== (more.epoch ?? 1)) continue; // as the engine: of an epoch that is over
      for (const [name, value] of Object.entries(all)) {
        if (Array.isArray(value)) value.push(...result[name]);
        else for (const [what, count] of Object.entries(result[name])) value[what] = (value[what] ?? 0) + count;
      }
      if (result.ended.includes(seq)) return all;
    }
  }

  drain() {
    this.send(6, []);
    return this.exited;
  }

  async kill() {
    this.process.kill("SIGKILL");
    await this.exited;
  }
}

const digests = new WeakMap();

function digestOf(bytes) {
  if (!digests.has(bytes)) digests.set(bytes, createHash("sha256").update(bytes).digest());
  return digests.get(bytes);
}

function showResult([partition, epoch, ended, done, retried, emitted, states, timers, failures, replies, counts, emits, , , objects = []]) {
  return {
    partition,
    epoch,
    ended,
    done: done.map(([position, [first, behind]]) => ({ position, first, behind })),
    retried,
    emitted: emitted.flatMap(showEmitted),
    bodies: emitted.map(([target, number, events, body]) => ({ target, partition: number, events, size: body.length })),
    states: states.flatMap(([node, keys, values, expires]) =>
      keys.map((key, i) => ({
        node,
        key: key.toString(),
        record: values[i] === null ? null : new Reader(values[i]).value(),
        packed: values[i],
        expires: expires?.[i] ?? null,
      })),
    ),
    timers: timers.map(([delay, one, name]) => ({ delay, ...(one ? showEmitted(one)[0] : {}), ...(name ? { cancels: name.map(String) } : {}) })),
    failures: failures.map((fields) => Object.fromEntries(fields.map((field, i) => [FAILURE[i], field]))),
    replies: replies.map(([context, data, final]) => ({ context, data: new Reader(data).value(), final })),
    counts,
    emits,
    objects: objects.map(([namespace, key, size, checksum, , , , , , isFile]) => ({ namespace, key, size, checksum, isFile: isFile ?? false })),
  };
}

function showEmitted([target, partition, , body, contexts = []]) {
  return eventsOf(body).map((event) => ({ target, partition, ...event, context: contexts[event.context] ?? -1 }));
}

/** The events of a body. */
function eventsOf(body) {
  const out = [];
  for (let at = 0; at < body.length; ) {
    const [count, m, k, d] = [0, 4, 8, 12].map((offset) => body.readUInt32LE(at + offset));
    at += 16;
    const meta = new Reader(body.subarray(at, at + m), true).value();
    const keys = k ? new Reader(body.subarray(at + m, at + m + k)).value() : null;
    const data = d ? new Reader(body.subarray(at + m + k, at + m + k + d)).value() : null;
    for (let i = 0; i < count; i++) {
      out.push({
        name: meta.names[meta.index ? meta.index[i] : 0],
        key: keys ? keys[i] : null,
        data: data ? data[i] : null,
        hops: Array.isArray(meta.hops) ? meta.hops[i] : (meta.hops ?? 0),
        context: meta.contexts ? meta.contexts[i] : -1,
        ...(meta.only ? { only: meta.only } : {}),
      });
    }
    at += m + k + d;
  }
  return out;
}

/** A body of one run. */
function bodyOf(events, { hops = 0, only, ids, eventContexts, rawData } = {}) {
  const names = [...new Set(events.map(([name]) => name))];
  const meta = { names };
  if (names.length > 1) meta.index = Buffer.from(events.map(([name]) => names.indexOf(name)));
  if (hops) meta.hops = hops;
  if (only) meta.only = only;
  if (ids) meta.ids = ids;
  if (eventContexts) meta.contexts = eventContexts;
  const keys = events.map(([, key]) => key ?? null);
  const data = events.map(([, , value]) => value ?? null);
  const parts = [
    pack(meta),
    keys.some((key) => key !== null) ? pack(keys) : Buffer.alloc(0),
    rawData ?? (data.some((value) => value !== null) ? pack(data) : Buffer.alloc(0)),
  ];
  const head = Buffer.alloc(16);
  [events.length, ...parts.map((part) => part.length)].forEach((size, i) => head.writeUInt32LE(size, 4 * i));
  return Buffer.concat([head, ...parts]);
}

function pack(value) {
  const writer = new Writer();
  writer.value(value);
  return Buffer.from(writer.written());
}

module.exports = { Engine, bodyOf, eventsOf, pack };
