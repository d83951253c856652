"""Events that failed: held until their next attempt, stopped, or buried as dead letters."""

from __future__ import annotations

import random
from typing import Final

import msgspec

from grape.engine.first import Failed
from grape.engine.partition.hold import HoldList
from grape.engine.partition.ledger import Ledger, decoded
from grape.engine.partition.spans import below, given_up
from grape.model.batch import Context
from grape.model.policy import after_failure, backoff, locks_key
from grape.model.section import show_size
from grape.model.stored import REPLY_DEAD, DeadLetter, HeldCall, HoldEntry, decode_hold, encode, row_key
from grape.protocol.messages import Call, Failure

_MAX_KIND: Final = 255
_MAX_TEXT: Final = 16_000


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
        self._asking = (0, 0)
        self._count_asking()

    @property
    def is_full(self) -> bool:
        limits, held = self._app.limits, self.list
        return len(held) - held.asking >= limits.hold_events or held.size - held.asking_size >= limits.hold_bytes

    def entry(self, number: int) -> HoldEntry:
        """A held event as it is stored."""
        return self._ledger.row("hold", row_key(number), decode_hold, "hold entry")

    def fail(self, failure: Failure, context: Context | None, now: int) -> Failed | None:
        """Hold, retry later, or give up; returns what became of it, None: it waits behind another one."""
        slot = self._app.slot(failure.event, failure.node)
        assert slot is not None
        entry = self._entry_of(failure, context, now)
        if failure.call is not None:
            self._suspend(entry, failure, failure.call, now)
            return None
        entry.calls = _good(entry.calls)
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

    def _suspend(self, entry: HoldEntry, failure: Failure, call: Call, now: int) -> None:
        """It waits for the answer to a call, which goes out with the same commit."""
        slot = self._app.slot(failure.event, failure.node)
        assert slot is not None
        number = failure.hold if failure.hold >= 0 else self._ledger.head.next_hold
        asker = entry.context or Context()
        trace = asker.trace and below(asker.trace, entry)
        entry.calls = [*entry.calls, HeldCall(call.event, call.digest)]
        entry.behind, entry.stopped = False, False
        entry.locks = locks_key(slot, failure.key, "retry")
        entry.due = now + call.timeout
        entry.kind, entry.text, entry.trace = "call", f"waits for the answer to {call.event!r}", b""
        self._keep(failure.hold, entry)
        deadline = min(entry.due, asker.deadline or entry.due)
        request = f"{number}:{len(entry.calls) - 1}"
        address = Context(request, self._ledger.number, trace, deadline, self._ledger.pool)
        for each in call.requests:
            self._ledger.send(each.target, each.partition, each.body, 1, [address], now)

    def answered(self, request: str, data: bytes, is_error: bool) -> None:
        """An answer has come, or that there will be none. If nothing waits for it any more it is dropped."""
        number, _, ordinal = request.partition(":")
        held = self.list.held(int(number)) if number.isdecimal() else None
        entry = None if held is None or not held.suspended else self.entry(held.number)
        if held is None or entry is None or len(entry.calls) - 1 != int(ordinal or -1):
            self._app.stats.late_replies += 1
            return
        entry.calls[-1] = self._answer(entry, data, is_error)
        entry.due = self._ledger.clock.now()
        entry.text = f"has the answer to {entry.calls[-1].event!r}"
        self._keep(held.number, entry)

    def _answer(self, entry: HoldEntry, data: bytes, is_error: bool) -> HeldCall:
        call = entry.calls[-1]
        has = sum(len(before.answer or b"") for before in entry.calls)
        if has + len(data) > self._app.limits.max_event:
            size = show_size(self._app.limits.max_event)
            return _error(call, "too-large", f"the answers for one event together are over {size} (max-event)")
        return HeldCall(call.event, call.digest, data, is_error)

    def give_up_waiting(self, number: int, entry: HoldEntry) -> None:
        """The answer has not come in time. ``entry`` is in work."""
        entry.calls[-1] = _error(entry.calls[-1], "no-answer", f"no answer to {entry.calls[-1].event!r} in time")
        packed = encode(entry)
        self._ledger.put("hold", row_key(number), packed)
        self.list.gave_up(number, len(packed))
        self._count_asking()

    def leave(self) -> None:
        """They are no longer here."""
        self._app.holds -= len(self.list)
        self._app.backlog_events -= self._asking[0]
        self._app.backlog_bytes -= self._asking[1]

    def _count_asking(self) -> None:
        """What waits for answers, and behind that, counts to the backlog of the app, not to the hold list."""
        before, self._asking = self._asking, (self.list.asking, self.list.asking_size)
        self._app.backlog_events += self._asking[0] - before[0]
        self._app.backlog_bytes += self._asking[1] - before[1]

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
        if spans := given_up(entry, now):
            self._ledger.trace(spans, now)
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
        self._count_asking()

    def change(self, number: int, entry: HoldEntry) -> None:
        """It is as ``entry`` says from now on. No worker has it."""
        self._keep(number, entry)

    def _keep(self, number: int, entry: HoldEntry) -> None:
        if number < 0:
            self.hold(entry)
            return
        packed = encode(entry)
        self._ledger.put("hold", row_key(number), packed)
        self.list.change(number, entry, len(packed))
        self._count_asking()

    def release(self, number: int, now: int) -> None:
        """A hold entry is done with."""
        self._ledger.put("hold", row_key(number), None)
        self.list.remove(number, now)
        self._app.holds -= 1
        self._count_asking()

    def bury(self, entry: HoldEntry, now: int) -> None:
        """Make a dead letter of it; whoever waits for its answer is told."""
        what = entry.node, entry.event, entry.id, entry.key, entry.created, entry.body, entry.attempts
        self._ledger.bury(DeadLetter(*what, now, entry.kind, entry.text, entry.trace, entry.context))
        if entry.context is not None:
            error = {"error": {"code": entry.kind, "text": entry.text, "node": entry.node, "note": REPLY_DEAD}}
            self._ledger.reply([(entry.context, encode(error), True)], now, are_errors=True)


def _good(calls: list[HeldCall]) -> list[HeldCall]:
    """Answers that a later attempt gets again; from the first error on it asks anew."""
    good: list[HeldCall] = []
    for call in calls:
        if call.answer is None or call.is_error:
            break
        good.append(call)
    return good


def _error(call: HeldCall, code: str, text: str) -> HeldCall:
    return HeldCall(call.event, call.digest, encode({"error": {"code": code, "text": text, "node": ""}}), True)


def _failed(failure: Failure, due: int = 0, stopped: bool = False) -> Failed:
    words = failure.kind, failure.text, failure.trace
    return Failed(failure.node, failure.event, failure.id, *words, due, stopped)
