"use strict";

const { Unreadable, oneEvent, runsOf } = require("./batch");
const { chainsOf } = require("./chain");
const { EngineClock } = require("./clock");
const { Effects } = require("./effects");
const { BadPayload, BadState, HandlerError, Suspended } = require("./errors");
const { Event, OVER } = require("./event");
const { blame } = require("./failures");
const { said } = require("./logs");
const messages = require("./messages");
const { Access } = require("./objects");
const { Part } = require("./part");
const { Partitions } = require("./partitions");
const { Pending, tooMuch } = require("./pending");
const { afterFailure, locksKey } = require("./policy");
const { Pacer } = require("./rates");
const { MAX_FOREIGN, Routing, pairOf } = require("./routing");
const { Unit } = require("./unit");

/**
 * What sync and async pools share: the partitions, the nodes, how one event runs and fails.
 *
 * `link`: `send(frame)`, `ask(frame)`, which promises the values of the answer, and `waitUntil(done)`: see `Access`.
 */
class Core {
  /** Of what runs synchronously. */
  #part;
  #source;

  constructor(declaration, link, watch) {
    this.declaration = declaration;
    this.link = link;
    this.watch = watch;
    this.pacer = new Pacer(link.send, watch);
    this.objects = new Access(link);
    this.parts = new Map();
    this.units = new Map();
    /** The node that runs synchronously right now, "" for none. */
    this.speaker = "";
    this.#part = null;
    this.#source = null;
    this.frame = new messages.Frame(1 << 16);
    /** Where the effects of the running root event begin; where nodes chain, of the running event. */
    this.rootStart = 0;
    /** Whether nodes of this worker chain. */
    this.hasChains = false;
  }

  /** Events of `source` run at a node; `leave` says that they are over. */
  enter(part, unit, source) {
    this.speaker = unit.node;
    this.#part = part;
    this.#source = source;
  }

  leave() {
    this.speaker = "";
    this.#source = null;
  }

  /** By whom something is said: the node that runs synchronously, and the event and its trace behind it; "": by none. */
  who() {
    if (this.#source === null) return this.speaker;
    return said(this.speaker, this.#part, this.#source, this.watch.index);
  }

  welcome(message, ownTopology) {
    const { limits, pool, taken } = message;
    this.limits = limits;
    this.concurrency = message.concurrency;
    this.objects.namespaces = message.namespaces;
    this.clock = new EngineClock(message.bootOffset);
    // Without a topology in the welcome this is all of the app, and in the pool that nodes are in by default.
    this.routing = new Routing(message.topology ?? ownTopology, message.topology ? pool : "main", taken, message.peers);
    this.partitions = new Partitions(message.partitions);
    for (const node of this.declaration.nodes.values()) this.units.set(node.name, new Unit(node));
    this.#findChains(message.unchained);
    this.hasRates = [...this.units.values()].some((unit) => unit.hasRate);
    const slots = this.declaration.slots;
    slots.forEach((slot, id) => (slot.id = id));
    this.names = {
      slots: slots.map((slot) => `${slot.event}>${slot.node}`),
      routes: this.routing.names,
    };
    this.pending = this.newPending(() => this.watch.progress());
  }

  #findChains(unchained) {
    const { routing, units } = this;
    const old = new Set(routing.chained);
    for (const [node, target] of unchained) old.delete(pairOf(node, target));
    for (const unit of units.values()) {
      unit.chains = [old, routing.chained].map((pairs) => chainsOf(unit.node, routing, pairs, units));
    }
    this.hasChains = [...units.values()].some(({ chains }) => chains[1] !== null);
  }

  newPending(onProgress, Kind = Pending) {
    return new Kind(this.routing, this.partitions, this.limits, this.objects, onProgress);
  }

  newEffects() {
    return new Effects(this.limits, this.partitions.count, this.names.routes.length + MAX_FOREIGN, this.names.slots.length);
  }

  get isAsync() {
    return [...this.units.values()].some((unit) => unit.isAsync);
  }

  // ---------------------------------------------------------------- partitions

  assign(message) {
    this.parts.set(message.partition, new Part(message, this.limits.max_event));
    this.pacer.drop((part) => this.isCurrent(part));
  }

  revoke(message) {
    this.parts.delete(message.partition);
    this.pacer.drop((part) => this.isCurrent(part));
  }

  /** The partition of a work; undefined: it is not this worker's any more. */
  partOf(work) {
    const part = this.parts.get(work.partition);
    return part?.epoch === work.epoch ? part : undefined;
  }

  isCurrent(part) {
    return this.parts.get(part.number) === part;
  }

  /** Keep the state cache within its size. Nothing of a partition in work is forgotten. */
  boundCache() {
    let size = 0;
    for (const part of this.parts.values()) for (const table of part.tables.values()) size += table.size;
    if (size <= this.limits.cache_bytes) return;
    for (const part of this.parts.values()) {
      if (part.works === 0) for (const table of part.tables.values()) table.evict();
    }
  }

  /** Ask the engine for records of `keys`, and cache them. */
  async fetch(part, unit, keys) {
    const table = part.table(unit);
    let rest = [...new Set(keys)].sort(); // the store finds neighbours faster
    while (rest.length) {
      const values = await this.link.ask(messages.ask(part.number, part.epoch, unit.node, rest));
      values.forEach((record, i) => table.fill(rest[i], record));
      rest = rest.slice(values.length);
    }
  }

  /** Hand in what is in `effects`. */
  handIn(part, effects) {
    if (!this.isCurrent(part)) {
      effects.clear();
      return;
    }
    this.link.send(effects.pack(this.frame, part, this.names));
    if (this.frame.buffer.length > 4 << 20) this.frame = new messages.Frame(1 << 16); // a large one is not kept
  }

  // ---------------------------------------------------------------- events

  /** The runs of a batch, as they lead to nodes now. */
  runsOf(item) {
    const { here } = this.routing;
    return runsOf(item.body).flatMap((run) => run.split((name) => here.get(name)?.join("\0") ?? ""));
  }

  /** The nodes that a run is for. Older code may have meant it for some that do not listen any more. */
  unitsOf({ names, only }) {
    const listeners = this.routing.here.get(names[0]) ?? [];
    const nodes = only ? listeners.filter((node) => only.includes(node)) : listeners;
    return nodes.map((node) => this.units.get(node)).filter((unit) => unit !== undefined);
  }

  /** Whether any event of the source may be `lost`. */
  mayBeLost(part, source) {
    const limit = this.limits.max_hops;
    const { hops } = source.run;
    if (limit && (typeof hops === "number" ? hops > limit : hops.some((h) => h > limit))) return true;
    return part.deadlines.size > 0 && source.hasContexts;
  }

  /** Why the event must not be processed any more: it has come too far, or too late. null: it may. */
  lost(part, unit, source, index) {
    const limit = this.limits.max_hops;
    if (limit && source.hopsOf(index) > limit) {
      const text =
        `the event was emitted over ${limit} hops away from the outside (max-hops): does '${source.nameOf(index)}' ` +
        `go round in a circle? A delayed emit starts at 0 again`;
      return { kind: "too-many-hops", text, trace: "", death: false };
    }
    const deadline = part.deadlines.get(source.contextOf(index));
    const late = deadline === undefined ? 0 : this.clock.now() - Number(deadline);
    if (late <= 0) return null;
    const text = `its deadline had passed ${(late / 1e6).toFixed(3)} s before '${unit.node}' could get it`;
    return { kind: "deadline", text, trace: "", death: false };
  }

  /** Whether an event may have to wait for its turn, of those in a work. */
  isPaced({ retries, batches }) {
    if (!this.hasRates) return false;
    const isRated = (unit) => unit !== undefined && unit.hasRate;
    if (retries.some(({ node }) => isRated(this.units.get(node)))) return true;
    return batches.some((item) => this.runsOf(item).some((run) => this.unitsOf(run).some(isRated)));
  }

  /** Whether the event counts to a rate: its slot has one, and nothing keeps it from running. */
  needsTurn(part, unit, slot, source, index) {
    if (!slot.rate || (this.mayBeLost(part, source) && this.lost(part, unit, source, index) !== null)) return false;
    const key = source.keyOf(index);
    return source.retry !== null || key === null || !slot.ordered || !part.locks.get(unit.node)?.has(key);
  }

  /** Whether the event has to wait behind a failed one of its key; then it has been handed in so. */
  isBehind(part, effects, unit, slot, source, index) {
    const locked = part.locks.get(unit.node);
    if (locked === undefined || locked.size === 0 || !slot.ordered) return false;
    const key = source.keyOf(index);
    if (key === null || !locked.has(key)) return false;
    this.behind(part, effects, unit, source, index);
    return true;
  }

  behind(part, effects, unit, source, index) {
    part.lineUp(unit.node, source.keyOf(index), source.idOf(index));
    this.#record(effects, unit, source, index, { behind: true });
  }

  /**
   * Run one event at one synchronous node, and take its effects; false: it has failed. `entry`: its state record, null
   * for none.
   */
  runOne(part, effects, unit, slot, source, index, data, entry) {
    const { pending } = this;
    const { states } = unit;
    pending.start(unit, part);
    let event = null;
    let table = null;
    let changes = null;
    let now = 0;
    try {
      let view = unit.stateless;
      if (states !== null) {
        if (entry === null) view = states.keyless;
        else {
          if (states.hasTtl) now = this.clock.now();
          table = part.table(unit);
          view = table.open(entry, now);
        }
      }
      event = this.event(source, index, data, view, pending);
      const result = slot.handler(event);
      if (typeof result === "object" && result !== null && typeof result.then === "function") throw promised(unit, result);
      if (event.state !== view) throw replaced(unit);
      if (pending.suspended !== null) throw pending.leftBy(null);
      if (table !== null) changes = table.changes(entry, view, now);
      const size = effects.size - this.rootStart + pending.size + (changes === null ? 0 : table.weigh(entry, changes));
      if (size > this.limits.max_result) throw tooMuch(this.limits.max_result, "emits, state and replies together");
    } catch (error) {
      if (event !== null) event._sink = OVER;
      pending.undo();
      this.fail(part, effects, unit, slot, source, index, pending.leftBy(error));
      return false;
    }
    event._sink = OVER;
    this.commit(effects, pending, source, index, slot, table, entry, changes, now);
    return true;
  }

  /** The event as its handler gets it. */
  event(source, index, data, view, pending) {
    if (data instanceof Unreadable) throw new BadPayload(`the data cannot be read: ${data.error.message}`);
    return new Event(source.nameOf(index), source.keyOf(index), data, view, pending, source, index);
  }

  /** An event has succeeded: what it did takes effect. */
  commit(effects, pending, source, index, slot, table, entry, changes, now) {
    if (changes !== null) {
      effects.size += table.weigh(entry, changes);
      table.apply(entry, changes, now);
    }
    if (pending.count !== 0 || pending.written.length !== 0) pending.commit(effects, source, index);
    effects.ran[slot.id]++;
  }

  /** The event failed with `error`, of any type, or was left at a call. */
  fail(part, effects, unit, slot, source, index, error) {
    if (error instanceof Suspended) {
      this.#lock(part, unit, slot, source, index, "retry");
      this.#record(effects, unit, source, index, { call: this.#request(part, source, index, error) });
      return;
    }
    this.#failed(part, effects, unit, slot, source, index, { ...blame(error), death: false }, false);
  }

  /** The event is handed in as failed instead of run. `isFinal`: it must not be tried again. */
  failAs(part, effects, unit, slot, source, index, named, isFinal) {
    this.#failed(part, effects, unit, slot, source, index, named, isFinal);
  }

  #failed(part, effects, unit, slot, source, index, { kind, text, trace, death }, isFinal) {
    const deaths = death ? (source.retry?.namedDeaths ?? 0) + 1 : 0;
    const verdict = isFinal ? "dead" : afterFailure(slot, source.attempt, deaths, this.limits.named_deaths);
    this.#lock(part, unit, slot, source, index, verdict);
    this.#record(effects, unit, source, index, { kind, text, trace, named: death, final: isFinal });
  }

  /** Later events of its key wait, if it is held for them to. */
  #lock(part, unit, slot, source, index, verdict) {
    const key = source.keyOf(index);
    if (!locksKey(slot, key, verdict)) return;
    part.locked(unit.node).add(key);
    part.lineUp(unit.node, key, source.idOf(index));
  }

  /** What goes out for a call of the event: one request for each pool that listens. */
  #request(part, source, index, { event, route, key, number, data, digest, timeout }) {
    const body = oneEvent(event, key, data, source.hopsOf(index) + 1, true);
    const requests = route.targets.map(({ log }) => ({ log, partition: number, body }));
    return { event, digest, timeout, requests };
  }

  #record(effects, unit, source, index, what) {
    const event = source.nameOf(index);
    const key = source.keyOf(index);
    const body = oneEvent(event, key, source.raw(index), source.hopsOf(index));
    effects.failures.push({
      node: unit.node,
      event,
      id: source.idOf(index),
      key,
      created: source.created,
      body,
      hold: source.retry?.hold ?? -1,
      behind: false,
      context: source.contextOf(index),
      kind: "",
      text: "",
      trace: "",
      named: false,
      final: false,
      call: null,
      ...what,
    });
    const asked = what.call === undefined ? 0 : what.call.requests.length * what.call.requests[0].body.length;
    effects.size += body.length + asked + 256;
  }
}

function promised(unit, promise) {
  promise.then(ignore, ignore); // its failure is told by this one
  return new HandlerError(
    `a handler of '${unit.node}' returned a Promise, and was not declared as async: use an async function, or ` +
      `{ async: true }`,
  );
}

function ignore() {}

/** What was meant to be stored would be lost. */
function replaced({ node }) {
  return new BadState(`event.state was assigned in a handler of '${node}': assign its properties instead`);
}

module.exports = { Core, replaced };
