"""A transport without a disk: plain first-in first-out, or weak on purpose.

What is committed lives in a `MemoryBroker`, which outlives the transports of killed engines; several transports may
compete for its partitions. Nothing happens by itself: whoever drives the transport calls `MemoryTransport.step` or
`pump`, and only there callbacks run (with ``post`` given, the transport asks for its own pumping).

With a seed the broker is the *weak* model of every message passing layer to come: commits end unknown with either
effect, take effect late, or are lost; batches for other partitions arrive later, twice, in any order; trims come late
or never. Equal seeds and equal calls give equal runs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Final, Literal, NamedTuple

from msgspec import Struct, structs

from grape.abc.transport import (
    Arrival,
    Callbacks,
    Claim,
    Commit,
    Features,
    Outcome,
    Rows,
    Send,
    Stored,
    Submissions,
    Table,
    Transport,
)
from grape.errors import StorageFailed
from grape.model.address import PartitionId
from grape.model.objects import Done, ObjectTable, ObjectWrite, Wanted, apply, apply_all, is_unused

MIB: Final = 1 << 20

Fault = Literal[
    "lose",
    "unknown",
    "late",
    "storage",
    "duplicate",
    "kill-before-commit",
    "kill-after-commit",
    "kill-before-forward",
    "kill-after-forward",
]
"""What `MemoryTransport.fail_next` can do to the next commit (or forwarded batch).

``lose``: no effect, reported unknown. ``unknown``: takes effect, reported unknown. ``late``: reported unknown, takes
effect later, at the latest with the next claim of its partition (weak: or never). ``storage``: no effect, ``failed`` is
called. ``duplicate``: the batch arrives twice. ``kill-...``: the transport dies there (`MemoryTransport.dead`): before
the commit takes effect; after it, before it is reported; after the report, before a batch of it is forwarded; after
that, before it is marked as forwarded.
"""


class Weakness(Struct, frozen=True):
    """How often, as probabilities, a weak broker does what it should not."""

    lose: float = 0.05
    unknown: float = 0.05
    late: float = 0.05
    duplicate: float = 0.1
    forget: float = 0.1
    """A trim is lost."""


class _Table:
    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.order: list[bytes] | None = None

    def write(self, rows: Rows) -> None:
        for key, value in rows:
            if value is None:
                if self.rows.pop(key, None) is not None:
                    self.order = None
            else:
                if key not in self.rows:
                    self.order = None
                self.rows[key] = bytes(value)

    def keys(self) -> list[bytes]:
        if self.order is None:
            self.order = sorted(self.rows)
        return self.order


class _ObjectRows:
    def __init__(self, tables: dict[tuple[PartitionId, Table], _Table], home: PartitionId) -> None:
        self._tables = tables
        self._home = home

    def _table(self, table: ObjectTable) -> _Table:
        found = self._tables.get((self._home, table))
        if found is None:
            found = self._tables[self._home, table] = _Table()
        return found

    def get(self, table: ObjectTable, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return [*map(self._table(table).rows.get, keys)]

    def put(self, table: ObjectTable, rows: Mapping[bytes, bytes | None]) -> None:
        self._table(table).write(list(rows.items()))

    def first(self, table: ObjectTable, begin: bytes) -> bytes | None:
        keys = self._table(table).keys()
        at = bisect_left(keys, begin)
        return keys[at] if at < len(keys) else None


class _Log:
    def __init__(self) -> None:
        self.trim = 0
        self.tail = 0
        self.batches: dict[int, Send] = {}

    def append(self, send: Send) -> None:
        self.batches[self.tail] = send
        self.tail += 1

    def trim_to(self, position: int) -> None:
        position = min(position, self.tail)
        for p in range(self.trim, position):
            self.batches.pop(p, None)
        self.trim = max(self.trim, position)


class _Trim(NamedTuple):
    by: MemoryTransport
    log: PartitionId
    position: int
    drops: Sequence[int]


_SendId = tuple[PartitionId, int, int, int]
"""Committing partition, term, number, index within the commit."""


class _Partition:
    def __init__(self) -> None:
        self.term = 0
        self.number = 0
        self.head = b""
        self.outbox: dict[_SendId, Send] = {}


class _Report(NamedTuple):
    commit: Commit
    outcome: Outcome


class MemoryBroker:
    """What is committed, and what is under way. Engines come and go.

    Args:
        seed: of the weak model; None is plain.
        weakness: how weak, with a seed.
        largest_commit: bytes that one holds.
        forward_later: without a seed: batches for other partitions arrive in steps of their own after the commit (in
            order, once), so that an engine can be killed in between. With a seed they always do.
        drops: as of `Features`.
    """

    def __init__(
        self,
        seed: int | None = None,
        weakness: Weakness | None = None,
        *,
        forward_later: bool = False,
        largest_commit: int = 256 * MIB,
        drops: bool = True,
    ) -> None:
        self.random = None if seed is None else Random(seed)
        self.weakness = weakness or Weakness()
        self.forward_later = forward_later or seed is not None
        self.features = Features(
            durable=False,
            groups=False,
            exact_forwarding=not self.forward_later,
            largest_event=min(8 * MIB, largest_commit // 4),
            largest_batch=min(16 * MIB, largest_commit // 2),
            largest_commit=largest_commit,
            best_commit=min(MIB, largest_commit),
            drops=drops,
        )
        self._partitions: dict[PartitionId, _Partition] = {}
        self._logs: dict[PartitionId, _Log] = {}
        self._tables: dict[tuple[PartitionId, Table], _Table] = {}
        self._transports: list[MemoryTransport] = []
        self._late: list[tuple[MemoryTransport, Commit]] = []
        self._ghosts: list[Send] = []
        self._trims: list[_Trim] = []

    def chance(self, probability: float) -> bool:
        return self.random is not None and self.random.random() < probability

    def _partition(self, partition: PartitionId) -> _Partition:
        found = self._partitions.get(partition)
        if found is None:
            found = self._partitions[partition] = _Partition()
        return found

    def _log(self, log: PartitionId) -> _Log:
        found = self._logs.get(log)
        if found is None:
            found = self._logs[log] = _Log()
        return found

    def _apply(self, commit: Commit, by: MemoryTransport) -> Outcome:
        partition = self._partition(commit.partition)
        if commit.term != partition.term or commit.number < partition.number:
            return "fenced"
        if commit.number == partition.number:
            return "committed"
        for i, send in enumerate(commit.sends):
            if self.forward_later and send.target != commit.partition:
                partition.outbox[(commit.partition, commit.term, commit.number, i)] = send
            else:
                self._deliver(send, but=by)
        for table, rows in commit.rows:
            key = (commit.partition, table)
            if key not in self._tables:
                self._tables[key] = _Table()
            self._tables[key].write(rows)
        if commit.objects is not None:
            apply_all(_ObjectRows(self._tables, commit.objects.home), commit.objects.writes)
        partition.number = commit.number
        partition.head = commit.head
        return "committed"

    def _deliver(self, send: Send, but: MemoryTransport | None = None) -> None:
        self._log(send.target).append(send)
        for transport in self._transports:
            if transport is not but:
                transport._notice(send)

    def _apply_late(self, i: int) -> None:
        by, commit = self._late.pop(i)
        self._apply(commit, by)

    def _apply_trim(self, i: int) -> None:
        trim = self._trims.pop(i)
        if self.chance(self.weakness.forget):
            return
        log = self._log(trim.log)
        log.trim_to(trim.position)
        for position in trim.drops if self.features.drops else ():
            log.batches.pop(position, None)

    def _settle(self, partition: PartitionId) -> None:
        """Before a claim: what is under way takes effect now, or never will."""
        ours = [i for i, (_, commit) in enumerate(self._late) if commit.partition == partition]
        for i in reversed(ours):
            by, commit = self._late.pop(i)
            if self.random is None or self.chance(0.5):
                self._apply(commit, by)


def _summed(arrivals: Iterable[Arrival]) -> list[Arrival]:
    sums: dict[PartitionId, Arrival] = {}
    for a in arrivals:
        b = sums.get(a.partition)
        sums[a.partition] = (
            a if b is None else Arrival(a.partition, a.batches + b.batches, a.events + b.events, a.size + b.size)
        )
    return list(sums.values())


def _told_to_fail() -> StorageFailed:
    return StorageFailed("the memory transport was told to fail")


class MemoryTransport(Transport):
    """One engine's connection to a `MemoryBroker`.

    Args:
        callbacks: called from within `step` and `pump` only.
        broker: None makes a plain one.
        post: if given, `pump` is posted through it whenever there is something to do (an event loop's ``call_soon``).
    """

    def __init__(
        self,
        callbacks: Callbacks,
        broker: MemoryBroker | None = None,
        post: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self.broker = broker or MemoryBroker()
        self.features = self.broker.features
        self.dead = False
        self._callbacks = callbacks
        self._post = post
        self._posted = False
        self._pumping = False
        self._failed = False
        self._submissions = Submissions(self.features)
        self._queue: deque[Commit] = deque()
        self._claims: deque[PartitionId] = deque()
        self._claimed: deque[tuple[PartitionId, Claim]] = deque()
        self._reports: deque[_Report] = deque()
        self._forwards: deque[tuple[_SendId, Send]] = deque()
        self._marks: deque[_SendId] = deque()
        self._arrivals: deque[Arrival] = deque()
        self._direct: deque[Callable[[], None]] = deque()
        self._announced: dict[PartitionId, tuple[int, int]] = {}
        self._faults: list[Fault] = []
        self.broker._transports.append(self)

    # What the engine calls

    def claim(self, partitions: Sequence[PartitionId]) -> None:
        if self.dead or self._failed:
            return
        self._claims += partitions
        self._wake()

    def commit(self, commit: Commit) -> None:
        if self.dead or self._failed:
            return
        self._submissions.check(commit)
        self._queue.append(commit)
        self._wake()

    def write_objects(
        self,
        home: PartitionId,
        writes: Sequence[tuple[ObjectWrite, Wanted]],
        then: Callable[[Sequence[Done]], None],
    ) -> None:
        rows = _ObjectRows(self.broker._tables, home)
        self._directly(lambda: then([apply(rows, write, wanted) for write, wanted in writes]))

    def drop_blobs(self, home: PartitionId, digests: Sequence[bytes], then: Callable[[Sequence[bytes]], None]) -> None:
        rows = _ObjectRows(self.broker._tables, home)

        def drop() -> None:
            counts = zip(digests, rows.get("blob", digests), strict=True)
            unused = [each for each, row in counts if row is not None and is_unused(row)]
            rows.put("blob", dict.fromkeys(unused))
            then(unused)

        self._directly(drop)

    def _directly(self, do: Callable[[], None]) -> None:
        if not self.dead and not self._failed:
            self._direct.append(do)
            self._wake()

    def trim(self, log: PartitionId, position: int, drops: Sequence[int] = ()) -> None:
        if self.dead or self._failed:
            return
        self.broker._trims.append(_Trim(self, log, position, drops))
        self._wake()

    def read(self, log: PartitionId, after: int, max_bytes: int) -> list[Stored]:
        found = self.broker._log(log)
        batches: list[Stored] = []
        size = 0
        for position in range(max(after, found.trim), found.tail):
            send = found.batches.get(position)
            if send is not None:
                size += len(send.batch)
                if batches and size > max_bytes:
                    break
                batches.append(Stored(position, send.batch))
        return batches

    def waiting(self, log: PartitionId, after: int, before: int | None = None) -> Arrival:
        found = self.broker._log(log)
        before = found.tail if before is None else before
        sends = [send for position, send in found.batches.items() if after <= position < before]
        return Arrival(log, len(sends), sum([s.events for s in sends]), sum([len(s.batch) for s in sends]))

    def get(self, partition: PartitionId, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        found = self.broker._tables.get((partition, table))
        return [None] * len(keys) if found is None else [found.rows.get(key) for key in keys]

    def scan(
        self, partition: PartitionId, table: Table, after: bytes, limit: int, before: bytes | None = None
    ) -> list[tuple[bytes, bytes]]:
        found = self.broker._tables.get((partition, table))
        if found is None or limit <= 0:
            return []
        keys = found.keys()
        start = bisect_left(keys, after)
        end = len(keys) if before is None else bisect_left(keys, before)
        return [(key, found.rows[key]) for key in keys[start : min(end, start + limit)]]

    def close(self) -> None:
        self.kill()

    # What the driver calls

    @property
    def idle(self) -> bool:
        """Nothing is outstanding, neither here nor late or doubled in the broker."""
        return self.outstanding == 0

    @property
    def outstanding(self) -> int:
        """How many single things `step` can do."""
        return sum(self._counts())

    def step(self) -> bool:
        """Do one thing: let a commit take effect, report one, forward, mark or announce a batch, trim. The weak model
        chooses by chance which. A plain broker does with all that is submitted what can be done, in order.

        Returns:
            False if there was nothing to do.
        """
        if self.dead or self._pumping:
            return False
        counts = self._counts()
        total = sum(counts)
        if total == 0:
            return False
        self._pumping = True
        try:
            if not self.broker.forward_later:
                self._plain()
            else:
                n = 0 if self.broker.random is None else self.broker.random.randrange(total)
                what = 0
                while n >= counts[what]:
                    n -= counts[what]
                    what += 1
                (
                    self.broker._apply_trim,
                    self._do_commit,
                    self._do_report,
                    self._do_forward,
                    self._do_mark,
                    self._do_arrival,
                    self.broker._apply_late,
                    self._do_ghost,
                    self._do_claim,
                    self._do_claimed,
                    self._do_direct,
                )[what](n)
        finally:
            self._pumping = False
        return True

    def pump(self, most: int = 1_000_000) -> int:
        """`step` until nothing is left, at most ``most`` times; returns the number of steps."""
        steps = 0
        while steps < most and self.step():
            steps += 1
        return steps

    def kill(self) -> None:
        """The engine is gone: no callback any more. What it had submitted takes effect or not, what is committed but
        not forwarded is forwarded by whoever claims the partition next."""
        if self.dead:
            return
        self.dead = True
        self.broker._transports.remove(self)
        for commit in self._queue:
            if self.broker.chance(0.5):
                self.broker._late.append((self, commit))
        # Of what it has let go of some may still arrive, also behind the claims of whoever comes next.
        self.broker._trims = [t for t in self.broker._trims if t.by is not self or self.broker.chance(0.5)]
        for doomed in (self._queue, self._reports, self._forwards, self._marks, self._arrivals):
            doomed.clear()
        self._claims.clear()
        self._claimed.clear()
        self._direct.clear()

    def fail_next(self, fault: Fault, times: int = 1) -> None:
        """Let ``fault`` happen at the next opportunity.

        Raises:
            ValueError: a fault of forwarding, in a broker that forwards with the commit.
        """
        if fault in ("duplicate", "kill-before-forward", "kill-after-forward") and not self.broker.forward_later:
            raise ValueError(f"{fault!r} needs a broker with forward_later=True or a seed")
        self._faults += [fault] * times

    # Inside

    def _counts(self) -> tuple[int, ...]:  # in the order of the choices in `step`
        if self.dead or self._failed:
            return (0,)
        return (
            len(self.broker._trims),
            len(self._queue),
            len(self._reports),
            len(self._forwards),
            len(self._marks),
            len(self._arrivals),
            len(self.broker._late),
            len(self.broker._ghosts),
            len(self._claims),
            len(self._claimed),
            len(self._direct),
        )

    def _wake(self) -> None:
        if self._post is not None and not self._posted and not self.dead:
            self._posted = True
            self._post(self._run)

    def _run(self) -> None:
        self._posted = False
        self.pump()

    def _faulty(self, *faults: Fault) -> Fault | None:
        for fault in faults:
            if fault in self._faults:
                self._faults.remove(fault)
                return fault
        return None

    def _notice(self, send: Send) -> None:
        self._arrivals.append(Arrival(send.target, 1, send.events, len(send.batch)))
        self._wake()

    def _take_effect(self, commit: Commit) -> Outcome | None:
        """What is to be reported; None if nobody is left to report to."""
        weakness = self.broker.weakness
        fault = self._faulty("kill-before-commit", "storage", "lose", "unknown", "late", "kill-after-commit")
        if fault == "kill-before-commit":
            self.kill()
            return None
        if fault == "storage":
            self._failed = True
            self._queue.clear()
            return None
        if fault == "lose" or (fault is None and self.broker.chance(weakness.lose)):
            return "unknown"
        if fault == "late" or (fault is None and self.broker.chance(weakness.late)):
            self.broker._late.append((self, commit))
            return "unknown"
        outcome = self.broker._apply(commit, self)
        if fault == "kill-after-commit":
            self.kill()
            return None
        if fault == "unknown" or (fault is None and self.broker.chance(weakness.unknown)):
            return "unknown"
        return outcome

    def _announce(self, commit: Commit) -> None:
        """After a commit's first report as committed: its batches are readable, or can be forwarded now."""
        at = (commit.term, commit.number)
        if self._announced.get(commit.partition) == at:
            return
        self._announced[commit.partition] = at
        for i, send in enumerate(commit.sends):
            if self.broker.forward_later and send.target != commit.partition:
                self._forwards.append(((commit.partition, *at, i), send))
            else:
                self._notice(send)

    def _plain(self) -> None:
        commits, self._queue = self._queue, deque()
        while commits and not self.dead and not self._failed:
            commit = commits.popleft()
            outcome = self._take_effect(commit)
            if outcome is not None:
                self._reports.append(_Report(commit, outcome))
        if self.dead:
            return
        reports, self._reports = self._reports, deque()
        for report in reports:
            if report.outcome == "committed":
                self._announce(report.commit)
        claimed = self._claim_all()
        direct, self._direct = self._direct, deque()
        arrivals, self._arrivals = self._arrivals, deque()
        if reports:
            self._callbacks.done([(report.commit, report.outcome) for report in reports])
        if claimed and not self.dead:
            self._callbacks.claimed(claimed)
        for do in direct:
            if not self.dead:
                do()
        while self.broker._late:
            self.broker._apply_late(0)
        while self.broker._trims:
            self.broker._apply_trim(0)
        if arrivals and not self.dead:
            self._callbacks.arrived(_summed(arrivals))
        if self._failed and not self.dead:
            self._callbacks.failed(_told_to_fail())

    def _claim_all(self) -> list[tuple[PartitionId, Claim]]:
        while self._claims and not self._failed:
            self._do_claim(0)
        claimed, self._claimed = self._claimed, deque()
        return [self._now_known(partition, claim) for partition, claim in claimed]

    def _do_claim(self, i: int) -> None:
        """It takes effect; it is reported later."""
        partition = self._claims[i]
        del self._claims[i]
        for commit in [c for c in self._queue if c.partition == partition]:
            self._queue.remove(commit)
            if self.broker.random is None or self.broker.chance(0.5):
                self._reports.append(_Report(commit, self.broker._apply(commit, self)))
            else:
                self._reports.append(_Report(commit, "fenced"))
        self.broker._settle(partition)
        owned = self.broker._partition(partition)
        claim = Claim(owned.term + 1, owned.number, owned.head)
        owned.term, owned.number = claim.term, 0
        self._claimed.append((partition, claim))
        mine = {key for key, _ in self._forwards}
        self._forwards += [(key, send) for key, send in owned.outbox.items() if key not in mine]

    def _do_claimed(self, i: int) -> None:
        partition = self._claimed[i][0]
        for at, report in enumerate(self._reports):
            if report.commit.partition == partition:  # of a commit that was submitted before
                self._do_report(at)
                return
        first = next(claimed for claimed in self._claimed if claimed[0] == partition)
        self._claimed.remove(first)
        self._callbacks.claimed([self._now_known(*first)])

    def _now_known(self, partition: PartitionId, claim: Claim) -> tuple[PartitionId, Claim]:
        """Whoever claimed it gets to know of it; all that its log has until now is not told any more."""
        self._submissions.claimed(partition, claim.term)
        self._arrivals = deque(arrival for arrival in self._arrivals if arrival.partition != partition)
        return partition, structs.replace(claim, tail=self.broker._log(partition).tail)

    def _do_commit(self, i: int) -> None:
        commit = self._queue[i]
        del self._queue[i]
        outcome = self._take_effect(commit)
        if outcome is not None:
            self._reports.append(_Report(commit, outcome))
        elif self._failed:
            self._callbacks.failed(_told_to_fail())

    def _do_direct(self, i: int) -> None:
        self._direct.popleft()()  # in their order

    def _do_report(self, i: int) -> None:
        report = self._reports[i]
        del self._reports[i]
        if report.outcome == "committed":
            self._announce(report.commit)
        self._callbacks.done([(report.commit, report.outcome)])

    def _do_forward(self, i: int) -> None:
        if self._faulty("kill-before-forward"):
            self.kill()
            return
        key, send = self._forwards[i]
        del self._forwards[i]
        if self._faulty("duplicate") or self.broker.chance(self.broker.weakness.duplicate):
            self.broker._ghosts.append(send)
        self.broker._deliver(send)
        if self._faulty("kill-after-forward"):
            self.kill()
            return
        self._marks.append(key)

    def _do_mark(self, i: int) -> None:
        key = self._marks[i]
        del self._marks[i]
        self.broker._partition(key[0]).outbox.pop(key, None)

    def _do_arrival(self, i: int) -> None:
        arrival = self._arrivals[i]
        del self._arrivals[i]
        self._callbacks.arrived([arrival])

    def _do_ghost(self, i: int) -> None:
        self.broker._deliver(self.broker._ghosts.pop(i))
