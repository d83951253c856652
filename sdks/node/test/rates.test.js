"use strict";

const assert = require("node:assert/strict");
const { afterEach, beforeEach, describe, test } = require("node:test");
const { setTimeout: sleep } = require("node:timers/promises");

const { Declaration } = require("../lib/declare");
const { rateOf } = require("../lib/rates");
const { chainedPairs } = require("../lib/routing");
const { Engine, bodyOf } = require("./engine");

const OUT = { outputs: ["out"], taken: ["out"] };
const data = (result) => result.emitted.map((event) => event.data);

test("how rates are written", () => {
  const rates = [["100/s", 100], ["30/min", 0.5], ["7200 / h", 2], ["86400/day", 1], [2.5, 2.5], ["1.5/sec", 1.5]];
  for (const [text, rate] of rates) assert.equal(rateOf(text), rate, String(text));
  for (const text of ["100", "/s", "-1/s", "0/s", "5/fortnight", "5/constructor", 0, -2, true, null, "nan/s", Infinity]) {
    assert.ok(Number.isNaN(rateOf(text)), String(text));
  }
});

test("what cannot be declared is said", () => {
  const add = (options) => () => new Declaration().add("a", { node: "N", ...options }, () => {}, "");
  assert.throws(add({ rate: "5/fortnight" }), /rate of slot 'a' of node 'N': a rate is events a second, .*, not '5\/fortnight'/);
  assert.throws(add({ rate: 0 }), /not 0$/);
  assert.throws(add({ burst: 3 }), /burst: 3 of slot 'a' of node 'N' belongs to a rate, and there is none/);
  assert.throws(add({ rate: 1, burst: 0 }), /burst of slot 'a' of node 'N' is a whole number from 1 to 1000000, not 0/);
  assert.throws(add({ rate: 1, burst: 1_000_001 }), /not 1000001/);
  assert.doesNotThrow(add({ rate: "20/min", burst: 3 }));
  assert.doesNotThrow(add({ burst: 1 }));
});

test("what has to wait for its turn does not chain", () => {
  const slots = (rate) => [{ event: "a", node: "A", emits: ["b"] }, { event: "b", node: "B", rate }];
  const pairs = (rate) => chainedPairs({ nodes: [{ name: "A" }, { name: "B" }], slots: slots(rate) }).size;
  assert.deepEqual([pairs(0), pairs(10)], [1, 0]);
});

for (const kind of ["sync", "async", "beside async"]) {
  describe(`rates in a pool that is ${kind}`, () => {
    let engine;
    beforeEach(() => {
      engine = new Engine("rates", { config: { kind } });
    });
    afterEach(() => engine.kill());

    const asks = async (event, node, count) => assert.deepEqual((await engine.next("lease")).fields, [event, node, count]);
    const give = (event, node, count) => engine.send(9, [event, node, count]);

    test("they are told", async () => {
      const { slots } = await engine.welcome(OUT);
      assert.deepEqual([slots[0].rate, slots[0].burst, slots[1].rate, slots[2].rate], [10, 3, undefined, 2.5]);
    });

    test("none begins before its turn; meanwhile no time-out runs, and something is said to", async () => {
      await engine.welcome({ ...OUT, beat: 0.6 });
      const seq = engine.work({ events: [["paced", "k", 1]] });
      await asks("paced", "Paced", 1);
      engine.running = [];
      await sleep(600);
      assert.deepEqual(engine.messages, []);
      assert.ok(engine.running.length > 0 && engine.running.every((one) => one), String(engine.running));
      give("paced", "Paced", 1);
      const result = await engine.next("result");
      assert.deepEqual(data(result), [1]);
      if (!result.ended.length) assert.deepEqual((await engine.next("result")).ended, [seq]);
    });

    test("what is done is handed in while the next one waits", async () => {
      await engine.welcome(OUT);
      engine.work({ events: [["paced", "k", 1], ["paced", "k", 2]] });
      await asks("paced", "Paced", 1);
      give("paced", "Paced", 1);
      const next = [await engine.next(), await engine.next()];
      assert.deepEqual(next.map((message) => message.kind).sort(), ["lease", "result"]);
      const result = next.find((message) => message.kind === "result");
      assert.deepEqual([data(result), result.ended], [[1], []]);
    });

    test("an event begins at none of its nodes before, and is handed in as a whole", async () => {
      await engine.welcome(OUT);
      engine.work({ events: [["both", "k", 1]] });
      await asks("both", "Rated", 1);
      give("both", "Rated", 1);
      const result = await engine.next("result");
      assert.deepEqual(data(result).sort(), ["free 1", "rated 1"]);
    });

    test("what keeps an event from running keeps it from asking; a retry asks", async () => {
      await engine.welcome({ ...OUT, held: [["Paced", "k"]] });
      const behind = await engine.run([["paced", "k", 1]]);
      assert.deepEqual(behind.failures.map((failure) => failure.behind), [true]);
      const retry = [7, "Paced", behind.failures[0].id, 2, 0, 0, bodyOf([["paced", "k", 1]]), false, -1];
      engine.work({ retries: [retry] });
      await asks("paced", "Paced", 1);
      give("paced", "Paced", 1);
      assert.deepEqual((await engine.next("result")).retried, [7]);
    });

    test("in careful mode it is announced when its turn has come", async () => {
      await engine.welcome(OUT);
      engine.work({ events: [["paced", "k", 1]], careful: true });
      await asks("paced", "Paced", 1);
      await sleep(100);
      assert.deepEqual(engine.messages, []);
      give("paced", "Paced", 1);
      assert.deepEqual((await engine.next("announce")).fields.slice(0, 2), [0, 1]);
      assert.deepEqual(data(await engine.next("result")), [1]);
    });

    test("a worker that is to end does so while an event waits", async () => {
      await engine.welcome(OUT);
      engine.work({ events: [["paced", "k", 1], ["paced", "l", 2]] });
      engine.work({ events: [["paced", "m", 3]] });
      assert.equal((await engine.next("lease")).kind, "lease");
      assert.equal((await engine.drain()).code, 0, engine.errors);
      const results = engine.messages.filter((message) => message.kind === "result");
      assert.deepEqual(results, []);
    });

    test("a partition that is taken away takes along what waits; an open question is answered to whoever comes next", async () => {
      await engine.welcome({ ...OUT, partitions: 2 });
      engine.work({ events: [["paced", "k", 1]] });
      await asks("paced", "Paced", 1);
      engine.send(3, [0, 1]);
      const plain = await engine.run([["plain", "k", 2]], { partition: 1 });
      assert.deepEqual(data(plain), [2]);
      engine.work({ events: [["paced", "k", 3]], partition: 1 });
      await sleep(50);
      assert.deepEqual(engine.messages, []);
      give("paced", "Paced", 1);
      assert.deepEqual(data(await engine.next("result")), [3]);
    });
  });
}

test("async events ask together", async () => {
  const engine = new Engine("rates", { config: { kind: "async" } });
  await engine.welcome(OUT);
  engine.work({ events: [1, 2, 3, 4].map((n) => ["paced", `k${n}`, n]) });
  let left = 4;
  const seen = [];
  while (left > 0) {
    const message = await engine.next();
    if (message.kind === "lease") {
      assert.ok(message.fields[2] <= left, `${message.fields[2]} of ${left}`);
      engine.send(9, ["paced", "Paced", Math.min(2, message.fields[2])]);
    } else {
      seen.push(...data(message));
      left = 4 - seen.length;
    }
  }
  assert.deepEqual(seen.sort(), [1, 2, 3, 4]);
  assert.equal((await engine.drain()).code, 0, engine.errors);
});
