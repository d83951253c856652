const { spawn } = require("child_process");
const { Worker } = require("grape-worker");

const worker = new Worker();
worker.slot("good", { node: "Good" }, (event) => event.emit("out", event.data));
worker.slot("bomb", { node: "Bomb", retries: 0, timeout: 3 }, () => {
  for (;;) spawn("/bin/sleep", ["1000"]);
});
worker.run();
