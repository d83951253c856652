"""What the contract of a transport is tried with: the backend under test, and an engine as a transport sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing

from grape.abc.transport import Arrival, Callbacks, Claim, Commit, Outcome, Rows, Send, Table, Transport
from grape.model.address import PartitionId

P = [PartitionId(1, 1, number) for number in range(8)]
OTHER_POOL = PartitionId(1, 2, 0)
CARRIER = PartitionId(1, 3, 0)
MIB = 1 << 20


class Subject(ABC):
    """The backend under test: one place for data, and any number of transports on it, one after the other."""

    competes: bool = False
    """Several transports may be open on the same data; else the second one is refused with `InUse`."""

    @abstractmethod
    def open(self, callbacks: Callbacks) -> Transport:
        """A transport on the subject's data."""

    @abstractmethod
    def drive(self, transport: Transport, until: Callable[[], bool]) -> None:
        """Let callbacks run, on this thread, until ``until()``.

        Raises:
            AssertionError: it does not come to that (within half a minute, or nothing is outstanding).
        """

    @abstractmethod
    def restart(self) -> None:
        """All processes are gone, transports are closed. What is not durable is lost."""

    @abstractmethod
    def close(self) -> None:
        """Remove the data."""


class Client:
    """An engine, as far as a transport can see: claims, numbers its commits, resends what is unknown."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.answers: list[tuple[Commit, Outcome]] = []
        self.arrivals: list[Arrival] = []
        self.failures: list[BaseException] = []
        self.early: list[Arrival] = []
        """Arrivals of more batches than the reported commits sent there."""
        self.claims: dict[PartitionId, Claim] = {}
        """The last one of each."""
        self.claimed: list[tuple[PartitionId, Claim]] = []
        self.numbers: dict[PartitionId, int] = {}
        self._sent: Counter[PartitionId] = Counter()
        self._arrived_batches: Counter[PartitionId] = Counter()
        self.transport = subject.open(Callbacks(self._done, self._arrived, self.failures.append, self._claimed))

    def _done(self, answers: list[tuple[Commit, Outcome]]) -> None:
        self.answers += answers
        for commit, outcome in answers:
            if outcome == "committed":
                self._sent.update(send.target for send in commit.sends)

    def _arrived(self, arrivals: list[Arrival]) -> None:
        self.arrivals += arrivals
        for arrival in arrivals:
            self._arrived_batches[arrival.partition] += arrival.batches
            if self._arrived_batches[arrival.partition] > self._sent[arrival.partition]:
                self.early.append(arrival)

    def _claimed(self, claims: list[tuple[PartitionId, Claim]]) -> None:
        self.claimed += claims
        for partition, claim in claims:
            self.claims[partition], self.numbers[partition] = claim, 0

    def claim(self, *partitions: PartitionId) -> Claim:
        """Claim them with one call, and wait for all; what was found of the first."""
        before = len(self.claimed)
        self.transport.claim(partitions)
        self.drive(lambda: len(self.claimed) - before >= len(partitions))
        assert {partition for partition, _ in self.claimed[before:]} == set(partitions)
        return self.claims[partitions[0]]

    def build(
        self,
        partition: PartitionId,
        *,
        head: bytes = b"head",
        sends: Sequence[Send] = (),
        rows: Sequence[tuple[Table, Rows]] = (),
    ) -> Commit:
        """The next commit of ``partition``."""
        self.numbers[partition] += 1
        term, number = self.claims[partition].term, self.numbers[partition]
        return Commit(partition, term, number, head, sends, rows)

    def submit(self, commit: Commit) -> Outcome:
        """Submit once and wait for the outcome."""
        before = len(self.answers)
        self.transport.commit(commit)
        self.drive(lambda: any(c is commit or c == commit for c, _ in self.answers[before:]))
        return next(outcome for c, outcome in self.answers[before:] if c == commit)

    def settle(self, commit: Commit) -> Outcome:
        """Submit until the outcome is known."""
        for _ in range(1000):
            outcome = self.submit(commit)
            if outcome != "unknown":
                return outcome
        raise AssertionError("a thousand unknown outcomes in a row")

    def commit(
        self,
        partition: PartitionId,
        *,
        head: bytes = b"head",
        sends: Sequence[Send] = (),
        rows: Sequence[tuple[Table, Rows]] = (),
    ) -> None:
        """Build, submit, and expect it to be committed."""
        built = self.build(partition, head=head, sends=sends, rows=rows)
        outcome = self.settle(built)
        assert outcome == "committed", outcome

    def trim(self, log: PartitionId, position: int, drops: Sequence[int] = ()) -> None:
        """Let go of it, over and over, until it is gone. Commits of a partition of its own let time pass."""
        single = set(drops) if self.transport.features.drops else set()
        if CARRIER not in self.claims:
            self.claim(CARRIER)
        for _ in range(1000):
            self.transport.trim(log, position, drops)
            self.commit(CARRIER)
            if not any(at < position or at in single for at in self.positions(log)):
                return
        raise AssertionError(f"log {log} is not trimmed to {position} after a thousand commits")

    def drive(self, until: Callable[[], bool]) -> None:
        self.subject.drive(self.transport, until)

    def log(self, partition: PartitionId, after: int = 0) -> list[bytes]:
        return [stored.batch for stored in self.transport.read(partition, after, 1 << 40)]

    def positions(self, partition: PartitionId, after: int = 0) -> list[int]:
        return [stored.position for stored in self.transport.read(partition, after, 1 << 40)]

    def row(self, partition: PartitionId, table: Table, key: bytes) -> bytes | None:
        return self.transport.get(partition, table, [key])[0]

    def arrived_in(self, log: PartitionId) -> int:
        """Batches of which it was told."""
        return sum(a.batches for a in self.arrivals if a.partition == log)

    def close(self) -> None:
        self.transport.close()


class Contract(ABC):
    """A part of `grape.testing.contracts.transport.TransportContract`."""

    @abstractmethod
    def subject(self) -> Subject:
        """A new backend without data."""

    def _alone(self, test: Callable[[Client, Subject], None]) -> None:
        with closing(self.subject()) as subject, closing(Client(subject)) as client:
            test(client, subject)
            assert not client.failures, client.failures


def refused(error: type[Exception], call: Callable[[], object]) -> Exception:
    try:
        call()
    except error as e:
        return e
    raise AssertionError(f"{error.__name__} was not raised")
