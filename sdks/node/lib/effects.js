"use strict";

const { Chained } = require("./chain");
const { RESULT } = require("./messages");
const { Outbox } = require("./outbox");

/** What was done in one partition since its last result. `size`: about how many bytes. */
class Effects {
  /** `routes`, `slots`: how many there are; what is counted has their ids. */
  constructor(limits, partitions, routes, slots) {
    this.outbox = new Outbox(limits, partitions);
    this.emitted = new Float64Array(routes);
    this.ran = new Float64Array(slots);
    this.clear();
  }

  clear() {
    this.size = 0;
    this.emits = 0;
    /** position -> Progress */
    this.done = new Map();
    this.ended = [];
    this.retried = [];
    this.timers = [];
    this.failures = [];
    this.replies = [];
    this.objects = [];
    this.emitted.fill(0);
    this.ran.fill(0);
    this.outbox.clear();
    /** What chains, and has not run. */
    this.chained = [];
  }

  /** What chains into `unit` from the stage of `parent`. */
  chainedInto(unit, parent) {
    let chained = this.chained.find((one) => one.unit === unit);
    if (chained === undefined) this.chained.push((chained = new Chained(unit, parent)));
    return chained;
  }

  takeChained() {
    const { chained } = this;
    if (chained.length) this.chained = [];
    return chained;
  }

  get isEmpty() {
    return (
      this.outbox.isEmpty &&
      !this.done.size &&
      !this.ended.length &&
      !this.retried.length &&
      !this.timers.length &&
      !this.failures.length &&
      !this.replies.length &&
      !this.objects.length
    );
  }

  /** Write all of it as a Result of `part` into `frame`, and start anew. `names`: those of routes and slots, by id. */
  pack(frame, part, names) {
    frame.start(RESULT, this.objects.length ? 15 : 12);
    frame.int(part.number);
    frame.int(part.epoch);
    writeInts(frame, this.ended);
    frame.array(this.done.size);
    for (const [position, progress] of this.done) {
      frame.array(2);
      frame.int(position);
      frame.array(2);
      frame.int(progress.first);
      frame.bytes(progress.bitmap());
    }
    writeInts(frame, this.retried);
    this.outbox.pack(frame);
    const tables = [...part.tables.values()].filter((table) => table.dirty.length);
    frame.array(tables.length);
    for (const table of tables) table.takeChanges(frame);
    frame.array(this.timers.length);
    for (const timer of this.timers) writeTimer(frame, timer);
    frame.array(this.failures.length);
    for (const failure of this.failures) writeFailure(frame, failure);
    frame.array(this.replies.length);
    for (const { context, data, isFinal } of this.replies) {
      frame.array(3);
      frame.int(context);
      frame.bytes(data);
      frame.bool(isFinal);
    }
    writeCounts(frame, this.ran, names.slots);
    writeCounts(frame, this.emitted, names.routes);
    if (this.objects.length) {
      frame.array(0); // contexts and spans
      frame.array(0);
      frame.array(this.objects.length);
      for (const written of this.objects) written.pack(frame);
      part.handedIn(this.objects);
    }
    this.clear();
    return frame.finish();
  }
}

function writeInts(frame, numbers) {
  frame.array(numbers.length);
  for (const number of numbers) frame.int(number);
}

/** `name`: `{ node, key, timer }`, or null. `log` null: what has this name is cancelled. */
function writeTimer(frame, { delay, log, partition, body, context, name }) {
  frame.array(name === null ? 2 : 3);
  frame.int(delay);
  if (log === null) frame.nil();
  else {
    frame.array(5);
    frame.str(log);
    frame.int(partition);
    frame.int(1);
    frame.bytes(body);
    writeInts(frame, context < 0 ? [] : [context]);
  }
  if (name === null) return;
  frame.array(3);
  frame.str(name.node);
  frame.textBytes(name.key);
  frame.str(name.timer);
}

function writeFailure(frame, failure) {
  frame.array(failure.call === null ? 14 : 15);
  frame.str(failure.node);
  frame.str(failure.event);
  frame.str(failure.id);
  if (failure.key === null) frame.nil();
  else frame.str(failure.key);
  frame.int(failure.created);
  frame.bytes(failure.body);
  frame.int(failure.hold);
  frame.bool(failure.behind);
  frame.int(failure.context);
  frame.str(failure.kind);
  frame.str(failure.text);
  frame.str(failure.trace);
  frame.bool(failure.named);
  frame.bool(failure.final);
  if (failure.call !== null) writeCall(frame, failure.call);
}

function writeCall(frame, { event, digest, timeout, requests }) {
  frame.array(4);
  frame.str(event);
  frame.bytes(digest);
  frame.int(timeout);
  frame.array(requests.length);
  for (const { log, partition, body } of requests) {
    frame.array(4);
    frame.str(log);
    frame.int(partition);
    frame.int(1);
    frame.bytes(body);
  }
}

function writeCounts(frame, counts, names) {
  let used = 0;
  for (const count of counts) if (count) used++;
  frame.map(used);
  for (let id = 0; id < counts.length; id++) {
    if (!counts[id]) continue;
    frame.str(names[id]);
    frame.int(counts[id]);
  }
}

module.exports = { Effects };
