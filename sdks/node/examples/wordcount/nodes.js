"use strict";

const { Worker } = require("grape-worker");

const worker = new Worker();

worker.slot("line", { node: "Split", emits: ["word"] }, (event) => {
  const words = event.data.toLowerCase().match(/\p{L}+/gu) ?? [];
  event.emitMany("word", { keys: words });
});

worker.slot("word", { node: "Count", states: ["count"], emits: ["total"] }, (event) => {
  const count = (event.state.count ?? 0) + 1;
  event.state.count = count;
  event.emit("total", { word: event.key, count });
});

worker.run();
