"use strict";

const { runsOf } = require("./batch");
const { TooMuch } = require("./chain");
const messages = require("./messages");
const { tooMuch } = require("./pending");
const { Retries } = require("./retries");
const { RetrySource, RootSource } = require("./sources");

/**
 * Pools whose nodes are all synchronous: one work after the other, in chunks of some milliseconds. After each event all
 * of it is finished, so a work may end at any of them; the engine sends what is left once more.
 *
 * Where nodes chain, a chunk goes through a node as a whole (a stage), and what it emitted over chained pairs is the next
 * stage: so the state that it needs is asked for at once. Then all of a chunk is finished behind its last stage.
 */

const MAX_CHUNK = 1024;
const CHUNK_MS = 10;
const CHUNK_EMITS = 20_000;
const CHUNK_BYTES = 4 << 20;
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
  /** The size of the effects at which the root events that run have done too much. */
  #most = Infinity;
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

  /** Drop what was not begun; resolves when the work that runs has been handed in, but for what waits for its turn. */
  drain() {
    this.#works.length = 0;
    this.#core.pacer.end();
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
      const careful = new Map(message.named.map((named) => [`${named.id}\0${named.node}`, named]));
      const isPaced = core.isPaced(message);
      const isWhole = await (message.careful || isPaced
        ? this.#singly(part, message, message.careful ? careful : null, isPaced)
        : this.#quickly(part, message));
      if (!isWhole) return;
      effects.ended.push(message.seq);
      core.handIn(part, effects);
    } finally {
      part.works--;
    }
  }

  // ---------------------------------------------------------------- the usual way

  /** Together. If that is too much, it is undone (nothing was handed in), and each root event runs alone. */
  async #quickly(part, message) {
    const before = this.#core.hasChains ? part.copyLocks() : null;
    try {
      return await this.#together(part, message, performance.now() + WORK_MS);
    } catch (error) {
      if (!(error instanceof TooMuch)) throw error;
      part.forget(before);
      this.#effects.clear();
      return this.#singly(part, message, null, false);
    }
  }

  /** Until it is done or has become long. False: the partition has been taken away meanwhile. */
  async #together(part, message, until) {
    const effects = this.#effects;
    const isLong = () =>
      performance.now() > until || effects.emits > WORK_EMITS || effects.size > WORK_BYTES || !this.#core.isCurrent(part);
    const retries = new Retries(part);
    let context = message.contextBase;
    for (const item of message.retries) {
      await this.#retry(part, item, context++, retries, null, false);
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
    const progress = item.progress.copy(); // it may have to be undone
    const core = this.#core;
    const effects = this.#effects;
    effects.done.set(item.position, progress);
    let offset = 0;
    for (const run of core.runsOf(item)) {
      const source = new RootSource(run, item, offset, base);
      const units = core.unitsOf(run);
      const columns = units.map(() => run.column());
      const last = offset + run.count;
      for (let at = progress.next(offset, last); at < last; at = progress.next(at, last)) {
        const end = this.#chunkEnd(progress, at, last, run.names[0]);
        const entries = await this.#entries(part, units, source, at - offset, end - offset);
        if (!core.isCurrent(part)) return;
        const { emits, size } = effects;
        const began = performance.now();
        const chunk = [part, source, units, columns, entries, at - offset, end - offset];
        const stopped = core.hasChains ? await this.#stages(...chunk) : this.#chunk(...chunk);
        if (!core.isCurrent(part)) return;
        this.#adapt(run.names[0], end - at, performance.now() - began, effects.emits - emits, effects.size - size);
        for (let i = at; i < offset + stopped; i++) progress.add(i);
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

  /** A chunk should take some milliseconds, and not fill the memory with what it emits. */
  #adapt(name, events, ms, emits, bytes) {
    const size = this.#chunks.get(name) ?? 1;
    const load = Math.max(ms / CHUNK_MS, emits / CHUNK_EMITS, bytes / CHUNK_BYTES);
    if (load > 2) this.#chunks.set(name, Math.max(1, Math.min(size, events) >> 1));
    else if (events >= size && load < 0.5) this.#chunks.set(name, Math.min(MAX_CHUNK, size * 4));
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
    if (units.length === 1) return this.#stage(part, source, units[0], columns[0], entries[0], start, end, WORK_BYTES);
    for (let i = start; i < end; i++) {
      this.#root(part, source, units, columns, entries, i, i - start, null);
      if (this.#effects.size > WORK_BYTES) return i + 1;
    }
    return end;
  }

  /** The same where nodes chain: node by node, each with all that chains from it. */
  async #stages(part, source, units, columns, entries, start, end) {
    this.#most = this.#effects.size + this.#core.limits.max_result;
    let stop = end;
    for (let u = 0; u < units.length; u++) {
      // What the first one has run, the others run as well.
      const most = u === 0 ? Math.min(WORK_BYTES, this.#most) : this.#most;
      stop = this.#stage(part, source, units[u], columns[u], entries[u], start, stop, most);
      if (!(await this.#chain(part, null))) break;
    }
    return stop;
  }

  /** Run what chains from what has just run, stage by stage. False: the partition has been taken away meanwhile. */
  async #chain(part, careful) {
    this.#checkSize();
    const core = this.#core;
    for (const stage of this.#effects.takeChained()) {
      const { unit, count } = stage;
      const entries = await this.#entries(part, [unit], stage, 0, count);
      if (!core.isCurrent(part)) return false;
      if (careful === null) {
        this.#stage(part, stage, unit, stage.column(), entries[0], 0, count, this.#most);
        if (!(await this.#chain(part, null))) return false;
        continue;
      }
      const column = stage.column();
      for (let i = 0; i < count; i++) {
        core.rootStart = this.#effects.size;
        const entry = entries[0] === null ? null : entries[0][i];
        this.#single(part, unit, unit.slots.get(stage.nameOf(i)), stage, i, column.at(i), entry, careful);
        if (!(await this.#chain(part, careful))) return false;
      }
    }
    return true;
  }

  #checkSize() {
    if (this.#effects.size > this.#most) throw new TooMuch();
  }

  /** Events at one node, up to where the effects are over `most` bytes: the loop in which workers are most of the time. */
  #stage(part, source, unit, column, entries, start, end, most) {
    const core = this.#core;
    const { watch } = core;
    const effects = this.#effects;
    const { index } = source.run;
    const slots = unit.slotsOf(source.run);
    const mayBeLost = core.mayBeLost(part, source);
    core.enter(part, unit, source);
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
        if (effects.size > most) return i + 1;
      }
      return end;
    } finally {
      watch.end();
      core.leave();
    }
  }

  #isLost(part, unit, slot, source, index) {
    const lost = this.#core.lost(part, unit, source, index);
    if (lost === null) return false;
    this.#core.failAs(part, this.#effects, unit, slot, source, index, lost, true);
    return true;
  }

  /** One event at all of its nodes, where they do not chain. `entries`: per unit a list, in which it has the index `at`. */
  #root(part, source, units, columns, entries, index, at, careful) {
    this.#core.rootStart = this.#effects.size;
    for (let u = 0; u < units.length; u++) this.#rootAt(part, source, units, columns, entries, index, at, careful, u);
  }

  #rootAt(part, source, units, columns, entries, index, at, careful, u) {
    const data = columns[u] === null ? null : columns[u].at(index);
    const entry = entries[u] === null ? null : entries[u][at];
    const slot = units[u].slots.get(source.nameOf(index));
    this.#single(part, units[u], slot, source, index, data, entry, careful);
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
    core.enter(part, unit, source);
    core.watch.begin(part, unit, source, index, index + 1);
    try {
      return core.runOne(part, effects, unit, slot, source, index, data, entry);
    } finally {
      core.watch.end();
      core.leave();
    }
  }

  /** A held event once more. `context`: its number; `isAlone`: nothing else is in the effects. false: it has been given back. */
  async #retry(part, item, context, retries, careful, isAlone) {
    const core = this.#core;
    const unit = core.units.get(item.node);
    const [run] = runsOf(item.body);
    const source = new RetrySource(run, item, context);
    const slot = unit?.slots.get(source.nameOf(0));
    if (slot === undefined) return true; // this code has it no more
    if (!(await this.#turns(part, source, [unit], 0, careful))) return false;
    const entries = await this.#entries(part, [unit], source, 0, 1);
    if (!core.isCurrent(part) || !retries.begin(unit, slot, source)) return true;
    core.rootStart = this.#effects.size;
    this.#most = core.hasChains ? this.#effects.size + core.limits.max_result : Infinity;
    const data = run.column()?.at(0) ?? null;
    const entry = entries[0] === null ? null : entries[0][0];
    let hasFailed = false;
    const go = () => {
      hasFailed = !this.#single(part, unit, slot, source, 0, data, entry, careful);
      return this.#chain(part, careful);
    };
    const refuse = (error) => {
      hasFailed = true;
      core.fail(part, this.#effects, unit, slot, source, 0, error);
    };
    if (await (isAlone ? this.#alone(part, go, refuse) : go())) {
      retries.end(unit, slot, source, this.#effects, hasFailed);
    }
    return true;
  }

  // ---------------------------------------------------------------- event by event

  /**
   * Event by event, each handed in at once: in careful mode (`careful`: what is named), as the worker is expected to die of
   * one; as the next one may have to wait for its turn (`isPaced`); or because together it was too much. Of what has a rate
   * the engine sends again what is left after a while. False: the partition has been taken away, or the rest given back.
   */
  async #singly(part, message, careful, isPaced) {
    const core = this.#core;
    const effects = this.#effects;
    const retries = new Retries(part);
    const until = performance.now() + (isPaced ? WORK_MS : Infinity);
    let context = message.contextBase;
    for (const item of message.retries) {
      if (!(await this.#retry(part, item, context++, retries, careful, true)) || !core.isCurrent(part)) return false;
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
          if (isPaced && !(await this.#turns(part, source, units, at - offset, careful))) return false;
          const entries = await this.#entries(part, units, source, at - offset, at - offset + 1);
          if (!core.isCurrent(part)) return false;
          if (!(await this.#rootSingly(part, source, units, columns, entries, at - offset, careful))) return false;
          progress.add(at);
          effects.done.set(item.position, progress);
          core.handIn(part, effects);
          if (performance.now() > until) return true;
        }
        offset = last;
      }
      context += item.contexts;
    }
    return true;
  }

  /** Wait until an event may be handed to all of its nodes; none begins before. False: it is not to be begun here any more. */
  async #turns(part, source, units, index, careful) {
    const core = this.#core;
    for (const unit of units) {
      const slot = unit.slots.get(source.nameOf(index));
      const isNamed = careful !== null && careful.has(`${source.idOf(index)}\0${unit.node}`);
      if (isNamed || !core.needsTurn(part, unit, slot, source, index)) continue;
      if (!(await core.pacer.turn(slot, part)) || !core.isCurrent(part)) return false;
    }
    return true;
  }

  /** One root event with all that chains from it. False: the partition has been taken away meanwhile. */
  async #rootSingly(part, source, units, columns, entries, index, careful) {
    const core = this.#core;
    if (!core.hasChains) {
      this.#root(part, source, units, columns, entries, index, 0, careful);
      return true;
    }
    const go = async () => {
      for (let u = 0; u < units.length; u++) {
        core.rootStart = this.#effects.size;
        this.#rootAt(part, source, units, columns, entries, index, 0, careful, u);
        if (!(await this.#chain(part, careful))) return false;
      }
      return true;
    };
    return this.#alone(part, go, (error) => {
      for (const unit of units) {
        const slot = unit.slots.get(source.nameOf(index));
        if (!core.isBehind(part, this.#effects, unit, slot, source, index)) {
          core.fail(part, this.#effects, unit, slot, source, index, error);
        }
      }
    });
  }

  /** `go`, for a root event that is all there is in the effects: too much of it is its failure (`refuse`). */
  async #alone(part, go, refuse) {
    const before = part.copyLocks();
    this.#most = this.#core.hasChains ? this.#core.limits.max_result : Infinity;
    try {
      return await go();
    } catch (error) {
      if (!(error instanceof TooMuch)) throw error;
      part.forget(before);
      this.#effects.clear();
      refuse(tooMuch(this.#core.limits.max_result, "emits, state and replies together, with what chained from it"));
      return true;
    }
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
