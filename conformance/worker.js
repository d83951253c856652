// The conformance app in JavaScript: docs/conformance.md says what each node does.
"use strict";

const { CallFailed, NoAnswer, Worker, log } = require("grape-worker");

const worker = new Worker();

function wait(seconds) {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000 * seconds);
}

worker.slot("echo", { node: "Echo" }, (event) => event.emit("out", event.data));
worker.slot("count", { node: "Count", states: ["count"] }, (event) => {
  event.state.count = (event.state.count ?? 0) + 1;
  event.emit("out", event.state.count);
});
worker.slot("store", { node: "Store", states: ["value"] }, (event) => {
  event.emit("out", event.state.value);
  event.state.value = event.data;
});
worker.slot("erase", { node: "Store", states: ["value"] }, (event) => {
  event.emit("out", event.state.value);
  delete event.state.value;
});
worker.slot("fail", { node: "Fail" }, (event) => {
  throw new Error(event.data);
});
for (const name of ["odd", "second"]) {
  worker.slot(name, { node: "Odd", states: ["count"] }, (event) => {
    event.state.count = (event.state.count ?? 0) + 1;
    event.emit("out", [event.data, event.state.count]);
    if (event.data % 2) throw new Error("odd");
  });
}
worker.slot("first", { node: "First", states: ["count"], emits: ["second"] }, (event) => {
  const [key, data] = event.data;
  event.state.count = (event.state.count ?? 0) + 1;
  event.emit("second", data, { key });
  if (data < 0) throw new Error("first");
});
worker.slot("who", { node: "Who" }, (event) => event.emit("out", [event.id, event.attempt]));
worker.slot("many", { node: "Many" }, (event) => {
  for (let i = 0; i < event.data; i++) event.emit("out", i);
});
worker.slot("send", { node: "Send" }, (event) => event.emit("echo", event.data[1], { key: event.data[0] }));
worker.slot("answer", { node: "Answer" }, (event) => event.reply(event.data));
worker.slot("later", { node: "Later" }, (event) => event.emit("out", event.data[1], { delay: event.data[0] }));
worker.slot("alarm", { node: "Alarm" }, (event) => {
  const [timer, delay, data] = event.data;
  event.emit("out", data, { delay: delay ?? undefined, timer });
});
worker.slot("calm", { node: "Alarm" }, (event) => event.cancelTimer(event.data));
worker.slot("ask", { node: "Ask", states: ["count"] }, (event) => {
  event.state.count = (event.state.count ?? 0) + 1;
  event.emit("out", "asks");
  const asked = (data) => {
    try {
      return event.call("answer", data, { timeout: 5 });
    } catch (error) {
      if (error instanceof CallFailed) return [error.code, error.text];
      if (error instanceof NoAnswer) return [error.kind, error.message];
      throw error;
    }
  };
  event.emit("out", event.data.map(asked));
});
worker.slot("refer", { node: "Refer" }, (event) => {
  const [key, data] = event.data;
  event.emit("out", event.call("answer", data, { key }));
});
worker.slot("greedy", { node: "Greedy" }, (event) => {
  try {
    event.call("answer", event.data);
  } catch {
    event.emit("out", "caught");
  }
});
worker.slot("export", { node: "Export" }, (event) => event.emit(...event.data));
worker.slot("consult", { node: "Consult" }, (event) => event.emit("out", event.call(...event.data)));
worker.slot("paced", { node: "Paced", rate: "10/s", burst: 3, timeout: 1 }, (event) => event.emit("out", event.data));
worker.slot("hurry", { node: "Hurry", emits: ["paced"] }, (event) => event.emit("paced", event.data));
function* repeated(text, count) {
  for (let i = 0; i < count; i++) yield Buffer.from(text);
}
function* broken() {
  yield* repeated("z".repeat(65_536), 40);
  throw new Error("it breaks off");
}
const keeping = {
  put: (event, storage, key, data, { content_type: contentType, ...about } = {}) => {
    storage.put(key, data, contentType === undefined ? about : { contentType, ...about });
  },
  large: (event, storage, key, text, count) => storage.put(key, repeated(text, count)),
  broken: (event, storage, key) => storage.put(key, broken()),
  get: (event, storage, key, start, end) => event.emit("out", storage.get(key, start, end)?.toString()),
  count: (event, storage, key, start, end) => {
    let size = 0;
    for (const chunk of storage.chunks(key, start, end)) size += chunk.length;
    event.emit("out", size);
  },
  stat: (event, storage, key) => event.emit("out", known(storage.stat(key))),
  list: (event, storage, prefix, tags = []) => event.emit("out", Array.from(storage.list(prefix, { tags }), (about) => about.key)),
  remove: (event, storage, key) => storage.remove(key),
  pass: (event, storage, name, data) => event.emit(name, data),
  ask: (event, storage, name, data) => event.emit("out", event.call(name, data)),
  fail: (event, storage, text) => {
    throw new Error(text);
  },
};
function known(about) {
  if (about === null) return null;
  const { size, version, checksum, contentType, tags, user, time, expires } = about;
  return [size, version, checksum, contentType, tags, user, time.getTime() > 0, expires !== null];
}
function keep(event) {
  for (const [what, namespace, ...words] of event.data) {
    keeping[what](event, namespace === null ? event.storage : event.storage.namespace(namespace), ...words);
  }
}
worker.slot("keep", { node: "Keep", emits: ["kept"] }, keep);
worker.slot("kept", { node: "Kept" }, keep);
worker.slot("sleep", { node: "Sleep", timeout: 1 }, (event) => {
  wait(event.data);
  event.emit("out", event.data);
});
worker.slot("unknown", { node: "Unknown" }, (event) => event.emit("nowhere", event.data));
worker.slot("say", { node: "Say" }, (event) => console.log(event.data));
worker.slot("note", { node: "Note" }, (event) => log(...event.data));
worker.slot("mutter", { node: "Mutter" }, (event) => log(...event.data));
worker.slot("die", { node: "Die" }, () => process.kill(process.pid, "SIGKILL"));
worker.run();
