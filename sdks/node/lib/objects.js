"use strict";

const { createHash } = require("node:crypto");
const { HandlerError, ProtocolError } = require("./errors");
const messages = require("./messages");
const { didYouMean } = require("./similar");

/**
 * Objects of a worker: what handlers write is part of what they emit; what they read is asked for, unless it was written
 * here and the engine does not know of it yet.
 */

const REMOVED = -1;
/** Questions of async handlers that are under way, and objects that they bring: each has a chunk in memory. */
const AT_ONCE = 8;
const NONE = Buffer.alloc(0);
/** Bytes that a row holds, which has a checksum of its own. */
const INLINE = 64 << 10;

function placeOf(namespace, key) {
  return `${namespace}\0${key}`;
}

/** An object that is to be so. `isUndone`: its event has failed. */
class Written {
  constructor(namespace, key, size, { checksum = NONE, time = 0, contentType = "", tags = [], user = [], expires = 0, data = NONE, isFile = false }) {
    Object.assign(this, { namespace, key, size, checksum, time, contentType, tags, user, expires, data, isFile });
    this.place = placeOf(namespace, key);
    this.isUndone = false;
  }

  /** About how many bytes of a result it is. */
  get weight() {
    return 712 + 3 * this.place.length + this.data.length + this.tags.reduce((size, tag) => size + 3 * tag.length, 0) + 100 * this.user.length;
  }

  get about() {
    if (this.size === REMOVED) return null;
    return aboutOf(this.key, { ...this, number: 0, user: Object.fromEntries(this.user) });
  }

  pack(frame) {
    frame.array(this.size === REMOVED ? 3 : 11);
    frame.str(this.namespace);
    frame.str(this.key);
    frame.int(this.size);
    if (this.size === REMOVED) return;
    frame.bytes(this.checksum);
    frame.int(this.time);
    frame.str(this.contentType);
    frame.array(this.tags.length);
    for (const tag of this.tags) frame.str(tag);
    frame.map(this.user.length);
    for (const [name, value] of this.user) {
      frame.str(name);
      frame.str(value);
    }
    frame.int(this.expires);
    frame.bool(this.isFile);
    frame.bytes(this.data);
  }
}

/** What is known of an object beside its bytes. */
function aboutOf(key, { number, size, checksum, time, contentType, tags, user, expires, version = "", told: its = "" }) {
  return {
    key,
    size,
    version: version || String(number),
    checksum: its || (checksum.length ? `sha256:${checksum.toString("hex")}` : ""),
    time: new Date(time / 1000),
    contentType,
    tags,
    user,
    expires: expires ? new Date(expires / 1000) : null,
  };
}

/** So many at once. */
class Gate {
  #free;
  #waiting = [];

  constructor(free) {
    this.#free = free;
  }

  async run(task) {
    if (this.#free) this.#free--;
    else await new Promise((resolve) => this.#waiting.push(resolve));
    try {
      return await task();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free++;
      else next();
    }
  }
}

/** Of a worker: the questions. */
class Access {
  #link;
  #ids = 0;
  #uploads = 0;
  /** id -> what takes the answer */
  #waiting = new Map();
  #questions = new Gate(AT_ONCE);
  /** What is granted, the app's own first. */
  namespaces = new Map();
  bringing = new Gate(AT_ONCE);

  /** `link`: `send(frame)`, and `waitUntil(done)`, which blocks and takes the answers that come. */
  constructor(link) {
    this.#link = link;
  }

  get own() {
    return this.namespaces.keys().next().value ?? "app";
  }

  newUpload() {
    return ++this.#uploads;
  }

  mayUse(node, namespace, what) {
    const granted = this.namespaces.get(namespace);
    if (granted === undefined) {
      throw new HandlerError(
        `node '${node}' uses the namespace '${namespace}' of objects, which its app is not granted ` +
          `([namespaces] in grape.toml)${didYouMean(namespace, this.namespaces.keys())}`,
      );
    }
    if (what === "write" && granted !== "write") {
      throw new HandlerError(`node '${node}' writes into the namespace '${namespace}', which its app may only read`);
    }
  }

  fetched(message) {
    const take = this.#waiting.get(message.id);
    if (take === undefined) throw new ProtocolError("an object that nobody has asked for");
    this.#waiting.delete(message.id);
    take(message);
  }

  /** Nobody waits for the answer. `question(id)`: a frame. */
  tell(question) {
    this.#ask(question, () => {});
  }

  ask(question) {
    let answer = null;
    this.#ask(question, (message) => (answer = message));
    this.#link.waitUntil(() => answer !== null);
    return checked(answer);
  }

  askLater(question) {
    return this.#questions.run(async () => checked(await new Promise((resolve) => this.#ask(question, resolve))));
  }

  #ask(question, take) {
    const id = ++this.#ids;
    this.#waiting.set(id, take);
    this.#link.send(question(id));
  }
}

function checked(message) {
  if (message.error !== null) throw new HandlerError(`${message.error[0]}: ${message.error[1]}`);
  return message;
}

/** Of an event that is handled in `part`. */
class HandlerObjects {
  #access;
  #part;

  constructor(access, part) {
    this.#access = access;
    this.#part = part;
  }

  // ---------------------------------------------------------------- bytes that go ahead

  upload(chunks) {
    const bring = new Bring(this.#access, this.#part);
    try {
      let answer = null;
      let ahead = chunks.next();
      while (!ahead.done) {
        const chunk = ahead.value;
        ahead = chunks.next();
        answer = this.#access.ask(bring.part(chunk, ahead.done));
      }
      return { checksum: answer.data, size: bring.size };
    } catch (error) {
      bring.giveUp();
      chunks.return();
      throw error;
    }
  }

  uploadLater(chunks) {
    return this.#access.bringing.run(async () => {
      const bring = new Bring(this.#access, this.#part);
      try {
        let answer = null;
        let ahead = await chunks.next();
        while (!ahead.done) {
          const chunk = ahead.value;
          ahead = await chunks.next();
          answer = await this.#access.askLater(bring.part(chunk, ahead.done));
        }
        return { checksum: answer.data, size: bring.size };
      } catch (error) {
        bring.giveUp();
        await chunks.return();
        throw error;
      }
    });
  }

  // ---------------------------------------------------------------- what is there

  /** What was written here and nobody else knows of yet; null: nothing was. */
  #own(namespace, key) {
    const found = this.#part.written.get(placeOf(namespace, key)) ?? [];
    while (found.length) {
      const last = found[found.length - 1];
      if (!last.isUndone) return last;
      found.pop();
    }
    return null;
  }

  stat(namespace, key) {
    const own = this.#own(namespace, key);
    return own === null ? told(this.#access.ask(this.#fetch("stat", namespace, key)), key) : own.about;
  }

  async statLater(namespace, key) {
    const own = this.#own(namespace, key);
    return own === null ? told(await this.#access.askLater(this.#fetch("stat", namespace, key)), key) : own.about;
  }

  /** Chunks, or null: there is no such object. */
  read({ namespace, key, start, end }) {
    const own = this.#own(namespace, key);
    if (own !== null && !own.isFile) return own.size === REMOVED ? null : [own.data.subarray(start, end ?? undefined)];
    const question = (from) => this.#fetch("read", namespace, key, from, end, own);
    const first = this.#access.ask(question(start));
    return first.stored === null ? null : this.#rest(first, question, key, start, end);
  }

  *#rest(first, question, key, start, end) {
    const whole = new Whole(first, key, start, end);
    let answer = first;
    for (let left = leftOf(first, start, end); left > 0; ) {
      whole.add(answer.data);
      yield answer.data;
      start += answer.data.length;
      left -= answer.data.length;
      if (left <= 0) break;
      answer = this.#access.ask(question(start));
      checkSame(first, answer, key);
    }
    whole.check();
  }

  async readLater({ namespace, key, start, end }) {
    const own = this.#own(namespace, key);
    if (own !== null && !own.isFile) return own.size === REMOVED ? null : once(own.data.subarray(start, end ?? undefined));
    const question = (from) => this.#fetch("read", namespace, key, from, end, own);
    const first = await this.#access.askLater(question(start));
    return first.stored === null ? null : this.#restLater(first, question, key, start, end);
  }

  async *#restLater(first, question, key, start, end) {
    const whole = new Whole(first, key, start, end);
    let answer = first;
    for (let left = leftOf(first, start, end); left > 0; ) {
      whole.add(answer.data);
      yield answer.data;
      start += answer.data.length;
      left -= answer.data.length;
      if (left <= 0) break;
      answer = await this.#access.askLater(question(start));
      checkSame(first, answer, key);
    }
    whole.check();
  }

  page(namespace, prefix, position) {
    return pageOf(this.#access.ask(this.#fetch("page", namespace, prefix, 0, null, null, position)));
  }

  async pageLater(namespace, prefix, position) {
    return pageOf(await this.#access.askLater(this.#fetch("page", namespace, prefix, 0, null, null, position)));
  }

  /** `own`: it lies in a file, which has the name of its digest already. */
  #fetch(what, namespace, key, start = 0, end = null, own = null, position = "") {
    const digest = own === null ? position : own.checksum.toString("hex");
    return (id) => messages.fetch(this.#part, id, what, namespace, key, start, end ?? -1, digest);
  }
}

/** An object that is brought. */
class Bring {
  size = 0;
  #access;
  #part;
  #upload;

  constructor(access, part) {
    this.#access = access;
    this.#part = part;
    this.#upload = access.newUpload();
  }

  part(chunk, isLast) {
    this.size += chunk.length;
    return (id) => messages.keep(this.#part, id, chunk, isLast, this.#upload, false);
  }

  giveUp() {
    if (this.size) this.#access.tell((id) => messages.keep(this.#part, id, NONE, true, this.#upload, true));
  }
}

/** What is read of a large object from its beginning to its end is what was written. */
class Whole {
  #name;
  #sum = null;
  #checksum;

  constructor({ stored }, key, start, end) {
    this.#name = `object '${key.slice(0, 200)}'`;
    this.#checksum = stored.checksum;
    const isWhole = start === 0 && (end === null || end >= stored.size) && stored.size > INLINE;
    if (isWhole && stored.checksum.length) this.#sum = createHash("sha256");
  }

  add(data) {
    if (!data.length) throw new HandlerError(`${this.#name} is shorter than it says`);
    this.#sum?.update(data);
  }

  check() {
    if (this.#sum !== null && !this.#sum.digest().equals(this.#checksum)) {
      throw new HandlerError(`corrupt: ${this.#name} is not what was written: its checksum is another one`);
    }
  }
}

async function* once(data) {
  yield data;
}

function leftOf({ stored: { size } }, start, end) {
  return (end === null ? size : Math.min(end, size)) - start;
}

function checkSame(first, answer, key) {
  // Not by its number: it has one when it is committed.
  if (answer.stored === null || !answer.stored.checksum.equals(first.stored.checksum)) {
    throw new HandlerError(`object '${key.slice(0, 200)}' was written by somebody else while it was read; try again`);
  }
}

function told({ stored }, key) {
  return stored === null ? null : aboutOf(key, stored);
}

function pageOf({ items, position }) {
  return { items: items.map(([key, stored]) => aboutOf(key, stored)), position };
}

module.exports = { REMOVED, Access, HandlerObjects, Written, placeOf };
