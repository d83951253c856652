"use strict";

const fs = require("node:fs");
const net = require("node:net");

const { ProtocolError } = require("./errors");
const { MAX_FRAME } = require("./messages");

const READ = 1 << 20;

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

/** Read whole messages from the socket `fd`. `got` is called with each; `ended` once, when the engine is gone. */
function readFrames(fd, got, ended, failed) {
  const frames = new FrameReader();
  const buffer = Buffer.allocUnsafeSlow(READ);
  const socket = new net.Socket({
    fd,
    readable: true,
    writable: false, // frames are written beside it, by `writeAll`
    onread: {
      buffer,
      callback(size) {
        try {
          frames.feed(buffer.subarray(0, size), got);
        } catch (error) {
          failed(error);
        }
        return true;
      },
    },
  });
  socket.on("end", ended);
  socket.on("error", ended);
  socket.on("close", ended);
  socket.resume();
  return socket;
}

module.exports = { FrameReader, readFrames, writeAll };
