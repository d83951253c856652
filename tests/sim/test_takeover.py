"""Another engine takes one partition over: that one leaves, and everything else goes on."""

from __future__ import annotations

import pytest

from grape import Context, Event, Node, State, Topology
from grape.engine.clock import FakeClock
from grape.engine.committer import Fenced
from grape.engine.partition.partition import Partition
from grape.errors import Corrupt
from grape.model.address import PartitionId, partition_of
from grape.model.stored import SOURCE
from grape.testing.contracts.client import Client
from grape.testing.machine import Machine
from grape.transports.memory import MemoryBroker, MemoryTransport
from tests.contract.test_transport_memory import MemorySubject

KEYS = [f"k{i}" for i in range(40)]
PARTITIONS = 4


class Count(Node):
    seen = State(int, default=0)

    def process(self, event: Event) -> None:
        self.seen += 1
        self.emit("total", self.seen)


def counting() -> Topology:
    t = Topology("counting")
    t.add_output("total")
    t.add_slot("word", Count(), retries=9)

    @t.slot("later")
    def later(data: int, context: Context) -> None:
        context.emit("word", delay=3_600)

    @t.slot("fails", retries=9)
    def fails(data: int) -> None:
        raise ValueError

    return t


def settle(machine: Machine) -> None:
    while moves := machine.moves():
        moves[0]()


def homes(number: int) -> list[str]:
    return [key for key in KEYS if partition_of(key, PARTITIONS) == number]


def take_over(broker: MemoryBroker, partition: PartitionId) -> Client:
    client = Client(MemorySubject(lambda: broker))
    client.claim(partition)
    return client


def totals(machine: Machine) -> list[tuple[str | None, int]]:
    return sorted((event.key, event.data) for event in machine.outputs["total"].committed)


@pytest.mark.parametrize("after", range(0, 120, 7))
def test_a_partition_that_is_fenced_leaves_and_the_rest_goes_on(after: int) -> None:
    """Whatever it was at: with works out, a commit under way, timers, and events on hold."""
    broker = MemoryBroker()
    machine = Machine(counting, FakeClock(), broker, partitions=PARTITIONS, workers=2)
    lost = machine.engine.partition("main", 1)
    for key in KEYS:
        for event in ("word", "later", "fails", "word"):
            machine.add(event, 0, key)
    for _ in range(after):
        if moves := machine.moves():
            moves[0]()
    take_over(broker, lost.id)
    head = broker._partition(lost.id).head
    machine.add("word", 0, homes(1)[0])  # it has to do with the partition now, which it does not know yet
    settle(machine)
    assert machine.engine.failure is None
    assert [line for line in machine.notices if "partition main/1 was taken over by another engine" in line]
    assert broker._partition(lost.id).head == head
    there = {key for number in (0, 2, 3) for key in homes(number)}
    assert [total for total in totals(machine) if total[0] in there] == sorted((k, n) for k in there for n in (1, 2))
    assert sorted(machine.engine.pools["main"].partitions) == [0, 2, 3]
    assert all(1 not in worker.partitions for worker in machine.engine.pools["main"].workers.values())
    app = machine.app
    assert (app.backlog_events, app.backlog_bytes) == (0, 0)
    assert app.holds == app.timers == len(there)
    machine.clock.advance(3_600)
    machine.tick()
    settle(machine)
    assert machine.engine.failure is None
    machine.stop()


def test_its_worker_is_told_and_what_it_hands_in_is_dropped() -> None:
    broker = MemoryBroker()
    machine = Machine(counting, FakeClock(), broker, partitions=PARTITIONS, workers=1)
    settle(machine)
    engine, (worker,) = machine.engine, machine.workers
    lost = engine.partition("main", 1)
    machine.add("word", 0, homes(1)[0])
    machine.add("word", 0, homes(2)[0])
    while not lost.works:
        next(move for move in machine.moves() if move.__name__ not in ("hear", "run"))()
    rival = take_over(broker, lost.id)
    lost.ledger.then(lambda: pytest.fail("it was committed"))
    lost.flush()
    while "main/1" not in "".join(machine.notices):
        machine._step()
    known = engine.pools["main"].workers[worker.index]
    assert [type(message).__name__ for message in worker.heard][-1] == "Revoke"
    assert all(number != 1 for number, _ in known.outstanding)
    settle(machine)
    assert [key for key, _ in totals(machine)] == homes(2)[:1]
    rival.close()
    machine.stop()


def test_a_source_that_is_fenced_ends_the_run() -> None:
    broker = MemoryBroker()
    machine = Machine(counting, FakeClock(), broker, partitions=PARTITIONS)
    take_over(broker, machine.app.log(f"{SOURCE}test", 0))
    machine.add("word", 0, "k")
    with pytest.raises(Fenced, match="source 'test' was taken over by another engine"):
        settle(machine)
    machine.stop()


def test_an_outcome_that_was_unknown_while_another_engine_was_the_owner_is_fenced() -> None:
    """It must not be made good by committing over what the other one has done."""
    broker = MemoryBroker()
    machine = Machine(counting, FakeClock(), broker, partitions=1)
    settle(machine)
    partition = machine.engine.partition("main", 0)
    machine.transport.fail_next("lose")
    partition.ledger.then(lambda: pytest.fail("it was committed"))
    partition.flush()
    machine._step()  # its outcome is unknown, and it claims again
    rival = Client(MemorySubject(lambda: broker))
    rival.claim(partition.id)
    rival.commit(partition.id, head=b"", rows=[("state", [(b"rival", b"")])])
    settle(machine)
    assert machine.engine.pools["main"].partitions == {}
    assert isinstance(machine.transport, MemoryTransport)
    assert machine.transport.get(partition.id, "state", [b"rival"]) == [b""]
    assert broker._partition(partition.id).head == b""
    machine.stop()


def ready(broker: MemoryBroker) -> tuple[Machine, Partition]:
    """A batch of partition 1 was handed out to the only worker, which has not run it."""
    machine = Machine(counting, FakeClock(), broker, partitions=PARTITIONS, workers=1)
    settle(machine)
    partition = machine.engine.partition("main", 1)
    machine.add("word", 0, homes(1)[0])
    while not partition.works:
        next(move for move in machine.moves() if move.__name__ not in ("hear", "run"))()
    return machine, partition


def test_what_another_engine_has_taken_out_is_not_damage() -> None:
    """A commit tells them apart: before it is known nothing ends the engine."""
    broker = MemoryBroker()
    machine, partition = ready(broker)
    rival = take_over(broker, partition.id)
    rival.commit(partition.id, head=b"")
    rival.trim(partition.id, 1)
    machine.workers[0].die(0)
    machine.add("word", 0, homes(2)[0])
    settle(machine)
    assert machine.engine.failure is None
    assert sorted(machine.engine.pools["main"].partitions) == [0, 2, 3]
    assert totals(machine) == [(homes(2)[0], 1)]
    assert broker._partition(partition.id).head == b""
    machine.stop()


def test_damage_ends_the_engine_once_it_is_sure() -> None:
    broker = MemoryBroker()
    machine, partition = ready(broker)
    head = broker._partition(partition.id).head
    broker._log(partition.id).trim_to(1)
    machine.workers[0].die(0)
    with pytest.raises(Corrupt, match="the batch at 0 is not finished, and is gone"):
        settle(machine)
    assert broker._partition(partition.id).head == head
    machine.stop()
