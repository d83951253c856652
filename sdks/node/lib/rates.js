"use strict";

const { lease } = require("./messages");

/** How rates are written, and how the events of slots with a rate are held back: by asking the engine, which keeps them. */

const SECONDS = { s: 1, sec: 1, second: 1, min: 60, minute: 60, h: 3600, hour: 3600, d: 86_400, day: 86_400 };
const RATE = /^\s*([0-9]+(?:\.[0-9]+)?)\s*\/\s*([a-z]+)\s*$/;
const MOST_RATE = 1e9;
/** Events of one question. */
const MOST_LEASED = 1 << 20;

/** Events a second, of text such as "100/s" or a number; NaN: that is none. */
function rateOf(value) {
  let rate = typeof value === "number" ? value : NaN;
  if (typeof value === "string") {
    const [, number, unit] = RATE.exec(value) ?? [];
    rate = Number(number) / (Object.hasOwn(SECONDS, unit) ? SECONDS[unit] : NaN);
  }
  return rate > 0 && rate <= MOST_RATE ? rate : NaN;
}

/** What a slot's turns are. `has`: given and not used; `waiting`: `{ part, resolve }`. */
class Turns {
  has = 0;
  isAsked = false;
  waiting = [];
}

class Pacer {
  #send;
  #watch;
  #isOver = false;
  /** Slot -> Turns */
  #turns = new Map();

  /** `send(frame)`; `watch`: is told how many events wait. */
  constructor(send, watch) {
    this.#send = send;
    this.#watch = watch;
  }

  /** Promises when an event of `part` may be handed to `slot`: true. false: it is not to be begun here any more. */
  turn(slot, part) {
    if (this.#isOver) return Promise.resolve(false);
    const turns = this.#turns.get(slot) ?? new Turns();
    this.#turns.set(slot, turns);
    if (turns.has) {
      turns.has--;
      return Promise.resolve(true);
    }
    return new Promise((resolve) => {
      turns.waiting.push({ part, resolve });
      this.#ask(slot, turns);
      this.#tell();
    });
  }

  /** The engine has given `count` to `event` at `node`. */
  leased(event, node, count) {
    for (const [slot, turns] of this.#turns) {
      if (slot.event !== event || slot.node !== node) continue;
      turns.isAsked = false;
      turns.has += count;
      while (turns.has && turns.waiting.length) {
        turns.has--;
        turns.waiting.shift().resolve(true);
      }
      if (turns.waiting.length) this.#ask(slot, turns);
    }
    this.#tell();
  }

  /** Events of partitions that are no longer this worker's do not wait any more. `isCurrent(part)`: it is. */
  drop(isCurrent) {
    for (const turns of this.#turns.values()) {
      const gone = turns.waiting.filter(({ part }) => !isCurrent(part));
      turns.waiting = turns.waiting.filter(({ part }) => isCurrent(part));
      for (const { resolve } of gone) resolve(false);
    }
    this.#tell();
  }

  /** The worker is to end: nothing that waits is begun. */
  end() {
    this.#isOver = true;
    this.drop(() => false);
  }

  #ask(slot, turns) {
    if (turns.isAsked) return;
    turns.isAsked = true;
    this.#send(lease(slot.event, slot.node, Math.min(turns.waiting.length, MOST_LEASED)));
  }

  #tell() {
    let count = 0;
    for (const { waiting } of this.#turns.values()) count += waiting.length;
    this.#watch.waits(count);
  }
}

module.exports = { Pacer, rateOf };
