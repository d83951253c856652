const { Worker } = require("grape-worker");

const worker = new Worker();
worker.slot("word", { node: "Count", states: ["seen"] }, (event) => {
  event.state.seen = (event.state.seen ?? 0) + 1;
});
worker.run();
