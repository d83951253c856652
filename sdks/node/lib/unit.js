"use strict";

const { States, statelessView } = require("./state");

/** A node of this pool, ready to run. */
class Unit {
  constructor(node) {
    this.node = node.name;
    this.isAsync = node.isAsync;
    this.slots = node.slots;
    this.hasRate = [...node.slots.values()].some((slot) => slot.rate > 0);
    this.states = node.states.length ? new States(node.name, node.states) : null;
    /** `event.state` where there is none. */
    this.stateless = statelessView(node.name);
    /** See `chainsOf`: where pairs that are new do not chain, and where they do. */
    this.chains = [null, null];
    /** How many of its events may run at once. */
    this.concurrency = Math.min(...Array.from(node.slots.values(), (slot) => slot.concurrency));
  }

  /** The slots of a run's names, by their index. */
  slotsOf(run) {
    return run.names.map((name) => this.slots.get(name));
  }
}

module.exports = { Unit };
