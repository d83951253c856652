"use strict";

const NONE = Buffer.alloc(0);

/**
 * How far a batch is done: the events before `first`, and those that a bitmap marks behind it (bit 0 of the first byte
 * is event `first` + 1). Changes in place; `encode` gives what travels.
 */
class Progress {
  constructor(first = 0, behind = NONE) {
    this.first = first;
    /** Finished events behind `first`. Few: only async events, and those of an interrupted work, finish out of order. */
    this.behind = new Set();
    for (let i = 0; i < behind.length * 8; i++) {
      if ((behind[i >> 3] >> (i & 7)) & 1) this.behind.add(first + 1 + i);
    }
  }

  copy() {
    const other = new Progress(this.first);
    other.behind = new Set(this.behind);
    return other;
  }

  get finished() {
    return this.first + this.behind.size;
  }

  isDone(index) {
    return index < this.first || (this.behind.size > 0 && this.behind.has(index));
  }

  add(index) {
    if (index !== this.first) {
      if (index > this.first) this.behind.add(index);
      return;
    }
    this.first++;
    while (this.behind.delete(this.first)) this.first++;
  }

  /** The first event from `index` on that is not done; `end` if there is none. */
  next(index, end) {
    let at = Math.max(index, this.first);
    while (at < end && this.behind.has(at)) at++;
    return Math.min(at, end);
  }

  /** The bitmap. */
  bitmap() {
    if (!this.behind.size) return NONE;
    let last = 0;
    for (const index of this.behind) if (index > last) last = index;
    const bits = Buffer.alloc(((last - this.first - 1) >> 3) + 1);
    for (const index of this.behind) {
      const bit = index - this.first - 1;
      bits[bit >> 3] |= 1 << (bit & 7);
    }
    return bits;
  }
}

module.exports = { Progress };
