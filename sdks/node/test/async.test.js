"use strict";

const assert = require("node:assert/strict");
const { after, before, describe, test } = require("node:test");

const { Engine, bodyOf, pack } = require("./engine");

const OUT = { outputs: ["out"], taken: ["out"] };
const data = (result) => result.emitted.map((event) => event.data);

describe("async nodes", () => {
  let engine;
  before(async () => {
    engine = new Engine("async");
    await engine.welcome({ ...OUT, partitions: 2 });
  });
  after(async () => {
    assert.equal((await engine.drain()).code, 0, engine.errors);
  });

  test("are told as such", () => {
    assert.deepEqual(
      engine.topology.nodes.filter((node) => node.is_async).map((node) => node.name),
      ["Slow", "Wait", "Deaf", "BothAsync", "Die", "Replace", "Late"],
    );
  });

  test("one event of a key at a time, others at once within the concurrency", async () => {
    const events = Array.from({ length: 24 }, (_, i) => ["slow", `k${i % 8}`, null]);
    const result = await engine.run(events);
    assert.equal(result.emitted.length, 24);
    assert.deepEqual(result.states.at(-1).record, { n: 3 });
    assert.equal(Math.max(...data(result).map(({ most }) => most)), 4);
    assert.deepEqual(result.counts, { "slow>Slow": 24 });
    await engine.said("output", /^\x1e\x1eSlow\x1f[^\x1e]+\x1eslept for k0$/m); // eslint-disable-line no-control-regex
  });

  test("what is finished out of order is told so", async () => {
    const seq = engine.work({ events: [["slow", "a", { ms: 150 }], ["slow", "b", null], ["slow", "c", null]] });
    const first = await engine.next("result");
    assert.deepEqual([first.done[0].first, [...first.done[0].behind]], [0, [0b11]]);
    const last = await engine.next("result");
    assert.deepEqual([last.done[0].first, last.ended], [3, [seq]]);
  });

  test("a failed event locks its key, and a retry unlocks it", async () => {
    const result = await engine.run([["slow", "x", { fail: true }], ["slow", "x", null], ["slow", "y", null]]);
    assert.deepEqual(result.failures.map(({ key, behind, kind }) => [key, behind, kind]), [
      ["x", false, "Error"],
      ["x", true, ""],
    ]);
    const [a, b] = result.failures.map(({ id }) => id);
    const retries = [a, b].map((id, i) => [i, "Slow", id, 2, 0, 0, bodyOf([["slow", "x", null]]), false, -1]);
    const again = await engine.run([["slow", "x", null]], { retries });
    // The new event runs before, between or behind them, but never while one runs.
    assert.deepEqual(again.retried, [0, 1]);
    assert.deepEqual(again.states.at(-1).record, { n: 2 + again.emitted.length - 2 });
  });

  test("its state cannot be replaced", async () => {
    const { failures, states } = await engine.run([["replace", "k", null]]);
    assert.deepEqual([failures.map(({ kind }) => kind), states], [["bad-state"], []]);
  });

  test("a handler that minds the signal fails alone", async () => {
    const result = await engine.run([["wait", "a", "long"], ["wait", "b", "end"]]);
    assert.deepEqual([result.failures[0].kind, result.failures[0].key], ["timeout", "a"]);
    assert.match(result.failures[0].text, /ran over its timeout of 0.2 s/);
  });

  test("synchronous nodes beside them", async () => {
    assert.deepEqual(data(await engine.run([["plain", "k", 1], ["plain", null, 2]])), [{ plain: 1 }, { plain: 2 }]);
    const both = await engine.run([["both", "k", 1], ["both", "k", 2]]);
    assert.deepEqual(data(both).sort(), ["async 1", "async 2", "sync 1", "sync 2"]);
    assert.equal(both.done.at(-1).first, 2);
  });

  test("an event that is used too late", async () => {
    assert.equal((await engine.run([["late", "k", 1], ["late", "k", 2]])).failures[0].kind, "event-over");
  });

  test("state is asked for", async () => {
    engine.assign(1, 2, [], false);
    engine.store.set("Slow/s", pack({ n: 5 }));
    const result = await engine.run([["slow", "s", null], ["slow", "t", null]], { partition: 1, epoch: 2 });
    assert.deepEqual(engine.asked, [["s", "t"]]);
    assert.deepEqual(result.states.map(({ record }) => record).sort((a, b) => a.n - b.n), [{ n: 1 }, { n: 6 }]);
  });

  test("careful mode", async () => {
    const seq = engine.work({
      events: [["slow", "c1", null], ["slow", "c2", null], ["slow", "c1", null]],
      careful: true,
      named: [[`b${engine.seq + 1}.0-1`, "Slow", "worker-died", "killed", true]],
    });
    const seen = [];
    for (;;) {
      const message = await engine.next();
      if (message.kind === "announce") seen.push(message.fields[2].slice(-1));
      else seen.push(message.failures.length ? message.failures[0].kind : message.emitted.length);
      if (message.kind === "result" && message.ended.includes(seq)) break;
    }
    assert.deepEqual(seen, ["0", 1, "worker-died", "2", 1]);
  });
});

test("an async handler that does not mind the signal is reported", async () => {
  const engine = new Engine("async");
  await engine.welcome(OUT);
  engine.work({ events: [["deaf", "a", "end"], ["deaf", "b", "never"]] });
  await engine.next("result");
  const { fields } = await engine.next("stuck");
  assert.deepEqual(fields.slice(0, 4), [0, 1, "b1.0-1", "Deaf"]);
  await engine.exited;
});

test("what runs is handed in before the worker drains", async () => {
  const engine = new Engine("async");
  await engine.welcome(OUT);
  engine.work({ events: [["slow", "a", { ms: 100 }]] });
  await new Promise((resolve) => setTimeout(resolve, 50));
  const exit = engine.drain();
  assert.equal((await engine.next("result")).emitted.length, 1);
  assert.equal((await exit).code, 0);
});

test("a partition that is assigned anew: what ran for the old epoch has no effect", async () => {
  const engine = new Engine("async");
  await engine.welcome(OUT);
  const bodies = (...runs) => runs.map((events) => ({ body: bodyOf(events), events: events.length }));
  engine.work({ bodies: bodies([["slow", "a", { ms: 250 }], ["slow", "a", null]], [["plain", "a", 1]], [["both", "a", 1]]) });
  await new Promise((resolve) => setTimeout(resolve, 5));
  engine.assign(0, 2);
  const result = await engine.run(null, { bodies: bodies([["slow", "a", { ms: 80 }]], [["plain", "b", 2]]), epoch: 2 });
  assert.deepEqual(data(result).map(({ n, plain }) => n ?? plain).sort(), [1, 2]);
  assert.deepEqual(result.states.map(({ record }) => record), [{ n: 1 }]);
  assert.equal((await engine.drain()).code, 0);
});
