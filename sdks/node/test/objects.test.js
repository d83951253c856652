"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const { afterEach, beforeEach, describe, test } = require("node:test");
const os = require("node:os");
const path = require("node:path");
const { pathToFileURL } = require("node:url");

const { Engine, bodyOf } = require("./engine");

const OUT = { outputs: ["out"], taken: ["out"] };
const data = (result) => result.emitted.map((event) => event.data);

for (const kind of ["sync", "async"]) {
  describe(`objects in a pool that is ${kind}`, () => {
    let engine;
    beforeEach(async () => {
      engine = new Engine("objects", { config: { kind } });
      await engine.welcome(OUT);
    });
    afterEach(() => engine.kill());

    test("what comes while a handler waits is not lost, and keeps its order", async () => {
      engine.isSlow = true;
      const works = [];
      for (let i = 0; i < 5; i++) works.push(engine.work({ events: [["get", `k${i}`], ["get", `l${i}`]] }));
      const seen = [];
      while (works.length) {
        const result = await engine.next("result");
        seen.push(...result.emitted.map((event) => event.key));
        for (const seq of result.ended) works.splice(works.indexOf(seq), 1);
      }
      assert.deepEqual(seen, [0, 1, 2, 3, 4].flatMap((i) => [`k${i}`, `l${i}`]));
    });

    test("drain and revoke come while it waits", async () => {
      engine.isSlow = true;
      engine.work({ events: [["get", "a"]] });
      engine.send(3, [0, 1]);
      engine.assign(0, 2);
      engine.work({ events: [["get", "b"]], epoch: 2 });
      const results = [];
      while (!results.some((result) => result.epoch === 2 && result.ended.length)) results.push(await engine.next("result"));
      assert.deepEqual(results.filter((one) => one.epoch === 2).flatMap(data), [null]);
      engine.work({ events: [["get", "c"]], epoch: 2 });
      assert.deepEqual(await engine.drain(), { code: 0, signal: null });
    });

    test("the engine goes while it waits", async () => {
      engine.fetched = () => engine.socket.destroy();
      engine.work({ events: [["get", "a"]] });
      assert.deepEqual(await engine.exited, { code: 0, signal: null });
    });

    test("files, and what cannot be one", async () => {
      const folder = fs.mkdtempSync(path.join(os.tmpdir(), "grape-"));
      const file = path.join(folder, "a file");
      fs.writeFileSync(file, Buffer.alloc(3_000_000, "f"));
      const { objects } = await engine.run([["file", "k", String(pathToFileURL(file))]]);
      assert.deepEqual([objects[0].size, objects[0].isFile], [3_000_000, true]);
      fs.rmSync(folder, { recursive: true });
      const bad = await engine.run([["bad", "k", 7], ["bad", "l", ["text"]], ["odd", "m"], ["file", "n", "file:///nowhere"]]);
      assert.deepEqual(bad.failures.map((one) => one.kind), ["TypeError", "TypeError", "handler", "Error"]);
      assert.match(bad.failures[2].text, /put has no option 'tag'; did you mean 'tags'/);
      assert.deepEqual([bad.objects, engine.coming.size], [[], 0]);
    });

    test("memory stays flat", async () => {
      const [[size, before]] = data(await engine.run([["flat", "k", 8]]));
      const [[large, after]] = data(await engine.run([["flat", "k", 128]]));
      assert.deepEqual([size, large], [8 << 20, 128 << 20]);
      assert.ok(after - before < 60_000, `${before} KiB, then ${after}`);
    });

    test("storage is that of an event, and over with it", async () => {
      const result = await engine.run([["late", "k"], ["late", "k"]]);
      assert.deepEqual([data(result), result.objects], [[["event-over", true]], []]);
    });

    test("one that is granted none", async () => {
      await engine.kill();
      engine = new Engine("objects", { config: { kind } });
      await engine.welcome({ ...OUT, namespaces: {} });
      const { failures } = await engine.run([["get", "k"]]);
      assert.match(failures[0].text, /node 'Get' uses the namespace 'app' of objects, which its app is not granted/);
    });
  });
}

describe("objects of async handlers", () => {
  let engine;
  beforeEach(async () => {
    engine = new Engine("objects", { config: { kind: "async" } });
    await engine.welcome(OUT);
  });
  afterEach(() => engine.kill());

  test("streams, stat and lists", async () => {
    engine.objects.set("app/a1", Buffer.from("x"));
    engine.objects.set("app/b", Buffer.from("x"));
    const result = await engine.run([["slow", "k", "stream"], ["slow", "k", "list"]]);
    assert.deepEqual(data(result), [[(3 << 20) + 10, (3 << 20) + 10], ["a1"]]);
  });

  test("many bring at once, also those that block", async () => {
    engine.isSlow = true;
    const keys = Array.from("abcdefghijklmnop");
    const events = keys.map((key, i) => [i % 3 ? "slow" : "put", key, 2_500_000]);
    const { objects, failures } = await engine.run(events, {});
    assert.deepEqual([failures, objects.length], [[], 16]);
    for (const { key, size, checksum } of objects) {
      const bytes = engine.blobs.get(checksum.toString("hex"));
      assert.ok(size === 2_500_000 && bytes.equals(Buffer.alloc(size, key)), key);
    }
    const most = engine.stored.filter(([kind]) => kind === "keep").length;
    assert.equal(most, 16 * 3);
  });

  test("who is over its timeout gives up what it brings", async () => {
    const { failures, objects } = await engine.run([["slow", "k", "late"]]);
    assert.deepEqual([failures.map((one) => one.kind), objects, engine.coming.size], [["timeout"], [], 0]);
    assert.ok(engine.stored.some((one) => one[0] === "keep" && one[7]));
  });

  test("a retry sees nothing of the attempt that failed", async () => {
    const retry = [7, "Get", "b1-0", 2, 0, 0, bodyOf([["get", "k"]]), false, -1];
    engine.objects.set("app/k", Buffer.from("old"));
    const seq = engine.work({ retries: [retry] });
    const result = await engine.next("result");
    assert.deepEqual([data(result), result.retried], [[3], [7]]);
    if (!result.ended.includes(seq)) await engine.next("result");
  });
});
