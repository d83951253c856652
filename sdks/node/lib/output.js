"use strict";

const { StringDecoder } = require("node:string_decoder");

/** What handlers print: whole lines, marked with level and node, as the engine shows them. */

const logging = require("./logs");

const MARK = "\x1e";

const LEVELS = { debug: "debug", warn: "warning", error: "error", trace: "debug" };

/**
 * From now on what is printed is marked. `node()`: that runs, "" for none; `who()`: the same, with the event and its trace
 * behind it.
 */
function install(node, who) {
  let level = "";
  logging.begin(node, who, process.stderr.write.bind(process.stderr));
  for (const stream of [process.stdout, process.stderr]) mark(stream, who, () => level);
  for (const [method, name] of Object.entries(LEVELS)) {
    const original = console[method];
    console[method] = (...values) => {
      if (!logging.logs(name)) return;
      const before = level;
      level = name;
      try {
        original.apply(console, values);
      } finally {
        level = before;
      }
    };
  }
}

function mark(stream, who, level) {
  const write = stream.write.bind(stream);
  const decoder = new StringDecoder(); // chunks may end within a character
  let rest = "";
  stream.write = (chunk, encoding, callback) => {
    const lines = (rest + (typeof chunk === "string" ? chunk : decoder.write(chunk))).split("\n");
    rest = lines.pop();
    if (lines.length) {
      const [said, by] = [level(), who()];
      const head = said || by ? `${MARK}${said}${MARK}${by}${MARK}` : "";
      write(lines.map((line) => `${head}${line}\n`).join(""));
    }
    const done = typeof encoding === "function" ? encoding : callback;
    if (typeof done === "function") process.nextTick(done);
    return true;
  };
  process.on("exit", () => {
    if (rest) write(`${rest}\n`);
  });
}

module.exports = { install };
