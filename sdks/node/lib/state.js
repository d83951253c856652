"use strict";

const { BadPayload, BadState, NoKey, TooLarge } = require("./errors");
const { Reader } = require("./msgpack/reader");
const { Writer } = require("./msgpack/writer");
const { didYouMean } = require("./similar");

/**
 * Keyed state: a cache of what is committed, and what this work has changed.
 *
 * A record is what one (node, key) stores. Plain values are cached as they are, all others as msgpack (a Buffer), so
 * that a handler that changes an object in place changes nothing until its event has succeeded.
 */

/** Bytes that a cached entry costs beside its encoded record: the key, the map's slot, the objects. */
const ENTRY_OVERHEAD = 200;

const scratch = new Writer(4096);

/** The state types of one node: their names, and what a handler gets as `event.state`. */
class States {
  /** `declared`: `{ name, ttl }`, ttl in seconds or undefined. */
  constructor(node, declared) {
    this.node = node;
    this.names = declared.map((state) => state.name);
    this.ttls = declared.map((state) => (state.ttl === undefined ? 0 : Math.round(state.ttl * 1e6)));
    this.hasTtl = this.ttls.some((ttl) => ttl > 0);
    this.indexes = new Map(this.names.map((name, index) => [name, index]));
    this.View = viewClass(node, this.names);
    this.keyless = keylessView(node);
  }
}

/**
 * The class of `event.state` for one node: an own property for each state, which costs nothing to read and write. What
 * is no state misses them, falls through to the prototype, a proxy, and is an error there instead of silently nothing.
 */
function viewClass(node, names) {
  let View = class {
    #cells = null;

    /** Per state the cell behind its accessor, if it has one. */
    static cells(view) {
      return view.#cells;
    }

    static setCells(view, cells) {
      view.#cells = cells;
    }
  };
  const { cells, setCells } = View;
  Object.setPrototypeOf(View.prototype, guard(node, names));
  for (const name of names) {
    View = class extends View {
      [name] = undefined;
    };
  }
  return Object.assign(View, { cells, setCells });
}

function guard(node, names) {
  const known = new Set(names);
  const stray = (name) => new BadState(`node '${node}' has no state '${name}'${didYouMean(name, known)} (states: [...])`);
  return new Proxy(Object.create(null), {
    get(target, name) {
      if (typeof name === "symbol" || known.has(name) || name === "toJSON" || name === "then") return undefined;
      if (name in Object.prototype) return Object.prototype[name];
      throw stray(name);
    },
    set(target, name, value, view) {
      if (!known.has(name)) throw stray(String(name));
      // It was deleted before in the same event.
      return Reflect.defineProperty(view, name, { value, writable: true, enumerable: true, configurable: true });
    },
  });
}

/** What an event without a key gets. */
function keylessView(node) {
  const refuse = (target, name) => {
    if (typeof name === "symbol" || name === "toJSON" || name === "then") return undefined;
    throw new NoKey(
      `node '${node}' used its state '${name}' in an event that has no key; emit it with { key }, or feed it with a key`,
    );
  };
  return new Proxy({}, { get: refuse, set: refuse, deleteProperty: refuse });
}

/** What an event of a node without states gets. */
function statelessView(node) {
  const refuse = (target, name) => {
    if (typeof name === "symbol" || name === "toJSON" || name === "then") return undefined;
    throw new BadState(`node '${node}' has no states; declare them: worker.slot(name, { node, states: ["${name}"] }, ...)`);
  };
  return new Proxy({}, { get: refuse, set: refuse, deleteProperty: refuse });
}

/** A state that is decoded when it is read, or whose assignment is noticed. */
class Cell {
  constructor(form) {
    this.form = form;
    this.value = undefined;
    this.isLoaded = false;
    this.isAssigned = false;
    this.get = () => {
      if (!this.isLoaded) {
        this.isLoaded = true;
        this.value = isPacked(this.form) ? unpack(this.form) : this.form;
      }
      return this.value;
    };
    this.set = (value) => {
      this.isLoaded = this.isAssigned = true;
      this.value = value;
    };
  }
}

/** One key's record. `values`: cached forms by the index of the state, undefined where there is none. */
class Entry {
  constructor(key, values) {
    this.key = key;
    this.values = values;
    this.isDirty = false;
    /** State name -> when it expires. */
    this.due = null;
    /** Stored states that this code does not know: name -> msgpack. */
    this.extras = null;
    /** The engine will not look at the record when it expires. */
    this.isUnscheduled = false;
  }
}

/** The records of one node in one partition. */
class StateTable {
  constructor(states, maxEvent, isComplete) {
    this.states = states;
    this.entries = new Map();
    this.dirty = [];
    /** What is not in the cache is not stored. */
    this.isComplete = isComplete;
    this.maxEvent = maxEvent;
    this.average = 0;
  }

  // ---------------------------------------------------------------- reading

  /** The entry of a key; undefined: it has to be asked for. */
  find(key) {
    const entry = this.entries.get(key);
    if (entry !== undefined || !this.isComplete) return entry;
    return this.#add(key);
  }

  #add(key) {
    const entry = new Entry(key, new Array(this.states.names.length).fill(undefined));
    this.entries.set(key, entry);
    return entry;
  }

  /** Take what the engine answered. */
  fill(key, record) {
    if (this.entries.has(key)) return;
    const entry = this.#add(key);
    if (record === null) return;
    this.#noteSize(record.length, 1);
    const reader = new Reader(record);
    let known = 0;
    for (let left = reader.mapLength(); left > 0; left--) {
      const name = reader.value();
      if (name === "") {
        entry.due = reader.value();
        continue;
      }
      const index = this.states.indexes.get(name);
      const start = reader.pos;
      if (index !== undefined && isPlainMark(record[start])) entry.values[index] = reader.value();
      else {
        reader.skip();
        const packed = Buffer.from(record.subarray(start, reader.pos));
        if (index !== undefined) entry.values[index] = packed;
        else (entry.extras ??= new Map()).set(name, packed);
      }
      known++;
    }
    if (entry.due !== null && Object.keys(entry.due).length < known) entry.isUnscheduled = true;
  }

  /** What a handler gets as `event.state`. `now`: microseconds, only looked at if states expire. */
  open(entry, now) {
    const { View, names, hasTtl } = this.states;
    const view = new View();
    const values = entry.values;
    for (let i = 0; i < names.length; i++) {
      const form = values[i];
      if (hasTtl || isPacked(form)) this.#openCell(view, i, entry, now);
      else if (form !== undefined) view[names[i]] = form;
    }
    return view;
  }

  #openCell(view, index, entry, now) {
    const { View, names, ttls } = this.states;
    const name = names[index];
    const form = isOver(entry, name, now) ? undefined : entry.values[index];
    if (ttls[index] === 0 && !isPacked(form)) {
      view[name] = form;
      return;
    }
    const cell = new Cell(form);
    let cells = View.cells(view);
    if (cells === null) View.setCells(view, (cells = new Array(names.length).fill(null)));
    cells[index] = cell;
    Object.defineProperty(view, name, { get: cell.get, set: cell.set, enumerable: true, configurable: true });
  }

  // ---------------------------------------------------------------- writing

  /**
   * What the handler left in `view`, as a list of [index, form, index, form ...]; null: nothing has changed. Throws for
   * a value that cannot be stored; nothing has been changed then.
   */
  changes(entry, view, now) {
    const { View, names } = this.states;
    const cells = View.cells(view);
    if (cells !== null) return this.#cellChanges(entry, view, cells, now);
    let changes = null;
    for (let i = 0; i < names.length; i++) {
      const value = view[names[i]];
      if (value !== entry.values[i]) (changes ??= []).push(i, this.#form(value));
    }
    return changes;
  }

  #cellChanges(entry, view, cells, now) {
    const { names, ttls } = this.states;
    let changes = null;
    for (let i = 0; i < names.length; i++) {
      const name = names[i];
      const cell = cells[i];
      const descriptor = Object.getOwnPropertyDescriptor(view, name);
      const isInPlace = cell !== null && descriptor?.get === cell.get;
      if (isInPlace && !cell.isLoaded) continue;
      const old = isOver(entry, name, now) ? undefined : entry.values[i];
      const form = this.#form(isInPlace ? cell.value : descriptor?.value);
      // An assignment prolongs a state that expires, whether or not the value is another one.
      const isProlonged = ttls[i] > 0 && form !== undefined && (!isInPlace || cell.isAssigned);
      if (isProlonged || !isSame(form, old)) (changes ??= []).push(i, form);
    }
    return changes;
  }

  /** The cached form of a value; undefined stays: it deletes. */
  #form(value) {
    switch (typeof value) {
      case "number":
      case "boolean":
      case "undefined":
        return value;
      case "string":
        if (value.length * 3 <= this.maxEvent && value.length < 16) {
          scratch.pos = 0;
          scratch.text(value);
          return value;
        }
        break;
      default:
        if (value === null) return value;
    }
    scratch.pos = 0;
    scratch.value(value);
    if (scratch.pos > this.maxEvent) {
      throw new TooLarge(`a state of ${scratch.pos} encoded bytes is over max-event (${this.maxEvent})`);
    }
    if (typeof value !== "object") return value;
    const packed = Buffer.from(scratch.written());
    if (scratch.buffer.length > 1 << 20) scratch.buffer = Buffer.allocUnsafeSlow(4096); // a large one is not kept
    return packed;
  }

  /** About how many bytes of a result changes are. */
  weigh(entry, changes) {
    let size = entry.key.length + 16;
    for (let i = 1; i < changes.length; i += 2) {
      const form = changes[i];
      size += typeof form === "string" || isPacked(form) ? form.length + 8 : 9;
    }
    return size;
  }

  /** The event has succeeded: take its changes. */
  apply(entry, changes, now) {
    for (let i = 0; i < changes.length; i += 2) entry.values[changes[i]] = changes[i + 1];
    if (!entry.isDirty) {
      entry.isDirty = true;
      this.dirty.push(entry);
    }
    if (this.states.hasTtl) this.#prolong(entry, changes, now);
  }

  #prolong(entry, changes, now) {
    const { names, ttls } = this.states;
    const due = { ...entry.due };
    if (Math.max(0, ...Object.values(due)) <= now) entry.isUnscheduled = true;
    for (let i = 0; i < changes.length; i += 2) {
      const index = changes[i];
      if (changes[i + 1] === undefined) delete due[names[index]];
      else if (ttls[index] > 0) due[names[index]] = now + ttls[index];
    }
    entry.due = due;
  }

  // ---------------------------------------------------------------- results

  /** Write what has changed as StateChanges; the entries count as committed from now on. */
  takeChanges(frame) {
    const { node, hasTtl } = this.states;
    const dirty = this.dirty;
    frame.array(hasTtl ? 4 : 3);
    frame.str(node);
    frame.array(dirty.length);
    for (const entry of dirty) frame.textBytes(entry.key);
    frame.array(dirty.length);
    const before = frame.pos;
    for (const entry of dirty) this.#writeRecord(frame, entry);
    this.#noteSize(frame.pos - before, dirty.length);
    if (hasTtl) {
      frame.array(dirty.length);
      for (const entry of dirty) frame.int(this.#schedule(entry));
    }
    for (const entry of dirty) entry.isDirty = false;
    this.dirty = [];
  }

  #writeRecord(frame, entry) {
    const { names } = this.states;
    const { values, extras } = entry;
    let count = extras === null ? 0 : extras.size;
    for (const form of values) if (form !== undefined) count++;
    if (count === 0) {
      entry.due = null;
      frame.nil();
      return;
    }
    const due = entry.due === null ? [] : Object.entries(entry.due).filter(([name]) => this.#holds(entry, name));
    const writer = scratch;
    writer.pos = 0;
    writer.map(count + (due.length ? 1 : 0));
    for (let i = 0; i < names.length; i++) {
      const form = values[i];
      if (form === undefined) continue;
      writer.str(names[i]);
      if (isPacked(form)) writer.raw(form);
      else writer.value(form);
    }
    if (extras !== null) {
      for (const [name, packed] of extras) {
        writer.str(name);
        writer.raw(packed);
      }
    }
    if (due.length) {
      writer.str("");
      writer.map(due.length);
      for (const [name, at] of due) {
        writer.str(name);
        writer.int(at);
      }
    }
    frame.binHead(writer.pos);
    frame.copy(writer.buffer, 0, writer.pos);
  }

  #holds(entry, name) {
    const index = this.states.indexes.get(name);
    return index !== undefined ? entry.values[index] !== undefined : (entry.extras?.has(name) ?? false);
  }

  /** When the engine should look at the record, unless it will do so already. */
  #schedule(entry) {
    if (!entry.isUnscheduled || entry.extras !== null || entry.due === null) return 0;
    let last = 0;
    for (let i = 0; i < entry.values.length; i++) {
      if (entry.values[i] === undefined) continue;
      const at = entry.due[this.states.names[i]];
      if (at === undefined) return 0; // one of them stays for ever, and with it the record
      last = Math.max(last, at);
    }
    if (last > 0) entry.isUnscheduled = false;
    return last;
  }

  // ---------------------------------------------------------------- memory

  #noteSize(size, records) {
    if (!records) return;
    this.average += Math.min(1, records / 1000) * (size / records - this.average);
  }

  /** Bytes, about. */
  get size() {
    return this.entries.size * (ENTRY_OVERHEAD + this.average);
  }

  /** Forget the older half. Only called while nothing of the partition is in work. */
  evict() {
    if (this.dirty.length) return;
    let left = (this.entries.size >> 1) + 1;
    for (const key of this.entries.keys()) {
      if (left-- <= 0) break;
      this.entries.delete(key);
    }
    this.isComplete = false;
  }
}

function isPacked(form) {
  return typeof form === "object" && form !== null;
}

/** Whether the state has expired. */
function isOver(entry, name, now) {
  const at = entry.due?.[name];
  return at !== undefined && at <= now;
}

function isSame(form, old) {
  return isPacked(form) && isPacked(old) ? form.equals(old) : form === old;
}

/** Whether what begins with this byte is no list, map, bin or extension. */
function isPlainMark(mark) {
  if (mark < 0x80 || mark >= 0xe0) return true;
  if (mark < 0xa0) return false;
  return !(mark >= 0xc4 && mark <= 0xc9) && !(mark >= 0xd4 && mark <= 0xd8) && !(mark >= 0xdc);
}

function unpack(packed) {
  try {
    return new Reader(packed).value();
  } catch (error) {
    if (error instanceof BadPayload) throw new BadState(`the stored state cannot be read: ${error.message}`);
    throw error;
  }
}

module.exports = { States, StateTable, statelessView };
