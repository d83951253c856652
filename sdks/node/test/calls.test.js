"use strict";

const assert = require("node:assert/strict");
const { after, before, describe, test } = require("node:test");

const { Engine, bodyOf, eventsOf, pack } = require("./engine");

const OUT = { outputs: ["out"], taken: ["out"] };

describe("calls", () => {
  let engine;
  before(async () => {
    engine = new Engine("calls");
    await engine.welcome({
      ...OUT,
      extra: { nodes: [{ name: "Far", pool: "other" }], slots: [{ event: "price", node: "Far" }] },
    });
  });
  after(async () => {
    assert.equal((await engine.drain()).code, 0, engine.errors);
  });

  /** The call by which an event was left. */
  async function left(event) {
    const { failures, emitted, states } = await engine.run([event]);
    assert.equal(failures.length, 1);
    assert.deepEqual([emitted, states], [[], []]);
    const [{ call, kind, text }] = failures;
    if (!call) return { kind, text };
    const [name, digest, timeout, requests] = call;
    return { name, digest, timeout, requests };
  }

  async function again([name, key, data], node, answers) {
    const item = [3, node, "b1.0-0", 1, 0, 0, bodyOf([[name, key, data]]), false, -1, answers];
    return engine.run(null, { bodies: [], retries: [item] });
  }

  test("a request goes to every pool that listens, one hop behind", async () => {
    const { name, digest, timeout, requests } = await left(["order", "a", ["tea"]]);
    assert.deepEqual([name, digest.length, timeout], ["price", 8, 2_000_000]);
    assert.deepEqual(requests.map(([target]) => target), ["js", "other"]);
    for (const [, partition, events, body, ...rest] of requests) {
      assert.deepEqual([partition, events, rest], [0, 1, []]);
      assert.deepEqual(eventsOf(body), [{ name: "price", key: "a", data: "tea", hops: 1, context: 0 }]);
    }
    const result = await again(["order", "a", ["tea"]], "Order", [[digest, pack(3)]]);
    assert.deepEqual(result.emitted.map(({ data }) => data), [[3]]);
    assert.deepEqual([result.retried, result.states[0].record], [[3], { n: 1 }]);
  });

  test("an async handler may ask side by side", async () => {
    const { digest, timeout } = await left(["orders", "b", ["x", "y"]]);
    assert.equal(timeout, 30_000_000);
    const next = await again(["orders", "b", ["x", "y"]], "Orders", [[digest, pack(1)]]);
    const [{ call, hold }] = next.failures;
    assert.deepEqual([hold, eventsOf(call[3][0][3])[0].data], [3, "y"]);
    const last = await again(["orders", "b", ["x", "y"]], "Orders", [[digest, pack(1)], [call[1], pack(2)]]);
    assert.deepEqual(last.emitted.map(({ data }) => data), [[1, 2]]);
  });

  test("who goes on is told", async () => {
    for (const name of ["settled", "wrap"]) {
      const { kind, text } = await left([name, null, 1]);
      assert.equal(kind, "handler");
      assert.match(text, /caught what ends its handler while it waits for the answer to 'price'/);
    }
  });

  test("a promise that waits for the call of another event", async () => {
    await left(["share", null, 1]);
    const { kind, text } = await left(["share", null, 2]);
    assert.match(`${kind} ${text}`, /^handler .*a call that another event has made/);
  });

  test("an answer that is an error", async () => {
    const { digest } = await left(["mind", null, 5]);
    const said = { error: { code: "too-dear", text: "it is", node: "Price" } };
    const result = await again(["mind", null, 5], "Mind", [[digest, pack(said), true]]);
    assert.deepEqual(result.emitted[0].data, ["call-failed", "too-dear", "it is", "Price", "node 'Price' failed: it is"]);
    const late = { error: { code: "no-answer", text: "nobody did", node: "" } };
    const [{ kind, text }] = (await again(["mind", null, 5], "Mind", [[digest, pack(late), true]])).failures;
    assert.deepEqual([kind, text], ["no-answer", "NoAnswer: nobody did"]);
  });

  test("what cannot be asked, and what cannot be a timer, is an error there", async () => {
    const wrong = [
      [["call", "prize"], "unknown-event", /calls 'prize', neither/],
      [["call", "out"], "unknown-event", /an output: nothing answers there/],
      [["call", "price", 1, { timeout: 0 }], "handler", /an answer takes longer/],
      [["call", "price", 1, { timeout: "5" }], "handler", /timeout is a number of seconds/],
      [["call", "price", 1, { key: "" }], "bad-key", /./],
      [["call", "price", 1, { delay: 1 }], "handler", /call has no option 'delay'/],
      [["cancelTimer"], "handler", /a string, not a undefined/],
      [["cancelTimer", ""], "handler", /1 to 255 bytes/],
      [["cancelTimer", "é".repeat(128)], "handler", /this one has 256/],
      [["emit", "out", 1, { timer: "t" }], "handler", /names an emit with a delay/],
    ];
    for (const [words, kind, text] of wrong) {
      const [failure] = (await engine.run([["bad", "k", words]])).failures;
      assert.equal(failure.kind, kind, String(words));
      assert.match(failure.text, text);
      assert.match(failure.trace, /fixtures\/calls\.js/);
      assert.equal(failure.call, undefined);
      engine.assign(0, 1);
    }
    const [keyless] = (await engine.run([["bad", null, ["cancelTimer", "t"]]])).failures;
    assert.equal(keyless.kind, "no-key");
  });

  test("timers by name", async () => {
    const emit = ["emit", "out", 1, { delay: 2, timer: "t", key: null }];
    const { timers } = await engine.run([["bad", "k", emit], ["bad", "k", ["cancelTimer", "t"]]]);
    assert.deepEqual(
      timers.map(({ delay, name, cancels }) => [delay, name, cancels?.join()]),
      [[0, undefined, "Bad,k,t"], [2_000_000, "out", "Bad,k,t"], [0, undefined, "Bad,k,t"]],
    );
  });

  test("a run whose names lead to different nodes", async () => {
    const events = [["price", "a", 1], ["bad", "k", ["reply", 1]], ["price", "b", 2], ["gone", "c", 3], ["wait", "d", 10]];
    const ids = new Map([[2, "mine"]]);
    const { counts, done } = await engine.run(events, { ids });
    assert.deepEqual(counts, { "price>Price": 2, "bad>Bad": 1, "wait>Wait": 1 });
    assert.equal(done.at(-1).first, 5);
  });
});

test("signs of life say whether a handler runs", async () => {
  const engine = new Engine("calls");
  await engine.welcome({ ...OUT, beat: 0.6 });
  await new Promise((resolve) => setTimeout(resolve, 500));
  assert.equal(engine.running.at(-1), false);
  await engine.run([["wait", null, 600]]);
  assert.equal(engine.running.includes(true, 1), true);
  await engine.drain();
});
