"""Changes of state that are committed, and not in its tree yet.

A row that lies alone costs the tree a page, whatever its size. So a commit writes its changes of state as one row of
the database ``changes``, and they stay in memory, where they are read. When there are too many they are merged into the
tree: partition by partition, the one that has waited longest first, in the order of keys, so that neighbours share a
page. Then they go from ``changes``, the oldest first.

Whatever lies in ``changes`` at a start is in memory again. Part of it may be in the tree: the last change of a key is
what counts, and changes that are gone were older than all that are left, so that it is the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from math import ceil
from operator import itemgetter
from typing import Final, NamedTuple

from grape.abc.transport import Rows

LATE_BYTES: Final = 64 << 20
"""Changes in memory, about, with what Python needs for them."""
ROW: Final = 200
"""Bytes that a row takes beside what it holds."""
SLICE_BYTES: Final = 128 << 10
"""What is merged at once, at least: in smaller steps no rows would share pages, and each holds up a light commit."""


class Change(NamedTuple):
    """What one commit has changed of a partition. ``number``: of its row in ``changes``; ``size``: bytes of that."""

    packed: bytes
    number: int
    rows: Rows
    size: int

    @property
    def weight(self) -> int:
        return self.size + ROW * len(self.rows)


class _Gathered:
    """Of a partition. ``last``: the number of the last one."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes | None] = {}
        self.weight = 0
        self.last = 0


class Merge:
    """The changes of a partition on their way into the tree, in the order of keys. All of them stay until the last one
    is there."""

    def __init__(self, packed: bytes, gathered: _Gathered) -> None:
        self.packed = packed
        self.rows = gathered.rows
        self.last = gathered.last
        self.weight = gathered.weight
        self._cost = gathered.weight / len(gathered.rows)
        self._items = sorted(gathered.rows.items(), key=itemgetter(0))
        self._at = 0

    def __len__(self) -> int:
        """So many are left."""
        return len(self._items) - self._at

    def left(self, count: int) -> list[tuple[bytes, bytes | None]]:
        """The next so many."""
        return self._items[self._at : self._at + count]

    def count(self, weight: int) -> int:
        """So many weigh that much."""
        return ceil(weight / self._cost)

    def weigh(self, count: int) -> int:
        """What the next so many weigh."""
        return self.weight if count == len(self) else int(count * self._cost)

    def finish(self, count: int) -> int:
        """The next so many are in the tree; returns what they weighed."""
        weight = self.weigh(count)
        self.weight -= weight
        self._at += count
        return weight


class Done(NamedTuple):
    """What a transaction has done: the next ``taken`` changes of ``merge`` are in the tree."""

    merge: Merge
    taken: int


class Late:
    """All of them. The thread that writes changes them when its transaction is committed, under the store's gate, under
    which they are read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._numbers: dict[bytes, int] = {}
        self._gathered: dict[bytes, _Gathered] = {}
        """The partition that has waited longest comes first."""
        self._merging: dict[bytes, Merge] = {}
        self.weight = 0
        self.merged: deque[tuple[bytes, int]] = deque()
        """(packed partition, number): rows of ``changes`` up to there are not needed any more."""

    @property
    def is_due(self) -> bool:
        """There is something to do beside commits."""
        return self.weight > self._limit or bool(self.merged)

    def next_number(self, packed: bytes) -> int:
        return self._numbers.get(packed, 0)

    def layers(self, packed: bytes) -> list[Mapping[bytes, bytes | None]]:
        """The changes of a partition, the newest first."""
        gathered = self._gathered.get(packed)  # first: `_begin` may be moving it
        merging = self._merging.get(packed)
        return [layer.rows for layer in (gathered, merging) if layer is not None]

    def add(self, change: Change) -> None:
        """It is committed."""
        gathered = self._gathered.get(change.packed)
        if gathered is None:
            gathered = self._gathered[change.packed] = _Gathered()
        gathered.rows.update(change.rows)
        gathered.last = change.number
        gathered.weight += change.weight
        self.weight += change.weight
        self._numbers[change.packed] = change.number + 1

    def due(self, most: int) -> Iterator[Done]:
        """What is to be merged, at most ``most`` rows, until what is left is within the bound. It is done when
        `finish` says so, and else found again."""
        excess = self.weight - self._limit
        begun = list(self._merging.values())
        while excess > 0 and most > 0 and (merge := begun.pop(0) if begun else self._begin()) is not None:
            count = min(len(merge), most, merge.count(max(SLICE_BYTES, excess)))
            yield Done(merge, count)
            excess -= merge.weigh(count)
            most -= count

    def _begin(self) -> Merge | None:
        packed = next(iter(self._gathered), None)
        if packed is None or packed in self._merging:
            return None
        merge = self._merging[packed] = Merge(packed, self._gathered[packed])
        del self._gathered[packed]
        return merge

    def finish(self, done: Done) -> None:
        """It is committed."""
        merge = done.merge
        self.weight -= merge.finish(done.taken)
        if not merge:
            del self._merging[merge.packed]
            self.merged.append((merge.packed, merge.last))


def overlaid(
    rows: Iterable[tuple[bytes, bytes]], changes: Iterable[tuple[bytes, bytes | None]]
) -> Iterator[tuple[bytes, bytes]]:
    """Rows as ``changes`` leave them. Both are in order, and so is what comes of it."""
    rest = iter(changes)
    change = next(rest, None)
    for key, value in rows:
        while change is not None and change[0] < key:
            if change[1] is not None:
                yield change[0], change[1]
            change = next(rest, None)
        if change is None or change[0] != key:
            yield key, value
    while change is not None:
        if change[1] is not None:
            yield change[0], change[1]
        change = next(rest, None)
