"use strict";

const { HandlerError } = require("./errors");
const { didYouMean } = require("./similar");

/** What handlers pass beside data. */

const MAX_DELAY = 2 ** 62;

/** A wrong name would be an emit, or an object, without what it was meant to have. */
function checkOptions(method, options, known) {
  for (const name in options) {
    if (known[name] !== true) {
      throw new HandlerError(`${method} has no option '${name}'${didYouMean(name, Object.keys(known))}`);
    }
  }
}

function microseconds(seconds, what = "delay", most = MAX_DELAY) {
  const us = Math.round(Number(seconds) * 1e6);
  if (typeof seconds !== "number" || !(us >= 0 && us <= most)) {
    throw new HandlerError(`${what} is a number of seconds, from 0 on, not ${String(seconds)}`);
  }
  return us;
}

module.exports = { checkOptions, microseconds };
