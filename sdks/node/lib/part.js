"use strict";

const { StateTable } = require("./state");

/** Digits of the id of a trace. */
const TRACE = 32;

/** A partition that is assigned to this worker, with what the worker knows of it. */
class Part {
  constructor({ partition, epoch, held, empty, chainNew }, maxEvent) {
    this.number = partition;
    this.epoch = epoch;
    this.isEmpty = empty;
    /** Whether pairs that are new may chain. */
    this.chainNew = chainNew;
    this.maxEvent = maxEvent;
    /** node -> StateTable */
    this.tables = new Map();
    /** node -> keys whose events line up behind a failed one */
    this.locks = new Map();
    for (const [node, key] of held) this.locked(node).add(key);
    /**
     * Ids of the events that were handed in as failed or behind, by the (node, key) in whose line they stand, until they
     * have been retried. When the engine sends the first of them back it may not know all of them yet.
     */
    this.lines = new Map();
    /** Objects that handlers have written and the engine does not know of yet, by place; the last one counts. */
    this.written = new Map();
    /** Of contexts that have one, by number: wall time in microseconds. */
    this.deadlines = new Map();
    /** Of contexts of traced events, by number: the id of the trace. */
    this.traced = new Map();
    /** Works that are begun and not ended. */
    this.works = 0;
  }

  /** A work begins. Contexts are numbered anew when none is out. */
  begin(work) {
    if (!work.contextBase) {
      this.deadlines = new Map();
      this.traced = new Map();
    }
    if (work.deadlines !== null) for (const [number, at] of work.deadlines) this.deadlines.set(number, at);
    if (work.traced !== null) for (const [number, at] of work.traced) this.traced.set(number, at.slice(0, TRACE));
  }

  locked(node) {
    let keys = this.locks.get(node);
    if (keys === undefined) this.locks.set(node, (keys = new Set()));
    return keys;
  }

  /** Locks and lines, as they are now. */
  copyLocks() {
    const copy = (sets) => new Map(Array.from(sets, ([name, items]) => [name, new Set(items)]));
    return { locks: copy(this.locks), lines: copy(this.lines) };
  }

  /** What was done since the last result has not happened. `locks`: those of then. */
  forget({ locks, lines }) {
    this.locks = locks;
    this.lines = lines;
    this.tables.clear();
    this.written.clear();
    this.isEmpty = false;
  }

  /** An object is written. */
  note(written) {
    const there = this.written.get(written.place);
    if (there === undefined) this.written.set(written.place, [written]);
    else there.push(written);
  }

  /** The engine knows of these from now on. */
  handedIn(objects) {
    const known = new Set(objects);
    for (const { place } of objects) {
      const left = (this.written.get(place) ?? []).filter((one) => !one.isUndone && !known.has(one));
      if (left.length) this.written.set(place, left);
      else this.written.delete(place);
    }
  }

  /** Of a unit that has states. */
  table(unit) {
    let table = this.tables.get(unit.node);
    if (table === undefined) {
      this.tables.set(unit.node, (table = new StateTable(unit.states, this.maxEvent, this.isEmpty)));
    }
    return table;
  }

  /** An event now stands in the line of its (node, key). */
  lineUp(node, key, id) {
    const name = `${node}\0${key}`;
    const ids = this.lines.get(name);
    if (ids === undefined) this.lines.set(name, new Set([id]));
    else ids.add(id);
  }

  /** It has left the line; returns whether others still stand in it. */
  leave(node, key, id) {
    const name = `${node}\0${key}`;
    const ids = this.lines.get(name);
    if (ids === undefined) return false;
    ids.delete(id);
    if (ids.size) return true;
    this.lines.delete(name);
    return false;
  }
}

module.exports = { Part };
