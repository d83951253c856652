"use strict";

const { UsageError } = require("./errors");

/** What handlers log: as much of it as is wanted, with whatever they say beside the text. */

const LEVELS = { debug: 0, info: 1, warning: 2, error: 3, critical: 4 };
const DEFAULT = LEVELS.info;
const MAX_FIELDS = 32;
const MAX_NAME = 64;
const MAX_VALUE = 1000;
const MAX_TEXT = 6 << 10;
const MARK = "\x1e";
const FIELD = "\x1f";

/** node -> the level that it has; of all others: `least`. */
let nodes = new Map();
let others = DEFAULT;
let least = DEFAULT;
let node = () => "";
let who = () => "";
let write = (text) => process.stderr.write(text);

/** `levels`: of the engine, by node, "" of all others. */
function setLevels(levels) {
  const known = Object.entries(levels).filter(([, level]) => level in LEVELS);
  nodes = new Map(known.filter(([name]) => name !== "").map(([name, level]) => [name, LEVELS[level]]));
  others = LEVELS[levels[""]] ?? DEFAULT;
  least = Math.min(others, ...nodes.values());
}

/** From now on: by whom something is said, and where it goes. */
function begin(speaker, sayer, to) {
  node = speaker;
  who = sayer;
  write = to;
}

/** Whether a record of this level is wanted of the node that runs. */
function logs(level) {
  const rank = LEVELS[level];
  if (rank === undefined) throw new UsageError(`a level is one of ${Object.keys(LEVELS).join(", ")}, not ${String(level)}`);
  if (rank < least) return false;
  return nodes.size === 0 || rank >= (nodes.get(node()) ?? others);
}

/** A line for the log; `fields`: plain values that stand beside the text. */
function log(level, text, fields) {
  if (!logs(level)) return;
  const beside = fields === undefined || fields === null ? "" : packed(fields);
  const [first, ...rest] = String(text).split("\n");
  const by = who();
  const head = beside === "" ? by : by + FIELD.repeat(4 - by.split(FIELD).length) + beside;
  const lines = rest.map((line) => `${MARK}${level}${MARK}${by}${MARK}${line}\n`);
  write(`${MARK}${level}${MARK}${head}${MARK}${first}\n${lines.join("")}`);
}

/** As JSON of one line. */
function packed(fields) {
  const found = Object.entries(fields).slice(0, MAX_FIELDS).map(([name, value]) => [name.slice(0, MAX_NAME), plain(value)]);
  let text = JSON.stringify(Object.fromEntries(found));
  while (text.length > MAX_TEXT) {
    found.pop();
    text = JSON.stringify(Object.fromEntries(found));
  }
  return found.length ? text : "";
}

function plain(value) {
  if (value === undefined || value === null) return null;
  if (typeof value === "number" || typeof value === "boolean") return value;
  try {
    return String(value).toWellFormed?.().slice(0, MAX_VALUE) ?? String(value).slice(0, MAX_VALUE);
  } catch {
    return `[${typeof value}]`;
  }
}

/** The node, and the event and its trace behind it. */
function said(name, part, source, index) {
  // eslint-disable-next-line no-control-regex -- they would end the mark
  const id = source.idOf(index).replace(/[\u0000-\u001f\u007f]/g, "?");
  const trace = part.traced.size ? part.traced.get(source.contextOf(index)) : undefined;
  return trace === undefined ? `${name}${FIELD}${id}` : `${name}${FIELD}${id}${FIELD}${trace}`;
}

module.exports = { begin, log, logs, said, setLevels };
