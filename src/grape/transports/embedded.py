"""The default transport: everything in one LMDB environment, every commit durable when it is reported.

Partitions commit independently of each other; that many commits share one transaction and one fsync cannot be seen.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from grape.abc.transport import (
    Arrival,
    Callbacks,
    Claim,
    Commit,
    Features,
    Outcome,
    Stored,
    Submissions,
    Table,
    Transport,
)
from grape.model.address import PartitionId
from grape.store.lmdb import MAX_SIZE, MIB, Post, Store, Writing

FEATURES: Final = Features(
    durable=True,
    groups=True,
    exact_forwarding=True,
    largest_event=8 * MIB,
    largest_batch=16 * MIB,
    largest_commit=256 * MIB,
    best_commit=MIB,
)


def _claim(writing: Writing, partition: PartitionId) -> Claim:
    term, number, head = writing.head(partition) or (0, 0, b"")
    writing.set_head(partition, term + 1, 0, head)
    return Claim(term + 1, number, head)


def _apply(writing: Writing, commit: Commit) -> tuple[Commit, Outcome, bool]:
    """The third: whether it took effect just now."""
    term, number = writing.term(commit.partition)
    if term != commit.term:
        return commit, "fenced", False
    if number == commit.number:
        return commit, "committed", False
    for send in commit.sends:
        writing.append(send.target, send.batch, send.events)
    for table, rows in commit.rows:
        writing.put(commit.partition, table, rows)
    for trim in commit.trims:
        writing.trim(trim.target, trim.position)
    for log, position in commit.drops:
        writing.drop(log, position)
    writing.set_head(commit.partition, commit.term, commit.number, commit.head)
    return commit, "committed", True


class EmbeddedTransport(Transport):
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
        store.on_failed(self._failed)

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], callbacks: Callbacks, post: Post, *, max_size: int = MAX_SIZE
    ) -> EmbeddedTransport:
        """Open the data directory and the transport on it. Arguments and errors are those of `Store`."""
        return cls(Store(directory, post, max_size=max_size), callbacks)

    def claim(self, partition: PartitionId) -> Claim:
        claim = self.store.call(_claim, partition)
        self._submissions.claimed(partition, claim.term)
        return claim

    def commit(self, commit: Commit) -> None:
        self._submissions.check(commit)
        self.store.submit(_apply, commit, self._report)

    def _report(self, results: list[tuple[Commit, Outcome, bool]]) -> None:
        if self._closed:
            return
        self._callbacks.done([(commit, outcome) for commit, outcome, _ in results])
        arrived: dict[PartitionId, list[int]] = {}
        for commit, _, fresh in results:
            if fresh:
                for send in commit.sends:
                    sums = arrived.setdefault(send.target, [0, 0, 0])
                    sums[0] += 1
                    sums[1] += send.events
                    sums[2] += len(send.batch)
        if arrived and not self._closed:
            self._callbacks.arrived([Arrival(log, *sums) for log, sums in arrived.items()])

    def _failed(self, error: BaseException) -> None:
        if not self._closed:
            self._callbacks.failed(error)

    def read(self, log: PartitionId, after: int, max_bytes: int) -> list[Stored]:
        return self.store.read(log, after, max_bytes)

    def waiting(self, log: PartitionId, after: int) -> Arrival:
        return self.store.waiting(log, after)

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
