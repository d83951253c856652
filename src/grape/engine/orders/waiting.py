"""Events that wait in the log of a partition are taken out of it, as if they had been worked off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from grape.abc.transport import Stored
from grape.engine.logged import NOT_WAITING, PARKED, Logged, letters_of, logged
from grape.engine.orders.order import AT_ONCE, SLICE, Desk, Order
from grape.engine.partition.partition import Partition
from grape.errors import Corrupt
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.cursor import Progress
from grape.model.spots import Spot
from grape.model.stored import AppRecord

_MOST_OPEN: Final = 8_192
"""Batches before one that are taken note of, each in the head, which every commit holds."""
_TOO_FAR: Final = (
    f"over {_MOST_OPEN:,} batches wait before it: give the order when it has come nearer, or when no engine runs"
)
_READ: Final = 1 << 18
_LOOKED_AT: Final = 1 << 16
"""Events of the batches that one step looks into."""
_WALKED: Final = 1_024
"""Batches that one step passes over."""


class LogOrder(Order):
    """Everything up to the last one is accepted, so that what an origin sent stays in its order. Whatever no worker has
    can be taken out at once."""

    def __init__(self, record: AppRecord, log: str, partition: PartitionId, spots: Iterable[Spot], bury: bool) -> None:
        super().__init__(log, partition)
        self._record = record
        self._bury = bury
        self._wanted: dict[int, set[int]] = {}
        for spot in sorted(set(spots)):
            self._wanted.setdefault(spot.position, set()).add(spot.index)

    @property
    def is_over(self) -> bool:
        return not self._wanted

    @property
    def _next(self) -> int:
        return next(iter(self._wanted))

    def is_blocked(self, partition: Partition) -> bool:
        return bool(self._wanted) and any(self._next in work.positions for work in partition.works.values())

    def step(self, desk: Desk, partition: Partition | None) -> None:
        if partition is None:
            self.refuse(f"pool {self.log!r} is gone from the app: nothing of it can be worked on")
            return
        left, events, looked = SLICE, AT_ONCE, 0
        while self._wanted and left > 0 and events > 0 and looked < _LOOKED_AT and not self.is_blocked(partition):
            position = self._next
            try:
                read, is_more = self._reach(partition, position)
                left -= read
                if (batch := partition.inbox.open.get(position)) is not None:
                    looked += batch.header.events
                    done, size = self._take_out(partition, position, events)
                    events -= done
                    left -= size
                elif is_more:
                    return
                else:
                    self._refuse_next(self._why_not(partition, position))
            except Corrupt as e:
                self._refuse_next(f"{e}; grape repair takes it out")

    def give_up(self, why: str) -> None:
        self._refuse_next(why)

    def refuse(self, why: str) -> None:
        while self._wanted:
            self._refuse_next(why)

    def _refuse_next(self, why: str) -> None:
        position = self._next
        for index in self._wanted.pop(position):
            self.changes.refused[Spot(self.log, self.partition, position, index).id] = why

    # ------------------------------------------------------------------ up to a batch

    def _why_not(self, partition: Partition, position: int) -> str:
        inbox = partition.inbox
        if inbox.is_parked(position):
            return PARKED
        return _TOO_FAR if inbox.read_to <= position and len(inbox.open) >= _MOST_OPEN else NOT_WAITING

    def _reach(self, partition: Partition, position: int) -> tuple[int, bool]:
        """Accept what lies before it, and it itself, some of them at once; returns how many bytes were read, and
        whether there is more before it."""
        inbox, ledger, size, count = partition.inbox, partition.ledger, 0, 0
        if inbox.cursor.is_finished(position) or position in inbox.open:
            return 0, False
        if not inbox.is_parked(position) and _read_at(partition, position) is None:
            return 0, False  # nothing is taken note of for what is not there
        inbox.unpark()
        while len(inbox.open) < _MOST_OPEN and inbox.read_to <= position:
            found = ledger.transport.read(partition.id, inbox.read_to, _READ)
            for stored in found:
                if stored.position > position or len(inbox.open) >= _MOST_OPEN:
                    break
                header = codec.header_of(stored.batch) if stored.known else codec.check(stored.batch)
                inbox.offer(stored.position, header, len(stored.batch))
                inbox.passed(stored.position)
                ledger.draft.changed = True
                size += len(stored.batch)
                count += 1
            if not found or found[-1].position > position:
                break
            if size >= SLICE or count >= _WALKED:
                return size, position not in inbox.open
        if duplicates := partition.backlog.drop_duplicates():
            ledger.app.stats.pools[ledger.pool].duplicates += duplicates
        return size, position not in inbox.open and inbox.unpark()

    # ------------------------------------------------------------------ of a batch

    def _take_out(self, partition: Partition, position: int, most: int) -> tuple[int, int]:
        """So many events at most; returns how many there were, and of how many bytes."""
        ledger = partition.ledger
        stored = _read_at(partition, position)
        if stored is None:
            raise Corrupt(f"{ledger.name}: the batch at {position} is not finished, and is gone")
        progress = ledger.head.cursor.progress(position)
        wanted = self._wanted[position]
        events: list[Logged] = []
        rest = False
        for event in logged(self._record, self.log, partition.id, position, stored.batch, progress, _only(wanted)):
            if len(events) == most:
                rest = True
                break
            events.append(event)
        size, now = len(stored.batch), ledger.clock.now()
        for event in events:
            if event.spot.index < 0:  # not even its events can be told apart
                progress = Progress(codec.check(stored.batch).events)
            else:
                progress = progress.with_done(event.spot.index)
                wanted.discard(event.spot.index)
            for letter in letters_of(event, now) if self._bury else ():
                ledger.bury(letter)
                ledger.app.stats.revived += 1  # it has not failed: feeding does not stop for it
                size += len(letter.body)
        if events:
            partition.backlog.progress(position, progress)
            self.changes.held += len(events)
        if position not in partition.inbox.open:
            partition.careful.batch_is_over(position)
        if not rest:
            wanted.discard(-1)
            self._refuse_next(NOT_WAITING)
        return len(events), size


def _read_at(partition: Partition, position: int) -> Stored | None:
    found = partition.ledger.transport.read(partition.id, position, 1)
    return found[0] if found and found[0].position == position else None


def _only(wanted: set[int]) -> list[int] | None:
    """None: all of them."""
    return None if -1 in wanted else sorted(wanted)
