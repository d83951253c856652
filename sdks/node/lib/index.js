"use strict";

const {
  GrapeError,
  TopologyError,
  UsageError,
  HandlerError,
  UnknownEvent,
  NoKey,
  BadKey,
  BadValue,
  BadArgument,
  BadState,
  BadPayload,
  TooLarge,
  EventOver,
  Timeout,
  CallFailed,
  NoAnswer,
  Suspended,
} = require("./errors");
const { Ext } = require("./msgpack/ext");
const { log, logs } = require("./logs");
const { Worker } = require("./worker");

// Plain names, so that `import { Worker } from "grape-worker"` finds them too.
module.exports = {
  Worker,
  log,
  logs,
  Ext,
  GrapeError,
  TopologyError,
  UsageError,
  HandlerError,
  UnknownEvent,
  NoKey,
  BadKey,
  BadValue,
  BadArgument,
  BadState,
  BadPayload,
  TooLarge,
  EventOver,
  Timeout,
  CallFailed,
  NoAnswer,
  Suspended,
};
