"""A commit that the transport refuses changes nothing, and belongs to its caller."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from grape import Context, Event, Node, State, Topology
from grape.abc.transport import Callbacks, Claim, Commit, Send
from grape.engine.clock import FakeClock
from grape.engine.committer import Committer, Fenced
from grape.errors import TooLarge
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.cursor import Progress
from grape.testing.machine import Machine
from grape.transports.memory import MemoryBroker, MemoryTransport

_NOBODY = codec.Context()
HOME, THERE = PartitionId(1, 1, 0), PartitionId(1, 1, 1)


def test_a_refused_commit_leaves_the_committer_as_it_was() -> None:
    done: list[str] = []
    claims: list[tuple[PartitionId, Claim]] = []
    transport = MemoryTransport(
        Callbacks(lambda outcomes: [committer.done(*o) for o in outcomes], print, print, claims.extend)
    )
    transport.claim([HOME])
    transport.pump()
    committer = Committer(transport, HOME, "it", claims.pop()[1])
    too_large = Send(THERE, bytes(transport.features.largest_batch + 1), 1)
    with pytest.raises(TooLarge):
        committer.submit(b"never", [too_large], then=lambda: done.append("never"))
    assert not committer.is_busy
    committer.submit(b"head", then=lambda: done.append("second"))
    while transport.step():
        pass
    assert done == ["second"]
    transport.claim([HOME])
    transport.pump()
    assert [claim.head for _, claim in claims] == [b"head"]


class Lost:
    """A transport whose commits and claims are answered by the test; ``counts``: a commit has an effect, whatever is
    said of it."""

    features = MemoryBroker().features

    def __init__(self, counts: bool) -> None:
        self.submitted: list[Commit] = []
        self.counts = counts
        self.claims = 1
        self.head = b""
        self.number = 0

    def claim(self, partitions: list[PartitionId]) -> None:
        assert partitions == [HOME]
        self.claims += 1

    def answer(self) -> Claim:
        """To the last claim."""
        claim = Claim(self.claims, self.number, self.head)
        self.number = 0
        return claim

    def commit(self, commit: Commit) -> None:
        self.submitted.append(commit)
        if self.counts:
            self.number, self.head = commit.number, commit.head


def submitted(counts: bool) -> tuple[Lost, Committer, list[Any]]:
    """A committer whose second commit is under way, and what it says of it."""
    transport, said = Lost(counts=True), list[Any]()
    committer = Committer(transport, HOME, "partition main/0", Claim(1, 0, b""))  # type: ignore[arg-type]
    committer.reclaimed = lambda claim: said.append(claim.head)
    committer.submit(b"first", then=lambda: None)
    committer.done(transport.submitted[0], "committed")
    transport.counts = counts
    committer.submit(b"second", then=lambda: said.append("done"))
    assert [commit.number for commit in transport.submitted] == [1, 2]
    return transport, committer, said


def test_a_commit_of_unknown_outcome_that_counts_is_done() -> None:
    transport, committer, said = submitted(counts=True)
    committer.done(transport.submitted[-1], "unknown")
    assert committer.is_busy
    committer.claimed(transport.answer())
    assert said == [b"second", "done"]
    assert not committer.is_busy
    committer.submit(b"third", then=lambda: None)
    assert (transport.submitted[-1].term, transport.submitted[-1].number) == (2, 1)  # of the new term


def test_one_that_does_not_is_submitted_once_more() -> None:
    transport, committer, said = submitted(counts=False)
    lost = transport.submitted[-1]
    committer.done(lost, "unknown")
    committer.claimed(transport.answer())
    again = transport.submitted[-1]
    assert said == [b"first"]
    assert committer.is_busy
    assert (len(transport.submitted), again.term, again.number, again.head) == (3, 2, 1, b"second")
    committer.done(lost, "committed")  # of a commit that is not under way nothing is heard
    assert said == [b"first"]
    committer.done(again, "committed")
    assert said == [b"first", "done"]
    committer.done(again, "committed")
    assert said == [b"first", "done"]
    committer.submit(b"third", then=lambda: None)
    assert transport.submitted[-1].number == 2


def test_one_that_another_engine_has_fenced_is_an_error_that_names_the_partition() -> None:
    transport, committer, said = submitted(counts=False)
    with pytest.raises(Fenced, match="partition main/0 was taken over by another engine"):
        committer.done(transport.submitted[-1], "fenced")
    assert said == []


class Add(Node):
    total = State(int, default=0)

    def process(self, event: Event) -> None:
        self.total += event.data


def adding() -> Topology:
    t = Topology("adding")
    t.add_slot("add", Add())
    return t


def test_a_partition_whose_commit_is_refused_goes_on_with_its_draft() -> None:
    machine = Machine(adding, FakeClock(), MemoryBroker(), partitions=1)
    partition = machine.engine.partition("main", 0)
    now = machine.clock.now()
    largest = machine.transport.features.largest_commit
    machine.transport.features = msgspec.structs.replace(machine.transport.features, largest_commit=10)
    machine.transport._submissions._features = machine.transport.features
    partition.memory.take_in("main", 0, "add", "k", msgspec.msgpack.encode(5), "", _NOBODY, now)
    with pytest.raises(TooLarge):
        partition.flush()
    assert not partition.quiet
    machine.transport._submissions._features = msgspec.structs.replace(
        machine.transport.features, largest_commit=largest
    )
    partition.flush()
    while moves := machine.moves():
        moves[0]()
    rows = machine.transport.scan(partition.id, "state", b"", 10)
    assert [msgspec.msgpack.decode(value) for _, value in rows] == [{"total": 5}]
    machine.stop()


def test_timers_that_are_due_together_are_bounded_by_their_size() -> None:
    sizes: list[int] = []

    def build() -> Topology:
        t = Topology("timers")
        t.add_output("rung")

        @t.slot("start")
        def start(n: int, context: Context) -> None:
            for _ in range(n):
                context.emit("rung", "x" * 1_000_000, delay=1)

        return t

    machine = Machine(build, FakeClock(), MemoryBroker(), partitions=1)
    submit = machine.transport.commit

    def commit(c: object) -> None:
        sizes.append(sum(len(send.batch) for send in c.sends))  # type: ignore[attr-defined]
        submit(c)  # type: ignore[arg-type]

    machine.transport.commit = commit  # type: ignore[method-assign]
    machine.add("start", 30)
    for _ in range(10):
        while moves := machine.moves():
            moves[0]()
        machine.clock.advance_to(machine.clock.now() + 1_000_000)
        machine.tick()
    assert len(machine.outputs["rung"].committed) == 30
    assert max(sizes) < 6_000_000
    machine.stop()


@pytest.mark.parametrize("drops", [True, False])
def test_what_is_finished_behind_what_is_not_counts_no_more_also_if_it_stays_in_the_log(drops: bool) -> None:
    """After an outcome that was unknown, and at the next start."""
    broker = MemoryBroker(drops=drops)
    machine = Machine(adding, FakeClock(), broker, partitions=1)
    for n in (1, 10, 100):
        machine.add("add", n, "k")
        while not machine.feed.is_busy:
            machine._feed()
        machine.transport.pump()
    partition = machine.engine.partition("main", 0)
    stored = machine.transport.read(partition.id, 0, 1 << 20)
    size = len(stored[0].batch) + len(stored[2].batch)
    assert partition.make_work(machine.clock.now()) is not None
    partition.backlog.progress(1, Progress(1))
    machine.transport.fail_next("unknown")
    partition.flush()
    machine.transport.pump()
    assert partition.settled
    assert (partition.backlog.events, partition.backlog.size) == (2, size)
    positions = [0, 2] if drops else [0, 1, 2]
    assert [one.position for one in machine.transport.read(partition.id, 0, 1 << 20)] == positions
    machine.stop()
    machine.start()
    partition = machine.engine.partition("main", 0)
    assert (partition.backlog.events, partition.backlog.size) == (2, size)
    while moves := machine.moves():
        moves[0]()
    rows = machine.transport.scan(partition.id, "state", b"", 10)
    assert [msgspec.msgpack.decode(value) for _, value in rows] == [{"total": 101}]
    assert (machine.app.backlog_events, machine.app.backlog_bytes) == (0, 0)
    assert machine.transport.read(partition.id, 0, 1 << 20) == []
    machine.stop()
