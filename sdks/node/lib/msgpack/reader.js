"use strict";

const { BadPayload } = require("../errors");
const { Ext } = require("./ext");

const MAX_DEPTH = 1000;

/** Longer text is not worth to be looked up. */
const MAX_CACHED = 48;

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * Texts that come again and again: keys of events, names of properties. The same characters give the same string, whose
 * hash is known already where it is looked up next.
 */
class TextCache {
  constructor(size) {
    this.mask = size - 1; // size is a power of two
    this.texts = new Array(size).fill("");
  }

  /** The text of `size` bytes at `start`. */
  get(buffer, start, size) {
    if (size > MAX_CACHED) return longText(buffer, start, size);
    const end = start + size;
    let hash = size;
    for (let i = start; i < end; i++) {
      const byte = buffer[i];
      if (byte > 0x7f) return longText(buffer, start, size);
      hash = (Math.imul(hash, 31) + byte) | 0;
    }
    const place = (hash ^ (hash >>> 15)) & this.mask;
    const known = this.texts[place];
    if (known.length === size) {
      let i = 0;
      while (i < size && known.charCodeAt(i) === buffer[start + i]) i++;
      if (i === size) return known;
    }
    return (this.texts[place] = buffer.latin1Slice(start, end));
  }
}

const properties = new TextCache(4096);

function longText(buffer, start, size) {
  const text = buffer.utf8Slice(start, start + size);
  // U+FFFD stands in it if it was there, or if the bytes are no UTF-8.
  if (text.includes("\ufffd")) {
    try {
      return strict.decode(buffer.subarray(start, start + size));
    } catch {
      throw new BadPayload("text in it is not valid UTF-8");
    }
  }
  return text;
}

function shortText(buffer, start, size) {
  const end = start + size;
  for (let i = start; i < end; i++) if (buffer[i] > 0x7f) return longText(buffer, start, size);
  return buffer.latin1Slice(start, end);
}

/** Reads msgpack out of a buffer. `slices`: bins are views into it, for the protocol; else copies, for users. */
class Reader {
  constructor(buffer, slices = false) {
    this.buffer = buffer;
    this.pos = 0;
    this.slices = slices;
    this.depth = 0;
  }

  value() {
    const buffer = this.buffer;
    if (this.pos >= buffer.length) throw cutOff();
    const mark = buffer[this.pos++];
    if (mark < 0x80) return mark;
    if (mark < 0x90) return this.#map(mark & 0x0f);
    if (mark < 0xa0) return this.#array(mark & 0x0f);
    if (mark < 0xc0) return this.#text(mark & 0x1f);
    if (mark >= 0xe0) return mark - 0x100;
    switch (mark) {
      case 0xc0:
        return null;
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xc4:
        return this.#bytes(this.#u8());
      case 0xc5:
        return this.#bytes(this.#u16());
      case 0xc6:
        return this.#bytes(this.#u32());
      case 0xc7:
        return this.#ext(this.#u8());
      case 0xc8:
        return this.#ext(this.#u16());
      case 0xc9:
        return this.#ext(this.#u32());
      case 0xca:
        return buffer.readFloatBE(this.#skip(4));
      case 0xcb:
        return buffer.readDoubleBE(this.#skip(8));
      case 0xcc:
        return this.#u8();
      case 0xcd:
        return this.#u16();
      case 0xce:
        return this.#u32();
      case 0xcf: {
        const at = this.#skip(8);
        const high = buffer.readUInt32BE(at);
        return high < 0x200000 ? high * 0x100000000 + buffer.readUInt32BE(at + 4) : buffer.readBigUInt64BE(at);
      }
      case 0xd0:
        return buffer.readInt8(this.#skip(1));
      case 0xd1:
        return buffer.readInt16BE(this.#skip(2));
      case 0xd2:
        return buffer.readInt32BE(this.#skip(4));
      case 0xd3: {
        const exact = buffer.readBigInt64BE(this.#skip(8));
        const number = Number(exact);
        return Number.isSafeInteger(number) ? number : exact;
      }
      case 0xd4:
      case 0xd5:
      case 0xd6:
      case 0xd7:
      case 0xd8:
        return this.#ext(1 << (mark - 0xd4));
      case 0xd9:
        return this.#text(this.#u8());
      case 0xda:
        return this.#text(this.#u16());
      case 0xdb:
        return this.#text(this.#u32());
      case 0xdc:
        return this.#array(this.#u16());
      case 0xdd:
        return this.#array(this.#u32());
      case 0xde:
        return this.#map(this.#u16());
      case 0xdf:
        return this.#map(this.#u32());
      default:
        throw new BadPayload(`it is no msgpack: 0x${mark.toString(16)} stands at ${this.pos - 1}`);
    }
  }

  /** Step over `size` bytes; returns where they begin. */
  #skip(size) {
    const at = this.pos;
    if (at + size > this.buffer.length) throw cutOff();
    this.pos = at + size;
    return at;
  }

  #u8() {
    return this.buffer[this.#skip(1)];
  }

  #u16() {
    return this.buffer.readUInt16BE(this.#skip(2));
  }

  #u32() {
    return this.buffer.readUInt32BE(this.#skip(4));
  }

  #text(size) {
    const start = this.#skip(size);
    return size <= 64 ? shortText(this.buffer, start, size) : longText(this.buffer, start, size);
  }

  #bytes(size) {
    const start = this.#skip(size);
    const view = this.buffer.subarray(start, start + size);
    return this.slices ? view : Buffer.from(view);
  }

  #deeper() {
    if (++this.depth > MAX_DEPTH) {
      this.depth = 0;
      throw new BadPayload(`it has over ${MAX_DEPTH} levels`);
    }
  }

  #array(count) {
    if (count > this.buffer.length - this.pos) throw cutOff();
    this.#deeper();
    const out = new Array(count);
    for (let i = 0; i < count; i++) out[i] = this.value();
    this.depth--;
    return out;
  }

  /** An object; a Map if one of its keys is not text. */
  #map(count) {
    if (count > this.buffer.length - this.pos) throw cutOff();
    this.#deeper();
    const out = {};
    for (let i = 0; i < count; i++) {
      const key = this.#key();
      if (typeof key !== "string") {
        const map = new Map(Object.entries(out));
        map.set(key, this.value());
        for (let j = i + 1; j < count; j++) map.set(this.value(), this.value());
        this.depth--;
        return map;
      }
      const value = this.value();
      if (key === "__proto__") define(out, key, value);
      else out[key] = value;
    }
    this.depth--;
    return out;
  }

  #key() {
    const mark = this.buffer[this.pos];
    if (mark >= 0xa0 && mark < 0xc0) {
      this.pos++;
      const size = mark & 0x1f;
      return properties.get(this.buffer, this.#skip(size), size);
    }
    return this.value();
  }

  #ext(size) {
    const type = this.buffer.readInt8(this.#skip(1));
    const start = this.#skip(size);
    const data = this.buffer.subarray(start, start + size);
    return type === -1 ? timestamp(data) : new Ext(type, Buffer.from(data));
  }

  // ---------------------------------------------------------------- without decoding

  /** The length of the array that begins here. */
  arrayLength() {
    const mark = this.buffer[this.#skip(1)];
    if ((mark & 0xf0) === 0x90) return mark & 0x0f;
    if (mark === 0xdc) return this.#u16();
    if (mark === 0xdd) return this.#u32();
    throw new BadPayload("it is no array");
  }

  /** The length of the map that begins here. */
  mapLength() {
    const mark = this.buffer[this.#skip(1)];
    if ((mark & 0xf0) === 0x80) return mark & 0x0f;
    if (mark === 0xde) return this.#u16();
    if (mark === 0xdf) return this.#u32();
    throw new BadPayload("it is no map");
  }

  /** Text or nil, looked up in `cache`. */
  textOrNil(cache) {
    const mark = this.buffer[this.#skip(1)];
    let size;
    if (mark >= 0xa0 && mark < 0xc0) size = mark & 0x1f;
    else if (mark === 0xc0) return null;
    else if (mark === 0xd9) size = this.#u8();
    else if (mark === 0xda) size = this.#u16();
    else if (mark === 0xdb) size = this.#u32();
    else throw new BadPayload("it is no text");
    return cache.get(this.buffer, this.#skip(size), size);
  }

  /** Step over one value, however deep. */
  skip() {
    let left = 1;
    while (left > 0) {
      left--;
      const mark = this.buffer[this.#skip(1)];
      if (mark < 0x80 || mark >= 0xe0 || mark === 0xc0 || mark === 0xc2 || mark === 0xc3) continue;
      if (mark < 0x90) left += 2 * (mark & 0x0f);
      else if (mark < 0xa0) left += mark & 0x0f;
      else if (mark < 0xc0) this.#skip(mark & 0x1f);
      else if (mark === 0xc4 || mark === 0xd9) this.#skip(this.#u8());
      else if (mark === 0xc5 || mark === 0xda) this.#skip(this.#u16());
      else if (mark === 0xc6 || mark === 0xdb) this.#skip(this.#u32());
      else if (mark === 0xc7) this.#skip(this.#u8() + 1);
      else if (mark === 0xc8) this.#skip(this.#u16() + 1);
      else if (mark === 0xc9) this.#skip(this.#u32() + 1);
      else if (mark === 0xca) this.#skip(4);
      else if (mark === 0xcb) this.#skip(8);
      else if (mark <= 0xcf) this.#skip(1 << (mark - 0xcc));
      else if (mark >= 0xd0 && mark <= 0xd3) this.#skip(1 << (mark - 0xd0));
      else if (mark <= 0xd8) this.#skip(1 + (1 << (mark - 0xd4)));
      else if (mark === 0xdc) left += this.#u16();
      else if (mark === 0xdd) left += this.#u32();
      else if (mark === 0xde) left += 2 * this.#u16();
      else if (mark === 0xdf) left += 2 * this.#u32();
      else throw new BadPayload(`it is no msgpack: 0x${mark.toString(16)}`);
    }
  }
}

function define(object, name, value) {
  Object.defineProperty(object, name, { value, writable: true, enumerable: true, configurable: true });
}

function timestamp(data) {
  if (data.length === 4) return new Date(data.readUInt32BE(0) * 1000);
  if (data.length === 8) {
    const packed = data.readBigUInt64BE(0);
    return new Date(Number(packed & 0x3ffffffffn) * 1000 + Number(packed >> 34n) / 1e6);
  }
  if (data.length === 12) return new Date(Number(data.readBigInt64BE(4)) * 1000 + data.readUInt32BE(0) / 1e6);
  throw new BadPayload(`a timestamp of ${data.length} bytes`);
}

function cutOff() {
  return new BadPayload("it is cut off");
}

module.exports = { Reader, TextCache };
