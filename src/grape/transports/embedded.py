"""The default transport: everything in one LMDB environment, every commit durable when it is reported.

Partitions commit independently of each other; that many commits share one transaction and one fsync cannot be seen.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self, TypeVar

from grape.abc.transport import (
    Arrival,
    Callbacks,
    Claim,
    Commit,
    DirectoryTransport,
    Features,
    Outcome,
    Post,
    Stored,
    Submissions,
    Table,
)
from grape.model.address import PartitionId
from grape.model.objects import Done, ObjectTable, ObjectWrite, Wanted, apply, apply_all, is_unused
from grape.store.reader import MIB, Reader
from grape.store.store import MAX_SIZE, Store
from grape.store.writing import Writing

T = TypeVar("T")

FEATURES: Final = Features(
    durable=True,
    groups=True,
    exact_forwarding=True,
    largest_event=8 * MIB,
    largest_batch=16 * MIB,
    largest_commit=256 * MIB,
    best_commit=MIB,
    drops=True,
)


RECENT_BYTES: Final = 16 * MIB
"""Batches that are kept in memory from their commit until they are trimmed: most are read once, right after it."""


_Claimed = list[tuple[PartitionId, Claim]]
_Committed = tuple[Commit, Outcome, list[int]]
"""The third: the positions of its batches, if it took effect just now."""


def _claim(writing: Writing, partitions: Sequence[PartitionId]) -> _Claimed:
    claimed: _Claimed = []
    for partition in partitions:
        term, number, head = writing.head(partition) or (0, 0, b"")
        writing.set_head(partition, term + 1, 0, head)
        claimed.append((partition, Claim(term + 1, number, head, writing.log_ends(partition).tail)))
    return claimed


def _apply(writing: Writing, commit: Commit) -> _Committed:
    term, number = writing.term(commit.partition)
    if term != commit.term:
        return commit, "fenced", []
    if number == commit.number:
        return commit, "committed", []
    positions = [writing.append(send.target, send.batch, send.events) for send in commit.sends]
    for table, rows in commit.rows:
        writing.put(commit.partition, table, rows)
    if commit.objects is not None:
        apply_all(_ObjectRows(writing, commit.objects.home), commit.objects.writes)
    writing.set_head(commit.partition, commit.term, commit.number, commit.head)
    return commit, "committed", positions


class _ObjectRows:
    """Those of one app, in a transaction."""

    def __init__(self, writing: Writing, home: PartitionId) -> None:
        self._writing = writing
        self._home = home

    def get(self, table: ObjectTable, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return self._writing.get(self._home, table, keys)

    def put(self, table: ObjectTable, rows: Mapping[bytes, bytes | None]) -> None:
        self._writing.put(self._home, table, list(rows.items()))

    def first(self, table: ObjectTable, begin: bytes) -> bytes | None:
        return self._writing.first(self._home, table, begin)


def _write_objects(writing: Writing, asked: tuple[PartitionId, Sequence[tuple[ObjectWrite, Wanted]]]) -> Sequence[Done]:
    home, writes = asked
    rows = _ObjectRows(writing, home)
    return [apply(rows, write, wanted) for write, wanted in writes]


def _drop_blobs(writing: Writing, asked: tuple[PartitionId, Sequence[bytes]]) -> Sequence[bytes]:
    home, digests = asked
    counts = zip(digests, writing.get(home, "blob", digests), strict=True)
    unused = [each for each, row in counts if row is not None and is_unused(row)]
    writing.put(home, "blob", [(each, None) for each in unused])
    return unused


def _trim(writing: Writing, hint: tuple[PartitionId, int, Sequence[int]]) -> None:
    log, position, drops = hint
    writing.trim(log, position)
    for at in drops:
        writing.drop(log, at)


class _Recent:
    """The last batches of every log, without a gap up to its end, as long as all of them fit."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._logs: dict[PartitionId, deque[Stored]] = {}
        self._ends: dict[PartitionId, int] = {}

    def add(self, log: PartitionId, position: int, batch: bytes) -> None:
        self._ends[log] = position + 1
        if len(batch) > self._left:
            self._forget(log)  # else there would be a gap
            return
        self._left -= len(batch)
        self._logs.setdefault(log, deque()).append(Stored(position, batch, known=True))

    def trim(self, log: PartitionId, position: int, drops: Sequence[int]) -> None:
        batches = self._logs.get(log)
        while batches and batches[0].position < position:
            self._left += len(batches.popleft().batch)
        if batches and drops:
            gone = set(drops)
            if any(stored.position in gone for stored in batches):
                self._forget(log)

    def _forget(self, log: PartitionId) -> None:
        self._left += sum(len(stored.batch) for stored in self._logs.pop(log, ()))

    def read(self, log: PartitionId, after: int, max_bytes: int) -> list[Stored] | None:
        """As `Transport.read`; None: it is not known here."""
        if after >= self._ends.get(log, 1 << 64):
            return []
        batches = self._logs.get(log)
        if not batches or batches[0].position > after:
            return None
        out: list[Stored] = []
        size = 0
        for stored in batches:
            if stored.position >= after:
                size += len(stored.batch)
                if out and size > max_bytes:
                    break
                out.append(stored)
        return out


class EmbeddedTransport(DirectoryTransport):
    """Logs, heads and rows of a `Store`, which may serve others too and is closed with the transport.

    Args:
        store: an open data directory.
        callbacks: called on the engine's thread, through the store's ``post``.
    """

    features = FEATURES

    def __init__(self, store: Store, callbacks: Callbacks) -> None:
        self.store = store
        self._callbacks = callbacks
        self._closed = False
        self._submissions = Submissions(FEATURES)
        self._recent = _Recent(RECENT_BYTES)
        store.on_failed(self._failed)

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        callbacks: Callbacks,
        post: Post,
        *,
        soon: Post | None = None,
        max_size: int | None = None,
    ) -> Self:
        return cls(Store(directory, post, soon=soon, max_size=MAX_SIZE if max_size is None else max_size), callbacks)

    @property
    def at_rest(self) -> Reader:
        return self.store

    def claim(self, partitions: Sequence[PartitionId]) -> None:
        self.store.submit(_claim, list(partitions), self._report)

    def commit(self, commit: Commit) -> None:
        size = self._submissions.check(commit)
        self.store.submit(_apply, commit, self._report, size)

    def write_objects(
        self,
        home: PartitionId,
        writes: Sequence[tuple[ObjectWrite, Wanted]],
        then: Callable[[Sequence[Done]], None],
    ) -> None:
        size = sum(write.weight for write, _ in writes)
        self.store.submit(_write_objects, (home, writes), lambda results: self._say(then, results), size)

    def drop_blobs(self, home: PartitionId, digests: Sequence[bytes], then: Callable[[Sequence[bytes]], None]) -> None:
        self.store.submit(_drop_blobs, (home, digests), lambda results: self._say(then, results), 40 * len(digests))

    def _say(self, then: Callable[[T], None], results: Sequence[T]) -> None:
        if not self._closed:
            for result in results:
                then(result)

    def trim(self, log: PartitionId, position: int, drops: Sequence[int] = ()) -> None:
        if not self._closed:
            self._recent.trim(log, position, drops)
            self.store.lazily(_trim, (log, position, drops))

    def _report(self, results: list[_Committed | _Claimed]) -> None:
        """What one transaction has done."""
        if self._closed:
            return
        claimed = [claim for result in results if isinstance(result, list) for claim in result]
        for partition, claim in claimed:
            self._submissions.claimed(partition, claim.term)
        committed = [result for result in results if isinstance(result, tuple)]
        arrived = self._arrivals(committed, {partition: claim.tail for partition, claim in claimed})
        if committed:
            self._callbacks.done([(commit, outcome) for commit, outcome, _ in committed])
        if claimed and not self._closed:
            self._callbacks.claimed(claimed)
        if arrived and not self._closed:
            self._callbacks.arrived(arrived)

    def _arrivals(self, results: list[_Committed], known: dict[PartitionId, int]) -> list[Arrival]:
        """``known``: up to where whoever has just claimed a partition knows of its log."""
        arrived: dict[PartitionId, list[int]] = {}
        for commit, _, positions in results:
            for send, position in zip(commit.sends, positions, strict=False):
                self._recent.add(send.target, position, send.batch)
                if known and position < known.get(send.target, 0):
                    continue
                sums = arrived.setdefault(send.target, [0, 0, 0])
                sums[0] += 1
                sums[1] += send.events
                sums[2] += len(send.batch)
        return [Arrival(log, *sums) for log, sums in arrived.items()]

    def _failed(self, error: BaseException) -> None:
        if not self._closed:
            self._callbacks.failed(error)

    def read(self, log: PartitionId, after: int, max_bytes: int) -> list[Stored]:
        recent = self._recent.read(log, after, max_bytes)
        return self.store.read(log, after, max_bytes) if recent is None else recent

    def waiting(self, log: PartitionId, after: int, before: int | None = None) -> Arrival:
        return self.store.waiting(log, after, before)

    def get(self, partition: PartitionId, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        return self.store.get(partition, table, keys)

    def scan(
        self, partition: PartitionId, table: Table, after: bytes, limit: int, before: bytes | None = None
    ) -> list[tuple[bytes, bytes]]:
        return self.store.scan(partition, table, after, limit, before)

    def room(self) -> int:
        return self.store.room()

    def close(self) -> None:
        self._closed = True
        self.store.close()
