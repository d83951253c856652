"use strict";

const assert = require("node:assert/strict");
const { after, before, beforeEach, describe, test } = require("node:test");

const { Engine, bodyOf, pack } = require("./engine");

const OUT = { outputs: ["out"], taken: ["out"] };
const data = (result) => result.emitted.map((event) => event.data);

describe("keyed state and emits", () => {
  let engine;
  beforeEach(async () => {
    engine = new Engine("count");
  });
  const end = () => engine.drain();

  test("hello tells the topology", async () => {
    const own = await engine.welcome({ outputs: ["total"] });
    assert.deepEqual(own.nodes, [{ name: "Count", states: [{ name: "count" }], is_async: false }]);
    assert.deepEqual(own.slots[0].emits, ["total"]);
    assert.match(own.slots[0].where, /fixtures\/count\.js:6$/);
    assert.deepEqual([own.name, own.pools, own.outputs], ["", [], undefined]);
    await end();
  });

  test("counts go on from work to work, and what nobody takes is only counted", async () => {
    await engine.welcome({ outputs: ["total"], taken: [] });
    await engine.run([["word", "a"]]);
    const result = await engine.run([["word", "a"]]);
    assert.deepEqual(result.states[0].record, { count: 2 });
    assert.deepEqual(result.emitted, []);
    assert.deepEqual([result.emits, result.counts], [{ total: 1 }, { "word>Count": 1 }]);
    assert.deepEqual((await end()).code, 0);
  });

  test("state that is not cached is asked for, each key once", async () => {
    await engine.welcome({ outputs: ["total"], taken: ["total"], empty: false });
    engine.store.set("Count/a", pack({ count: 41, gone: [1] }));
    const result = await engine.run([["word", "a"], ["word", "b"], ["word", "a"]]);
    assert.deepEqual(engine.asked, [["a"], ["b"]].length === engine.asked.length ? engine.asked : [["a", "b"]]);
    assert.deepEqual(
      result.states.map(({ key, record }) => [key, record]),
      // What this code does not know of a record stays.
      [["a", { count: 43, gone: [1] }], ["b", { count: 1 }]],
    );
    await engine.run([["word", "a"]]);
    assert.equal(engine.asked.flat().filter((key) => key === "a").length, 1);
    await end();
  });

  test("a new assignment forgets the cache; a work of another epoch is dropped", async () => {
    await engine.welcome({ outputs: ["total"] });
    await engine.run([["word", "a"]]);
    engine.store.set("Count/a", pack({ count: 9 }));
    engine.assign(0, 2, [], false);
    engine.work({ events: [["word", "a"]], epoch: 1 });
    const result = await engine.run([["word", "a"]], { epoch: 2 });
    assert.deepEqual(result.states[0].record, { count: 10 });
    engine.send(3, [0, 2]);
    engine.work({ events: [["word", "a"]], epoch: 2 });
    engine.assign(0, 3);
    assert.deepEqual((await engine.run([["word", "a"]], { epoch: 3 })).states[0].record, { count: 1 });
    await end();
  });

  test("the cache stays within its size, and what was evicted is asked for again", async () => {
    await engine.welcome({ outputs: ["total"], limits: { cache_bytes: 10_000 } });
    const words = Array.from({ length: 200 }, (_, i) => ["word", `w${i}`]);
    const first = await engine.run(words);
    for (const { key, packed } of first.states) engine.store.set(`Count/${key}`, packed);
    const second = await engine.run(words);
    assert.ok(engine.asked.flat().length > 50);
    assert.ok(second.states.every(({ record }) => record.count === 2));
    await end();
  });

  test("progress: what is done is not run again", async () => {
    await engine.welcome({ outputs: ["total"], taken: ["total"] });
    const result = await engine.run(
      Array.from({ length: 6 }, (_, i) => ["word", `k${i}`]),
      { done: [1, Buffer.from([0b101])] }, // 0, 2 and 4 are done
    );
    assert.deepEqual(result.emitted.map(({ key }) => key), ["k1", "k3", "k5"]);
    assert.equal(result.done.at(-1).first, 6);
    await end();
  });

  test("a long work ends early and the rest comes again", async () => {
    await engine.welcome({ outputs: ["total"] });
    const events = Array.from({ length: 100_000 }, (_, i) => ["word", `k${i % 1000}`]);
    engine.work({ events });
    const first = await engine.next("result");
    assert.equal(first.ended.length, 1);
    assert.ok(first.done[0].first > 0);
    await end();
  });
});

describe("nodes", () => {
  let engine;
  before(async () => {
    engine = new Engine("nodes");
    await engine.welcome({
      ...OUT,
      limits: { max_event: 2000, max_result: 100_000, max_hops: 5 },
      partitions: 4,
      extra: {
        nodes: [{ name: "Far", pool: "other" }, { name: "Near", pool: "third" }],
        slots: [{ event: "far", node: "Far" }, { event: "far", node: "Near" }],
      },
    });
  });
  after(async () => {
    assert.equal((await engine.drain()).code, 0, engine.errors);
  });

  test("an event says who it is, and its output who printed it", async () => {
    const result = await engine.run([["meta", "k", 1]]);
    const [{ data: seen, hops }] = result.emitted;
    assert.match(seen.id, /^b\d+\.0-0$/);
    assert.deepEqual(
      [seen.attempt, seen.created, seen.hops, seen.name, seen.key, seen.isDate, hops],
      [1, new Date(1_700_000_000_000), 0, "meta", "k", true, 1],
    );
    await engine.said("output", /^\x1e\x1eMeta\x1f[^\x1e]+\x1eseen by me$/m); // eslint-disable-line no-control-regex
    await engine.said("output", /^\x1e\x1eMeta\x1f[^\x1e]+\x1e日本$/m); // eslint-disable-line no-control-regex
    await engine.said("errors", /^\x1ewarning\x1eMeta\x1f[^\x1e]+\x1ecareful$/m); // eslint-disable-line no-control-regex
  });

  test("an emit goes to every pool that listens, in the partition of its key", async () => {
    const say = (options) => ({ name: "far", data: 1, options });
    const result = await engine.run([["say", "a", [say(), say({ key: "grape" }), say({ key: null }), say({ key: "日本" })]]]);
    const places = (target) =>
      result.emitted.filter((event) => event.target === target).map(({ partition, key }) => [partition, key]);
    const expected = [[0, "a"], [1, "grape"], [0, null], [3350711756 % 4, "日本"]];
    const sorted = (list) => [...list].sort((a, b) => String(a).localeCompare(String(b)));
    assert.deepEqual(sorted(places("other")), sorted(expected));
    assert.deepEqual(sorted(places("third")), sorted(expected));
    assert.deepEqual(result.emits, { far: 4 });
  });

  test("outputs stay in the partition that emits them", async () => {
    const result = await engine.run([["say", "a", [{ name: "out", data: 1, options: { key: "grape" } }]]]);
    assert.deepEqual(result.emitted.map(({ target, partition, key }) => [target, partition, key]), [[">out", 0, "grape"]]);
  });

  test("timers, replies, emitMany", async () => {
    const later = await engine.run([["later", null, 1]]);
    assert.deepEqual(later.timers[0].delay, 1_500_000);
    assert.deepEqual([later.timers[0].key, later.timers[0].hops, later.emits], ["k", 0, { out: 1 }]);
    const call = await engine.run([["call", null, 4]], { contexts: 1, calls: true });
    assert.deepEqual(call.replies, [{ context: 0, data: "part", final: false }, { context: 0, data: { done: 4 }, final: true }]);
    assert.deepEqual((await engine.run([["call", null, 4]])).replies, []);
    const many = await engine.run([["many", "k", { keys: ["x", "y"], data: [1, 2] }]]);
    assert.deepEqual(many.emitted.map(({ key, data: value }) => [key, value]), [["x", 1], ["y", 2]]);
  });

  test("contexts are handed on", async () => {
    const result = await engine.run([["echo", null, 1], ["echo", null, 2], ["echo", null, 3]], {
      contexts: 2,
      eventContexts: [1, -1, 0],
    });
    assert.deepEqual(result.emitted.map(({ context }) => context), [1, -1, 0]);
  });

  test("two nodes that listen to one event", async () => {
    const result = await engine.run([["twice", null, 1], ["twice", null, 2]]);
    assert.deepEqual(data(result), ["A1", "B1", "A2", "B2"]);
    assert.deepEqual(result.counts, { "twice>TwiceA": 2, "twice>TwiceB": 2 });
    assert.deepEqual(data(await engine.run([["twice", null, 3]], { only: ["TwiceB"] })), ["B3"]);
  });

  const failures = {
    throw: ["TypeError", /^TypeError: a mistake of two lines$/],
    unknown: ["unknown-event", /'ou', neither a slot nor an output of 'app'; did you mean 'out'/],
    surrogate: ["bad-value", /lone surrogate/],
    "long surrogate": ["bad-value", /lone surrogate/],
    bigint: ["bad-value", /integer 18446744073709551616 cannot travel/],
    function: ["bad-value", /a function cannot travel/],
    symbol: ["bad-value", /a symbol cannot travel/],
    promise: ["bad-value", /Promise cannot travel/],
    error: ["bad-value", /a Error cannot travel/],
    circle: ["bad-value", /does it contain itself/],
    large: ["too-large", /over max-event \(2000\)/],
    much: ["too-large", /max-result/],
    key: ["bad-key", /1 to 4096 bytes/],
    "number key": ["bad-key", /a key is a string, not a number/],
    delay: ["handler", /delay is a number of seconds/],
    option: ["handler", /emit has no option 'kye'; known are 'delay', 'key'/],
    "reply option": ["handler", /reply has no option 'last'; known are 'final'/],
    column: ["handler", /emitMany has no option 'key'; did you mean 'keys'/],
    state: ["bad-state", /event\.state was assigned/],
    boxed: ["bad-value", /a Number cannot travel/],
    shared: ["bad-value", /a SharedArrayBuffer cannot travel/],
    async: ["handler", /returned a Promise/],
    string: ["thrown", /threw 'only text', which is no Error/],
    cause: ["Error", /outside/],
  };
  for (const [how, [kind, text]] of Object.entries(failures)) {
    test(`failure: ${how}`, async () => {
      const result = await engine.run([["bad", null, "fine"], ["bad", null, how], ["bad", null, "fine"]]);
      assert.deepEqual(data(result), ["never seen", "never seen"]); // of those that succeeded
      assert.equal(result.failures.length, 1);
      const [failure] = result.failures;
      assert.equal(failure.kind, kind);
      assert.match(failure.text, text);
      assert.match(failure.id, /-1$/);
      assert.deepEqual([failure.node, failure.event, failure.hold, failure.final], ["Bad", "bad", -1, false]);
      assert.deepEqual(failure.body, bodyOf([["bad", null, how]]));
      assert.deepEqual(result.counts, { "bad>Bad": 2 });
      if (kind !== "thrown" && how !== "async" && how !== "state") {
        const lines = failure.trace.split("\n").filter((line) => /^\s+at /.test(line));
        assert.match(lines[0], /fixtures\/nodes\.js/, failure.trace);
        assert.ok(!failure.trace.includes("/lib/"), failure.trace);
      }
      if (how === "cause") assert.match(failure.trace, /Caused by: RangeError: inside/);
    });
  }

  test("an event that is used after its handler has ended", async () => {
    const result = await engine.run([["hold", null, 1], ["hold", null, 2]]);
    assert.equal(result.failures[0].kind, "event-over");
  });

  test("events that have come too far are dead", async () => {
    const result = await engine.run([["echo", null, 1]], { hops: 6 });
    assert.deepEqual([result.failures[0].kind, result.failures[0].final], ["too-many-hops", true]);
    assert.equal((await engine.run([["echo", null, 1]], { hops: 5 })).emitted[0].hops, 6);
  });

  test("events that come too late are dead", async () => {
    const late = { contexts: 1, eventContexts: [0, -1], deadlines: [[0, 1]] };
    const result = await engine.run([["echo", null, 1], ["echo", null, 2]], late);
    assert.deepEqual([result.failures[0].kind, result.failures[0].final, data(result)], ["deadline", true, [2]]);
  });

  test("data that cannot be read", async () => {
    const rawData = Buffer.concat([Buffer.from([0x93]), pack(1), Buffer.from([0xa1, 0xff]), pack(3)]);
    const result = await engine.run([["echo", null, 0], ["echo", null, 0], ["echo", null, 0]], { rawData });
    assert.equal(result.failures[0].kind, "bad-payload");
    assert.deepEqual(data(result), [1, 3]);
  });

  test("a failed event locks its key; a retry unlocks it", async () => {
    const say = [{ name: "out", data: 1 }];
    const first = await engine.run([["say", "k", 5], ["say", "k", say], ["say", "j", say]], { partition: 1 });
    assert.deepEqual(first.failures.map(({ behind, key }) => [behind, key]), [[false, "k"], [true, "k"]]);
    assert.equal(first.emitted.length, 1);
    const retry = (hold, id, what, rest) => [hold, "Say", id, 2, 0, 0, bodyOf([["say", "k", what]]), rest, -1];
    const [a, b] = first.failures.map(({ id }) => id);
    // It fails again: what stands behind it waits, and is not even told of.
    const again = await engine.run([["say", "k", say]], { partition: 1, retries: [retry(1, a, 5, false), retry(2, b, say, false)] });
    assert.deepEqual(again.failures.map(({ hold, behind }) => [hold, behind]), [[1, false], [-1, true]]);
    assert.deepEqual(again.retried, []);
    // It succeeds; the next of its line is in a later work, so new ones still wait.
    const third = await engine.run([["say", "k", say]], { partition: 1, retries: [retry(1, a, say, true)] });
    assert.deepEqual([third.retried, third.failures.map(({ behind }) => behind)], [[1], [true]]);
    const more = [again, third].map((result) => result.failures.at(-1).id);
    const fourth = await engine.run([["say", "k", say]], {
      partition: 1,
      retries: [retry(2, b, say, false), retry(3, more[0], say, false), retry(4, more[1], say, false)],
    });
    assert.deepEqual([fourth.retried, fourth.failures], [[2, 3, 4], []]);
    assert.equal(fourth.emitted.length, 4);
  });

  test("the last attempt does not lock, nor does a slot that is not ordered", async () => {
    const retries = [[1, "Say", "x", 4, 0, 0, bodyOf([["say", "m", 5]]), false, -1]];
    const last = await engine.run([["say", "m", []]], { partition: 2, retries });
    assert.deepEqual(last.failures.map(({ hold, behind }) => [hold, behind]), [[1, false]]);
    const loose = await engine.run([["loose", "m", "throw"], ["loose", "m", 1]], { partition: 2 });
    assert.equal(loose.failures.length, 1);
  });

  test("held keys of the assignment", async () => {
    engine.assign(3, 2, [["Say", "q"]]);
    const result = await engine.run([["say", "q", []], ["say", "r", []]], { partition: 3, epoch: 2 });
    assert.deepEqual(result.failures.map(({ key, behind }) => [key, behind]), [["q", true]]);
    engine.assign(3, 3);
  });

  test("careful mode announces each event, and hands it in alone", async () => {
    const events = [["echo", null, 1], ["echo", null, 2], ["twice", null, 3]];
    const seq = engine.work({
      bodies: [
        { body: bodyOf(events.slice(0, 2)), events: 2 },
        { body: bodyOf(events.slice(2)), events: 1 },
      ],
      careful: true,
      named: [[`b${engine.seq + 1}.0-1`, "Echo", "worker-died", "killed", true]],
    });
    const seen = [];
    for (;;) {
      const message = await engine.next();
      if (message.kind === "announce") seen.push(message.fields[3]);
      else seen.push(message.failures.length ? message.failures[0].kind : message.emitted.length);
      if (message.kind === "result" && message.ended.includes(seq)) break;
    }
    assert.deepEqual(seen, ["Echo", 1, "worker-died", "TwiceA", "TwiceB", 2, 0]);
  });

  test("state: set, delete, in place, undone", async () => {
    let n = 0;
    const keep = async (...actions) => {
      const result = await engine.run(actions.map((action) => ["keep", "k", action]));
      n += result.failures.length;
      return result;
    };
    assert.deepEqual((await keep({ set: { a: [1], b: "x" } })).states[0].record, { a: [1], b: "x" });
    assert.deepEqual((await keep({ push: 2 })).states[0].record, { a: [1, 2], b: "x" });
    assert.deepEqual((await keep({ get: "a" })).states, []); // only read
    assert.deepEqual((await keep({ drop: "b" })).states[0].record, { a: [1, 2] });
    assert.deepEqual((await keep({ drop: "a" })).states[0].record, null);
    assert.deepEqual(data(await keep({ get: "a" })), [null]);
    assert.deepEqual((await keep({ set: { a: 1 } }, { drop: "a", again: "a" })).states[0].record, { a: 7 });
    assert.equal(n, 0);
    const loose = (action) => engine.run([["keep", `f${++n}`, action]]);
    const failed = await loose({ set: { a: 1 }, fail: true });
    assert.deepEqual([failed.states, failed.failures[0].text], [[], "Error: after all"]);
    assert.equal((await loose({ bad: true })).failures[0].kind, "bad-value");
    const stray = (await loose({ set: { aa: 1 } })).failures[0];
    assert.deepEqual([stray.kind, /no state 'aa'; did you mean 'a'/.test(stray.text)], ["bad-state", true]);
    assert.equal((await engine.run([["keep", null, { get: "a" }]])).failures[0].kind, "no-key");
  });

  test("state that expires", async () => {
    const first = await engine.run([["soon", "k", "set"]]);
    const now = Date.now() * 1000;
    const [{ record, expires }] = first.states;
    // The engine of this test says 0 for the time of boot: now is the machine's uptime.
    const uptime = require("node:os").uptime() * 1e6;
    assert.ok(Math.abs(expires - uptime - 60e6) < 5e6, `${expires} ${uptime} ${now}`);
    assert.deepEqual(record, { x: 1, "": { x: expires } });
    const second = await engine.run([["soon", "k", "y"]]);
    assert.equal(second.states[0].expires, 0); // a part stays for ever
    const third = await engine.run([["soon", "k", "set"], ["soon", "k", "drop y"]]);
    assert.deepEqual(Object.keys(third.states[0].record), ["x", ""]);
    engine.assign(0, 2, [], false);
    engine.store.set("Soon/old", pack({ x: 5, "": { x: 1 } }));
    engine.store.set("Soon/new", pack({ x: 5, "": { x: 2 ** 52 } }));
    const old = await engine.run([["soon", "old", null], ["soon", "new", null]], { epoch: 2 });
    assert.deepEqual([data(old), old.states], [[null, 5], []]);
    engine.assign(0, 1);
  });
});

describe("life", () => {
  test("setup, teardown, config", async () => {
    const engine = new Engine("hooks", { config: { greeting: "hi" } });
    await engine.welcome(OUT);
    assert.deepEqual(data(await engine.run([["hello", null]])), ["hi"]);
    assert.equal((await engine.drain()).code, 0);
    assert.match(engine.output, /torn down/);
  });

  test("an app that cannot be loaded is refused, with the author's lines", async () => {
    for (const [how, kind, text] of [
      ["option", "topology", /slot 'a' of node 'A' has no option 'retry'; did you mean 'retries'/],
      ["state", "topology", /state 's' of slot 'a' of node 'A' has no option 'tll'; did you mean 'ttl'/],
      ["throw", "start", /Error: no model here\n\s+at loadModel \(.*broken\.js/],
      ["none", "topology", /declares no slots/],
    ]) {
      const engine = new Engine("broken", { config: { how } });
      const { fields } = await engine.next("refusal");
      assert.deepEqual([fields[0], text.test(fields[1])], [kind, true], fields[1]);
      assert.notEqual((await engine.exited).code, 0);
    }
  });

  test("a setup that fails", async () => {
    const engine = new Engine("broken", { config: { how: "setup" } });
    await engine.welcome();
    const { fields } = await engine.next("refusal");
    assert.match(fields[1], /no database/);
    await engine.exited;
  });

  test("the end of the stream is the end of the worker", async () => {
    const engine = new Engine("count");
    await engine.welcome();
    engine.socket.destroy();
    assert.equal((await engine.exited).code, 0);
  });

  test("beats", async () => {
    const engine = new Engine("count");
    await engine.welcome({ beat: 0.6 });
    await new Promise((resolve) => setTimeout(resolve, 900));
    assert.ok(engine.beats >= 3, String(engine.beats));
    await engine.kill();
  });

  test("a synchronous handler that overruns its time", async () => {
    const engine = new Engine("nodes");
    await engine.welcome({ ...OUT, beat: 0.6 });
    assert.deepEqual((await engine.run([["spin", "a", "alive"]])).failures, []);
    engine.work({ events: [["spin", "a", 1], ["spin", "b", "spin"]] });
    const { fields } = await engine.next("stuck");
    const [partition, epoch, id, node, text, trace] = fields;
    assert.deepEqual([partition, epoch, id, node], [0, 1, "b2.0-1", "Spin"]);
    assert.match(text, /'Spin' ran over its timeout of 0.3 s/);
    if (Number(process.versions.node.split(".")[0]) >= 20) assert.match(trace, /at spin \(.*nodes\.js/);
    await engine.exited;
  });

  test("results are whole frames also while the watchdog speaks", async () => {
    const engine = new Engine("count");
    await engine.welcome({ outputs: ["total"], taken: ["total"], beat: 0.001 });
    for (let round = 0; round < 10; round++) {
      await engine.run(Array.from({ length: 2000 }, (_, i) => ["word", `k${i}`]));
    }
    assert.ok(engine.beats > 0);
    await engine.drain();
  });
});
