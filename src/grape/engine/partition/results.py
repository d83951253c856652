"""What a worker hands in, checked and taken into the draft as a whole."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import msgspec

from grape.engine.check import Checker, check_progress, once
from grape.engine.first import Failed
from grape.engine.partition.backlog import Backlog
from grape.engine.partition.careful import Careful
from grape.engine.partition.dispatch import Dispatch
from grape.engine.partition.eager import Eager
from grape.engine.partition.expiry import Expiries
from grape.engine.partition.failures import Failures
from grape.engine.partition.ledger import Ledger
from grape.engine.partition.timers import Timers
from grape.errors import ProtocolError
from grape.model.batch import Context
from grape.model.cursor import Progress
from grape.model.stored import TimerEntry, state_key, timer_name_key
from grape.model.tracing import Trace, read_context
from grape.protocol.messages import DERIVED, Result, StateChanges, TimerName

_ITEM: Final = 300
"""Bytes that a row or batch of a commit takes beside its body, about."""


def size_of_state(changes: StateChanges) -> int:
    return sum(map(len, changes.keys)) + sum(map(len, filter(None, changes.values)))


def size_of(result: Result) -> int:
    """Bytes of the commit that it makes, about."""
    return size_of_events(result) + sum(map(size_of_state, result.states))


def size_of_events(result: Result) -> int:
    """What of it is not state."""
    emitted = [*result.emitted, *(timer.emitted for timer in result.timers if timer.emitted is not None)]
    calls = [request for failure in result.failures if failure.call for request in failure.call.requests]
    bodies = sum(len(one.body) for one in [*emitted, *calls]) + sum(len(failure.body) for failure in result.failures)
    texts = sum(len(f.text) + len(f.trace) for f in result.failures)
    replies = sum(len(reply.data) for reply in result.replies)
    texts += sum(len(span.id) + len(span.text) + len(span.key or "") for span in result.spans)
    items = len(emitted) + len(calls) + len(result.failures) + len(result.replies) + len(result.retried)
    items += len(result.spans)
    bodies += sum(write.weight for write in result.objects)
    return bodies + texts + replies + _ITEM * items


class _Derived(list[Context]):
    """The contexts of the works, and those that a result derives from them."""

    def __init__(self, contexts: list[Context], own: list[Context]) -> None:
        super().__init__(contexts)
        self.own = own

    def __getitem__(self, number: Any) -> Any:
        return self.own[number - DERIVED] if number >= DERIVED else super().__getitem__(number)


def _with_derived(contexts: list[Context], derived: list[tuple[int, str]]) -> list[Context]:
    found = _Derived(contexts, [])
    for number, span in derived:
        context: Context = found[number]
        trace = read_context(context.trace)
        assert trace is not None
        found.own.append(msgspec.structs.replace(context, trace=str(Trace(trace.trace, span))))
    return found


class Results:
    """The parts of a partition, as a result sees them."""

    def __init__(
        self,
        ledger: Ledger,
        backlog: Backlog,
        dispatch: Dispatch,
        careful: Careful,
        failures: Failures,
        eager: Eager,
        timers: Timers,
        expiries: Expiries,
    ) -> None:
        self._ledger = ledger
        self._backlog = backlog
        self._dispatch = dispatch
        self._careful = careful
        self._failures = failures
        self._eager = eager
        self._timers = timers
        self._expiries = expiries
        self._spans = dispatch.spans
        self._checker = Checker(ledger.app, ledger.pool)
        self._stats = ledger.app.stats.pools[ledger.pool]

    def apply(self, result: Result) -> list[Failed]:
        """Take a worker's result into the draft; returns which events have failed.

        Raises:
            ProtocolError: something in it cannot be true; nothing has been taken then.
        """
        states = sum(map(size_of_state, result.states))
        if (size := states + size_of_events(result)) > self._ledger.most:
            raise ProtocolError(f"a result of {size} bytes, and a commit holds {self._ledger.most}")
        self._check(result)
        self._ledger.draft.rows_size += states
        ledger, dispatch = self._ledger, self._dispatch
        now = ledger.clock.now()
        contexts = _with_derived(dispatch.contexts, result.derived) if result.derived else dispatch.contexts
        self._trace(result, now)
        if result.done or result.retried or result.failures:
            self._careful.moved_on()
        for position, progress in result.done:
            self._progress(position, progress, now)
        for number in result.retried:
            dispatch.tried(number)
            self._eager.tried(number, now)
            self._failures.release(number, now)
        for emitted in result.emitted:
            of_batch = [contexts[i] for i in emitted.contexts]
            ledger.send(emitted.target, emitted.partition, emitted.body, emitted.events, of_batch, now)
        for changes in result.states:
            self._change_state(changes)
        for timer in result.timers:
            name = b"" if timer.name is None else self._name_key(timer.name)
            event = timer.emitted
            if event is None:
                self._timers.cancel(name)
                continue
            context = contexts[event.contexts[0]] if event.contexts else None
            self._timers.add(now + timer.delay, TimerEntry(event.target, event.partition, event.body, context, name))
        for write in result.objects:
            ledger.put_object(write if write.time else msgspec.structs.replace(write, time=now))
            if write.blob:
                ledger.app.pins.hold(write.checksum, write.size)
                ledger.then(partial(ledger.app.pins.let_go, write.checksum))
        failed: list[Failed] = []
        for failure in result.failures:
            if failure.hold >= 0:
                dispatch.tried(failure.hold)
                self._eager.tried(failure.hold, now)
            self._careful.handed_in(failure.id, failure.node)
            context = None
            if failure.context >= 0:
                context = self._spans.inherited(failure.context, contexts[failure.context])
            if (what := self._failures.fail(failure, context, now)) is not None:
                failed.append(what)
        ledger.reply([(contexts[reply.context], reply.data, reply.final) for reply in result.replies], now)
        stats = ledger.app.stats
        stats.processed.update(result.counts)
        stats.emitted.update(result.emits)
        for seq in result.ended:
            dispatch.end(seq)
        ledger.draft.changed = True
        return failed

    def _trace(self, result: Result, now: int) -> None:
        """Keep what it says of traced events, and what it shows."""
        told = result.spans if self._spans.are_told else []  # else it was not asked, and all is seen from here
        if not (told or self._spans.follows):
            return
        progress = self._ledger.head.cursor.progress
        done = [(position, progress(position), after) for position, after in result.done]
        self._spans.took(done, result.retried, result.failures, told, now)

    def _name_key(self, name: TimerName) -> bytes:
        return timer_name_key(self._ledger.app.node_id(name.node), name.key, name.name)

    def _progress(self, position: int, progress: Progress, now: int) -> None:
        inbox = self._ledger.inbox
        work = self._dispatch.work_on(position)
        created = inbox.open[position].header.created
        newly = self._backlog.progress(position, progress)
        self._stats.finished += newly
        self._stats.latencies.add(now - created, newly)
        work.positions[position] -= newly
        work.events -= newly
        if position not in inbox.open:
            self._careful.batch_is_over(position)

    def _change_state(self, changes: StateChanges) -> None:
        ledger = self._ledger
        prefix = state_key(ledger.app.node_id(changes.node), b"")
        rows = ledger.draft.rows.setdefault("state", {})
        rows.update(zip([prefix + key for key in changes.keys], changes.values, strict=True))
        if changes.expires is not None:
            for key, due in zip(changes.keys, changes.expires, strict=True):
                if due:
                    self._expiries.add(due, "state", prefix + key)

    def _check(self, result: Result) -> None:
        check, dispatch, inbox = self._checker, self._dispatch, self._ledger.inbox
        contexts = len(dispatch.contexts)
        held = {n: slot for work in dispatch.works.values() for n, slot in work.holds.items()}
        held = {n: slot for n, slot in held.items() if n in self._failures.list}
        check.derives(result.derived, dispatch.contexts)
        check.spans(result.spans)
        once(result.ended, "the end of work")
        once((position for position, _ in result.done), "progress of batch")
        once((*result.retried, *(f.hold for f in result.failures if f.hold >= 0)), "entry")
        for seq in result.ended:
            if seq not in dispatch.works:
                raise ProtocolError(f"the end of work {seq} of partition {self._ledger.number}, which is not in work")
        for position, progress in result.done:
            dispatch.work_on(position)
            batch = inbox.open.get(position)
            if batch is None:
                raise ProtocolError(f"progress of batch {position}, which is finished")
            check_progress(position, batch.header.events, inbox.cursor.progress(position), progress)
        for number in result.retried:
            if number not in held:
                raise ProtocolError(f"retried entry {number}, which is not in this work")
        for emitted in result.emitted:
            check.emitted(emitted, contexts)
        for timer in result.timers:
            check.timer(timer, contexts)
        for changes in result.states:
            check.state(changes)
        for failure in result.failures:
            check.failure(failure, contexts, held)
        for reply in result.replies:
            check.reply(reply, contexts)
        for write in result.objects:
            check.object(write)
        check.counts(result.counts, result.emits)
