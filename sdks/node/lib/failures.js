"use strict";

const util = require("node:util");

const { GrapeError } = require("./errors");

/** Errors in the author's words: the author's lines of a stack, without those of the SDK and of Node. */

const MAX_TEXT = 4_000;
const MAX_TRACE = 16_000;
const OURS = __dirname;

/** What went wrong: `{ kind, text, trace }`, text of one line. */
function blame(error) {
  if (!isError(error)) {
    const what = inspect(error);
    return { kind: "thrown", text: oneLine(`a handler threw ${what}, which is no Error`), trace: "" };
  }
  const name = text(error.name) || "Error";
  const kind = error instanceof GrapeError ? error.kind : name;
  const message = text(error.message);
  return { kind: kind.slice(0, 255), text: oneLine(message ? `${name}: ${message}` : name), trace: userStack(error) };
}

/** The stack of an error, and of what caused it, without our lines. */
function userStack(error) {
  const parts = [];
  const seen = new Set();
  while (isError(error) && !seen.has(error) && seen.size < 10) {
    seen.add(error);
    parts.push(userLines(text(error.stack) || `${text(error.name)}: ${text(error.message)}`));
    if (error instanceof AggregateError) parts.push(...error.errors.slice(0, 5).map((one) => userLines(inspect(one))));
    error = error.cause;
  }
  return parts.join("\nCaused by: ").slice(0, MAX_TRACE);
}

function userLines(stack) {
  return stack
    .split("\n")
    .filter((line) => !/^\s+at /.test(line) || !(line.includes(OURS) || /[( ]node:/.test(line)))
    .join("\n");
}

function isError(value) {
  return value instanceof Error || util.types.isNativeError(value);
}

/** What a property says, if it can be had. */
function text(value) {
  try {
    return value === undefined ? "" : String(value);
  } catch {
    return "<its text cannot be had>";
  }
}

function inspect(value) {
  try {
    return util.inspect(value, { depth: 2, breakLength: Infinity });
  } catch {
    return "something that cannot be shown";
  }
}

function oneLine(line) {
  return line.replace(/\s*\n\s*/g, " ").slice(0, MAX_TEXT);
}

module.exports = { blame, userStack, userLines };
