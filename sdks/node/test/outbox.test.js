"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");

const { Frame } = require("../lib/messages");
const { Reader } = require("../lib/msgpack/reader");
const { Writer } = require("../lib/msgpack/writer");
const { Outbox } = require("../lib/outbox");
const { Routing } = require("../lib/routing");
const { eventsOf } = require("./engine");

const LIMITS = { batch_target: 2000, batch_max: 8000 };

/** An app in which X and Y listen to a, X alone to b, Y alone to c, and nobody shares z. */
const routing = new Routing(
  {
    name: "app",
    nodes: ["X", "Y", "Z"].map((name) => ({ name, pool: "p" })),
    slots: [
      { event: "a", node: "X" },
      { event: "a", node: "Y" },
      { event: "b", node: "X" },
      { event: "b2", node: "X" },
      { event: "c", node: "Y" },
      { event: "z", node: "Z" },
    ],
    outputs: [],
  },
  "p",
  new Set(),
);

function fill(events) {
  const outbox = new Outbox(LIMITS, 4);
  const writer = new Writer();
  for (const { name, key = null, data = null, hops = 1, context = -1, partition = 0 } of events) {
    writer.pos = 0;
    writer.value(data);
    const route = routing.routes.get(name);
    outbox.add(route.targets[0], partition, route, key, hops, context, writer.buffer, 0, writer.pos);
  }
  const frame = new Frame();
  outbox.pack(frame);
  return new Reader(Buffer.from(frame.written()), true)
    .value()
    .map(([target, partition, count, body, contexts = []]) => ({ target, partition, count, body, contexts }));
}

test("names with the same listeners share a run, others keep their order", () => {
  const [one] = fill(["b", "b2", "a", "c", "b"].map((name, i) => ({ name, data: i })));
  assert.deepEqual(eventsOf(one.body).map(({ name, data }) => [name, data]), [
    ["b", 0],
    ["b2", 1],
    ["a", 2],
    ["c", 3],
    ["b", 4],
  ]);
  assert.equal(one.count, 5);
});

test("columns that appear late are filled with nils", () => {
  const [one] = fill([
    { name: "b" },
    { name: "b", key: "k" },
    { name: "b", data: 5, hops: 7, context: 3 },
    { name: "b" },
  ]);
  assert.deepEqual(
    eventsOf(one.body).map(({ key, data, hops, context }) => [key, data, hops, context]),
    [
      [null, null, 1, -1],
      ["k", null, 1, -1],
      [null, 5, 7, 0],
      [null, null, 1, -1],
    ],
  );
  assert.deepEqual(one.contexts, [3]);
});

test("bodies stay within their size, but for one large event", () => {
  const events = Array.from({ length: 500 }, (_, i) => ({ name: i % 3 ? "b" : "c", key: `k${i}`, data: "x".repeat(i % 90) }));
  events.splice(250, 0, { name: "b", data: "y".repeat(20_000) });
  const bodies = fill(events);
  assert.ok(bodies.length > 3);
  for (const { body, count } of bodies) assert.ok(count === 1 || body.length <= LIMITS.batch_max, String(body.length));
  const all = bodies.flatMap(({ body }) => eventsOf(body));
  for (const name of ["b", "c"]) {
    const of = (list) => list.filter((event) => event.name === name).map(({ key }) => key ?? null);
    assert.deepEqual(of(all), of(events));
  }
});
