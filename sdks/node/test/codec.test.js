"use strict";

const assert = require("node:assert/strict");
const { describe, test } = require("node:test");

const { Ext } = require("..");
const { crc32 } = require("../lib/crc32");
const { Reader, TextCache } = require("../lib/msgpack/reader");
const { Writer } = require("../lib/msgpack/writer");
const { Progress } = require("../lib/progress");

function pack(value) {
  const writer = new Writer(1);
  writer.value(value);
  return Buffer.from(writer.written());
}

const unpack = (bytes) => new Reader(bytes).value();

describe("values travel", () => {
  const rows = [
    ["nil", null],
    ["booleans", [true, false]],
    ["small integers", [0, 1, 127, 128, 255, 256, 65535, 65536, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1]],
    ["negative integers", [-1, -32, -33, -128, -129, -32768, -32769, -(2 ** 31), -(2 ** 31) - 1, -(2 ** 53) + 1]],
    ["large integers", [2n ** 53n, -(2n ** 53n), 2n ** 63n - 1n, -(2n ** 63n), 2n ** 63n, 2n ** 64n - 1n]],
    ["floats", [0.1, -0, 1e300, NaN, Infinity, -Infinity, 2 ** 60]],
    ["text", ["", "a", "x".repeat(31), "x".repeat(32), "x".repeat(47), "x".repeat(48), "x".repeat(70_000)]],
    ["text that is not ASCII", ["é", "日本", "😀", "\0", "\ufffd", "é".repeat(40), "\ufeffx"]],
    ["bytes", [Buffer.from([]), Buffer.from([1, 2]), Buffer.alloc(300, 1), Buffer.alloc(70_000)]],
    ["lists", [[], [1], Array.from({ length: 20 }, (_, i) => i), new Array(70_000).fill(1)]],
    ["maps", { a: 1, b: { c: [] }, ["k".repeat(60)]: 1, é: 2 }],
    ["large maps", Object.fromEntries(Array.from({ length: 70_000 }, (_, i) => [`k${i}`, i]))],
    ["maps of other keys", new Map([[1, "a"], ["b", 2], [null, 3]])],
    ["times", [new Date(0), new Date(1_700_000_000_123), new Date(-1500), new Date(2 ** 35 * 1000)]],
    ["extensions", [new Ext(5, Buffer.from([1])), new Ext(-7, Buffer.from([1, 2, 3]))]],
  ];
  for (const [name, value] of rows) test(name, () => assert.deepEqual(unpack(pack(value)), value));

  test("what becomes something else", () => {
    assert.deepEqual(unpack(pack({ a: undefined, b: [undefined] })), { a: null, b: [null] });
    assert.deepEqual(unpack(pack(new Set([1, 2]))), [1, 2]);
    assert.deepEqual(unpack(pack(5n)), 5);
    assert.deepEqual(unpack(pack(new URL("http://a/b"))), "http://a/b");
    assert.deepEqual(unpack(pack(new Uint8Array([1]))), Buffer.from([1]));
    assert.deepEqual(unpack(pack(new (class Point { x = 1; })())), { x: 1 });
    assert.deepEqual(unpack(pack(Object.assign(Object.create(null), { a: 1 }))), { a: 1 });
  });

  test("__proto__ is a key like any other", () => {
    const value = unpack(Buffer.from([0x81, 0xa9, ...Buffer.from("__proto__"), 0x81, 0xa1, 0x78, 0x01]));
    assert.equal(Object.getPrototypeOf(value), Object.prototype);
    assert.deepEqual(Object.keys(value), ["__proto__"]);
    assert.equal(value.x, undefined);
    assert.deepEqual(unpack(pack(value)), value);
  });

  test("64 levels and more", () => {
    let deep = 1;
    for (let i = 0; i < 500; i++) deep = i % 2 ? [deep] : { deep };
    assert.deepEqual(unpack(pack(deep)), deep);
    for (let i = 0; i < 20; i++) deep = [deep];
    assert.throws(() => pack(deep), { kind: "bad-value" });
    assert.throws(() => unpack(Buffer.alloc(5000, 0x91)), { kind: "bad-payload" });
  });

  test("what is no msgpack", () => {
    for (const bytes of [[], [0xc1], [0xa5, 0x61], [0x92, 1], [0xdd, 0xff, 0xff, 0xff, 0xff], [0xa1, 0xff], [0xcf, 1]]) {
      assert.throws(() => unpack(Buffer.from(bytes)), { kind: "bad-payload" }, String(bytes));
    }
  });

  test("skip finds the same end as value", () => {
    for (const [, value] of rows) {
      const reader = new Reader(pack(value));
      reader.skip();
      assert.equal(reader.pos, reader.buffer.length);
    }
  });
});

test("texts from the cache", () => {
  const cache = new TextCache(2);
  for (const text of ["a", "b", "c", "a", "é", "x".repeat(100), "", "日本"]) {
    const reader = new Reader(pack(text));
    assert.equal(reader.textOrNil(cache), text);
  }
  assert.equal(new Reader(pack(null)).textOrNil(cache), null);
});

test("the partition of a key", () => {
  const rows = { a: 3904355907, grape: 2012510561, é: 235179326, 日本: 3350711756, "key-1": 250396538 };
  for (const [key, crc] of Object.entries(rows)) assert.equal(crc32(key), crc);
});

test("progress", () => {
  const progress = new Progress(1, Buffer.from([0b101]));
  assert.deepEqual([0, 1, 2, 3, 4, 5].map((i) => progress.isDone(i)), [true, false, true, false, true, false]);
  assert.deepEqual([progress.next(0, 9), progress.next(2, 9), progress.finished], [1, 3, 3]);
  progress.add(9);
  assert.deepEqual([progress.first, [...progress.bitmap()]], [1, [0b10000101]]);
  progress.add(1);
  progress.add(3);
  assert.deepEqual([progress.first, [...progress.bitmap()]], [5, [0b1000]]);
});
