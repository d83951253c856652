"use strict";

const fs = require("node:fs");
const net = require("node:net");

const { ProtocolError } = require("./errors");
const { MAX_FRAME } = require("./messages");

const READ = 1 << 20;
/** Milliseconds between two looks for what is waited for. */
const SHORTEST = 0.02;

const pause = new Int32Array(new SharedArrayBuffer(4));

/**
 * Write all of `bytes`, at once. The descriptor does not block (the event loop reads from it), so where the socket is
 * full this waits in small steps: the engine is reading.
 */
function writeAll(fd, bytes) {
  let at = 0;
  let wait = 0.1;
  while (at < bytes.length) {
    try {
      at += fs.writeSync(fd, bytes, at);
      wait = 0.1;
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
      Atomics.wait(pause, 0, 0, wait);
      wait = Math.min(wait * 2, 2);
    }
  }
}

/** Bytes in, messages out: never allocates for a length that is not allowed. */
class FrameReader {
  #head = Buffer.alloc(4);
  #headSize = 0;
  #frame = null;
  #have = 0;

  /** Calls `got` with every message that is complete now. */
  feed(bytes, got) {
    let at = 0;
    while (at < bytes.length) {
      if (this.#frame === null) {
        this.#head[this.#headSize++] = bytes[at++];
        if (this.#headSize < 4) continue;
        const size = this.#head.readUInt32LE(0);
        if (size > MAX_FRAME) throw new ProtocolError(`a frame says it has ${size} bytes; the limit is ${MAX_FRAME}`);
        // Of its own, as parts of the message are kept as views into it.
        this.#frame = Buffer.allocUnsafeSlow(size);
        this.#headSize = this.#have = 0;
      }
      const frame = this.#frame;
      const taken = Math.min(frame.length - this.#have, bytes.length - at);
      bytes.copy(frame, this.#have, at, at + taken);
      at += taken;
      this.#have += taken;
      if (this.#have === frame.length) {
        this.#frame = null;
        got(frame);
      }
    }
  }
}

/**
 * Whole messages from the socket `fd`. `got` is called with each, in order; those that are `isUrgent` come at once, also to
 * whoever keeps all else from going on (`waitUntil`). `ended`: the engine is gone.
 */
class Inbox {
  #fd;
  #to;
  #frames = new FrameReader();
  #queue = [];
  #isDelivering = false;
  #beside = null;

  constructor(fd, to) {
    this.#fd = fd;
    this.#to = to;
    const buffer = Buffer.allocUnsafeSlow(READ);
    const socket = new net.Socket({
      fd,
      readable: true,
      writable: false, // frames are written beside it, by `writeAll`
      onread: {
        buffer,
        callback: (size) => {
          try {
            this.#take(buffer.subarray(0, size));
            this.#deliver();
          } catch (error) {
            to.failed(error);
          }
          return true;
        },
      },
    });
    for (const how of ["end", "error", "close"]) socket.on(how, to.ended);
    socket.resume();
  }

  /** Block until `done()`, which what is urgent brings about. The rest waits for its turn. */
  waitUntil(done) {
    this.#beside ??= Buffer.allocUnsafeSlow(READ);
    let wait = SHORTEST;
    while (!done()) {
      const size = this.#readNow();
      if (size < 0) {
        Atomics.wait(pause, 0, 0, wait);
        wait = Math.min(wait * 1.5, 2);
      } else if (size === 0) this.#to.ended();
      else {
        this.#take(this.#beside.subarray(0, size));
        wait = SHORTEST;
      }
    }
    if (this.#queue.length && !this.#isDelivering) setImmediate(() => this.#deliverOrFail());
  }

  /** -1: nothing is there yet. */
  #readNow() {
    try {
      return fs.readSync(this.#fd, this.#beside, 0, READ, null);
    } catch (error) {
      if (error.code === "EAGAIN") return -1;
      if (error.code === "ECONNRESET") return 0;
      throw error;
    }
  }

  #take(bytes) {
    this.#frames.feed(bytes, (frame) => {
      if (this.#to.isUrgent(frame)) this.#to.got(frame);
      else this.#queue.push(frame);
    });
  }

  #deliver() {
    if (this.#isDelivering) return;
    this.#isDelivering = true;
    try {
      while (this.#queue.length) this.#to.got(this.#queue.shift());
    } finally {
      this.#isDelivering = false;
    }
  }

  #deliverOrFail() {
    try {
      this.#deliver();
    } catch (error) {
      this.#to.failed(error);
    }
  }
}

module.exports = { FrameReader, Inbox, writeAll };
