"use strict";

const assert = require("node:assert/strict");
const { afterEach, beforeEach, describe, test } = require("node:test");

const { chainedPairs } = require("../lib/routing");
const { Engine, bodyOf, pack } = require("./engine");

const OUT = { outputs: ["out"], taken: ["out"] };
const EXTRA = { nodes: [{ name: "Far", pool: "other" }], slots: [{ event: "b", node: "Far" }] };
const out = (result) => result.emitted.filter(({ target }) => target === ">out").map(({ data }) => data);
const say = (name, data, options) => ({ name, data, options });
const a = (key, ...list) => ["a", key, { say: list }];

// Pools of synchronous nodes run works by one loop, pools with async nodes by another.
for (const config of [{ async: false }, { async: true }]) {
  describe(config.async ? "chains beside async nodes" : "chains", () => {
    let engine;
    beforeEach(() => {
      engine = new Engine("chain", { config });
    });
    afterEach(() => engine.kill());

    test("run at once, in the order of the emits, whatever their names", async () => {
      await engine.welcome(OUT);
      const result = await engine.run([
        a("k", say("c", 1), say("b", { say: [say("c", 2)] }), say("b2", { say: [say("c", 3)] }), say("b", null)),
        a("k", say("c", 4)),
      ]);
      const seen = out(result).map(([id, data, n]) => [id.replace(/^.*-/, ""), data, n]);
      assert.deepEqual(seen.map(([, , n]) => n), [1, 2, 3, 4]);
      assert.deepEqual(
        seen.map(([id, data]) => [id, data]).sort(),
        // The reply of each event is its emit 0.
        [["0.1", 1], ["0.2.1", 2], ["0.3.1", 3], ["1.1", 4]],
      );
      const states = Object.fromEntries(result.states.map(({ node, record }) => [node, record.n]));
      assert.deepEqual(states, { A: 2, B: 3, C: 4 });
      assert.deepEqual(result.counts["a>A"], 2);
      assert.deepEqual(result.emits, { c: 4, b: 2, b2: 1, out: 4 });
    });

    test("what is emitted to several nodes goes by the log to those that do not chain", async () => {
      await engine.welcome({ ...OUT, extra: EXTRA, partitions: 4 });
      const result = await engine.run([a("k", say("b", 1, { key: "a" }), say("b", 2, { key: null }))], { partition: 3 }); // "a" is in 3
      const sent = result.emitted.map(({ target, partition, name, key, data, only = null }) => [target, partition, name, key, data, only]);
      const expected = ["js", "other"].flatMap((target) =>
        [["a", 1], [null, 2]].map(([key, data]) => [target, 3, "b", key, data, target === "js" ? ["Logged"] : null]),
      );
      assert.deepEqual(sent.sort(), expected.sort());
      assert.equal(result.counts["b>B"], 2);
      const away = await engine.run([a("k", say("b", 1, { key: "grape" }))], { partition: 3 });
      assert.deepEqual(away.emitted.map(({ target, partition, only = null }) => [target, partition, only]), [["js", 1, null], ["other", 1, null]]);
      assert.equal(away.counts["b>B"], undefined);
    });

    test("no pair without a declaration, on a cycle, or with an async node chains; nor does a timer", async () => {
      await engine.welcome(OUT);
      const events = [["undeclared", "k", 1], ["x", "k", 1], a("k", say("c", 1, { delay: 1 }))];
      if (config.async) events.push(["wait", "k", 2]);
      const result = await engine.run(events);
      const names = result.emitted.filter(({ target }) => target === "js").map(({ name }) => name);
      assert.deepEqual(names.sort(), config.async ? ["c", "c", "y"] : ["c", "y"]);
      assert.equal(result.timers.length, 1);
      assert.equal(result.counts["c>C"], undefined);
    });

    test("what two nodes emit for one event has ids of its own", async () => {
      await engine.welcome(OUT);
      const result = await engine.run([["both", "k", null]]);
      const seen = out(result).map(([id, data]) => [id.replace(/^.*?-/, ""), data]);
      assert.deepEqual(seen.sort(), [["0.0", "One"], ["0.1-0", "Two"]]);
    });

    test("contexts and hops are handed on", async () => {
      await engine.welcome(OUT);
      const inner = say("b", { say: [say("c", 1)] });
      const { replies, emitted } = await engine.run([a("k", inner), a("l", inner)], { contexts: 2, eventContexts: [-1, 1], hops: 3 });
      assert.deepEqual(replies.map(({ context, data: [id, hops] }) => [context, id.replace(/^.*-/, ""), hops]), [
        [1, "1", 3],
        [1, "1.1", 4],
        [1, "1.1.1", 5],
      ]);
      const seen = emitted.map(({ name, context, hops }) => [name, context, hops]);
      assert.deepEqual(seen, [["b", -1, 4], ["b", 1, 4], ["out", -1, 6], ["out", 1, 6]]);
    });

    test("state is asked for, a stage at once", async () => {
      await engine.welcome({ ...OUT, empty: false });
      engine.store.set("C/k1", pack({ n: 41 }));
      const result = await engine.run([["a", null, { say: [0, 1, 2].map((i) => say("c", i, { key: `k${i}` })) }]]);
      assert.deepEqual(engine.asked, [["k0", "k1", "k2"]]);
      assert.deepEqual(out(result).map(([, , n]) => n), [1, 42, 1]);
    });

    test("one event fails alone; its key waits, and a retry goes on from there", async () => {
      await engine.welcome(OUT);
      const result = await engine.run([
        a("k", say("b", { fail: "no", say: [say("c", "lost")] }), say("b", { say: [say("c", 1)] }), say("c", 2)),
        a("l", say("b", { say: [say("c", 3)] })),
      ]);
      const [failed, behind] = result.failures;
      assert.deepEqual([failed.node, failed.event, failed.text, failed.behind, failed.hold], ["B", "b", "Error: no", false, -1]);
      assert.match(failed.id, /-0\.1$/);
      assert.deepEqual([behind.node, behind.behind, behind.id.slice(-3)], ["B", true, "0.2"]);
      assert.deepEqual(out(result).map(([, data]) => data).sort(), [2, 3]);
      const retries = [failed, behind].map(({ id, body }, i) => [7 + i, "B", id, 2, 0, 0, body, false, -1]);
      const again = await engine.run([a("k", say("b", { say: [say("c", 4)] }))], { retries });
      assert.deepEqual([again.retried, again.failures.map(({ hold, final }) => [hold, final])], [[8], [[7, false]]]);
      assert.deepEqual(out(again).map(([, data]) => data), [1, 4]); // the one before is dead
    });

    test("handlers have values of their own", async () => {
      await engine.welcome(OUT);
      const result = await engine.run([a("k", say("b", { own: 1 }), say("c", { own: 1 }))]);
      assert.deepEqual(out(result)[0][1], { own: 1 });
      const failed = await engine.run([a("k", say("b", { own: 1, fail: "no" }))]);
      assert.ok(failed.failures[0].body.equals(bodyOf([["b", "k", { own: 1, fail: "no" }]], { hops: 1 })));
    });

    test("a chained event that overruns its timeout is told by its id", async () => {
      await engine.welcome(OUT);
      const loop = { say: [say("c", null), say("c", { loop: true })] };
      engine.work({ events: [a("k"), a("l", say("c", 1), say("b", { say: [say("c", 0)] }), say("b", loop))] });
      let stuck = await engine.next();
      while (stuck.kind === "result") stuck = await engine.next();
      const [partition, epoch, id, node, text] = stuck.fields;
      assert.deepEqual([stuck.kind, partition, epoch, node], ["stuck", 0, 1, "C"]);
      assert.match(id, /-1\.3\.2$/);
      assert.match(text, /timeout of 0.5 s/);
      assert.equal((await engine.exited).signal, "SIGKILL");
    });

    test("careful mode hands in each root event with all that chains from it, announced one by one", async () => {
      await engine.welcome(OUT);
      const named = [["b1.0-1.1", "B", "worker-died", "it was killed", true]];
      engine.work({ events: [a("k", say("b", { say: [say("c", 1)] })), a("l", say("b", null))], careful: true, named });
      const seen = [];
      for (let result = null; !result?.ended.length; ) {
        const message = await engine.next();
        if (message.kind === "result") {
          result = message;
          if (result.done.length) seen.push(["done", result.done[0].first, ...result.failures.map((failure) => [failure.id, failure.named])]);
        } else if (message.fields[3] !== "Beside") seen.push(message.fields.slice(2));
      }
      assert.deepEqual(seen, [
        ["b1.0-0", "A"],
        ["b1.0-0.1", "B"],
        ["b1.0-0.1.1", "C"],
        ["done", 1],
        ["b1.0-1", "A"],
        ["done", 2, ["b1.0-1.1", true]],
      ]);
    });

    test("a revoked partition leaves nothing for the next one", async () => {
      await engine.welcome({ ...OUT, empty: false, partitions: 2 });
      engine.isMute = true; // it asks in the middle of the chain
      engine.work({ events: [["a", null, { say: [say("c", 1), say("b", null, { key: "l" })] }]] });
      await engine.asking();
      engine.send(3, [0, 1]);
      engine.isMute = false;
      engine.answer();
      const result = await engine.run([["c", null, 2]], { partition: 1 });
      assert.deepEqual(out(result).map(([, data]) => data), [2]);
      assert.deepEqual(result.done.map(({ position }) => position), [200]);
    });
  });
}

describe("chains that are too much for a result", () => {
  let engine;
  beforeEach(async () => {
    engine = new Engine("chain");
    await engine.welcome({ ...OUT, limits: { max_result: 20_000, max_event: 10_000 } });
  });
  afterEach(() => engine.kill());
  const large = (count) => say("b", { say: Array.from({ length: count }, () => say("c", "x".repeat(1000))) });

  test("root events run one by one then, and only the one that is fails", async () => {
    await engine.run(Array.from({ length: 50 }, () => a("w"))); // larger chunks from now on
    const result = await engine.run([...Array.from({ length: 20 }, (_, i) => a(`k${i}`, large(2))), a("big", large(9)), a("z", large(1))]);
    assert.deepEqual(result.failures.map(({ node, kind, key, hold }) => [node, kind, key, hold]), [["A", "too-large", "big", -1]]);
    assert.equal(out(result).length, 41);
    const states = new Map();
    for (const { node, key, record } of result.states) states.set(`${node}/${key}`, record.n);
    assert.deepEqual([states.get("C/k3"), states.get("A/big"), states.get("C/z")], [2, undefined, 1]);
    assert.equal(result.done.at(-1).first, 22);
    assert.deepEqual(result.counts, { "a>A": 21, "b>B": 21, "c>C": 41 });
  });

  test("a retried one fails with its entry, and keeps its key", async () => {
    const retry = [5, "A", "old-1", 1, 0, 0, bodyOf([a("k", large(9))]), false, -1];
    const result = await engine.run([a("k"), a("l")], { retries: [retry] });
    assert.deepEqual(result.failures.map(({ hold, kind, behind }) => [hold, kind, behind]), [[5, "too-large", false], [-1, "", true]]);
    assert.deepEqual(result.counts, { "a>A": 1 });
  });
});

test("pairs chain as the engine takes it", () => {
  const pairs = (slots, nodes) => [...chainedPairs({ nodes: nodes.map((name) => ({ name, pool: "p" })), slots })].map((pair) => pair.replace("\0", ">"));
  const slot = (event, node, emits = [], more = {}) => ({ event, node, emits, ...more });
  const ring = [slot("a", "A", ["b"]), slot("b", "B", ["c", "d"]), slot("c", "C", ["a", "d"]), slot("d", "D", ["e"]), slot("e", "E", ["e"])];
  assert.deepEqual(pairs(ring, ["A", "B", "C", "D", "E"]).sort(), ["B>D", "C>D", "D>E"]);
  assert.deepEqual(pairs([slot("a", "A", ["b"]), slot("b", "B"), slot("x", "B", [], { chain: false })], ["A", "B"]), []);
});
