"use strict";

/** What becomes of a failed event: worked out alike by the engine. */

/** "retry", "dead" or "stop". A death that named the event has a limit of its own, whatever `retries` says. */
function afterFailure(slot, attempt, namedDeaths, namedLimit) {
  if (namedDeaths ? namedDeaths < namedLimit : attempt <= slot.retries) return "retry";
  return slot.onFail;
}

/** Whether later events of the (node, key) have to wait behind the failed one. */
function locksKey(slot, key, verdict) {
  return key !== null && slot.ordered && verdict !== "dead";
}

module.exports = { afterFailure, locksKey };
