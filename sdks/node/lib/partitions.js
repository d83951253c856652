"use strict";

const { crc32 } = require("./crc32");
const { BadKey } = require("./errors");
const { isWellFormed } = require("./msgpack/writer");

const MAX_KEY_BYTES = 4096;
const CACHED = 65_536;

/** Which partition a key lives in, worked out once per key; also the check that it is a key. */
class Partitions {
  #known = new Map();

  constructor(count) {
    this.count = count;
  }

  of(key) {
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    checkKey(key);
    if (this.#known.size >= CACHED) this.#known.clear();
    const number = crc32(key) % this.count;
    this.#known.set(key, number);
    return number;
  }
}

function checkKey(key) {
  if (typeof key !== "string") throw new BadKey(`a key is a string, not ${describe(key)}`);
  if (!isWellFormed(key)) throw new BadKey("a key must be valid Unicode: it has a lone surrogate");
  const size = Buffer.byteLength(key);
  if (size < 1 || size > MAX_KEY_BYTES) {
    throw new BadKey(`a key has 1 to ${MAX_KEY_BYTES} bytes of UTF-8, this one has ${size}`);
  }
}

function describe(value) {
  if (value === null || value === undefined) return String(value);
  return typeof value === "object" ? `a ${value.constructor?.name ?? "object"}` : `a ${typeof value}`;
}

module.exports = { Partitions };
