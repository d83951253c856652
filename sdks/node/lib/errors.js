"use strict";

/**
 * Every error of the SDK. `kind` is stable and meant for programs (it is the `kind` of a failure), the text is meant
 * for people. What a handler throws beside these keeps its own name as its kind.
 */
class GrapeError extends Error {
  constructor(message, kind) {
    super(message);
    this.kind = kind;
  }

  get name() {
    return this.constructor.name;
  }
}

/** The nodes and slots cannot be as they were declared. */
class TopologyError extends GrapeError {
  constructor(message) {
    super(message, "topology");
  }
}

/** The worker was started wrongly. */
class UsageError extends GrapeError {
  constructor(message) {
    super(message, "usage");
  }
}

/** The engine said something that this worker does not understand. */
class ProtocolError extends GrapeError {
  constructor(message) {
    super(message, "protocol");
  }
}

/** Raised inside a handler; fails that event alone. */
class HandlerError extends GrapeError {
  constructor(message, kind = "handler") {
    super(message, kind);
  }
}

/** An emit to a name that is neither a slot nor an output. */
class UnknownEvent extends HandlerError {
  constructor(message) {
    super(message, "unknown-event");
  }
}

/** Keyed state was used in an event that has no key. */
class NoKey extends HandlerError {
  constructor(message) {
    super(message, "no-key");
  }
}

/** A key that cannot be one. */
class BadKey extends HandlerError {
  constructor(message) {
    super(message, "bad-key");
  }
}

/** A value that cannot travel. */
class BadValue extends HandlerError {
  constructor(message) {
    super(message, "bad-value");
  }
}

/** A name, a tag, a range or metadata of an object that cannot be. */
class BadArgument extends HandlerError {
  constructor(message) {
    super(message, "bad-argument");
  }
}

/** A state that the node does not have. */
class BadState extends HandlerError {
  constructor(message) {
    super(message, "bad-state");
  }
}

/** The data of an event cannot be read. */
class BadPayload extends HandlerError {
  constructor(message) {
    super(message, "bad-payload");
  }
}

/** A value, an event or its effects are over their limit. */
class TooLarge extends HandlerError {
  constructor(message) {
    super(message, "too-large");
  }
}

/** An event was used after its handler had ended. */
class EventOver extends HandlerError {
  constructor(message) {
    super(message, "event-over");
  }
}

/** A handler ran for longer than its slot allows. */
class Timeout extends HandlerError {
  constructor(message) {
    super(message, "timeout");
  }
}

/** Who should have answered a call failed for good. `code` and `text`: of that failure, `node`: whose it is. */
class CallFailed extends GrapeError {
  constructor(code, text, node) {
    super(`node '${node}' failed: ${text}`, "call-failed");
    this.code = code;
    this.text = text;
    this.node = node;
  }
}

/** Nobody answered a call in time. */
class NoAnswer extends GrapeError {
  constructor(message) {
    super(message, "no-answer");
  }
}

/**
 * A handler is left, as the answer to its call is yet to come; with the answer it runs from its beginning. No error of
 * anything: what catches it has to throw it again.
 */
class Suspended extends Error {
  /** `route`, `key`, `number` (partition), `data` (msgpack): of the request; `timeout`: microseconds. */
  constructor(event, request) {
    super(`waits for the answer to '${event}'`);
    this.event = event;
    for (const [name, value] of Object.entries(request)) Object.defineProperty(this, name, { value });
  }

  get name() {
    return "Suspended";
  }
}

module.exports = {
  GrapeError,
  TopologyError,
  UsageError,
  ProtocolError,
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
