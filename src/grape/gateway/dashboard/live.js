// What is asked again and again: only while somebody can see it, and never twice at a time.

export class Poll {
  #timer = 0;
  #isAsking = false;
  #isAskedAgain = false;
  #isOver = false;
  #abort = new AbortController();

  constructor(ask, milliseconds) {
    this.ask = ask;
    this.milliseconds = milliseconds;
    this.look = () => this.#look();
    document.addEventListener("visibilitychange", this.look);
    this.now();
  }

  #look() {
    clearTimeout(this.#timer);
    if (document.visibilityState === "visible") this.now();
  }

  /** Ask at once. */
  async now() {
    clearTimeout(this.#timer);
    this.#isAskedAgain = this.#isAsking;
    if (this.#isOver || this.#isAsking || document.visibilityState !== "visible") return;
    this.#isAsking = true;
    try {
      await this.ask(this.#abort.signal);
    } catch (e) {
      if (e.name !== "AbortError") console.warn(e.message);
    } finally {
      this.#isAsking = false;
    }
    if (!this.#isOver && document.visibilityState === "visible") {
      this.#timer = setTimeout(() => this.now(), this.#isAskedAgain ? 0 : this.milliseconds);
    }
  }

  stop() {
    this.#isOver = true;
    clearTimeout(this.#timer);
    this.#abort.abort();
    document.removeEventListener("visibilitychange", this.look);
  }
}

const CALM = 3; // seconds over which a rate is smoothed
const STILL = 5; // after which what does not grow has no rate

/** Rates of counters, from how they grow. An engine that begins anew begins at 0. */
export class Rates {
  #last = new Map();
  #rates = new Map();
  #grew = new Map();
  #at = 0;

  take(counters, now = performance.now() / 1000) {
    const passed = this.#at ? now - this.#at : 0;
    this.#at = now;
    for (const [name, value] of Object.entries(counters)) {
      const before = this.#last.get(name) ?? (passed ? 0 : value);
      this.#last.set(name, value);
      if (!passed || value < before) continue;
      const fresh = (value - before) / passed;
      const known = this.#rates.get(name);
      const weight = known === undefined ? 1 : 1 - Math.exp(-passed / CALM);
      if (fresh > 0) this.#grew.set(name, now);
      const isStill = now - (this.#grew.get(name) ?? -Infinity) > STILL;
      this.#rates.set(name, isStill ? 0 : (known ?? 0) + weight * (fresh - (known ?? 0)));
    }
  }

  of(name) {
    return this.#rates.get(name) ?? null;
  }
}

/** The last minute of a number. */
export class History {
  values = [];

  add(value) {
    this.values.push(value ?? 0);
    if (this.values.length > 60) this.values.shift();
  }
}
