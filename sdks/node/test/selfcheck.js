"use strict";

/**
 * Whether this package works on this machine, without Python and Grape: `npm run check`. Runs a worker process and
 * counts some words with it.
 */

const assert = require("node:assert/strict");

const { Engine } = require("./engine");

const EVENTS = 200_000;

async function check() {
  const engine = new Engine("count");
  await engine.welcome({ outputs: ["total"], taken: ["total"] });
  const events = Array.from({ length: 2000 }, (_, i) => ["word", `word-${i % 500}`]);
  const began = performance.now();
  for (let round = 1; round <= EVENTS / events.length; round++) {
    const { states, counts } = await engine.run(events);
    assert.deepEqual(counts, { "word>Count": events.length });
    assert.equal(states.at(-1).record.count, 4 * round);
  }
  const seconds = (performance.now() - began) / 1000;
  assert.equal((await engine.drain()).code, 0);
  console.log(`ok: node ${process.versions.node}, ${EVENTS} events counted in ${seconds.toFixed(2)} s`);
}

check().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
