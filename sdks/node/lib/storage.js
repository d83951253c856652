"use strict";

const { createHash } = require("node:crypto");
const fs = require("node:fs");
const { fileURLToPath } = require("node:url");

const { BadArgument, HandlerError } = require("./errors");
const { checkKey, checkNamespace, checkPrefix, checkTags, checkType, checkUser, shown } = require("./names");
const { REMOVED, Written } = require("./objects");
const { checkOptions, microseconds } = require("./options");

/** What handlers do with objects: `event.storage`, and for async ones `event.storage.promises`. */

/** Bytes that lie in a row; more go ahead, into a file. */
const INLINE = 64 << 10;
const CHUNK = 1 << 20;
const OCTETS = "application/octet-stream";
const PUT = { contentType: true, tags: true, user: true, time: true, ttl: true };
const LIST = { tags: true };

/** What both ways share. The sink of the event does the rest, as long as it is handled. */
class Base {
  constructor(event, namespace) {
    Object.defineProperties(this, { _event: { value: event }, _namespace: { value: namespace } });
  }

  remove(key) {
    const sink = this._may("write");
    sink.write(new Written(this._namespace, checkKey(key), REMOVED, {}));
  }

  /** What the event emits into, if this may be done with the namespace. */
  _may(what) {
    const sink = this._event._sink;
    sink.mayUse(this._event, this._namespace, what);
    return sink;
  }

  /** Everything but the bytes. */
  _about(key, options) {
    this._may("write");
    checkOptions("put", options, PUT);
    const { contentType = OCTETS, tags = [], user = {}, time, ttl } = options;
    if (time !== undefined && !(time instanceof Date && time.getTime() > 0)) {
      throw new BadArgument(`time: is a Date after 1970, not ${shown(time)}`);
    }
    return {
      key: checkKey(key),
      contentType: checkType(contentType),
      tags: checkTags(tags),
      user: checkUser(user),
      time: time === undefined ? 0 : Math.round(time.getTime() * 1000),
      expires: ttl === undefined ? 0 : Date.now() * 1000 + Math.max(1, microseconds(ttl, "ttl")),
    };
  }

  _write(about, bytes) {
    const checksum = createHash("sha256").update(bytes).digest();
    this._may("write").write(new Written(this._namespace, about.key, bytes.length, { ...about, checksum, data: bytes }));
  }

  _writeFile(about, { checksum, size }) {
    this._may("write").write(new Written(this._namespace, about.key, size, { ...about, checksum, isFile: true }));
  }

  _reader(key, start, end) {
    const sink = this._may("read");
    const last = end === undefined ? null : end;
    const isNumber = (value) => Number.isSafeInteger(value) && value >= 0;
    if (!isNumber(start) || !(last === null || (isNumber(last) && last >= start))) {
      throw new BadArgument(`a range is from 0 or more to the same or more, not ${shown(start)} to ${shown(end)}`);
    }
    return { objects: sink.objects(), namespace: this._namespace, key: checkKey(key), start, end: last };
  }
}

class Storage extends Base {
  /** Those of another namespace, if grape.toml grants it. */
  namespace(name) {
    return new Storage(this._event, checkNamespace(name));
  }

  /** The same for async handlers. */
  get promises() {
    return new AsyncStorage(this._event, this._namespace);
  }

  put(key, data, options = {}) {
    const about = this._about(key, options);
    const { bytes, rest } = beginOf(data);
    if (rest === null) this._write(about, bytes);
    else this._writeFile(about, this._event._sink.objects().upload(joined(bytes, rest)));
  }

  get(key, start = 0, end) {
    const found = this.chunks(key, start, end);
    return found === null ? null : Buffer.concat([...found]);
  }

  chunks(key, start = 0, end) {
    const { objects, ...range } = this._reader(key, start, end);
    return objects.read(range);
  }

  stat(key) {
    return this._may("read").objects().stat(this._namespace, checkKey(key));
  }

  list(prefix = "", options = {}) {
    checkOptions("list", options, LIST);
    const objects = this._may("read").objects();
    return listed(objects, this._namespace, checkPrefix(prefix), checkTags(options.tags ?? []));
  }
}

class AsyncStorage extends Base {
  namespace(name) {
    return new AsyncStorage(this._event, checkNamespace(name));
  }

  async put(key, data, options = {}) {
    const about = this._about(key, options);
    const { bytes, rest } = await beginLater(data);
    if (rest === null) this._write(about, bytes);
    else this._writeFile(about, await this._may("write").objects().uploadLater(joinedLater(bytes, rest)));
  }

  async get(key, start = 0, end) {
    const found = await this.chunks(key, start, end);
    if (found === null) return null;
    const chunks = [];
    for await (const chunk of found) chunks.push(chunk);
    return Buffer.concat(chunks);
  }

  async chunks(key, start = 0, end) {
    const { objects, ...range } = this._reader(key, start, end);
    return objects.readLater(range);
  }

  async stat(key) {
    return this._may("read").objects().statLater(this._namespace, checkKey(key));
  }

  async remove(key) {
    super.remove(key);
  }

  list(prefix = "", options = {}) {
    checkOptions("list", options, LIST);
    const objects = this._may("read").objects();
    return listedLater(objects, this._namespace, checkPrefix(prefix), checkTags(options.tags ?? []));
  }
}

function* listed(objects, namespace, prefix, tags) {
  for (let position = ""; ; ) {
    const page = objects.page(namespace, prefix, position);
    for (const about of page.items) if (tags.every((tag) => about.tags.includes(tag))) yield about;
    if (!(position = page.position)) return;
  }
}

async function* listedLater(objects, namespace, prefix, tags) {
  for (let position = ""; ; ) {
    const page = await objects.pageLater(namespace, prefix, position);
    for (const about of page.items) if (tags.every((tag) => about.tags.includes(tag))) yield about;
    if (!(position = page.position)) return;
  }
}

// ---------------------------------------------------------------- what an object is made of

/** The whole of it, with `rest` null; or, if it is too much for a row, what begins it, and the chunks behind. */
function beginOf(data) {
  const whole = bytesOf(data);
  if (whole !== null) return whole.length <= INLINE ? { bytes: Buffer.from(whole), rest: null } : { bytes: whole, rest: [] };
  if (typeof data?.[Symbol.iterator] !== "function" && !isFile(data)) throw unfit(data);
  const rest = isFile(data) ? readFile(data) : data[Symbol.iterator]();
  const begin = [];
  let size = 0;
  for (let next = rest.next(); !next.done; next = rest.next()) {
    begin.push(chunkOf(next.value));
    size += next.value.length;
    if (size > INLINE) return { bytes: Buffer.concat(begin), rest: { [Symbol.iterator]: () => rest } };
  }
  return { bytes: Buffer.concat(begin), rest: null };
}

async function beginLater(data) {
  if (!isFile(data) && typeof data?.[Symbol.asyncIterator] !== "function") return beginOf(data);
  const rest = (isFile(data) ? fs.createReadStream(data, { highWaterMark: CHUNK }) : data)[Symbol.asyncIterator]();
  const begin = [];
  let size = 0;
  for (let next = await rest.next(); !next.done; next = await rest.next()) {
    begin.push(chunkOf(next.value));
    size += next.value.length;
    if (size > INLINE) return { bytes: Buffer.concat(begin), rest: { [Symbol.asyncIterator]: () => rest } };
  }
  return { bytes: Buffer.concat(begin), rest: null };
}

function isFile(data) {
  return data instanceof URL && data.protocol === "file:";
}

function* readFile(url) {
  const fd = fs.openSync(fileURLToPath(url));
  try {
    for (;;) {
      const chunk = Buffer.allocUnsafe(CHUNK);
      const size = fs.readSync(fd, chunk, 0, CHUNK, null);
      if (!size) return;
      yield chunk.subarray(0, size);
    }
  } finally {
    fs.closeSync(fd);
  }
}

function bytesOf(data) {
  if (typeof data === "string") return Buffer.from(data);
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  return data instanceof Uint8Array ? data : null;
}

function chunkOf(chunk) {
  if (chunk instanceof Uint8Array) return chunk;
  throw new HandlerError(`the chunks of an object are bytes (Uint8Array), not ${shown(chunk)}`, "TypeError");
}

function unfit(data) {
  const what = "an object is made of bytes, text, a file: URL or chunks";
  return new HandlerError(`${what} (of a stream with storage.promises), not of ${shown(data)}`, "TypeError");
}

/** In chunks of a good size. */
function* joined(begin, rest) {
  const sizer = new Sizer();
  yield* sizer.add(begin);
  for (const chunk of rest) yield* sizer.add(chunkOf(chunk));
  yield* sizer.end();
}

async function* joinedLater(begin, rest) {
  const sizer = new Sizer();
  yield* sizer.add(begin);
  if (typeof rest[Symbol.asyncIterator] === "function") for await (const chunk of rest) yield* sizer.add(chunkOf(chunk));
  else for (const chunk of rest) yield* sizer.add(chunkOf(chunk));
  yield* sizer.end();
}

class Sizer {
  #parts = [];
  #size = 0;

  *add(chunk) {
    for (let at = 0; at < chunk.length; ) {
      const part = chunk.subarray(at, at + CHUNK - this.#size);
      this.#parts.push(part);
      this.#size += part.length;
      at += part.length;
      if (this.#size === CHUNK) yield* this.end();
    }
  }

  *end() {
    const whole = this.#parts.length === 1 ? this.#parts[0] : Buffer.concat(this.#parts);
    this.#parts = [];
    this.#size = 0;
    if (whole.length) yield whole;
  }
}

module.exports = { AsyncStorage, Storage };
