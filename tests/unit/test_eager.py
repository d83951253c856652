"""Events of clients that run before they are accepted: one commit for all, or an ordinary held event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from grape import Context, Event, Node, State, Topology, TopologyError
from grape.engine.clients import Clients
from grape.engine.clock import FakeClock
from grape.engine.partition.eager import KIND, PATIENCE
from grape.model.address import partition_of
from grape.model.routing import eager_events
from grape.model.stored import HoldEntry, decode_hold, encode
from grape.protocol.door import Emit
from grape.testing.machine import Machine
from grape.transports.memory import MemoryBroker


class Counts(Node):
    emits = ("out",)
    seen = State(int, default=0)

    def process(self, event: Event) -> None:
        self.seen += 1
        self.emit("out", [event.data, self.seen, event.id, event.attempt])
        self.reply(self.seen)


class AsyncCounts(Counts):
    async def process(self, event: Event) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        Counts.process(self, event)


class Failing(Node):
    def process(self, event: Event) -> None:
        if event.attempt == 1:
            raise ValueError("not yet")


def topology(node: type[Node] = Counts, *, eager: bool = True) -> Topology:
    t = Topology("eager")
    t.add_output("out")
    t.add_slot("in", node(name="Counts"), eager=eager)
    return t


class Bench:
    """A machine and a client of it."""

    def __init__(self, build: Callable[[], Topology] = topology, broker: MemoryBroker | None = None) -> None:
        self.machine = Machine(build, FakeClock(), broker or MemoryBroker(), partitions=2)
        self.durable: list[Any] = []
        self.settle()

    def emit(self, data: Any = None, key: str | None = "k", event_id: str = "", request: str = "") -> None:
        event = Emit(1, "in", key, encode(data), event_id, None, request)
        Clients(self.machine.engine).accept(event, self.machine.clock.now(), lambda: self.durable.append(data))

    def settle(self) -> None:
        while moves := self.machine.moves():
            moves[0]()

    def run_worker(self) -> None:
        """Until it has said what it has done; nobody has heard it yet."""
        (worker,) = self.machine.workers
        while not worker.said:
            (worker.hear if worker.heard else worker.run)()

    @property
    def commits(self) -> int:
        return self.machine.app.stats.commits

    @property
    def held(self) -> list[HoldEntry]:
        partitions = self.machine.engine.pools["main"].partitions.values()
        return [decode_hold(row) for p in partitions for _, row in p.ledger.rows("hold")]

    @property
    def out(self) -> list[Any]:
        return [event.data for event in self.machine.outputs["out"].committed]


@pytest.mark.parametrize("node", [Counts, AsyncCounts])
def test_one_commit_takes_an_event_in_and_what_came_of_it(node: type[Node]) -> None:
    bench = Bench(lambda: topology(node))
    for number in range(3):
        before = bench.commits
        bench.emit(number, request=f"r{number}")
        assert bench.durable == [*range(number)]  # nothing is written yet
        bench.settle()
        assert bench.commits == before + 1
        assert bench.durable == [*range(number + 1)]
    assert [(data, seen) for data, seen, _, _ in bench.out] == [(0, 1), (1, 2), (2, 3)]
    assert [event.data for event in bench.machine.replies.committed] == [1, 2, 3]
    assert (bench.held, bench.machine.app.holds, bench.machine.app.backlog_events) == ([], 0, 0)
    pool = bench.machine.engine.numbers().pools["main"]
    assert (pool.finished, pool.held) == (3, 0)
    assert pool.latency
    bench.machine.stop()


def test_without_it_there_are_two() -> None:
    bench = Bench(lambda: topology(eager=False))
    before = bench.commits
    bench.emit(1)
    bench.settle()
    assert bench.commits == before + 2
    bench.machine.stop()


def test_a_handler_that_takes_long_does_not_keep_its_event_from_being_accepted() -> None:
    bench = Bench()
    bench.emit(1, event_id="mine")
    bench.run_worker()
    machine = bench.machine
    assert machine.engine.tick() == machine.clock.now() + PATIENCE
    machine.clock.advance(PATIENCE / 1e6)
    machine.engine.tick()
    while machine.transport.outstanding:
        machine.transport.step()
    assert bench.durable == [1]
    assert bench.out == []
    (entry,) = bench.held
    assert (entry.kind, entry.attempts, entry.id, entry.key) == (KIND, 0, "mine", "k")
    bench.settle()
    assert bench.out == [[1, 1, "mine", 1]]
    assert bench.held == []
    machine.stop()


def test_what_comes_meanwhile_goes_the_ordinary_way_and_takes_it_along() -> None:
    bench = Bench()
    bench.emit(1)
    bench.run_worker()
    bench.emit(2)
    while bench.machine.transport.outstanding:
        bench.machine.transport.step()
    assert bench.durable == [1, 2]
    bench.settle()
    assert [(data, seen) for data, seen, _, _ in bench.out] == [(1, 1), (2, 2)]
    bench.machine.stop()


def test_a_busy_worker_is_not_asked() -> None:
    """In another partition of its pool."""
    bench = Bench()
    bench.emit(1, key="k")
    before = bench.commits
    other = next(key for key in "abcdef" if partition_of(key, 2) != partition_of("k", 2))
    bench.emit(2, key=other)
    assert bench.machine.transport.outstanding  # it is being written
    bench.settle()
    assert bench.commits == before + 3
    bench.machine.stop()


def test_a_worker_that_dies_has_it_accepted_and_done_again() -> None:
    bench = Bench()
    bench.emit(1)
    (worker,) = bench.machine.workers
    worker.hear()
    worker.die(0)
    bench.settle()
    bench.machine.clock.advance(60)
    bench.machine.tick()
    bench.settle()
    assert bench.durable == [1]
    assert [(data, seen, attempt) for data, seen, _, attempt in bench.out] == [(1, 1, 1)]
    bench.machine.stop()


def test_an_engine_that_dies_before_has_never_heard_of_it() -> None:
    broker = MemoryBroker()
    bench = Bench(broker=broker)
    bench.emit(1, event_id="mine")
    bench.run_worker()
    bench.machine.stop()
    assert bench.durable == []
    bench.machine.start()
    bench.settle()
    assert bench.out == []
    bench.emit(1, event_id="mine")
    bench.emit(1, event_id="mine")
    bench.settle()
    assert bench.durable == [1, 1]
    assert bench.out == [[1, 1, "mine", 1]]
    bench.machine.stop()


def test_no_two_events_have_the_same_id() -> None:
    """Not even one that was never accepted, and the next one after a new start."""
    ids = []

    class Tells(Counts):
        def process(self, event: Event) -> None:
            ids.append(event.id)
            super().process(event)

    bench = Bench(lambda: topology(Tells))
    for _ in range(3):
        bench.emit(1)
        bench.run_worker()
        bench.machine.stop()
        bench.machine.start()
        bench.settle()
    for _ in range(3):
        bench.emit(1)
        bench.settle()
    assert len(set(ids)) == len(ids) == 6
    bench.machine.stop()


def test_one_that_fails_is_tried_again_and_later_ones_wait() -> None:
    bench = Bench(lambda: topology(Failing))
    bench.emit(1)
    bench.settle()
    assert bench.durable == [1]
    (entry,) = bench.held
    assert (entry.attempts, entry.kind) == (1, "ValueError")
    bench.emit(2)
    bench.settle()
    assert bench.durable == [1, 2]
    assert bench.machine.app.holds == 2
    bench.machine.clock.advance(60)
    bench.machine.tick()
    bench.settle()
    bench.machine.clock.advance(60)
    bench.machine.tick()
    bench.settle()
    assert bench.machine.app.holds == 0
    bench.machine.stop()


def test_a_run_that_ends_accepts_it_at_once() -> None:
    bench = Bench()
    bench.emit(1)
    bench.machine.engine.drain()
    assert bench.machine.transport.outstanding
    while bench.machine.transport.outstanding:
        bench.machine.transport.step()
    assert bench.durable == [1]
    bench.settle()
    assert bench.held == []
    bench.machine.stop()


# ------------------------------------------------------------------ who may be


def one(data: Any, context: Context) -> None:
    context.reply(data)


def two(data: Any) -> None:
    pass


def test_all_slots_of_an_event_have_to_be_eager() -> None:
    t = Topology("t")
    t.add_slot("in", one, eager=True)
    t.add_slot("in", two)
    with pytest.raises(TopologyError, match=r"slot 'in' \(one\) has eager=True, and so must all .* see 'two' at"):
        t.spec()


def test_and_in_one_pool() -> None:
    t = Topology("t")
    t.add_slot("in", one, eager=True)
    t.add_slot("in", two, eager=True, pool="other")
    with pytest.raises(TopologyError, match=r"in one pool; see 'two' at .*test_eager\.py:"):
        t.spec()


def test_of_a_whole_topology_those_that_can() -> None:
    t = Topology("t", eager=True)
    t.add_slot("both", one)
    t.add_slot("both", two)
    t.add_slot("apart", one)
    t.add_slot("apart", two, name="far", pool="other")
    t.add_slot("not", two, eager=False)
    assert eager_events(t.spec()) == {"both"}


def test_wrong_words() -> None:
    with pytest.raises(TopologyError, match="eager= is True or False"):
        Topology("t", eager="yes")  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match="eager= is True or False"):
        Topology("t").add_slot("in", one, eager=1)  # type: ignore[arg-type]
