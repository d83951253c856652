"""What nobody needs any more of a log: who says so, when, and what becomes of it in a directory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from grape import Node, Topology
from grape.abc.transport import Send
from grape.engine.clock import FakeClock
from grape.engine.letting import LetGo
from grape.engine.outlet import Take
from grape.errors import StorageFailed
from grape.host.attaching import TakenBy
from grape.model.address import PartitionId
from grape.model.stored import OUTPUT, TAKER, decode_head, decode_taker
from grape.store import store as store_module
from grape.store.pace import Pace
from grape.store.reader import LogEnds, Reader
from grape.store.store import Store
from grape.store.writing import Writing
from grape.testing.machine import ListTaker, Machine
from grape.transports.memory import MemoryBroker
from unit.test_store import Engine, P, run

MIB = 1 << 20


class Heard:
    """A transport that notes what it is told."""

    def __init__(self) -> None:
        self.trims: list[tuple[int, list[int]]] = []

    def trim(self, log: PartitionId, position: int, drops: Sequence[int] = ()) -> None:
        assert log == P[0]
        self.trims.append((position, sorted(drops)))


def test_nothing_is_said_twice() -> None:
    heard = Heard()
    let_go = LetGo(heard, P[0])  # type: ignore[arg-type]
    let_go(0)
    assert heard.trims == []
    let_go(3, {5, 7})
    let_go(3, {5, 7})
    let_go(3, {5, 7, 9})
    let_go(6, {7, 9})
    let_go(6, {9})
    let_go(2)
    let_go(10)
    assert heard.trims == [(3, [5, 7]), (3, [9]), (6, []), (10, [])]


# ------------------------------------------------------------------ the directory


def transactions(store: Store) -> int:
    return int(store._env.info()["last_txnid"])


def filled(directory: Path, **options: int) -> Engine:
    engine = Engine(directory, **options)
    engine.commit(sends=[Send(P[0], b"%d" % n, 1) for n in range(10)])
    return engine


def positions(reader: Reader) -> list[int]:
    return [stored.position for stored in reader.read(P[0], 0, MIB)]


@pytest.fixture
def never_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LAZY_SECONDS", 600)


def test_a_trim_costs_no_transaction_where_there_are_commits(tmp_path: Path, never_lazy: None) -> None:
    engine = filled(tmp_path)
    before = transactions(engine.store)
    engine.transport.trim(P[0], 4, [6])
    engine.transport.trim(P[1], 4)
    assert transactions(engine.store) == before
    assert positions(engine.store) == list(range(10))
    engine.commit()
    assert transactions(engine.store) == before + 1
    assert positions(engine.store) == [4, 5, 7, 8, 9]
    engine.close()


def test_where_there_are_none_it_is_done_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LAZY_SECONDS", 0.001)
    engine = filled(tmp_path)
    for n in range(1, 11):
        engine.transport.trim(P[0], n)
        done = threading.Event()
        engine.store.lazily(lambda writing, event: event.set(), done)
        assert done.wait(30)
        engine.write(lambda writing, _: None, None)  # behind the transaction in which that was
        assert positions(engine.store) == list(range(n, 10))
    assert engine.store.ends(P[0]) == LogEnds(10, 10)
    engine.close()


def test_a_writer_that_sleeps_is_woken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LAZY_SECONDS", 0.001)
    engine = filled(tmp_path)
    for n in range(1, 4):
        while not engine.store._is_asleep:
            os.sched_yield()
        done = threading.Event()
        engine.transport.trim(P[0], n)
        engine.store.lazily(lambda writing, event: event.set(), done)
        assert done.wait(10)
    engine.close()


def test_at_an_orderly_end_it_is_done(tmp_path: Path, never_lazy: None) -> None:
    engine = filled(tmp_path)
    engine.transport.trim(P[0], 10)
    engine.close()
    engine.transport.trim(P[0], 10)
    reader = Reader(tmp_path)
    assert positions(reader) == []
    assert reader.ends(P[0]) == LogEnds(10, 10)
    reader.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from unit.test_trims import P, filled, store_module
store_module.LAZY_SECONDS = 600
engine = filled(Path(sys.argv[1]))
engine.transport.trim(P[0], 10)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_who_is_killed_has_lost_it_and_positions_go_on(tmp_path: Path) -> None:
    assert run(KILLED, tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[1])}).wait() == -9
    engine = Engine(tmp_path)
    assert engine.claimed.tail == 10
    assert positions(engine.store) == list(range(10))
    engine.transport.trim(P[0], 10)
    engine.commit(sends=[Send(P[0], b"next", 1)])
    assert positions(engine.store) == [10]
    engine.close()


def test_it_is_done_again_in_a_transaction_that_is_replayed_into_a_larger_map(tmp_path: Path, never_lazy: None) -> None:
    engine = filled(tmp_path, map_size=MIB)
    engine.transport.trim(P[0], 10)
    engine.commit(sends=[Send(P[0], bytes(3 * MIB), 1)])
    assert positions(engine.store) == [10]
    engine.close()


def test_what_waits_does_not_pile_up(tmp_path: Path, never_lazy: None) -> None:
    engine = filled(tmp_path)
    for n in range(200):
        engine.transport.trim(P[0], n)
        engine.transport.trim(P[1], n)
        engine.commit()
        assert len(engine.store._lazy) <= 2
    engine.close()


def test_both_threads_write_and_neither_is_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LAZY_SECONDS", 0.0005)
    monkeypatch.setattr(Pace, "is_light", True)
    engine = Engine(tmp_path, writes_itself=True)
    by_thread: set[str] = set()
    for n in range(300):
        engine.commit(sends=[Send(P[0], b"%d" % n, 1)])
        engine.store.lazily(lambda writing, names: names.add(threading.current_thread().name), by_thread)
        engine.transport.trim(P[0], n)
        if n % 3 == 0:
            done = threading.Event()
            engine.store.lazily(lambda writing, event: event.set(), done)
            assert done.wait(30)  # nobody else writes: it is the store's thread that does
    engine.close()
    assert by_thread == {"MainThread", "grape-store"}
    assert positions(Reader(tmp_path)) == [299]


def test_a_disk_that_refuses_it_fails_the_store_as_any_other_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LAZY_SECONDS", 0.001)
    engine = filled(tmp_path)

    def refuse(writing: Writing, n: int) -> None:
        raise OSError(5, "no")

    engine.store.lazily(refuse, 0)
    engine.wait(len(engine.outcomes) + 1)
    assert [type(failure) for failure in engine.failures] == [StorageFailed]
    engine.store.lazily(refuse, 0)
    assert isinstance(engine.store.error, StorageFailed)
    assert not engine.store._lazy
    engine.close()
    assert (tmp_path / "verify").exists()


def test_at_the_end_nothing_more_is_tried_of_it_either(tmp_path: Path, never_lazy: None) -> None:
    engine = filled(tmp_path)

    def refuse(writing: Writing, n: int) -> None:
        raise OSError(5, "no")

    engine.store.lazily(refuse, 0)
    engine.close()
    assert positions(Reader(tmp_path)) == list(range(10))


def test_threads_that_race_lose_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer that goes to sleep, and who has something for it."""
    monkeypatch.setattr(store_module, "LAZY_SECONDS", 0.0001)
    posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
    store = Store(tmp_path, posted.put)
    heard: SimpleQueue[int] = SimpleQueue()
    for n in range(500):
        store.lazily(lambda writing, n: heard.put(n), n)
        assert heard.get(timeout=30) == n
    store.close()


def test_the_cache_of_recent_batches_forgets_what_is_let_go_of(tmp_path: Path, never_lazy: None) -> None:
    engine = filled(tmp_path)
    recent = engine.transport._recent
    room = recent._left
    assert [stored.known for stored in engine.transport.read(P[0], 0, MIB)] == [True] * 10
    engine.transport.trim(P[0], 4)
    assert recent._left == room + 4
    assert [stored.position for stored in engine.transport.read(P[0], 4, MIB)] == [4, 5, 6, 7, 8, 9]
    engine.transport.trim(P[0], 4, [6])
    engine.commit()
    assert [stored.position for stored in engine.transport.read(P[0], 4, MIB)] == [4, 5, 7, 8, 9]
    assert recent._left == room + 10
    engine.close()


# ------------------------------------------------------------------ who says so


class Pass(Node):
    def process(self, event: Any) -> None:
        self.emit("out", event.data)


def passing() -> Topology:
    t = Topology("passing")
    t.add_output("out")
    t.add_slot("in", Pass())
    return t


def settle(machine: Machine) -> None:
    while moves := machine.moves():
        moves[0]()


def lying(machine: Machine, log: str) -> list[int]:
    return [stored.position for stored in machine.transport.read(machine.app.log(log, 0), 0, MIB)]


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Trims are lost while it says so."""
    lost = [True]
    apply = MemoryBroker._apply_trim

    def apply_trim(broker: MemoryBroker, i: int) -> None:
        if lost[0]:
            broker._trims.pop(i)
        else:
            apply(broker, i)

    monkeypatch.setattr(MemoryBroker, "_apply_trim", apply_trim)
    return lost


def test_a_start_says_again_what_the_heads_say(deaf: list[bool]) -> None:
    """Of partitions and of takers, without anything that has come."""
    machine = Machine(passing, FakeClock(), MemoryBroker(), partitions=1)
    for n in range(3):
        machine.add("in", n, "k")
        settle(machine)
    assert (lying(machine, "main"), lying(machine, ">out")) == ([0, 1, 2], [0, 1, 2])
    assert (machine.app.backlog_events, machine.app.backlog_bytes) == (0, 0)
    machine.stop()
    deaf[0] = False
    machine.start()
    settle(machine)
    assert (lying(machine, "main"), lying(machine, ">out")) == ([], [])
    assert (machine.app.backlog_events, machine.app.backlog_bytes) == (0, 0)
    machine.add("in", 3, "k")
    settle(machine)
    assert [event.data for event in machine.outputs["out"].committed] == [0, 1, 2, 3]
    machine.stop()


def test_nothing_is_let_go_of_before_it_is_durable() -> None:
    machine = Machine(passing, FakeClock(), MemoryBroker(), partitions=1)
    partition = machine.engine.partition("main", 0)
    told: list[tuple[int, int]] = []
    machine.transport.trim = lambda log, position, drops=(): told.append(  # type: ignore[method-assign]
        (log.pool, position - _durable(machine, log))
    )
    for n in range(5):
        machine.add("in", n, "k")
        settle(machine)
    assert {log for log, _ in told} == {partition.id.pool, machine.app.record.logs[">out"]}
    assert all(ahead <= 0 for _, ahead in told)
    machine.stop()


def _durable(machine: Machine, log: PartitionId) -> int:
    if log.pool == machine.app.record.logs["main"]:
        return decode_head(machine.broker._partition(log).head).cursor.position
    (name,) = [name for name in machine.app.record.logs if name.startswith(TAKER + OUTPUT)]
    return decode_taker(machine.broker._partition(machine.app.log(name, 0)).head).logs[0].cursor.position


class Second:
    """Another taker of the output of a machine."""

    def __init__(self, machine: Machine, attach: Any) -> None:
        self.taker = ListTaker("out")
        self.taker.taken = TakenBy("out", OUTPUT + "out=second")
        attach.take(self.taker.taken, lambda take, _: self.taker.open(take))
        settle(machine)
        assert isinstance(self.taker.take, Take)
        self.take = self.taker.take

    def move(self, machine: Machine) -> None:
        while self.taker.has_work():
            self.taker.move()
            machine.transport.pump()


def test_of_several_takers_the_last_one_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    attachings: list[Any] = []
    attach = Machine._attach
    monkeypatch.setattr(Machine, "_attach", lambda self, a: (attachings.append(a), attach(self, a))[1])
    machine = Machine(passing, FakeClock(), MemoryBroker(), partitions=1)
    second = Second(machine, attachings[-1])
    first = machine.outputs["out"].take
    assert first is not None
    assert first.peers == second.take.peers == [first, second.take]
    machine.add("in", 0, "k")
    settle(machine)
    assert (first.committed(0), second.take.committed(0)) == (1, 0)
    assert lying(machine, ">out") == [0]
    machine.add("in", 1, "k")
    settle(machine)
    assert lying(machine, ">out") == [0, 1]
    # What is on its way is not durable: the other one must not let go of it.
    taken = second.take.read(MIB)
    assert taken is not None
    second.take.commit(taken, 2, b"", lambda: None)
    assert second.take.committed(0) == 0
    machine.add("in", 2, "k")
    machine.transport.pump()
    assert second.take.committed(0) == 2
    assert lying(machine, ">out") == []
    settle(machine)
    assert lying(machine, ">out") == [2]
    second.move(machine)
    assert lying(machine, ">out") == []
    machine.stop()


def test_a_start_lets_go_of_what_the_last_taker_has_and_no_more(
    deaf: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    attachings: list[Any] = []
    attach = Machine._attach

    def both(self: Machine, attaching: Any) -> None:
        attachings.append(attaching)
        attaching.take(TakenBy("out", OUTPUT + "out=second"), lambda take, _: None)
        attach(self, attaching)

    monkeypatch.setattr(Machine, "_attach", both)
    machine = Machine(passing, FakeClock(), MemoryBroker(), partitions=1)
    second = Second(machine, attachings[-1])
    machine.add("in", 0, "k")
    settle(machine)
    second.move(machine)
    machine.add("in", 1, "k")
    settle(machine)
    assert lying(machine, ">out") == [0, 1]
    machine.stop()
    deaf[0] = False
    machine.start()
    settle(machine)
    assert lying(machine, ">out") == [1]
    machine.stop()
