"""Which batches of a partition's log are to be worked on: takes exactly the next of every origin."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from grape.model.address import PartitionId
from grape.model.batch import Header
from grape.model.cursor import Cursor, Progress


class Reader(Protocol):
    """What an inbox needs of a head."""

    cursor: Cursor
    seen: dict[bytes, int]


class OpenBatch(Struct):
    """An accepted batch that is not finished. ``in_work``: a worker has it."""

    position: int
    header: Header
    size: int
    in_work: bool = False


def origin_key(header: Header) -> bytes:
    return own_origin(header.origin, header.incarnation)


def own_origin(partition: PartitionId, incarnation: int) -> bytes:
    """By which receivers know what ``partition`` sends."""
    return partition.packed() + incarnation.to_bytes(4, "big")


class Inbox:
    """The reading side of one log. Pure; changes ``head`` (its cursor and ``seen``), which the next commit stores.

    A batch at or above the cursor is *open* once it was accepted (its position then stands in the head), *finished*,
    or *parked* while a batch of its origin with a lower number is missing. A batch with a number that was accepted
    before is a duplicate and counts as finished.
    """

    def __init__(self, head: Reader) -> None:
        self._head = head
        self.open: dict[int, OpenBatch] = {}
        self.read_to = head.cursor.position
        self._parked: dict[int, tuple[Header, int]] = {}
        self.dropped: list[tuple[int, int, int]] = []
        """Duplicates found by `offer`, as (position, events, bytes), until the caller takes note."""

    @property
    def cursor(self) -> Cursor:
        return self._head.cursor

    def offer(self, position: int, header: Header, size: int) -> OpenBatch | None:
        """A batch was read. Returns it if it is to be worked on now (also one that is open already)."""
        found = self.open.get(position)
        if found is not None:
            return found
        cursor = self._head.cursor
        if cursor.is_finished(position) or position in self._parked:
            return None
        if position in cursor.partial:
            return self._accept(position, header, size)
        expected = self._head.seen.get(origin_key(header), 0)
        if header.sequence < expected:
            self.dropped.append((position, header.events, size))
            cursor.finish(position)
            return None
        if header.sequence > expected:
            self._parked[position] = (header, size)
            return None
        self._head.seen[origin_key(header)] = expected + 1
        return self._accept(position, header, size)

    def catch_up(self, header: Header) -> None:
        """Whatever its origin sent before this batch is gone: take it as the next one."""
        key = origin_key(header)
        self._head.seen[key] = max(self._head.seen.get(key, 0), header.sequence)

    def passed(self, position: int) -> None:
        """Everything up to ``position`` has been offered."""
        self.read_to = max(self.read_to, position + 1)

    def _accept(self, position: int, header: Header, size: int) -> OpenBatch:
        batch = self.open[position] = OpenBatch(position, header, size)
        self._head.cursor.partial.setdefault(position, Progress())
        return batch

    def is_parked(self, position: int) -> bool:
        """A batch of its origin that comes before it is missing."""
        return position in self._parked

    def unpark(self) -> bool:
        """Forget what is parked if some of it has become the next of its origin, so that it is read again."""
        for header, _ in self._parked.values():
            if header.sequence <= self._head.seen.get(origin_key(header), 0):
                self.read_to = min(self._parked)
                self._parked.clear()
                return True
        return False

    def progress(self, position: int, progress: Progress) -> int:
        """A worker has come this far; returns how many events have newly finished."""
        batch = self.open[position]
        cursor = self._head.cursor
        newly = progress.finished() - cursor.progress(position).finished()
        if progress.first >= batch.header.events:
            del self.open[position]
            cursor.finish(position)
        else:
            cursor.partial[position] = progress
        return newly

    def advance(self) -> tuple[int, set[int]]:
        """Move the cursor over what is finished; returns it, and the finished positions above it."""
        unfinished = min(min(self.open, default=self.read_to), min(self._parked, default=self.read_to), self.read_to)
        cursor = self._head.cursor
        cursor.advance(unfinished)
        return cursor.position, set(cursor.finished)

    def give_back(self) -> None:
        """No worker has anything of this partition any more."""
        for batch in self.open.values():
            batch.in_work = False

    def idle(self) -> list[int]:
        """Accepted batches that no worker has, in the order in which they were accepted: of one origin that is the
        order of their numbers, which that of their positions need not be."""
        return [p for p in self._head.cursor.partial if p not in self.open or not self.open[p].in_work]
