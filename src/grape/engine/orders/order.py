"""What one order changes of one partition, bit by bit: everything goes into the draft of whoever owns it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Literal, Protocol, TypeVar

import msgspec

from grape.abc.transport import Table
from grape.engine.letters import NO_LETTER, again, due_now, refusal
from grape.engine.logged import UNREADABLE
from grape.engine.partition.partition import Partition
from grape.errors import Corrupt
from grape.model.address import PartitionId
from grape.model.batch import Context
from grape.model.spots import Place
from grape.model.stored import AppRecord, HoldEntry, decode_dead, decode_hold, row_key
from grape.protocol.orders import Changes

T = TypeVar("T")

SLICE: Final = 4 << 20
"""Bytes that one step reads or writes, about: the engine does something else between two."""
AT_ONCE: Final = 500
"""Rows or events of one step."""

Action = Literal["retry", "drop"]


class Desk(Protocol):
    """Where a partition is changed: a `Ledger`, or what stands for one where there is no partition of a pool."""

    def stored(self, table: Table, key: bytes) -> bytes | None:
        """A row as it is or is about to be."""

    def put(self, table: Table, key: bytes, value: bytes | None) -> None:
        """Write a row with the next commit; None removes it."""

    def send(self, log: str, number: int, body: bytes, events: int, contexts: list[Context], now: int) -> None:
        """A batch, with the next commit."""


class Order(ABC):
    """
    Attributes:
        partition: whose it is. changes: what was done so far.
        has_touched: something was changed that a worker may have in its memory.
    """

    def __init__(self, log: str, partition: PartitionId) -> None:
        self.log = log
        self.partition = partition
        self.changes = Changes()
        self.has_touched = False

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Nothing is left of it."""

    @abstractmethod
    def is_blocked(self, partition: Partition) -> bool:
        """A worker has what comes next, or would not learn of it."""

    @abstractmethod
    def step(self, desk: Desk, partition: Partition | None) -> None:
        """Do some of it, unless it is blocked. ``partition`` None: its pool is gone, or it is a source."""

    def give_up(self, why: str) -> None:
        """What is blocked is not done."""
        self.refuse(why)

    @abstractmethod
    def refuse(self, why: str) -> None:
        """Nothing of what is left is done."""


class LetterOrder(Order):
    """Dead letters go back into the log or away; held events are due at once or away."""

    def __init__(
        self, record: AppRecord, log: str, partition: PartitionId, places: Iterable[Place], action: Action, held: bool
    ) -> None:
        super().__init__(log, partition)
        self._record = record
        # In the order of their numbers, so that events of a key keep theirs.
        self._places = deque(sorted(set(places), key=lambda place: (place.stopped, place.number)))
        self._action: Action = action
        self._held = held

    @property
    def is_over(self) -> bool:
        return not self._places

    def is_blocked(self, partition: Partition) -> bool:
        return bool(self._places) and self._places[0].stopped and bool(partition.works)

    def step(self, desk: Desk, partition: Partition | None) -> None:
        left = SLICE
        for _ in range(AT_ONCE):
            if not self._places or left <= 0 or (partition is not None and self.is_blocked(partition)):
                return
            place = self._places.popleft()
            try:
                left -= self._held_event(desk, partition, place) if place.stopped else self._letter(desk, place)
            except (Corrupt, *UNREADABLE) as e:
                self.changes.refused[place.id] = str(e)

    def refuse(self, why: str) -> None:
        self.changes.refused.update((place.id, why) for place in self._places)
        self._places.clear()

    def _letter(self, desk: Desk, place: Place) -> int:
        key = row_key(place.number)
        packed = desk.stored("dead", key)
        if packed is None:
            self.changes.refused[place.id] = NO_LETTER
            return 0
        if self._action == "retry":
            row = _decoded(decode_dead, packed, "dead letter")
            if why := refusal(self._record, self.log, row):
                self.changes.refused[place.id] = why
                return len(packed)
            event = again(self._record, row, place.id)
            desk.send(event.log, place.partition.number, event.body, 1, event.contexts, row.created)
        desk.put("dead", key, None)
        self.changes.dead += 1
        return len(packed)

    def _held_event(self, desk: Desk, partition: Partition | None, place: Place) -> int:
        key = row_key(place.number)
        packed = desk.stored("hold", key)
        entry = None if packed is None else _decoded(decode_hold, packed, "hold entry")
        if packed is None or entry is None or not (entry.stopped or self._held):
            self.changes.refused[place.id] = NO_LETTER
            return len(packed or b"")
        if self._action == "retry" and (why := refusal(self._record, self.log, entry)):
            self.changes.refused[place.id] = why
            return len(packed)
        self.changes.stopped += entry.stopped
        self.changes.held += not entry.stopped
        if partition is None:
            desk.put("hold", key, None)  # what can be retried is in a pool
        else:
            self._change(partition, place.number, entry)
        return len(packed)

    def _change(self, partition: Partition, number: int, entry: HoldEntry) -> None:
        self.has_touched = True
        if self._action == "retry":
            partition.failures.change(number, due_now(entry))
        else:
            partition.careful.held_is_over([number])
            partition.failures.release(number, partition.ledger.clock.now())


class StateOrder(Order):
    """State is removed. ``rows``: keys of rows, and what of them is the key of an event."""

    def __init__(self, log: str, partition: PartitionId, rows: Iterable[tuple[bytes, bytes]]) -> None:
        super().__init__(log, partition)
        self._rows = deque(dict(rows).items())

    @property
    def is_over(self) -> bool:
        return not self._rows

    def is_blocked(self, partition: Partition) -> bool:
        return bool(self._rows and partition.works)

    def step(self, desk: Desk, partition: Partition | None) -> None:
        for _ in range(min(AT_ONCE, len(self._rows))):
            place, key = self._rows.popleft()
            if desk.stored("state", place) is None:
                self.changes.missing.append(key)
            else:
                desk.put("state", place, None)
                self.changes.states += 1
                self.has_touched = True

    def refuse(self, why: str) -> None:
        self.changes.refused.update((key.decode("utf-8", "replace"), why) for _, key in self._rows)
        self._rows.clear()


def _decoded(decode: Callable[[bytes], T], packed: bytes, what: str) -> T:
    try:
        return decode(packed)
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise Corrupt(f"a stored {what} cannot be read: {e}") from None
