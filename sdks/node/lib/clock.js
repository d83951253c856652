"use strict";

const os = require("node:os");

const RESYNC_MS = 1000;

/**
 * The engine's wall time in microseconds: `offset` + CLOCK_BOOTTIME, which goes on evenly when somebody sets the clock.
 * Node has it as `os.uptime()` only, to 10 ms; between two looks at that its steady clock goes on.
 */
class EngineClock {
  #offset;
  #base = 0;
  #at = -Infinity;

  constructor(offset) {
    this.#offset = offset;
  }

  now() {
    const steady = performance.now();
    if (steady - this.#at > RESYNC_MS) {
      const boot = os.uptime() * 1e6;
      const expected = this.#base + (steady - this.#at) * 1000;
      // Only a suspended machine makes a difference that is worth a step; the rest is the resolution.
      if (!(Math.abs(boot - expected) < 100_000)) this.#base = boot;
      else this.#base = expected;
      this.#at = steady;
    }
    return Math.floor(this.#offset + this.#base + (steady - this.#at) * 1000);
  }
}

module.exports = { EngineClock };
