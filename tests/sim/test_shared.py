"""Two engines, each with half of the partitions of one app."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest

from grape import Context, Event, Node, State, Topology
from grape.engine.clients import Clients
from grape.engine.clock import FakeClock
from grape.errors import Full
from grape.model.address import CATALOG, PartitionId, partition_of
from grape.model.values import encode
from grape.protocol.door import Emit
from grape.testing.machine import Machine, Share
from grape.transports.memory import MemoryBroker, MemoryTransport

PARTITIONS = 6
EVEN, ODD = frozenset((0, 2, 4)), frozenset((1, 3, 5))
KEYS = [f"k{i}" for i in range(60)]


class Count(Node):
    seen = State(int, default=0)

    def process(self, event: Event) -> None:
        self.seen += 1
        self.emit("total", self.seen)


def forwarding() -> Topology:
    """Every event goes from the partition of one key to that of another, in another pool."""
    t = Topology("forwarding")
    t.add_output("total")

    @t.slot("first")
    def first(data: str, context: Context) -> None:
        context.emit("second", key=data)

    t.add_slot("second", Count(), pool="counters")
    return t


class Pair:
    """The even partitions and the outputs are the first one's, the odd ones the second one's."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.clock = FakeClock()
        self._rng = Random(0)
        self.first = self._machine(broker, Share(EVEN, "first"))
        self.second = self._machine(broker, Share(ODD, "second", takes=False))
        self.machines = [self.first, self.second]

    def _machine(self, broker: MemoryBroker, share: Share) -> Machine:
        return Machine(forwarding, self.clock, broker, partitions=PARTITIONS, share=share)

    def settle(self) -> None:
        while moves := [move for machine in self.machines for move in machine.moves()]:
            self._rng.choice(moves)()
        assert all(machine.is_finished for machine in self.machines)

    def totals(self) -> Counter[tuple[str | None, int]]:
        return Counter((event.key, event.data) for event in self.first.outputs["total"].committed)

    def stop(self) -> None:
        for machine in self.machines:
            machine.stop()


def test_each_event_is_processed_by_the_owner_of_its_partition() -> None:
    pair = Pair(MemoryBroker())
    for i, key in enumerate(KEYS):
        pair.machines[i % 2].add("first", KEYS[-1 - i], key)
        pair.machines[i % 2].add("first", KEYS[i - 7], key)
    pair.settle()
    assert pair.totals() == Counter((key, n) for key in KEYS for n in (1, 2))
    for machine, owned in ((pair.first, EVEN), (pair.second, ODD)):
        here = [key for key in KEYS if partition_of(key, PARTITIONS) in owned]
        assert machine.app.stats.processed == {"first>first": 2 * len(here), "second>Count": 2 * len(here)}
        assert machine.notices == []
    pair.stop()


def test_the_death_of_one_engine_is_none_of_the_other() -> None:
    """What it was sent meanwhile waits for it."""
    pair = Pair(MemoryBroker(forward_later=True))
    for i, key in enumerate(KEYS):
        pair.first.add("first", KEYS[-1 - i], key)
    for _ in range(60):
        pair.second.moves()[0]() if pair.second.moves() else pair.first.moves()[0]()
    pair.second.stop()
    while moves := pair.first.moves():
        moves[0]()
    assert pair.first.failure is None
    pair.second.start()
    pair.settle()
    assert pair.totals() == Counter((key, 1) for key in KEYS)
    assert pair.first.notices == []
    pair.stop()


def test_what_clients_hand_in_goes_to_the_owner_of_its_partition() -> None:
    pair = Pair(MemoryBroker())
    clients = [Clients(machine.engine) for machine in pair.machines]
    durable: list[str] = []
    for key in KEYS:
        for client in clients:
            event = Emit(1, "first", key, encode(key))
            client.accept(event, pair.clock.now(), lambda key=key: durable.append(key))  # type: ignore[misc]
            pair.settle()
    for client in clients:
        for _ in range(PARTITIONS):
            client.accept(Emit(1, "first", None, encode("none")), 0, lambda: durable.append("none"))
            pair.settle()
    assert Counter(durable) == Counter([*KEYS, *KEYS, *(2 * PARTITIONS * ["none"])])
    assert {key for key, _ in pair.totals()} == {*KEYS, "none"}
    assert pair.totals()["none", 2 * PARTITIONS] == 1
    pair.stop()


def test_an_event_with_an_id_is_accepted_where_it_is_remembered() -> None:
    pair = Pair(MemoryBroker())
    key = next(key for key in KEYS if partition_of(key, PARTITIONS) in ODD)
    event = Emit(1, "first", key, encode(key), "its id")
    with pytest.raises(Full, match="is served by another engine"):
        Clients(pair.first.engine).accept(event, pair.clock.now(), lambda: None)
    clients = Clients(pair.second.engine)
    for _ in range(2):
        clients.accept(event, pair.clock.now(), lambda: None)
        pair.settle()
    assert pair.totals() == Counter({(key, 1): 1})
    pair.stop()


def test_a_start_claims_in_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog says what there is; all partitions are claimed at once, then what attaches: what comes first, then
    what came meanwhile."""
    rounds: list[list[PartitionId]] = []
    claim = MemoryTransport.claim

    def noted(transport: MemoryTransport, partitions: Sequence[PartitionId]) -> None:
        rounds.append(list(partitions))
        claim(transport, partitions)

    monkeypatch.setattr(MemoryTransport, "claim", noted)
    machine = Machine(forwarding, FakeClock(), MemoryBroker(), partitions=PARTITIONS)
    first, second, *attached = rounds
    assert first == [CATALOG]
    assert len(second) == len(set(second)) == 2 * PARTITIONS
    assert {machine.app.log("counters", number) for number in range(PARTITIONS)} < set(second)
    assert len(attached) == 2
    logs = [log for claimed in attached for log in claimed]
    assert len(logs) == len(set(logs)) == 5  # a source, two takers, dead letters of each
    machine.stop()
