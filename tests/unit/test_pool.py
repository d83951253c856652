"""A pool's partitions: who has them when workers come and go. The real engine, on a clock that stands."""

from __future__ import annotations

from grape import Node, Topology
from grape.engine.clock import FakeClock
from grape.model.profile import Profile
from grape.model.section import Duration
from grape.testing.machine import Machine
from grape.transports.memory import MemoryBroker


class Nothing(Node):
    def process(self, event: object) -> None:
        pass


def build() -> Topology:
    t = Topology("pool")
    t.add_slot("in", Nothing())
    return t


def machine(workers: int, **profile: object) -> Machine:
    kept = Profile(idle_timeout=Duration(0), **profile)  # type: ignore[arg-type]
    return Machine(build, FakeClock(), MemoryBroker(), partitions=8, workers=workers, profile=kept)


def settle(m: Machine) -> None:
    while moves := m.moves():
        moves[0]()


def owned(m: Machine) -> dict[str, int]:
    return {worker.name: len(worker.partitions) for worker in m.engine.pools["main"].workers.values()}


def kill(m: Machine, index: int) -> None:
    next(worker for worker in m.workers if worker.index == index).die(0)
    settle(m)


def later(m: Machine, seconds: float) -> None:
    m.clock.advance(seconds)
    m.tick()
    settle(m)


def test_a_partition_moves_once_in_ten_seconds_at_most_to_even_things_out() -> None:
    m = machine(2)
    settle(m)
    assert owned(m) == {"main.0": 4, "main.1": 4}
    m.clock.advance(60)
    kill(m, 1)  # its replacement gets half of them back, by revoke and assign
    assert owned(m) == {"main.0": 4, "main.1": 4}
    kill(m, 1)
    assert owned(m) == {"main.0": 8}, "the next one has to wait: it would be the second in a row"
    later(m, 2)
    assert owned(m) == {"main.0": 4, "main.1": 4}, "those that had not moved"
    kill(m, 1)
    later(m, 3)
    assert owned(m) == {"main.0": 8, "main.1": 0}, "all have moved within ten seconds"
    later(m, 10)
    assert owned(m) == {"main.0": 4, "main.1": 4}


def test_the_death_of_a_worker_leaves_no_partition_alone_while_others_live() -> None:
    m = machine(3)
    settle(m)
    assert sorted(owned(m).values()) == [2, 3, 3]
    next(worker for worker in m.workers if worker.index == 0).die(0)
    m._notice_end(next(worker for worker in m.workers if worker.index == 0))
    alive = {name: count for name, count in owned(m).items() if name != "main.0"}
    assert sorted(alive.values()) == [4, 4], "before its replacement has even started"


def test_a_worker_that_ends_itself_after_max_events_is_never_missed() -> None:
    m = machine(1, max_events=5)
    for i in range(40):
        m.add("in", i, f"k{i}")
        settle(m)
    pool = m.engine.pools["main"]
    assert m.is_finished
    assert pool.spawned >= 3
    assert pool.crashed == 0
    assert m.app.stats.stale_frames == 0
    assert m.app.stats.finished == 40
