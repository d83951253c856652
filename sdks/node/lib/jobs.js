"use strict";

const { AsyncLocalStorage } = require("node:async_hooks");

const { runsOf } = require("./batch");
const { replaced } = require("./core");
const { tooMuch } = require("./pending");
const { OVER } = require("./event");
const { Job, JobPending, Root } = require("./job");
const { said } = require("./logs");
const messages = require("./messages");
const { Retries } = require("./retries");
const { RetrySource, RootSource } = require("./sources");
const { entriesOf } = require("./sync");
const { steadyMs } = require("./watch");

/**
 * Pools with async nodes: up to `concurrency` events at once, one per (node, key), each with effects of its own. When
 * an event has succeeded at all of its nodes, its effects are merged into those of its partition; they are handed in
 * when nothing runs any more, and after 20 ms at the latest. Synchronous nodes of the same pool run in between, with
 * what chains from them: meanwhile nothing of the partition is handed in, as it has to be all of an event, or nothing.
 */

const FLUSH_MS = 20;
const FLUSH_BYTES = 16 << 20;
const SWEEP_MS = 50;
const KEPT_PENDING = 256;

/** The job whose handler runs, also behind an `await` in it. */
const running = new AsyncLocalStorage();

/** A work that is begun. `left`: its batches and retries that are not finished. */
class Begun {
  constructor(message) {
    this.message = message;
    this.left = message.batches.length + message.retries.length;
  }
}

/** A batch in work. `left`: events that are not finished. */
class Batch {
  constructor(item, work) {
    this.position = item.position;
    this.progress = item.progress;
    this.left = item.events - item.progress.finished;
    this.work = work;
  }
}

class JobPool {
  #core;
  #failed;
  #works = [];
  #isStarting = false;
  #isDraining = false;
  #effects = new Map();
  #lines = new Map();
  #ready = [];
  #isAdmitting = false;
  /** node -> jobs that its concurrency keeps waiting */
  #waiting = new Map();
  /** Jobs that only the worker's own limit keeps waiting. */
  #crowd = [];
  #running = new Set();
  /** What synchronous jobs wait for. */
  #turns = new Set();
  #runningOf = new Map();
  #quiet = [];
  /** part -> events that wait until the one before has taken effect, with all that chains from it */
  #settling = new Map();
  /** Partitions in which an event has taken effect in part, and whether some of it is due to be handed in. */
  #amid = new Set();
  #isDue = false;
  #flushTimer = null;
  #spare = [];

  /** `failed`: called with what no event can be blamed for. */
  constructor(core, failed) {
    this.#core = core;
    this.#failed = failed;
    setInterval(() => this.#sweep(), SWEEP_MS).unref();
  }

  /** The node that runs, "" for none. */
  static speaker() {
    const job = running.getStore();
    return job === undefined || job.isOver ? "" : job.unit.node;
  }

  /** The same, with its event and the trace of that. */
  static who() {
    const job = running.getStore();
    return job === undefined || job.isOver ? "" : said(job.unit.node, job.part, job.source, job.index);
  }

  work(message) {
    if (this.#isDraining) return;
    this.#works.push(message);
    if (!this.#isStarting) this.#start().catch(this.#failed);
  }

  /** Nothing more is started; resolves when what runs has been handed in. */
  async drain() {
    this.#isDraining = true;
    this.#works.length = 0;
    this.#core.pacer.end();
    await this.#allQuiet();
    this.#flush();
  }

  async #start() {
    this.#isStarting = true;
    while (this.#works.length) {
      const message = this.#works.shift();
      const part = this.#core.partOf(message);
      if (part === undefined) continue;
      if (message.careful) await this.#carefully(part, message);
      else await this.#begin(part, message);
    }
    this.#isStarting = false;
  }

  async #begin(part, message) {
    const core = this.#core;
    const work = new Begun(message);
    part.begin(message);
    core.boundCache();
    part.works++;
    const roots = this.#read(message);
    await this.#prefetch(part, message, roots);
    if (!core.isCurrent(part)) return;
    const retries = new Retries(part);
    message.retries.forEach((item, i) => {
      const job = this.#retryJob(part, item, message.contextBase + i, retries, () => this.#finishOf(work, part));
      if (job === null) this.#finishOf(work, part);
      else this.#submit(job.root);
    });
    for (const { item, runs } of roots) this.#beginBatch(part, new Batch(item, work), runs);
    if (!message.batches.length && !message.retries.length) this.#end(work, part);
    this.#flushSoon(part);
  }

  /** The batches of a work with their runs, as sources with their units. */
  #read(message) {
    let base = message.contextBase + message.retries.length;
    return message.batches.map((item) => {
      let offset = 0;
      const runs = this.#core.runsOf(item).map((run) => {
        const source = new RootSource(run, item, offset, base);
        offset += run.count;
        return { source, units: this.#core.unitsOf(run) };
      });
      base += item.contexts;
      return { item, runs };
    });
  }

  /** Ask for all state that a work needs and the cache does not hold. (Nothing of a partition in work is evicted.) */
  async #prefetch(part, message, roots) {
    const missing = new Map();
    const look = (unit, key) => {
      if (!unit?.states || key === null || part.table(unit).find(key) !== undefined) return;
      if (!missing.has(unit)) missing.set(unit, []);
      missing.get(unit).push(key);
    };
    for (const item of message.retries) {
      const [run] = runsOf(item.body);
      look(this.#core.units.get(item.node), run.keys === null ? null : run.keys[0]);
    }
    for (const { item, runs } of roots) {
      for (const { source, units } of runs) {
        if (source.run.keys === null) continue;
        for (const unit of units) {
          if (unit.states === null) continue;
          source.run.keys.forEach((key, i) => {
            if (!item.progress.isDone(source.offset + i)) look(unit, key);
          });
        }
      }
    }
    for (const [unit, keys] of missing) await this.#core.fetch(part, unit, keys);
  }

  #retryJob(part, item, context, retries, done) {
    const unit = this.#core.units.get(item.node);
    const [run] = runsOf(item.body);
    const source = new RetrySource(run, item, context);
    const slot = unit?.slots.get(source.nameOf(0));
    if (slot === undefined) return null; // this code has it no more
    const root = new Root(part, done);
    const job = new Job(root, unit, slot, source, 0, run.column()?.at(0) ?? null, retries);
    root.jobs.push(job);
    root.left = 1;
    return job;
  }

  /** The jobs of one event, at all of its nodes. */
  #root(part, source, units, columns, index, done) {
    const root = new Root(part, done);
    root.jobs = units.map((unit, u) => {
      const data = columns[u] === null ? null : columns[u].at(index);
      return new Job(root, unit, unit.slots.get(source.nameOf(index)), source, index, data);
    });
    root.left = units.length;
    return root;
  }

  #beginBatch(part, batch, runs) {
    if (batch.left === 0) {
      this.#finishOf(batch.work, part);
      return;
    }
    for (const { source, units } of runs) {
      const columns = units.map(() => source.run.column());
      const { offset, run } = source;
      for (let i = 0; i < run.count; i++) {
        if (batch.progress.isDone(offset + i)) continue;
        const root = this.#root(part, source, units, columns, i, () => this.#rootDone(batch, offset + i, part));
        if (units.length === 0) root.done();
        else this.#submit(root);
      }
    }
  }

  // ---------------------------------------------------------------- jobs

  /**
   * Each behind its (node, key), then within its slot's concurrency. All jobs of an event queue up before any of the
   * next one, so they never wait for each other in a circle.
   */
  #submit(root) {
    for (const job of root.jobs) {
      const queue = job.line === null ? undefined : this.#lines.get(job.line);
      if (queue !== undefined) queue.push(job);
      else {
        if (job.line !== null) this.#lines.set(job.line, []);
        this.#admit(job);
      }
    }
  }

  /** Start it, or the next one that may. (A synchronous job may end at once and let others start: a loop, not a call.) */
  #admit(job) {
    this.#ready.push(job);
    if (this.#isAdmitting) return;
    this.#isAdmitting = true;
    try {
      for (let i = 0; i < this.#ready.length; i++) this.#startJob(this.#ready[i]);
    } finally {
      this.#ready = [];
      this.#isAdmitting = false;
    }
  }

  #startJob(job) {
    if (this.#isDraining) return;
    if (!this.#core.isCurrent(job.part)) {
      this.#leave(job);
      return;
    }
    if (!job.unit.isAsync) {
      if (this.#needsTurn(job)) this.#runInTurn(job).catch(this.#failed);
      else this.#finished(job, () => this.#runSync(job, null));
      return;
    }
    const { node, concurrency } = job.unit;
    const now = this.#runningOf.get(node) ?? 0;
    if (now >= concurrency) {
      if (!this.#waiting.has(node)) this.#waiting.set(node, []);
      this.#waiting.get(node).push(job);
    } else if (this.#running.size >= this.#core.concurrency) this.#crowd.push(job);
    else {
      this.#runningOf.set(node, now + 1);
      this.#enter(job);
      this.#run(job).catch(this.#failed);
    }
  }

  #needsTurn({ part, unit, slot, source, index }) {
    return this.#core.needsTurn(part, unit, slot, source, index);
  }

  /** Whether the job has had its turn; false: it is not to be begun here any more. */
  async #turn(job) {
    return (await this.#core.pacer.turn(job.slot, job.part)) && !this.#isDraining && this.#core.isCurrent(job.part);
  }

  /** A synchronous one. */
  async #runInTurn(job) {
    const inTurn = this.#turn(job);
    this.#turns.add(inTurn);
    const mayRun = await inTurn;
    this.#turns.delete(inTurn);
    if (mayRun) this.#finished(job, () => this.#runSync(job, null));
    else this.#leave(job);
    this.#noteQuiet();
  }

  async #run(job) {
    try {
      if (this.#needsTurn(job) && !(await this.#turn(job))) {
        this.#leave(job);
        return;
      }
      if (!this.#mayRun(job)) return;
      const outcome = await this.#call(job);
      if (this.#core.isCurrent(job.part)) this.#finished(job, () => this.#takeEffect(job, outcome));
      else this.#leave(job);
    } finally {
      this.#over(job);
    }
  }

  #enter(job) {
    this.#running.add(job);
    this.#core.watch.jobs(this.#running.size);
  }

  #exit(job) {
    this.#running.delete(job);
    this.#core.watch.jobs(this.#running.size);
  }

  #over(job) {
    const { node } = job.unit;
    this.#exit(job);
    this.#runningOf.set(node, this.#runningOf.get(node) - 1);
    const next = this.#crowd.shift();
    if (next !== undefined) this.#admit(next);
    const waiting = this.#waiting.get(node)?.shift();
    if (waiting !== undefined) this.#admit(waiting);
    this.#noteQuiet();
  }

  #noteQuiet() {
    if (this.#isQuiet) for (const resolve of this.#quiet.splice(0)) resolve();
  }

  get #isQuiet() {
    return this.#running.size === 0 && this.#turns.size === 0 && this.#settling.size === 0;
  }

  #allQuiet() {
    return this.#isQuiet ? Promise.resolve() : new Promise((resolve) => this.#quiet.push(resolve));
  }

  /** Whether the job may run; if not, it is over. */
  #mayRun(job) {
    const finish = this.#refused(job);
    if (finish !== null) this.#finished(job, finish);
    return finish === null;
  }

  /** If something that failed before keeps the job's key, or it is lost: what becomes of it. null: it may run. */
  #refused(job) {
    const { part, unit, slot, source, index, retries } = job;
    const core = this.#core;
    const lost = core.mayBeLost(part, source) ? core.lost(part, unit, source, index) : null;
    if (retries !== null && !retries.begin(unit, slot, source)) return nothing;
    if (lost !== null) return () => this.#failAs(job, lost, true);
    const key = source.keyOf(index);
    if (retries === null && key !== null && slot.ordered && part.locked(unit.node).has(key)) {
      return () => core.behind(part, this.#effectsOf(part), unit, source, index);
    }
    return null;
  }

  /** Run the handler: `{ error }`, or what is to take effect. */
  async #call(job) {
    const { unit, slot, part, source, index } = job;
    const core = this.#core;
    const pending = (job.pending = this.#spare.pop() ?? core.newPending(null, JobPending));
    pending.controller = null;
    pending.start(unit, part);
    pending.progress = () => this.#setDeadline(job);
    let event = null;
    try {
      const now = unit.states?.hasTtl ? core.clock.now() : 0;
      const key = source.keyOf(index);
      let view = unit.stateless;
      let entry = null;
      let table = null;
      if (unit.states !== null) {
        if (key === null) view = unit.states.keyless;
        else {
          table = part.table(unit);
          entry = table.find(key);
          view = table.open(entry, now);
        }
      }
      event = core.event(source, index, job.data, view, pending);
      job.place = core.watch.place(part, unit.node, source.idOf(index), slot.timeout);
      this.#setDeadline(job);
      core.watch.current(job.place);
      let result;
      try {
        result = running.run(job, slot.handler, event);
      } finally {
        core.watch.current(-1);
      }
      await result;
      if (job.isLate) throw job.timeout();
      if (event.state !== view) throw replaced(unit);
      if (pending.suspended !== null) throw pending.leftBy(null);
      const changes = table === null ? null : table.changes(entry, view, now);
      return { error: null, table, entry, changes, now };
    } catch (error) {
      pending.undo();
      const thrown = error ?? new Error(`a handler threw ${String(error)}`);
      return { error: job.isLate ? job.timeout() : pending.leftBy(thrown) };
    } finally {
      job.isOver = true;
      job.deadline = Infinity;
      if (event !== null) event._sink = OVER;
      core.watch.leave(job.place);
    }
  }

  #setDeadline(job) {
    if (job.isOver || job.isLate || !job.slot.timeout) return;
    job.deadline = steadyMs() + job.slot.timeout * 1000;
    this.#core.watch.setDeadline(job.place, job.deadline);
  }

  /** Abort what has run for too long. */
  #sweep() {
    const now = steadyMs();
    for (const job of this.#running) if (now > job.deadline && !job.isLate) job.abort();
  }

  /** The job has run. With the last one of its event all take effect, and those that waited for them may start. */
  #finished(job, finish) {
    job.finish = finish;
    const { root } = job;
    if (--root.left > 0) return;
    const { part } = root;
    const queue = this.#settling.get(part);
    if (queue !== undefined) queue.push(root);
    else if (this.#core.hasChains) this.#settleAll(part, root).catch(this.#failed);
    else {
      this.#core.rootStart = this.#effectsOf(part).size;
      for (const one of root.jobs) one.finish();
      this.#settled(root);
    }
  }

  #settled(root) {
    root.done();
    for (const one of root.jobs) this.#leave(one);
    this.#flushSoon(root.part);
  }

  /** Events of a partition take effect, `first` and those that come meanwhile, each with all that chains from it. */
  async #settleAll(part, first) {
    const queue = [first];
    this.#settling.set(part, queue);
    while (queue.length) {
      const root = queue.shift();
      this.#amid.add(part);
      const isWhole = await this.#settle(root);
      this.#amid.delete(part);
      if (isWhole) this.#settled(root);
      else for (const job of root.jobs) this.#leave(job);
      if (this.#isDue) this.#flush();
    }
    this.#settling.delete(part);
    this.#noteQuiet();
  }

  /** False: the partition has been taken away meanwhile. */
  async #settle({ part, jobs, careful }) {
    const effects = this.#effectsOf(part);
    const start = effects.size;
    for (const job of jobs) {
      if (!this.#core.isCurrent(part)) return false;
      this.#core.rootStart = start;
      job.finish();
      if (effects.chained.length && !(await this.#chain(part, effects, start, careful))) return false;
    }
    return true;
  }

  /** Run what chains from what has just run. False: the partition has been taken away meanwhile. */
  async #chain(part, effects, start, careful) {
    const core = this.#core;
    for (const stage of effects.takeChained()) {
      const { unit, count } = stage;
      let entries = null;
      if (unit.states !== null) {
        const missing = [];
        entries = entriesOf(part.table(unit), stage, 0, count, missing);
        if (missing.length) {
          await core.fetch(part, unit, missing);
          if (!core.isCurrent(part)) return false;
          entries = entriesOf(part.table(unit), stage, 0, count, []);
        }
      }
      const column = stage.column();
      for (let i = 0; i < count; i++) {
        core.rootStart = start;
        this.#runChained(part, effects, stage, i, column.at(i), entries === null ? null : entries[i], careful);
        if (effects.chained.length && !(await this.#chain(part, effects, start, careful))) return false;
      }
    }
    return true;
  }

  #runChained(part, effects, stage, index, data, entry, careful) {
    const core = this.#core;
    const { unit } = stage;
    const slot = unit.slots.get(stage.nameOf(index));
    const lost = core.mayBeLost(part, stage) ? core.lost(part, unit, stage, index) : null;
    if (lost !== null) {
      core.failAs(part, effects, unit, slot, stage, index, lost, true);
      return;
    }
    if (careful !== null) {
      const id = stage.idOf(index);
      const named = careful.get(`${id}\0${unit.node}`);
      if (named !== undefined) {
        core.failAs(part, effects, unit, slot, stage, index, named, false);
        return;
      }
      core.link.send(messages.announce(part.number, part.epoch, id, unit.node));
    }
    if (!core.isBehind(part, effects, unit, slot, stage, index)) {
      this.#watched(part, unit, stage, index, () => core.runOne(part, effects, unit, slot, stage, index, data, entry));
    }
  }

  /** Run a synchronous handler; returns what `run` does. */
  #watched(part, unit, source, index, run) {
    const core = this.#core;
    core.enter(part, unit, source);
    core.watch.begin(part, unit, source, index, index + 1);
    try {
      return run();
    } finally {
      core.watch.end();
      core.leave();
    }
  }

  #leave(job) {
    const queue = job.line === null ? undefined : this.#lines.get(job.line);
    if (queue === undefined) return;
    if (queue.length) this.#admit(queue.shift());
    else this.#lines.delete(job.line);
  }

  #takeEffect(job, { error, table, entry, changes, now }) {
    const { part, unit, slot, source, index, pending, retries } = job;
    const core = this.#core;
    const effects = this.#effectsOf(part);
    if (error === null) {
      const { max_result: limit } = core.limits;
      const size = effects.size - core.rootStart + pending.size + (changes === null ? 0 : table.weigh(entry, changes));
      if (size > limit) error = tooMuch(limit, "emits, state and replies together");
    }
    if (error !== null) {
      pending.undo();
      core.fail(part, effects, unit, slot, source, index, error);
    } else core.commit(effects, pending, source, index, slot, table, entry, changes, now);
    retries?.end(unit, slot, source, effects, error !== null);
    job.pending = null;
    if (this.#spare.length < KEPT_PENDING) this.#spare.push(pending);
  }

  #failAs(job, named, isFinal) {
    const { part, unit, slot, source, index, retries } = job;
    const effects = this.#effectsOf(part);
    this.#core.failAs(part, effects, unit, slot, source, index, named, isFinal);
    retries?.end(unit, slot, source, effects, true);
  }

  /** `careful`: what is named, null: it is not announced. */
  #runSync(job, careful) {
    const refused = this.#refused(job);
    if (refused !== null) {
      refused();
      return;
    }
    const { part, unit, slot, source, index, data, retries } = job;
    const core = this.#core;
    if (careful !== null) {
      const id = source.idOf(index);
      const named = careful.get(`${id}\0${unit.node}`);
      if (named !== undefined) {
        this.#failAs(job, named, false);
        return;
      }
      core.link.send(messages.announce(part.number, part.epoch, id, unit.node));
    }
    const effects = this.#effectsOf(part);
    const key = source.keyOf(index);
    const entry = unit.states === null || key === null ? null : part.table(unit).find(key);
    const run = () => core.runOne(part, effects, unit, slot, source, index, data, entry);
    const hasSucceeded = this.#watched(part, unit, source, index, run);
    retries?.end(unit, slot, source, effects, !hasSucceeded);
  }

  // ---------------------------------------------------------------- careful mode

  /** One event at a time, announced and handed in: what is still running ends first. */
  async #carefully(part, message) {
    await this.#allQuiet();
    this.#flush(); // whatever is handed in from here on is of the event that was announced
    const core = this.#core;
    const work = new Begun(message);
    const careful = new Map(message.named.map((named) => [`${named.id}\0${named.node}`, named]));
    part.begin(message);
    part.works++;
    const roots = this.#read(message);
    await this.#prefetch(part, message, roots);
    const retries = new Retries(part);
    for (const [i, item] of message.retries.entries()) {
      if (this.#isDraining || !core.isCurrent(part)) return;
      const job = this.#retryJob(part, item, message.contextBase + i, retries, () => this.#finishOf(work, part));
      if (job === null) this.#finishOf(work, part);
      else if (await this.#haveTurns(job.root, careful)) await this.#rootCarefully(job.root, careful);
      else return;
    }
    for (const { item, runs } of roots) {
      const batch = new Batch(item, work);
      if (batch.left === 0) this.#finishOf(work, part);
      for (const { source, units } of runs) {
        const columns = units.map(() => source.run.column());
        const { offset, run } = source;
        for (let i = 0; i < run.count; i++) {
          if (batch.progress.isDone(offset + i)) continue;
          if (this.#isDraining || !core.isCurrent(part)) return;
          const root = this.#root(part, source, units, columns, i, () => this.#rootDone(batch, offset + i, part));
          if (!(await this.#haveTurns(root, careful))) return;
          await this.#rootCarefully(root, careful);
        }
      }
    }
    if (!message.batches.length && !message.retries.length) this.#end(work, part);
    this.#flush();
  }

  /** Before any of them begins, and is announced; false: they are not to be begun any more. */
  async #haveTurns(root, careful) {
    for (const job of root.jobs) {
      const isNamed = careful.has(`${job.source.idOf(job.index)}\0${job.unit.node}`);
      if (!isNamed && this.#needsTurn(job) && !(await this.#turn(job))) return false;
    }
    return true;
  }

  async #rootCarefully(root, careful) {
    if (root.jobs.length === 0) root.done();
    root.careful = careful;
    for (const job of root.jobs) {
      const { part, unit, source, index } = job;
      if (!this.#core.isCurrent(part)) return;
      if (!unit.isAsync) {
        this.#finished(job, () => this.#runSync(job, careful)); // with the last of its event
        continue;
      }
      const id = source.idOf(index);
      const named = careful.get(`${id}\0${unit.node}`);
      if (!this.#mayRun(job)) continue;
      if (named !== undefined) {
        this.#finished(job, () => this.#failAs(job, named, false));
        continue;
      }
      this.#core.link.send(messages.announce(part.number, part.epoch, id, unit.node));
      this.#enter(job);
      try {
        const outcome = await this.#call(job);
        if (this.#core.isCurrent(part)) this.#finished(job, () => this.#takeEffect(job, outcome));
      } finally {
        this.#exit(job);
        this.#noteQuiet();
      }
    }
    await this.#allQuiet(); // also what chains
    this.#flush();
  }

  // ---------------------------------------------------------------- results

  #effectsOf(part) {
    const known = this.#effects.get(part.number);
    if (known?.part === part) return known.effects;
    const effects = this.#core.newEffects();
    if (this.#core.isCurrent(part)) this.#effects.set(part.number, { part, effects });
    return effects;
  }

  #rootDone(batch, index, part) {
    batch.progress.add(index);
    this.#effectsOf(part).done.set(batch.position, batch.progress);
    if (--batch.left === 0) this.#finishOf(batch.work, part);
  }

  #finishOf(work, part) {
    if (--work.left === 0) this.#end(work, part);
  }

  #end(work, part) {
    part.works--;
    this.#effectsOf(part).ended.push(work.message.seq);
    const hasMore = [...this.#core.parts.values()].some((one) => one.works > 0);
    if (hasMore) this.#flushSoon(part);
    else setImmediate(() => this.#flush()); // there is nothing to wait for
  }

  #flushSoon(part) {
    if (this.#effectsOf(part).size > FLUSH_BYTES) this.#flush();
    else this.#flushTimer ??= setTimeout(() => this.#flush(), FLUSH_MS);
  }

  /** Hand in what is finished. */
  #flush() {
    clearTimeout(this.#flushTimer);
    this.#flushTimer = null;
    this.#isDue = false;
    try {
      for (const { part, effects } of this.#effects.values()) {
        if (this.#amid.has(part)) this.#isDue = true;
        else if (!effects.isEmpty) this.#core.handIn(part, effects);
      }
    } catch (error) {
      this.#failed(error);
    }
  }
}

function nothing() {}

module.exports = { JobPool };
