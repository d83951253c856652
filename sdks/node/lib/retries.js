"use strict";

/**
 * The held events of one work, in their order: they pass the locks of their keys. One that fails again keeps those that
 * stand behind it in its line, and the lock stays as long as another event of the line is held, also one of which the
 * engine does not know yet.
 */
class Retries {
  #part;
  #stuck = new Set();

  constructor(part) {
    this.#part = part;
  }

  /** The event of `source` is about to run; false: it may not, as one before it has failed again. */
  begin(unit, slot, source) {
    const key = source.keyOf(0);
    if (key === null || !slot.ordered) return true;
    if (this.#stuck.has(`${unit.node}\0${key}`)) return false;
    this.#part.locked(unit.node).delete(key);
    return true;
  }

  /** It has run. */
  end(unit, slot, source, effects, hasFailed) {
    const { hold, rest, id } = source.retry;
    if (!hasFailed) effects.retried.push(hold);
    const key = source.keyOf(0);
    if (key === null || !slot.ordered) return;
    const locked = this.#part.locked(unit.node);
    if (locked.has(key)) {
      this.#stuck.add(`${unit.node}\0${key}`);
      return;
    }
    if (this.#part.leave(unit.node, key, id) || rest) locked.add(key);
  }
}

module.exports = { Retries };
