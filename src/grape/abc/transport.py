"""The message passing layer: per partition a log of batches, rows beside it, and one atomic commit.

The engine speaks to every transport in these seven verbs. Batches, heads and rows are opaque bytes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, Self
from zlib import crc32

from msgspec import Struct

from grape.errors import TooLarge
from grape.model.address import PartitionId
from grape.model.objects import Done, ObjectWrite, Wanted

Table = Literal["state", "hold", "timer", "dead", "text", "expiry", "object", "change", "blob"]
"""Rows beside the log of a partition; one key space per (partition, table).

``state`` keyed state, ``hold`` failed events and what waits behind them, ``timer`` by due time, ``dead`` dead letters,
``text`` tracebacks and the ids of remembered client events, ``expiry`` by due time what of these may go. ``object``,
``change``, ``blob`` are the app's objects (`grape.model.objects`), all of one partition that has nothing else.
"""

TABLES: tuple[Table, ...] = ("state", "hold", "timer", "dead", "text", "expiry", "object", "change", "blob")

Outcome = Literal["committed", "fenced", "unknown"]
"""``committed``: durable, visible, and never undone. ``fenced``: refused and without any effect, as another term
owns the partition. ``unknown``: either of the two; claiming again (`Transport.claim`) tells which."""


class Features(Struct, frozen=True):
    """What a backend can do, as data. Sizes in bytes."""

    durable: bool
    """A committed commit survives the death of the process and of the machine."""
    groups: bool
    """Many commits may become durable together; submitting several at once is cheaper than one by one."""
    exact_forwarding: bool
    """Forwarded batches arrive with their commit, once and in order; otherwise later, at least once, in any order."""
    largest_event: int
    largest_batch: int
    largest_commit: int
    """Of all that a commit holds: head, batches, rows."""
    best_commit: int
    """The commit size at which the backend is most efficient."""
    drops: bool
    """Single batches above the trim point can go (`Transport.trim`). Else such a batch stays until the log is trimmed,
    and is read again and passed over."""


Rows = Sequence[tuple[bytes, bytes | None]]
"""Writes to one table: (key, value). Value None removes the row; removing a missing row is no error."""


class Send(Struct, frozen=True):
    """A batch for the log of ``target``, which may be the committing partition itself.

    ``events`` is what `Arrival` reports."""

    target: PartitionId
    batch: bytes
    events: int


class ObjectWrites(Struct, frozen=True):
    """Objects that are written, each whatever is there, in this order. ``home``: the partition with their rows."""

    home: PartitionId
    writes: Sequence[ObjectWrite]


class Commit(Struct, frozen=True):
    """One atomic step of one partition: its head, its rows, and what it sends. Of no log does it take anything away.

    ``number`` is dense within (partition, term), from 1. ``head`` replaces the partition's committed head.
    """

    partition: PartitionId
    term: int
    number: int
    head: bytes
    sends: Sequence[Send] = ()
    rows: Sequence[tuple[Table, Rows]] = ()
    rows_size: int = -1
    """Bytes of the rows, if that is known: they may be a million."""
    objects: ObjectWrites | None = None
    """What a handler has written: seen from this commit on, by everybody."""


def size_of(commit: Commit) -> int:
    """Bytes of all that it holds."""
    rows = commit.rows_size
    if rows < 0:
        rows = sum(len(key) + len(value or b"") for _, rows in commit.rows for key, value in rows)
    objects = 0 if commit.objects is None else sum(write.weight for write in commit.objects.writes)
    return len(commit.head) + sum(len(send.batch) for send in commit.sends) + rows + objects


class Claim(Struct, frozen=True):
    """What ``claim`` found. ``number`` is the last commit of the *previous* term that counts; ``head`` is its head,
    empty for a partition that never committed. ``tail``: the position behind the last batch that its log had; what is
    there from ``tail`` on is told by `Callbacks.arrived`, and nothing below."""

    term: int
    number: int
    head: bytes
    tail: int = 0


class Stored(Struct, frozen=True):
    """A batch of a log. Positions grow; they are dense only where nothing was dropped. ``known``: these are the very
    bytes that were submitted, never out of memory since, so their checksum need not be looked at."""

    position: int
    batch: bytes
    known: bool = False


class Arrival(Struct, frozen=True):
    """Batches became readable in ``partition``'s log: ``events`` in ``batches`` batches of ``size`` bytes."""

    partition: PartitionId
    batches: int
    events: int
    size: int


class Transport(ABC):
    """All methods are called from the engine's thread. ``claim``, ``commit`` and ``trim`` never block; the others read
    what this transport has at hand, which may be a disk.

    A transport is constructed with four callbacks (see `Callbacks`), all called on the engine's thread.
    """

    features: Features

    @abstractmethod
    def claim(self, partitions: Sequence[PartitionId]) -> None:
        """Submit: become the owner of each: fences every earlier owner, settles what was unknown, finds the head. What
        was found comes through ``Callbacks.claimed``, and is durable then. It is cheaper to claim many at once.

        Idempotent in effect: claiming again gives the next term; a gap says that somebody else was the owner between.
        An earlier commit that was reported ``committed`` is included, one that was ``fenced`` is not, one that was
        ``unknown`` is or is not. What can be read of the partition is as its head says from then on. Batches that an
        earlier owner committed but did not forward any more are forwarded now.
        """

    @abstractmethod
    def commit(self, commit: Commit) -> None:
        """Submit; the outcome comes through ``Callbacks.done``. Commits of one partition are submitted one after the
        other, the next only when the outcome of the last is known. The same bytes may be submitted again after
        ``unknown`` or ``committed``; they take effect once. A lower term is ``fenced``. Within a commit, sends come
        first, then rows in their order.

        Raises:
            ValueError: a mistake of the caller: a partition or term not claimed here, a number that is not the next,
                other content under the number of the last commit.
            TooLarge: a batch or the commit is larger than `Features` allows.

        Batches in ``sends`` reach their logs with the commit or later, at least once (`Features.exact_forwarding`).
        """

    @abstractmethod
    def trim(self, log: PartitionId, position: int, drops: Sequence[int] = ()) -> None:
        """A hint by whoever reads ``log``: nothing below ``position`` is needed any more, nor the single batches at
        ``drops`` above it (`Features.drops`). It is given once a head that says so is durable, and never beyond what
        was read. No claim of the log is needed.

        Takes effect later, in no order with commits, without an answer, or never: a crash loses it, so it is given
        again at a start. A transport does not let hints pile up without bound, and makes no commit wait for them.
        After `close` it does nothing.
        """

    @abstractmethod
    def read(self, log: PartitionId, after: int, max_bytes: int) -> list[Stored]:
        """Committed batches of ``log`` at positions >= ``after``, in order; at least one if there is any, then as many
        as fit in ``max_bytes``. Positions start at 0 and are never used again, even when the log is emptied.

        Raises:
            Corrupt: the store is damaged. (The batch's own checksum is the reader's to check, unless it is `known`.)
        """

    @abstractmethod
    def waiting(self, log: PartitionId, after: int, before: int | None = None) -> Arrival:
        """How much there is to `read` from ``after`` on, below ``before``. Cost: a step per batch; meant for the start.

        Raises:
            Corrupt: the store is damaged.
        """

    @abstractmethod
    def get(self, partition: PartitionId, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of committed rows, None where there is none. Reads what has been committed, never what is pending.

        Raises:
            Corrupt: a row fails its checksum.
        """

    @abstractmethod
    def scan(
        self, partition: PartitionId, table: Table, after: bytes, limit: int, before: bytes | None = None
    ) -> list[tuple[bytes, bytes]]:
        """Committed rows with ``after`` <= key (< ``before``), in key order, at most ``limit``.

        Raises:
            Corrupt: a row fails its checksum.
        """

    @abstractmethod
    def close(self) -> None:
        """Finish or abandon what was submitted, release everything. Idempotent. No callback comes afterwards, also
        when called from within one."""

    @abstractmethod
    def write_objects(
        self,
        home: PartitionId,
        writes: Sequence[tuple[ObjectWrite, Wanted]],
        then: Callable[[Sequence[Done]], None],
    ) -> None:
        """Submit: writes that no commit has, of clients, each if what it wants is so, looked at when it is its turn.
        ``then`` is called on the engine's thread when they are durable. Never blocks.
        """

    @abstractmethod
    def drop_blobs(self, home: PartitionId, digests: Sequence[bytes], then: Callable[[Sequence[bytes]], None]) -> None:
        """Submit: forget the rows of blobs that no object has. ``then`` gets those of which that was so."""

    def room(self) -> int:
        """Bytes that may still be committed before the backend is full; a bound from below, cheap."""
        return 1 << 62


class Callbacks(Struct, frozen=True):
    """How a transport answers. Always on the engine's thread, never from within a call of the engine.

    ``done``: the outcomes of commits, in the order in which they were submitted per partition.
    ``arrived``: new batches can be read. For a commit's own sends never before its ``done``.
    ``failed``: the backend cannot go on (disk full, I/O error, damage found by a claim); nothing is committed or
    claimed after it, no ``done`` or ``claimed`` follows. What was submitted and not answered has no effect or all of
    it; committed data can still be read where possible.
    ``claimed``: what claims found; those of one partition in the order in which they were submitted, and behind the
    outcomes of its commits that were submitted before. After it ``arrived`` tells of exactly the batches of its log
    from `Claim.tail` on.
    """

    done: Callable[[list[tuple[Commit, Outcome]]], None]
    arrived: Callable[[list[Arrival]], None]
    failed: Callable[[BaseException], None]
    claimed: Callable[[list[tuple[PartitionId, Claim]]], None]


Post = Callable[[Callable[[], None]], object]
"""Runs a function on the engine's thread, later; callable from any thread (``loop.call_soon_threadsafe``)."""


class CommittedHead(NamedTuple):
    """The head of a partition as it lies there: ``number`` commits were made in ``term``."""

    term: int
    number: int
    head: bytes


class AtRest(Protocol):
    """What is committed in a directory, as tools read it: partition by partition, without claiming any.

    Methods are those of `Transport`. All of them raise Corrupt if what they read is damaged.
    """

    directory: Path

    def head(self, partition: PartitionId) -> CommittedHead | None:
        """None: it never was claimed."""

    def ends(self, log: PartitionId) -> tuple[int, int]:
        """Everything below the first position is gone, the next batch gets the second."""

    def read(self, log: PartitionId, after: int, max_bytes: int) -> list[Stored]: ...

    def get(self, partition: PartitionId, table: Table, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(
        self, partition: PartitionId, table: Table, after: bytes, limit: int, before: bytes | None = None
    ) -> list[tuple[bytes, bytes]]: ...

    def close(self) -> None: ...


class DirectoryTransport(Transport):
    """One that keeps everything in a directory of this machine, which one process at a time has open."""

    @classmethod
    @abstractmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        callbacks: Callbacks,
        post: Post,
        *,
        soon: Post | None = None,
        max_size: int | None = None,
    ) -> Self:
        """
        Args:
            directory: made if it does not exist.
            post: runs a function on the engine's thread, from any.
            soon: the same from that thread, when what it is doing is done; None: there is no such thing.
            max_size: bytes that it may grow to; None: as many as usual.

        Raises:
            InUse: another process has it open; names its pid and host.
            UsageError: it is of another format, or no data directory.
            Corrupt: the data is damaged.
            StorageFailed: the disk refused.
        """

    @property
    @abstractmethod
    def at_rest(self) -> AtRest:
        """What is committed; open as long as the transport is."""


class Submissions:
    """What one transport has claimed and taken in; refuses what `Transport.commit` calls the caller's mistakes."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._terms: dict[PartitionId, int] = {}
        self._last: dict[PartitionId, tuple[int, int, tuple[object, ...]]] = {}

    def claimed(self, partition: PartitionId, term: int) -> None:
        self._terms[partition] = term

    def check(self, commit: Commit) -> int:
        """Remember ``commit`` as submitted; returns how many bytes it holds.

        Raises:
            ValueError, TooLarge: as `Transport.commit`.
        """
        size = self._check_size(commit)
        partition, term, number = commit.partition, commit.term, commit.number
        current = self._terms.get(partition, 0)
        if not 0 < term <= current:
            raise ValueError(f"partition {partition} was not claimed here with term {term}, but {current}")
        if term < current:
            return size  # an old owner's; it will be fenced
        before, last, content = self._last.get(partition, (0, 0, ()))
        if before != term:
            last = 0
        fingerprint = self._fingerprint(commit)
        if number == last and last > 0:
            if content != fingerprint:
                raise ValueError(f"commit {number} of {partition} was submitted before with other content")
        elif number != last + 1:
            raise ValueError(f"commit {number} of {partition} comes after commit {last}")
        self._last[partition] = (term, number, fingerprint)
        return size

    def _check_size(self, commit: Commit) -> int:
        for send in commit.sends:
            if len(send.batch) > self._features.largest_batch:
                raise TooLarge(f"a batch of {len(send.batch)} bytes; the limit is {self._features.largest_batch}")
        if (size := size_of(commit)) > self._features.largest_commit:
            raise TooLarge(f"a commit of {size} bytes; the limit is {self._features.largest_commit}")
        return size

    @staticmethod
    def _fingerprint(commit: Commit) -> tuple[object, ...]:
        # Tells most other contents apart without reading all of it twice.
        return (
            crc32(commit.head),
            [(send.target, len(send.batch), crc32(send.batch[:64])) for send in commit.sends],
            [(table, len(rows)) for table, rows in commit.rows],
            None if commit.objects is None else [(each.place, each.checksum) for each in commit.objects.writes],
        )
