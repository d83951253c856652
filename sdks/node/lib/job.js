"use strict";

const { Timeout } = require("./errors");
const { Pending } = require("./pending");

/** What an async event emits; `signal` aborts when the event has run for too long. */
class JobPending extends Pending {
  controller = null;

  get signal() {
    this.controller ??= new AbortController();
    return this.controller.signal;
  }
}

/** An event of a work at all of its nodes. What they do takes effect together, when the last one is done. */
class Root {
  /** `done`: called then. */
  constructor(part, done) {
    this.part = part;
    this.done = done;
    this.jobs = [];
    this.left = 0;
    /** In careful mode: what is named. */
    this.careful = null;
  }
}

/** One event at one node. `finish` brings what it did into the effects of its partition. */
class Job {
  constructor(root, unit, slot, source, index, data, retries = null) {
    this.root = root;
    this.part = root.part;
    this.unit = unit;
    this.slot = slot;
    this.source = source;
    this.index = index;
    this.data = data;
    /** The retries of its work, if it is one of them. */
    this.retries = retries;
    this.pending = null;
    this.isOver = false;
    this.isLate = false;
    this.deadline = Infinity;
    /** Where the watchdog looks at it. */
    this.place = -1;
    this.finish = nothing;
    const key = source.keyOf(index);
    /** Where it queues up: only one event of a (node, key) at a time. null: nowhere. */
    this.line = key === null ? null : `${this.part.number} ${this.part.epoch} ${unit.node}\0${key}`;
  }

  /** It has run for too long: its handler should end, and whatever it does now, the event has failed. */
  abort() {
    this.isLate = true;
    this.pending?.controller?.abort(this.timeout());
  }

  timeout() {
    return new Timeout(`'${this.unit.node}' ran over its timeout of ${this.slot.timeout} s`);
  }
}

function nothing() {}

module.exports = { Job, JobPending, Root };
