"use strict";

const assert = require("node:assert/strict");
const { execFileSync, spawnSync } = require("node:child_process");
const path = require("node:path");
const { test } = require("node:test");

const ROOT = path.join(__dirname, "..");

test("the package can be imported by name too", () => {
  const code = `import { Worker, BadValue } from "${ROOT}/lib/index.js"; console.log(typeof Worker, BadValue.name)`;
  const out = execFileSync(process.execPath, ["--input-type=module", "-e", code], { encoding: "utf8" });
  assert.equal(out, "function BadValue\n");
});

test("a worker that is started by hand says what it is", () => {
  const { status, stderr } = spawnSync(process.execPath, [path.join(__dirname, "fixtures", "count.js")], {
    encoding: "utf8",
  });
  assert.equal(status, 1);
  assert.match(stderr, /UsageError: this is a worker of a Grape app, started by its engine/);
});
