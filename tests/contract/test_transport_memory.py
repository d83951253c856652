"""The memory transport against the contract: plain, forwarding later, and weak with many seeds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grape.abc.transport import TABLES, Arrival, Callbacks, Claim, Commit, Outcome, Send, Transport
from grape.errors import StorageFailed
from grape.model.address import PartitionId
from grape.testing.contracts.client import Client, P, Subject
from grape.testing.contracts.transport import Operation, TransportContract, follow
from grape.transports.memory import Fault, MemoryBroker, MemoryTransport, Weakness


class MemorySubject(Subject):
    competes = True

    def __init__(self, make: Callable[[], MemoryBroker]) -> None:
        self.make = make
        self.broker = make()

    def open(self, callbacks: Callbacks) -> MemoryTransport:
        return MemoryTransport(callbacks, self.broker)

    def drive(self, transport: Transport, until: Callable[[], bool]) -> None:
        assert isinstance(transport, MemoryTransport)
        while not until():
            assert transport.step(), "nothing is outstanding"

    def restart(self) -> None:
        self.broker = self.make()

    def close(self) -> None:
        pass


class TestPlain(TransportContract):
    def subject(self) -> Subject:
        return MemorySubject(MemoryBroker)


class TestForwardingLater(TransportContract):
    def subject(self) -> Subject:
        return MemorySubject(lambda: MemoryBroker(forward_later=True))


class TestWithoutDrops(TransportContract):
    def subject(self) -> Subject:
        return MemorySubject(lambda: MemoryBroker(drops=False))


class TestWeakWithoutDrops(TransportContract):
    def subject(self) -> Subject:
        return MemorySubject(lambda: MemoryBroker(4, drops=False))


class _Weak(TransportContract):
    seed = 0
    weakness = Weakness()

    def subject(self) -> Subject:
        return MemorySubject(lambda: MemoryBroker(self.seed, self.weakness))


class TestWeak1(_Weak):
    seed = 1


class TestWeak2(_Weak):
    seed = 2


class TestVeryWeak(_Weak):
    seed = 3
    weakness = Weakness(lose=0.25, unknown=0.25, late=0.25, duplicate=0.5)


keys = st.sampled_from([b"", b"a", b"b", b"k" * 489, b"k" * 490, b"k" * 600, b"k" * 599 + b"z"])
operations = st.lists(
    st.builds(
        Operation,
        st.sampled_from(["commit", "commit", "commit", "claim", "reopen"]),
        st.integers(0, 2),
        st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=20)), max_size=3),
        st.lists(st.tuples(st.sampled_from(TABLES), keys, st.none() | st.binary(max_size=20)), max_size=4),
        st.none() | st.integers(0, 4),
        st.lists(st.integers(0, 5), max_size=2),
    ),
    max_size=20,
)


@settings(deadline=None, max_examples=60)
@given(operations)
def test_agrees_with_a_model(walk: list[Operation]) -> None:
    with closing(MemorySubject(MemoryBroker)) as subject:
        follow(subject, walk)


@settings(deadline=None, max_examples=60)
@given(operations, st.integers(0, 1 << 32))
def test_weak_agrees_with_a_model(walk: list[Operation], seed: int) -> None:
    with closing(MemorySubject(lambda: MemoryBroker(seed))) as subject:
        follow(subject, walk)


def _one_send(broker: MemoryBroker, fault: Fault) -> tuple[Client, Commit]:
    client = Client(MemorySubject(lambda: broker))
    client.claim(P[0])
    commit = client.build(P[0], head=b"sent", sends=[Send(P[1], b"x", 1)], rows=[("state", [(b"k", b"v")])])
    assert isinstance(client.transport, MemoryTransport)
    client.transport.fail_next(fault)
    client.transport.commit(commit)
    client.transport.pump()
    return client, commit


@pytest.mark.parametrize("fault", ["kill-after-commit", "kill-before-forward"])
def test_f8_killed_after_the_commit_and_before_the_forward(fault: Fault) -> None:
    """F8: what is committed is forwarded by the next owner, here exactly once."""
    broker = MemoryBroker(forward_later=True)
    client, _ = _one_send(broker, fault)
    assert isinstance(client.transport, MemoryTransport)
    assert client.transport.dead
    assert client.log(P[1]) == []
    assert [outcome for _, outcome in client.answers] == (["committed"] if fault == "kill-before-forward" else [])
    heir = Client(MemorySubject(lambda: broker))
    claim = heir.claim(P[0])
    assert (claim.number, claim.head) == (1, b"sent")
    heir.drive(lambda: heir.log(P[1]) == [b"x"])
    assert isinstance(heir.transport, MemoryTransport)
    heir.transport.pump()
    heir.claim(P[0])
    heir.transport.pump()
    assert heir.log(P[1]) == [b"x"]


def test_f9_killed_after_the_forward_and_before_the_mark() -> None:
    """F9: the next owner cannot know and forwards a second time; receivers have to see that."""
    broker = MemoryBroker(forward_later=True)
    client, _ = _one_send(broker, "kill-after-forward")
    assert client.log(P[1]) == [b"x"]
    heir = Client(MemorySubject(lambda: broker))
    heir.claim(P[0])
    assert isinstance(heir.transport, MemoryTransport)
    heir.transport.pump()
    assert heir.log(P[1]) == [b"x", b"x"]


def test_f6_killed_before_the_commit() -> None:
    """F6: no effect at all."""
    broker = MemoryBroker(forward_later=True)
    client, _ = _one_send(broker, "kill-before-commit")
    assert client.answers == []
    heir = Client(MemorySubject(lambda: broker))
    claim = heir.claim(P[0])
    assert (claim.number, claim.head) == (0, b"")
    assert heir.row(P[0], "state", b"k") is None
    assert heir.log(P[1]) == []


@pytest.mark.parametrize(("fault", "applied"), [("lose", False), ("unknown", True), ("late", True)])
@pytest.mark.parametrize("resend", [True, False])
def test_unknown_outcomes(fault: Fault, applied: bool, resend: bool) -> None:
    """F80: both ways out of an unknown outcome."""
    broker = MemoryBroker()
    client, commit = _one_send(broker, fault)
    assert [outcome for _, outcome in client.answers] == ["unknown"]
    assert client.arrivals == []
    if resend:
        assert client.settle(commit) == "committed"
        assert [a.partition for a in client.arrivals] == [P[1]]
        assert client.log(P[1]) == [b"x"]
    else:
        assert client.claim(P[0]).number == (1 if applied else 0)
        assert client.log(P[1]) == ([b"x"] if applied else [])


def test_a_late_commit_does_not_pass_a_claim() -> None:
    """F33: an old owner's commit under way is settled by the claim and cannot change anything afterwards."""
    for seed in range(50):
        broker = MemoryBroker(seed, Weakness(lose=0, unknown=0, late=1, duplicate=0))
        old = Client(MemorySubject(lambda broker=broker: broker))  # type: ignore[misc]
        old.claim(P[0])
        assert old.submit(old.build(P[0], head=b"late", rows=[("state", [(b"k", b"late")])])) == "unknown"
        new = Client(MemorySubject(lambda broker=broker: broker))  # type: ignore[misc]
        found = new.claim(P[0]).head
        for transport in (old.transport, new.transport):
            assert isinstance(transport, MemoryTransport)
            transport.pump()
            assert transport.idle
        assert new.row(P[0], "state", b"k") == (found or None)
        assert new.claim(P[0]).head == found


def test_a_storage_failure_is_the_end() -> None:
    """F20: after the failure there is no outcome, no claim, but what is committed can be read."""
    client = Client(MemorySubject(MemoryBroker))
    client.claim(P[0])
    client.commit(P[0], head=b"one", rows=[("state", [(b"k", b"v")])])
    assert isinstance(client.transport, MemoryTransport)
    client.transport.fail_next("storage")
    client.transport.commit(client.build(P[0], head=b"two"))
    client.transport.pump()
    client.transport.commit(client.build(P[0], head=b"three"))
    client.transport.pump()
    assert [type(e) for e in client.failures] == [StorageFailed]
    assert len(client.answers) == 1
    client.transport.claim([P[0]])
    client.transport.pump()
    assert len(client.claimed) == 1
    assert client.row(P[0], "state", b"k") == b"v"


def test_equal_seeds_give_equal_runs() -> None:
    def run(seed: int) -> list[object]:
        client = Client(MemorySubject(lambda: MemoryBroker(seed)))
        client.claim(P[0])
        for n in range(50):
            client.commit(P[0], sends=[Send(P[1 + n % 3], b"%d" % n, 1)])
        return [[o for _, o in client.answers], client.arrivals, [client.log(p) for p in P[:4]]]

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_nothing_happens_without_the_driver_and_post_asks_for_it() -> None:
    asked: list[Callable[[], None]] = []
    seen: list[Outcome] = []
    claims: list[tuple[PartitionId, Claim]] = []
    callbacks = Callbacks(lambda r: seen.extend(o for _, o in r), lambda a: None, lambda e: None, claims.extend)
    transport = MemoryTransport(callbacks, post=asked.append)
    partition = PartitionId(1, 1, 1)
    transport.claim([partition])
    assert not claims
    assert len(asked) == 1
    asked.pop()()
    assert claims == [(partition, Claim(1, 0, b""))]
    transport.commit(Commit(partition, 1, 1, b""))
    assert not seen
    assert len(asked) == 1
    asked.pop()()
    assert seen == ["committed"]
    assert transport.idle


def test_arrivals_are_summed_in_a_plain_round() -> None:
    arrivals: list[list[Arrival]] = []
    transport = MemoryTransport(Callbacks(lambda r: None, arrivals.append, lambda e: None, lambda c: None))
    transport.claim(P[:2])
    transport.pump()
    for p in P[:2]:
        transport.commit(Commit(p, 1, 1, b"", [Send(P[2], b"xy", 3), Send(P[3], b"z", 1)]))
    transport.pump()
    assert arrivals == [[Arrival(P[2], 2, 6, 4), Arrival(P[3], 2, 2, 2)]]
