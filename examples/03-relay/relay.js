// JavaScript's part of the relay: count the runner, and hand over to Perl.
const { Worker } = require("grape-worker");

const worker = new Worker();
worker.slot("javascript", { node: "Script", states: ["laps"], emits: ["perl"] }, (event) => {
  event.state.laps = (event.state.laps ?? 0) + 1;
  event.emit("perl", { ...event.data, js: event.state.laps });
});
worker.run();
