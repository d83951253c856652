"use strict";

const { runsOf } = require("./batch");
const messages = require("./messages");
const { Retries } = require("./retries");
const { RetrySource, RootSource } = require("./sources");

/**
 * Pools whose nodes are all synchronous: one work after the other, in chunks of some milliseconds. After each event all
 * of it is finished, so a work may end at any of them; the engine sends what is left once more.
 */

const MAX_CHUNK = 1024;
const CHUNK_MS = 10;
const WORK_MS = 100;
const WORK_EMITS = 200_000;
const WORK_BYTES = 16 << 20;

class SyncPool {
  #core;
  #effects;
  #works = [];
  #isRunning = false;
  #chunks = new Map();
  #idle = null;
  #failed;

  /** `failed`: called with what no event can be blamed for. */
  constructor(core, failed) {
    this.#core = core;
    this.#effects = core.newEffects();
    this.#failed = failed;
  }

  work(message) {
    this.#works.push(message);
    if (!this.#isRunning) this.#run().catch(this.#failed);
  }

  /** Drop what was not begun; resolves when the work that runs has been handed in. */
  drain() {
    this.#works.length = 0;
    return this.#isRunning ? new Promise((resolve) => (this.#idle = resolve)) : Promise.resolve();
  }

  async #run() {
    this.#isRunning = true;
    while (this.#works.length) {
      await this.#work(this.#works.shift());
      if (this.#works.length) await new Promise(setImmediate); // timers and promises of the app get their turn
    }
    this.#isRunning = false;
    this.#idle?.();
  }

  async #work(message) {
    const core = this.#core;
    const part = core.partOf(message);
    if (part === undefined) return;
    const effects = this.#effects;
    effects.clear();
    part.begin(message);
    core.boundCache();
    part.works++;
    try {
      const isWhole = message.careful
        ? await this.#carefully(part, message)
        : await this.#together(part, message, performance.now() + WORK_MS);
      if (!isWhole) return;
      effects.ended.push(message.seq);
      core.handIn(part, effects);
    } finally {
      part.works--;
    }
  }

  // ---------------------------------------------------------------- the usual way

  /** Until it is done or has become long. False: the partition has been taken away meanwhile. */
  async #together(part, message, until) {
    const effects = this.#effects;
    const isLong = () =>
      performance.now() > until || effects.emits > WORK_EMITS || effects.size > WORK_BYTES || !this.#core.isCurrent(part);
    const retries = new Retries(part);
    let context = message.contextBase;
    for (const item of message.retries) {
      await this.#retry(part, item, context++, retries, null);
      if (isLong()) return this.#core.isCurrent(part);
    }
    for (const item of message.batches) {
      await this.#batch(part, item, context, isLong);
      context += item.contexts;
      if (isLong()) break;
    }
    return this.#core.isCurrent(part);
  }

  async #batch(part, item, base, isLong) {
    const { progress } = item;
    const effects = this.#effects;
    effects.done.set(item.position, progress);
    let offset = 0;
    for (const run of this.#core.runsOf(item)) {
      const source = new RootSource(run, item, offset, base);
      const units = this.#core.unitsOf(run);
      const columns = units.map(() => run.column());
      const last = offset + run.count;
      for (let at = progress.next(offset, last); at < last; at = progress.next(at, last)) {
        const end = this.#chunkEnd(progress, at, last, run.names[0]);
        const entries = await this.#entries(part, units, source, at - offset, end - offset);
        if (!this.#core.isCurrent(part)) return;
        const began = performance.now();
        const stopped = this.#chunk(part, source, units, columns, entries, at - offset, end - offset) + offset;
        this.#adapt(run.names[0], end - at, performance.now() - began);
        for (let i = at; i < stopped; i++) progress.add(i);
        if (isLong()) return;
      }
      offset = last;
    }
  }

  #chunkEnd(progress, start, last, name) {
    const limit = Math.min(last, start + (this.#chunks.get(name) ?? 1));
    if (!progress.behind.size) return limit;
    let end = start + 1;
    while (end < limit && !progress.isDone(end)) end++;
    return end;
  }

  /** A chunk should take some milliseconds. */
  #adapt(name, events, ms) {
    const size = this.#chunks.get(name) ?? 1;
    if (ms > 2 * CHUNK_MS) this.#chunks.set(name, Math.max(1, Math.min(size, events) >> 1));
    else if (events >= size && ms < CHUNK_MS / 2) this.#chunks.set(name, Math.min(MAX_CHUNK, size * 4));
  }

  /** The state records of a chunk's events, one list for each unit; a promise where some have to be asked for. */
  #entries(part, units, source, start, end) {
    const lists = new Array(units.length).fill(null);
    const waiting = [];
    for (let u = 0; u < units.length; u++) {
      const unit = units[u];
      if (unit.states === null || source.run.keys === null) continue;
      const table = part.table(unit);
      const missing = [];
      lists[u] = entriesOf(table, source, start, end, missing);
      if (missing.length) {
        waiting.push([unit, missing, () => (lists[u] = entriesOf(table, source, start, end, []))]);
      }
    }
    return waiting.length ? this.#fetched(part, waiting, lists) : lists;
  }

  async #fetched(part, waiting, lists) {
    for (const [unit, missing, again] of waiting) {
      await this.#core.fetch(part, unit, missing);
      again();
    }
    return lists;
  }

  /** Run events `start` to `end`; returns where it stopped, as what they do has become much. */
  #chunk(part, source, units, columns, entries, start, end) {
    if (units.length === 1) return this.#chunkOfOne(part, source, units[0], columns[0], entries[0], start, end);
    for (let i = start; i < end; i++) {
      this.#root(part, source, units, columns, entries, i, i - start, null);
      if (this.#effects.size > WORK_BYTES) return i + 1;
    }
    return end;
  }

  /** All of a chunk at its only node: the loop in which workers are most of the time. */
  #chunkOfOne(part, source, unit, column, entries, start, end) {
    const core = this.#core;
    const { watch } = core;
    const effects = this.#effects;
    const { index } = source.run;
    const slots = unit.slotsOf(source.run);
    const mayBeLost = core.mayBeLost(part, source);
    core.speaker = unit.node;
    watch.begin(part, unit, source, start, end);
    try {
      for (let i = start; i < end; i++) {
        const slot = slots[index === null ? 0 : index[i]];
        const data = column === null ? null : column.at(i);
        if (mayBeLost && this.#isLost(part, unit, slot, source, i)) continue;
        if (core.isBehind(part, effects, unit, slot, source, i)) continue;
        watch.at(i);
        core.rootStart = effects.size;
        core.runOne(part, effects, unit, slot, source, i, data, entries === null ? null : entries[i - start]);
        if (effects.size > WORK_BYTES) return i + 1;
      }
      return end;
    } finally {
      watch.end();
      core.speaker = "";
    }
  }

  #isLost(part, unit, slot, source, index) {
    const lost = this.#core.lost(part, unit, source, index);
    if (lost === null) return false;
    this.#core.failAs(part, this.#effects, unit, slot, source, index, lost, true);
    return true;
  }

  /** One event at all of its nodes. `entries`: per unit a list, in which it has the index `at`. */
  #root(part, source, units, columns, entries, index, at, careful) {
    this.#core.rootStart = this.#effects.size;
    for (let u = 0; u < units.length; u++) {
      const data = columns[u] === null ? null : columns[u].at(index);
      const entry = entries[u] === null ? null : entries[u][at];
      const slot = units[u].slots.get(source.nameOf(index));
      this.#single(part, units[u], slot, source, index, data, entry, careful);
    }
  }

  /** One event at one node; false: it has failed, or may not run. `careful`: what is named, see `#carefully`. */
  #single(part, unit, slot, source, index, data, entry, careful) {
    const core = this.#core;
    const effects = this.#effects;
    if (core.mayBeLost(part, source) && this.#isLost(part, unit, slot, source, index)) return false;
    const id = careful === null ? "" : source.idOf(index);
    const named = careful?.get(`${id}\0${unit.node}`);
    if (named !== undefined) {
      core.failAs(part, effects, unit, slot, source, index, named, false);
      return false;
    }
    if (core.isBehind(part, effects, unit, slot, source, index)) return false;
    if (careful !== null) core.link.send(messages.announce(part.number, part.epoch, id, unit.node));
    core.speaker = unit.node;
    core.watch.begin(part, unit, source, index, index + 1);
    try {
      return core.runOne(part, effects, unit, slot, source, index, data, entry);
    } finally {
      core.watch.end();
      core.speaker = "";
    }
  }

  /** A held event once more. `context`: its number. */
  async #retry(part, item, context, retries, careful) {
    const core = this.#core;
    const unit = core.units.get(item.node);
    const [run] = runsOf(item.body);
    const source = new RetrySource(run, item, context);
    const slot = unit?.slots.get(source.nameOf(0));
    if (slot === undefined) return; // this code has it no more
    const entries = await this.#entries(part, [unit], source, 0, 1);
    if (!core.isCurrent(part) || !retries.begin(unit, slot, source)) return;
    core.rootStart = this.#effects.size;
    const data = run.column()?.at(0) ?? null;
    const entry = entries[0] === null ? null : entries[0][0];
    const hasSucceeded = this.#single(part, unit, slot, source, 0, data, entry, careful);
    retries.end(unit, slot, source, this.#effects, !hasSucceeded);
  }

  // ---------------------------------------------------------------- careful mode

  /** Event by event, each announced and handed in: the worker is expected to die of one. */
  async #carefully(part, message) {
    const core = this.#core;
    const effects = this.#effects;
    const careful = new Map(message.named.map((named) => [`${named.id}\0${named.node}`, named]));
    const retries = new Retries(part);
    let context = message.contextBase;
    for (const item of message.retries) {
      await this.#retry(part, item, context++, retries, careful);
      if (!core.isCurrent(part)) return false;
      core.handIn(part, effects);
    }
    for (const item of message.batches) {
      const { progress } = item;
      let offset = 0;
      for (const run of core.runsOf(item)) {
        const source = new RootSource(run, item, offset, context);
        const units = core.unitsOf(run);
        const columns = units.map(() => run.column());
        const last = offset + run.count;
        for (let at = progress.next(offset, last); at < last; at = progress.next(at, last)) {
          const entries = await this.#entries(part, units, source, at - offset, at - offset + 1);
          if (!core.isCurrent(part)) return false;
          this.#root(part, source, units, columns, entries, at - offset, 0, careful);
          progress.add(at);
          effects.done.set(item.position, progress);
          core.handIn(part, effects);
        }
        offset = last;
      }
      context += item.contexts;
    }
    return true;
  }
}

/** The records of events `start` to `end`, null for those without a key; keys that are not cached go to `missing`. */
function entriesOf(table, source, start, end, missing) {
  const { keys } = source.run;
  const entries = new Array(end - start).fill(null);
  for (let i = start; i < end; i++) {
    const key = keys[i];
    if (key === null) continue;
    const entry = table.find(key);
    if (entry === undefined) missing.push(key);
    else entries[i - start] = entry;
  }
  return entries;
}

module.exports = { SyncPool, entriesOf };
