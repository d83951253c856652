"use strict";

const { EventOver } = require("./errors");

/** Stands for what an event emits into once its handler has ended. */
const OVER = Object.freeze({
  emit: over,
  emitMany: over,
  reply: over,
  cancelTimer: over,
  call: over,
  storage: over,
  mayUse: over,
  progress() {},
});

function over(event) {
  throw new EventOver(
    `the event '${event.name}' was used after its handler had ended: await everything before an async handler returns`,
  );
}

/** The event as a handler sees it. What begins with "_" belongs to the runtime. */
class Event {
  constructor(name, key, data, state, sink, source, index) {
    this.name = name;
    this.key = key;
    this.data = data;
    this.state = state;
    this._sink = sink;
    this._source = source;
    this._index = index;
  }

  /** The same on every attempt: the idempotency key for effects outside of Grape. */
  get id() {
    return this._source.idOf(this._index);
  }

  /** 1 for the first attempt. */
  get attempt() {
    return this._source.attempt;
  }

  /** When the event was made. */
  get created() {
    return new Date(this._source.created / 1000);
  }

  /** How many emits lie between the event and the outside. */
  get hops() {
    return this._source.hopsOf(this._index);
  }

  /** Of async handlers: aborts when the slot's timeout is over. */
  get signal() {
    return this._sink.signal;
  }

  emit(name, data, options) {
    this._sink.emit(this, name, data, options);
  }

  emitMany(name, columns) {
    this._sink.emitMany(this, name, columns);
  }

  reply(data, options) {
    this._sink.reply(this, data, options);
  }

  cancelTimer(name) {
    this._sink.cancelTimer(this, name);
  }

  call(name, data, options) {
    return this._sink.call(this, name, data, options);
  }

  progress() {
    this._sink.progress();
  }

  /** The objects of the app's own namespace. */
  get storage() {
    return this._sink.storage(this);
  }

  /** What `console.log(event)` shows. */
  [Symbol.for("nodejs.util.inspect.custom")](depth, options, inspect) {
    const { name, key, data, id, attempt } = this;
    return `Event ${inspect({ name, key, data, id, attempt }, options)}`;
  }
}

module.exports = { Event, OVER };
