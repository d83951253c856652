"use strict";

/** Where events come from: who they are, by their index in a run. */

class Source {
  constructor(run) {
    this.run = run;
  }

  nameOf(index) {
    return this.run.nameOf(index);
  }

  keyOf(index) {
    return this.run.keys === null ? null : this.run.keys[index];
  }

  hopsOf(index) {
    return this.run.hopsOf(index);
  }

  raw(index) {
    return this.run.raw(index);
  }
}

/** The events of a run in a batch. `offset`: index of its first event in the batch; `base`: number of its contexts. */
class RootSource extends Source {
  constructor(run, item, offset, base) {
    super(run);
    this.item = item;
    this.offset = offset;
    this.base = base;
    this.created = item.created;
    this.attempt = 1;
    this.retry = null;
  }

  idOf(index) {
    return this.run.idOf(index) ?? this.item.idPrefix + (this.offset + index);
  }

  contextOf(index) {
    if (this.item.calls) return this.base + this.offset + index;
    const contexts = this.run.contexts;
    if (contexts === null || contexts[index] < 0) return -1;
    return this.base + contexts[index];
  }

  get hasContexts() {
    return this.item.calls || this.run.contexts !== null;
  }
}

/** A held event. `context`: its number, if it has one. */
class RetrySource extends Source {
  constructor(run, item, context) {
    super(run);
    this.retry = item;
    this.context = item.context >= 0 ? context : -1;
    this.created = item.created;
    this.attempt = item.attempt;
  }

  idOf() {
    return this.retry.id;
  }

  contextOf() {
    return this.context;
  }

  get hasContexts() {
    return this.context >= 0;
  }
}

module.exports = { RootSource, RetrySource };
