"""What a worker gets of a partition, and what it has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from msgspec import Struct

from grape.abc.transport import Stored
from grape.engine.partition.backlog import Backlog
from grape.engine.partition.careful import Careful, Root
from grape.engine.partition.failures import Failures
from grape.engine.partition.hold import Held
from grape.engine.partition.ledger import Ledger, decoded
from grape.engine.partition.spans import Spans
from grape.errors import Corrupt, ProtocolError
from grape.model import batch as codec
from grape.model.batch import Context
from grape.model.stored import HoldEntry, decode_hold, row_key
from grape.protocol.messages import Answer, BatchItem, RetryItem, Work

_RETRIES_AT_ONCE: Final = 500
_CAREFUL_EVENTS: Final = 256
_FIRST_WINDOW: Final = 1_024
MOST_CONTEXTS: Final = 100_000
"""Of works that overlap: then those that are out end first, as the table of contexts begins anew when none is."""
_MIN_WINDOW: Final = 64


class Dispatched(Struct):
    """A work that a worker has. ``positions``: its batches, and how many of their events are left. ``holds``: its
    retried entries, and (event, node) of each. ``events`` are left of the batches, of ``given``."""

    seq: int
    positions: dict[int, int]
    holds: dict[int, tuple[str, str]]
    careful: bool
    events: int
    given: int


class _Batches(NamedTuple):
    items: list[BatchItem]
    positions: dict[int, int]
    events: int


class Dispatch:
    """Makes works, and keeps them until they end.

    Attributes:
        works: that a worker has, by number.
        contexts: of all works that are out; results name them by their place.
        is_long: one event at a time, also of those that are tried again.
        is_moving: nothing more is handed out: the partition is to go to another worker.
        is_resting: nothing more is handed out: an order waits until no worker has anything of the partition.
        top_up: works are made while others are out (async slots).
        spans: of what is traced.
    """

    def __init__(
        self, ledger: Ledger, backlog: Backlog, failures: Failures, careful: Careful, spans: Spans, top_up: bool
    ) -> None:
        self._ledger = ledger
        self._backlog = backlog
        self._failures = failures
        self._careful = careful
        self._limits = ledger.app.limits
        self.works: dict[int, Dispatched] = {}
        self.contexts: list[Context] = []
        self.is_long = False
        self.is_moving = False
        self.is_resting = False
        self.top_up = top_up
        self._seq = 0
        self._window = _FIRST_WINDOW
        self._deadlines: dict[int, int] = {}
        self._traced: dict[int, str] = {}
        self.spans = spans

    # ------------------------------------------------------------------ making

    def has_work(self, now: int) -> bool:
        """Whether `make` would find something."""
        if not self._ledger.settled or self.is_moving or self.is_resting:
            return False
        if self.works and (not self.top_up or len(self.contexts) >= MOST_CONTEXTS):
            return False
        due = self._failures.list.next_due()
        if due is not None and due <= now:
            return True
        if self._failures.is_full:
            return False
        in_work = self._in_work()
        return (
            self._backlog.events > in_work
            and in_work < self._limits.dispatch_events
            and not (self.works and self._careful)
        )

    def _in_work(self) -> int:
        return sum(work.events for work in self.works.values())

    @property
    def may_be_eager(self) -> bool:
        """Whether nothing is before an event that comes now, nor keeps it from being handed out."""
        return not (
            self.works
            or self._backlog.events
            or len(self._failures.list)
            or self._careful.is_needed
            or self.is_moving
            or self.is_resting
        )

    def make(self, epoch: int, now: int, *, eager: bool = False) -> Work | None:
        """What the worker should do next; None: nothing (all that waits is in work already, or parked). ``eager``: of
        the draft, which stays one.

        Raises:
            Corrupt: a stored batch or entry is not what was written.
        """
        self._ledger.inbox.unpark()
        if not self.works:
            self.contexts = []
            self.spans.forget()
        base = len(self.contexts)
        retries = self._retries(now)
        is_needed = self._careful.is_needed
        careful = is_needed or any(r.named_deaths for r in retries)
        batches = _Batches([], {}, 0)
        alone = retries and (self.is_long or (careful and not is_needed))
        if not self._failures.is_full and not alone and not eager:
            batches = self._batches(careful)
        if not eager:
            self._ledger.flush()
        if not batches.items and not retries:
            return None
        holds = {r.hold: (codec.name_of(r.body), r.node) for r in retries}
        self._seq += 1
        self.works[self._seq] = Dispatched(self._seq, batches.positions, holds, careful, batches.events, batches.events)
        named = list(self._careful.named.values())
        deadlines, self._deadlines = self._deadlines, {}
        traced, self._traced = self._traced, {}
        number = self._ledger.number
        return Work(number, epoch, self._seq, batches.items, retries, careful, named, base, deadlines, traced)

    def _add_contexts(self, contexts: list[Context]) -> None:
        for i, context in enumerate(contexts, len(self.contexts)):
            if context.deadline:
                self._deadlines[i] = context.deadline
            if context.trace and (self.spans.are_told or self.spans.are_logged):
                self._traced[i] = context.trace
        self.contexts += contexts

    def _retries(self, now: int) -> list[RetryItem]:
        limit = 1 if self._careful.named or self.is_long else _RETRIES_AT_ONCE
        taken = self._failures.list.take_due(now, limit, self._limits.dispatch_bytes)
        if not taken:
            return []
        ledger = self._ledger
        keys = [row_key(held.number) for held, _ in taken]
        rows = zip(keys, ledger.transport.get(ledger.id, "hold", keys), strict=True)
        found = [ledger.pending("hold", key, row) for key, row in rows]
        return [self._retry(held, rest, row) for (held, rest), row in zip(taken, found, strict=True)]

    def _retry(self, held: Held, rest: bool, row: bytes | None) -> RetryItem:
        if row is None:
            raise Corrupt(f"hold entry {held.number} of partition {self._ledger.name} is missing")
        entry: HoldEntry = decoded(decode_hold, row, "hold entry")
        if entry.is_suspended:
            self._failures.give_up_waiting(held.number, entry)
        answers = [Answer(call.digest, call.answer or b"", call.is_error) for call in entry.calls]
        inherited = entry.context or Context()
        self._add_contexts([self.spans.follow_retry(held.number, entry, inherited, len(self.contexts))])
        context = -1 if entry.context is None else len(self.contexts) - 1
        what = entry.node, entry.id, entry.attempts + 1, entry.named_deaths, entry.created, entry.body
        return RetryItem(held.number, *what, rest, context, answers)

    def _batches(self, careful: bool) -> _Batches:
        inbox, cursor = self._ledger.inbox, self._ledger.head.cursor
        room = min(self._window, self._limits.dispatch_events) - self._in_work()
        if careful:
            room = min(room, _CAREFUL_EVENTS)
        found = _Batches([], {}, 0)
        budget = self._limits.dispatch_bytes
        for stored in self._readable():
            if found.events >= room or budget <= 0:
                break
            try:
                header = codec.header_of(stored.batch) if stored.known else codec.check(stored.batch)
            except Corrupt as e:
                raise Corrupt(f"{self._ledger.name} at {stored.position}: {e}") from None
            batch = inbox.offer(stored.position, header, len(stored.batch))
            if batch is None or batch.in_work:
                continue
            batch.in_work = True
            left = header.events - cursor.progress(stored.position).finished()
            found.items.append(self._item(stored, header))
            found.positions[stored.position] = left
            found = found._replace(events=found.events + left)
            budget -= len(stored.batch)
        if count := self._backlog.drop_duplicates():
            self._ledger.app.stats.pools[self._ledger.pool].duplicates += count
        return found

    def _item(self, stored: Stored, header: codec.Header) -> BatchItem:
        body = codec.body_of(stored.batch, header)
        calls = bool(header.flags & codec.SELF_REPLY)
        if calls:
            contexts = [Context(event_id, self._ledger.number) for event_id in codec.ids_of(header, body)]
        else:
            contexts = codec.contexts_of(stored.batch, header)
            if contexts:
                body, contexts = self.spans.follow(stored.position, header, body, contexts, len(self.contexts))
        self._add_contexts(contexts)
        progress = self._ledger.head.cursor.progress(stored.position)
        what = header.id_prefix, header.created, header.events, body, progress, len(contexts), calls
        return BatchItem(stored.position, *what)

    def _readable(self) -> Iterator[Stored]:
        """What may be worked on: first what was accepted before, in that order, then what follows in the log."""
        ledger = self._ledger
        inbox = ledger.inbox
        for position in inbox.idle():
            found = ledger.transport.read(ledger.id, position, 1)
            if not found or found[0].position != position:
                raise Corrupt(f"{ledger.name}: the batch at {position} is not finished, and is gone")
            yield found[0]
        at = inbox.read_to
        while batches := ledger.transport.read(ledger.id, at, 2 * self._limits.batch_max):
            for stored in batches:
                yield stored
                inbox.passed(stored.position)
            at = batches[-1].position + 1

    # ------------------------------------------------------------------ what a worker has

    def work_on(self, position: int) -> Dispatched:
        """The work that has the batch at ``position``.

        Raises:
            ProtocolError: none has.
        """
        for work in self.works.values():
            if position in work.positions:
                return work
        raise ProtocolError(f"progress of batch {position}, which is not in work")

    def tried(self, number: int) -> None:
        """A held entry is no longer the work's: another one may get it before this one ends."""
        for work in self.works.values():
            if work.holds.pop(number, None) is not None:
                self._careful.held_is_over([number])

    def end(self, seq: int) -> None:
        """Nothing more comes of the work."""
        work = self.works.pop(seq)
        left = 0
        for position, events in work.positions.items():
            batch = self._ledger.inbox.open.get(position)
            if batch is not None:
                batch.in_work = False
                left += events
        self._careful.held_is_over(work.holds)
        self._failures.list.give_back(work.holds)
        self._careful.work_is_over()
        if left:
            self._window = max(_MIN_WINDOW, min(self._window // 2, 2 * (work.given - left)))
        elif not work.careful:
            self._window = min(self._limits.dispatch_events, self._window * 2)

    def give_back(self) -> None:
        """No worker has anything of it any more."""
        self.works.clear()
        self._ledger.inbox.give_back()
        self._failures.list.give_back(self._failures.list.numbers())

    def suspect(self, work: Dispatched) -> None:
        """The worker died over this work, nobody knows at which event: go carefully through it."""
        batches = [position for position in work.positions if position in self._ledger.inbox.open]
        self._careful.suspect(batches, [number for number in work.holds if number in self._failures.list])

    def first_root(self, work: Dispatched) -> Root | None:
        """Of what is not handed in, what a careful worker does first."""
        for number in work.holds:
            if number in self._failures.list:
                return Root(number=number)
        for position in work.positions:
            batch = self._ledger.inbox.open.get(position)
            if batch is not None:
                progress = self._ledger.head.cursor.progress(position)
                return Root(position, next(i for i in range(batch.header.events) if not progress.is_done(i)))
        return None
