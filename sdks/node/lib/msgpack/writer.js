"use strict";

const { types } = require("node:util");

const { BadValue } = require("../errors");
const { Ext } = require("./ext");

/**
 * msgpack into a buffer that grows. A codec of our own, since what travels has to be exact: BigInt beyond 2^53 and
 * only there, valid UTF-8 or an error, raw slices, no types that only JavaScript would understand.
 */

/** Levels of lists and maps in a value. More is taken for a value that contains itself. */
const MAX_DEPTH = 512;

/** Text up to here is written by a loop, which is faster than a call into the runtime. */
const SHORT = 48;

const MIN_INT64 = -(2n ** 63n);
const MAX_UINT64 = 2n ** 64n - 1n;
const MAX_INT64 = 2n ** 63n - 1n;

const isWellFormed =
  typeof String.prototype.isWellFormed === "function"
    ? (text) => text.isWellFormed()
    : (text) => !/\p{Surrogate}/u.test(text); // Node 18

class Writer {
  constructor(size = 1024) {
    this.buffer = Buffer.allocUnsafeSlow(size);
    this.pos = 0;
  }

  /** Make room for `size` more bytes. */
  reserve(size) {
    const need = this.pos + size;
    if (need > this.buffer.length) this.#grow(need);
  }

  #grow(need) {
    const larger = Buffer.allocUnsafeSlow(Math.max(need, this.buffer.length * 2));
    this.buffer.copy(larger, 0, 0, this.pos);
    this.buffer = larger;
  }

  /** What has been written, as a view: valid until the writer is used again. */
  written(from = 0) {
    return this.buffer.subarray(from, this.pos);
  }

  // ---------------------------------------------------------------- values of users

  /** Any value that can travel; throws BadValue for the others. */
  value(value, depth = 0) {
    switch (typeof value) {
      case "number":
        this.number(value);
        return;
      case "string":
        this.text(value);
        return;
      case "boolean":
        this.byte(value ? 0xc3 : 0xc2);
        return;
      case "undefined":
        this.byte(0xc0);
        return;
      case "bigint":
        this.bigint(value);
        return;
      case "object":
        this.#object(value, depth);
        return;
      default:
        throw new BadValue(`a ${typeof value} cannot travel`);
    }
  }

  #object(value, depth) {
    if (value === null) {
      this.byte(0xc0);
      return;
    }
    if (depth >= MAX_DEPTH) {
      throw new BadValue(`a value of over ${MAX_DEPTH} levels cannot travel: does it contain itself?`);
    }
    if (Array.isArray(value)) {
      this.array(value.length);
      for (let i = 0; i < value.length; i++) this.value(value[i], depth + 1);
      return;
    }
    const prototype = Object.getPrototypeOf(value);
    if (prototype === Object.prototype || prototype === null) this.#properties(value, depth);
    else this.#instance(value, depth);
  }

  #properties(value, depth) {
    const names = Object.keys(value);
    this.map(names.length);
    for (const name of names) {
      this.text(name);
      this.value(value[name], depth + 1);
    }
  }

  #instance(value, depth) {
    if (value instanceof Uint8Array) this.bytes(value);
    else if (value instanceof Date) this.#date(value);
    else if (value instanceof Map) {
      this.map(value.size);
      for (const [key, item] of value) {
        this.value(key, depth + 1);
        this.value(item, depth + 1);
      }
    } else if (value instanceof Set) {
      this.array(value.size);
      for (const item of value) this.value(item, depth + 1);
    } else if (value instanceof ArrayBuffer) this.bytes(new Uint8Array(value));
    else if (value instanceof Ext) this.#ext(value.type, value.data);
    else if (typeof value.toJSON === "function") this.value(value.toJSON(), depth + 1);
    else if (typeof value.then === "function") throw new BadValue("a Promise cannot travel: await it first");
    else if (isOpaque(value)) {
      throw new BadValue(`a ${value.constructor?.name ?? "object"} cannot travel: make a plain value of it`);
    } else this.#properties(value, depth);
  }

  number(value) {
    if (Number.isSafeInteger(value) && !(value === 0 && 1 / value < 0)) {
      this.int(value);
    } else {
      this.reserve(9);
      this.buffer[this.pos] = 0xcb;
      this.buffer.writeDoubleBE(value, this.pos + 1);
      this.pos += 9;
    }
  }

  bigint(value) {
    if (value >= MIN_INT64 && value <= MAX_UINT64) {
      const small = Number(value);
      if (Number.isSafeInteger(small)) {
        this.int(small);
        return;
      }
      this.reserve(9);
      const buffer = this.buffer;
      if (value > MAX_INT64) {
        buffer[this.pos] = 0xcf;
        buffer.writeBigUInt64BE(value, this.pos + 1);
      } else {
        buffer[this.pos] = value < 0n ? 0xd3 : 0xcf;
        buffer.writeBigInt64BE(value, this.pos + 1);
      }
      this.pos += 9;
      return;
    }
    throw new BadValue(`the integer ${String(value).slice(0, 40)} cannot travel: it must be from -2^63 to 2^64-1`);
  }

  /** Text of a user: throws BadValue if it is not valid Unicode. */
  text(text) {
    if (!this.#shortText(text)) {
      if (!isWellFormed(text)) throw new BadValue("text that is not valid Unicode (a lone surrogate) cannot travel");
      this.#longText(text);
    }
  }

  #date(date) {
    const ms = date.getTime();
    if (Number.isNaN(ms)) throw new BadValue("an invalid Date cannot travel");
    const seconds = Math.floor(ms / 1000);
    const nanos = (ms - seconds * 1000) * 1e6;
    const data = Buffer.alloc(12);
    data.writeUInt32BE(nanos, 0);
    data.writeBigInt64BE(BigInt(seconds), 4);
    // The shortest form that holds it, as the specification of the extension has it.
    if (seconds < 0 || seconds >= 2 ** 34) this.#ext(-1, data);
    else if (nanos === 0 && seconds < 2 ** 32) this.#ext(-1, data.subarray(8));
    else {
      const packed = Buffer.alloc(8);
      packed.writeBigUInt64BE((BigInt(nanos) << 34n) | BigInt(seconds));
      this.#ext(-1, packed);
    }
  }

  #ext(type, data) {
    const size = data.length;
    const fixed = [1, 2, 4, 8, 16].indexOf(size);
    this.reserve(size + 6);
    if (fixed >= 0) this.buffer[this.pos++] = 0xd4 + fixed;
    else {
      this.buffer[this.pos++] = 0xc9;
      this.pos = this.buffer.writeUInt32BE(size, this.pos);
    }
    this.buffer.writeInt8(type, this.pos++);
    this.raw(data);
  }

  // ---------------------------------------------------------------- what the protocol is made of

  byte(byte) {
    this.reserve(1);
    this.buffer[this.pos++] = byte;
  }

  nil() {
    this.byte(0xc0);
  }

  bool(value) {
    this.byte(value ? 0xc3 : 0xc2);
  }

  /** A safe integer. */
  int(value) {
    this.reserve(9);
    const buffer = this.buffer;
    const pos = this.pos;
    if (value >= 0) {
      if (value < 0x80) {
        buffer[pos] = value;
        this.pos = pos + 1;
      } else if (value < 0x100) {
        buffer[pos] = 0xcc;
        buffer[pos + 1] = value;
        this.pos = pos + 2;
      } else if (value < 0x10000) {
        buffer[pos] = 0xcd;
        buffer[pos + 1] = value >> 8;
        buffer[pos + 2] = value;
        this.pos = pos + 3;
      } else if (value < 0x100000000) {
        buffer[pos] = 0xce;
        this.pos = buffer.writeUInt32BE(value, pos + 1);
      } else {
        buffer[pos] = 0xcf;
        buffer.writeUInt32BE(Math.floor(value / 0x100000000), pos + 1);
        this.pos = buffer.writeUInt32BE(value % 0x100000000, pos + 5);
      }
    } else if (value >= -0x20) {
      buffer[pos] = value;
      this.pos = pos + 1;
    } else if (value >= -0x80) {
      buffer[pos] = 0xd0;
      buffer[pos + 1] = value;
      this.pos = pos + 2;
    } else if (value >= -0x8000) {
      buffer[pos] = 0xd1;
      this.pos = buffer.writeInt16BE(value, pos + 1);
    } else if (value >= -0x80000000) {
      buffer[pos] = 0xd2;
      this.pos = buffer.writeInt32BE(value, pos + 1);
    } else {
      buffer[pos] = 0xd3;
      this.pos = buffer.writeBigInt64BE(BigInt(value), pos + 1);
    }
  }

  float(value) {
    this.reserve(9);
    this.buffer[this.pos] = 0xcb;
    this.pos = this.buffer.writeDoubleBE(value, this.pos + 1);
  }

  /** Text of ours: what is not valid Unicode in it is replaced. */
  str(text) {
    if (!this.#shortText(text)) this.#longText(text);
  }

  /** Short ASCII text; false, with nothing written, if it is not. */
  #shortText(text) {
    const length = text.length;
    if (length >= SHORT) return false;
    this.reserve(length + 2);
    const buffer = this.buffer;
    let at = this.pos;
    if (length < 32) buffer[at++] = 0xa0 | length;
    else {
      buffer[at++] = 0xd9;
      buffer[at++] = length;
    }
    for (let i = 0; i < length; i++) {
      const code = text.charCodeAt(i);
      if (code > 0x7f) return false;
      buffer[at++] = code;
    }
    this.pos = at;
    return true;
  }

  #longText(text) {
    const size = Buffer.byteLength(text);
    this.reserve(size + 5);
    const buffer = this.buffer;
    if (size < 32) buffer[this.pos++] = 0xa0 | size;
    else if (size < 0x100) {
      buffer[this.pos++] = 0xd9;
      buffer[this.pos++] = size;
    } else if (size < 0x10000) {
      buffer[this.pos++] = 0xda;
      this.pos = buffer.writeUInt16BE(size, this.pos);
    } else {
      buffer[this.pos++] = 0xdb;
      this.pos = buffer.writeUInt32BE(size, this.pos);
    }
    this.pos += buffer.write(text, this.pos, size, "utf8");
  }

  /** The mark of a bin of `size` bytes, which follow. */
  binHead(size) {
    this.reserve(5);
    const buffer = this.buffer;
    if (size < 0x100) {
      buffer[this.pos++] = 0xc4;
      buffer[this.pos++] = size;
    } else if (size < 0x10000) {
      buffer[this.pos++] = 0xc5;
      this.pos = buffer.writeUInt16BE(size, this.pos);
    } else {
      buffer[this.pos++] = 0xc6;
      this.pos = buffer.writeUInt32BE(size, this.pos);
    }
  }

  bytes(bytes) {
    this.binHead(bytes.length);
    this.raw(bytes);
  }

  /** Text as a bin of its UTF-8. */
  textBytes(text) {
    const length = text.length;
    this.reserve(length + 2);
    if (length < SHORT) {
      const buffer = this.buffer;
      let at = this.pos + 2;
      let i = 0;
      for (; i < length; i++) {
        const code = text.charCodeAt(i);
        if (code > 0x7f) break;
        buffer[at++] = code;
      }
      if (i === length) {
        buffer[this.pos] = 0xc4;
        buffer[this.pos + 1] = length;
        this.pos = at;
        return;
      }
    }
    const size = Buffer.byteLength(text);
    this.binHead(size);
    this.reserve(size);
    this.pos += this.buffer.write(text, this.pos, size, "utf8");
  }

  array(count) {
    this.#head(count, 0x90, 0xdc);
  }

  map(count) {
    this.#head(count, 0x80, 0xde);
  }

  #head(count, fixed, sized) {
    this.reserve(5);
    const buffer = this.buffer;
    if (count < 16) buffer[this.pos++] = fixed | count;
    else if (count < 0x10000) {
      buffer[this.pos++] = sized;
      this.pos = buffer.writeUInt16BE(count, this.pos);
    } else {
      buffer[this.pos++] = sized + 1;
      this.pos = buffer.writeUInt32BE(count, this.pos);
    }
  }

  /** Bytes as they are. */
  raw(bytes) {
    this.reserve(bytes.length);
    this.buffer.set(bytes, this.pos);
    this.pos += bytes.length;
  }

  /** A part of another buffer as it is. Short parts, of which there are many, are not worth a call. */
  copy(from, start, end) {
    const size = end - start;
    this.reserve(size);
    if (size > 40) from.copy(this.buffer, this.pos, start, end);
    else {
      const buffer = this.buffer;
      for (let i = start, at = this.pos; i < end; i++, at++) buffer[at] = from[i];
    }
    this.pos += size;
  }

  u32le(value) {
    this.reserve(4);
    this.pos = this.buffer.writeUInt32LE(value, this.pos);
  }
}

/** Objects whose properties do not say what they are. */
function isOpaque(value) {
  return (
    value instanceof Error ||
    value instanceof RegExp ||
    value instanceof WeakMap ||
    value instanceof WeakSet ||
    ArrayBuffer.isView(value) ||
    types.isSharedArrayBuffer(value) ||
    types.isBoxedPrimitive(value) ||
    typeof value === "function" ||
    typeof value[Symbol.iterator] === "function" ||
    typeof value[Symbol.asyncIterator] === "function"
  );
}

module.exports = { Writer, isWellFormed };
