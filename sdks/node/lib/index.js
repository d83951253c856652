"use strict";

const errors = require("./errors");
const { Ext } = require("./msgpack/ext");
const { Worker } = require("./worker");

module.exports = {
  Worker,
  Ext,
  GrapeError: errors.GrapeError,
  TopologyError: errors.TopologyError,
  UsageError: errors.UsageError,
  HandlerError: errors.HandlerError,
  UnknownEvent: errors.UnknownEvent,
  NoKey: errors.NoKey,
  BadKey: errors.BadKey,
  BadValue: errors.BadValue,
  BadState: errors.BadState,
  BadPayload: errors.BadPayload,
  TooLarge: errors.TooLarge,
  EventOver: errors.EventOver,
  Timeout: errors.Timeout,
};
