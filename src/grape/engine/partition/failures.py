"""Events that failed: held until their next attempt, stopped, or buried as dead letters."""

from __future__ import annotations

import random
from typing import Final

import msgspec

from grape.engine.first import Failed
from grape.engine.partition.hold import HoldList
from grape.engine.partition.ledger import Ledger, decoded
from grape.model.batch import Context
from grape.model.policy import after_failure, backoff, locks_key
from grape.model.stored import DeadLetter, HoldEntry, decode_hold, encode, row_key
from grape.protocol.messages import Failure

_MAX_KIND: Final = 255
_MAX_TEXT: Final = 16_000
_REPLY_DEAD: Final = "the event that should have answered became a dead letter"


class Failures:
    """Rows of the hold list and their bookkeeping (``list``), and dead letters."""

    def __init__(self, ledger: Ledger, rng: random.Random) -> None:
        self._ledger = ledger
        self._app = ledger.app
        self._rng = rng
        self.list = HoldList()
        for key, value in ledger.rows("hold"):
            entry = decoded(decode_hold, value, "hold entry")
            self.list.add(int.from_bytes(key, "big"), entry, len(value))
        self._app.holds += len(self.list)

    @property
    def is_full(self) -> bool:
        limits = self._app.limits
        return len(self.list) >= limits.hold_events or self.list.size >= limits.hold_bytes

    def entry(self, number: int) -> HoldEntry:
        """A held event as it is stored."""
        return self._ledger.row("hold", row_key(number), decode_hold, "hold entry")

    def fail(self, failure: Failure, context: Context | None, now: int) -> Failed | None:
        """Hold, retry later, or give up; returns what became of it, None: it waits behind another one."""
        slot = self._app.slot(failure.event, failure.node)
        assert slot is not None
        entry = self._entry_of(failure, context, now)
        if failure.behind:
            if failure.hold < 0:  # else it stays where it stands in its line
                entry.behind = True
                self.hold(entry)
            return None
        entry.attempts += 1
        entry.behind = False
        if failure.named:
            entry.named_deaths += 1
            entry.careful = True
        entry.kind, entry.text = failure.kind[:_MAX_KIND], failure.text[:_MAX_TEXT]
        entry.trace = self._ledger.put_text(failure.trace[:_MAX_TEXT])
        self._app.stats.failures[f"{failure.event}>{failure.node}"] += 1
        deaths = entry.named_deaths if failure.named else 0
        limit = self._app.limits.named_deaths
        verdict = "dead" if failure.final else after_failure(slot, entry.attempts, deaths, limit)
        if verdict == "dead":
            self.bury(entry, now)
            if failure.hold >= 0:
                self.release(failure.hold, now)
            return _failed(failure)
        entry.locks = locks_key(slot, failure.key, verdict)
        entry.stopped = verdict == "stop"
        entry.due = now + int(1e6 * backoff(slot, entry.attempts, self._rng))
        self._keep(failure.hold, entry)
        return _failed(failure, entry.due, entry.stopped)

    def _entry_of(self, failure: Failure, context: Context | None, now: int) -> HoldEntry:
        if failure.hold >= 0:
            return self.entry(failure.hold)
        what = failure.node, failure.event, failure.id, failure.key, failure.created, failure.body
        return HoldEntry(*what, context=context, due=now)

    def end(self, entry: HoldEntry, text: str, number: int, now: int) -> None:
        """No worker can handle it, nor hand it in as failed: it is buried, or stopped. ``number``: of its hold entry,
        -1: it has none."""
        slot = self._app.slot(entry.event, entry.node)
        entry.attempts += 1
        entry.kind, entry.text = "worker-died", text[:_MAX_TEXT]
        if slot is None or slot.on_fail == "dead":
            self.bury(entry, now)
            if number >= 0:
                self.release(number, now)
            return
        entry.stopped, entry.locks = True, locks_key(slot, entry.key, "stop")
        self._keep(number, entry)

    def give_up(self, entry: HoldEntry, kind: str, text: str) -> None:
        """The event becomes a dead letter."""
        self.bury(msgspec.structs.replace(entry, kind=kind, text=text), self._ledger.clock.now())

    def hold(self, entry: HoldEntry) -> None:
        """A new entry."""
        head = self._ledger.head
        number = head.next_hold
        head.next_hold += 1
        packed = encode(entry)
        self._ledger.put("hold", row_key(number), packed)
        self.list.add(number, entry, len(packed))
        self._app.holds += 1

    def _keep(self, number: int, entry: HoldEntry) -> None:
        if number < 0:
            self.hold(entry)
            return
        packed = encode(entry)
        self._ledger.put("hold", row_key(number), packed)
        self.list.change(number, entry, len(packed))

    def release(self, number: int, now: int) -> None:
        """A hold entry is done with."""
        self._ledger.put("hold", row_key(number), None)
        self.list.remove(number, now)
        self._app.holds -= 1

    def bury(self, entry: HoldEntry, now: int) -> None:
        """Make a dead letter of it; whoever waits for its answer is told."""
        what = entry.node, entry.event, entry.id, entry.key, entry.created, entry.body, entry.attempts
        self._ledger.bury(DeadLetter(*what, now, entry.kind, entry.text, entry.trace, entry.context))
        if entry.context is not None:
            error = {"error": {"code": entry.kind, "text": entry.text, "node": entry.node, "note": _REPLY_DEAD}}
            self._ledger.reply([(entry.context, encode(error), True)], now)


def _failed(failure: Failure, due: int = 0, stopped: bool = False) -> Failed:
    words = failure.kind, failure.text, failure.trace
    return Failed(failure.node, failure.event, failure.id, *words, due, stopped)
