"""Single faults, injected on purpose, on the same machine as the simulator's."""

from __future__ import annotations

from collections import Counter

import pytest

from grape import Context, Event, Node, State, Topology
from grape.engine.clock import FakeClock, SystemClock
from grape.engine.committer import Fenced
from grape.testing import Harness
from grape.testing.machine import Machine
from grape.transports.memory import Fault, MemoryBroker

DAY = 86_400
LINES = ["a b", "b c", "a", "c c b"]
WORDS = Counter(" ".join(LINES).split())


class Count(Node):
    seen = State(int, default=0)

    def process(self, event: Event) -> None:
        self.seen += 1
        self.emit("total", self.seen)


def wordcount() -> Topology:
    """The words are counted in another pool, so that everything is forwarded."""
    t = Topology("wordcount")
    t.add_output("total")

    @t.slot("line")
    def split(line: str, context: Context) -> None:
        for word in line.split():
            context.emit("word", key=word)

    t.add_slot("word", Count(), pool="counters")
    return t


def feed(machine: Machine) -> None:
    for line in LINES:
        machine.add("line", line)


def settle(machine: Machine) -> None:
    while moves := machine.moves():
        moves[0]()


def totals(machine: Machine) -> list[tuple[str, int]]:
    return sorted((event.key or "", event.data) for event in machine.outputs["total"].committed)


EACH_ONCE = sorted((word, n) for word, count in WORDS.items() for n in range(1, count + 1))


@pytest.mark.parametrize("after", range(0, 60, 4))
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("kill-before-commit", id="F6"),
        pytest.param("kill-after-commit", id="F6-committed"),
        pytest.param("kill-before-forward", id="F8"),
        pytest.param("kill-after-forward", id="F9"),
    ],
)
def test_an_engine_that_dies_around_a_commit(fault: Fault, after: int) -> None:
    """F6, F8, F9: ``after`` so many moves the next commit (or forwarded batch) is the engine's last. What it committed
    is forwarded by the next one, what was forwarded twice is taken once."""
    machine = Machine(wordcount, FakeClock(), MemoryBroker(forward_later=True), partitions=2)
    feed(machine)
    for _ in range(after):
        if moves := machine.moves():
            moves[0]()
    machine.transport.fail_next(fault)
    while not machine.transport.dead and (moves := machine.moves()):
        moves[0]()
    machine.stop()
    machine.start()
    settle(machine)
    assert totals(machine) == EACH_ONCE
    assert machine.is_finished
    machine.stop()


@pytest.mark.parametrize("after", range(0, 60, 4))
def test_an_engine_that_was_paused_is_fenced_when_it_wakes(after: int) -> None:
    """F33: while it stood, another engine has taken its partitions over."""
    clock, broker = FakeClock(), MemoryBroker()
    paused = Machine(wordcount, clock, broker, partitions=2)
    feed(paused)
    for _ in range(after):
        if moves := paused.moves():
            moves[0]()
    heir = Machine(wordcount, clock, broker, partitions=2)
    heir.source.chunks = list(paused.source.chunks)
    heir.read()
    paused.add("line", "never")  # it does not know yet
    with pytest.raises(Fenced, match="taken over by another engine"):
        settle(paused)
    heir.outputs["total"].entries = list(paused.outputs["total"].entries)  # as with a file: it is there for both
    settle(heir)
    assert totals(heir) == EACH_ONCE
    heir.stop()
    paused.stop()


class JumpingClock(FakeClock):
    """A `SystemClock` whose two sources are in the test's hand, nanoseconds."""

    def __init__(self) -> None:
        self.wall = 1_600_000_000 * 10**9
        self.elapsed = 5 * 10**9
        self._system = SystemClock(lambda: self.wall, lambda: self.elapsed)

    def now(self) -> int:
        return self._system.now()


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_wall_clock_that_is_set_neither_fires_nor_freezes_timers(jump: int) -> None:
    """F31"""
    rung: list[str] = []

    def build() -> Topology:
        t = Topology("timers")

        @t.slot("start")
        def start(data: int, context: Context) -> None:
            for i in range(data):
                context.emit("ring", f"{i}", delay=60 + i)

        @t.slot("ring")
        def ring(data: str) -> None:
            rung.append(data)

        return t

    clock = JumpingClock()
    machine = Machine(build, clock, MemoryBroker(), partitions=1)
    machine.add("start", 3)
    settle(machine)
    clock.wall += jump * 10**9
    clock.elapsed += 59 * 10**9
    machine.tick()
    settle(machine)
    assert rung == []
    for expected in (["0"], ["0", "1"], ["0", "1", "2"]):
        clock.elapsed += 10**9
        machine.tick()
        settle(machine)
        assert rung == expected
    machine.stop()


def test_a_retry_storm_is_spread_and_doubles_nothing() -> None:
    """F35: every event fails for one minute. The retries are spread by jitter, get rarer, and each has one effect."""
    attempts: Counter[str] = Counter()
    t = Topology("storm")
    t.add_output("done")
    fixed_at = 1_000_060.0

    @t.slot("in", emits="done", retries=50, backoff=1, backoff_max=30)
    def work(data: str, event: Event) -> str:
        attempts[data] += 1
        if run.now < fixed_at:
            raise ConnectionError("the other side is down")
        return data

    events = [f"event {i}" for i in range(300)]
    with Harness(t, now=1_000_000.0) as run:
        for data in events:
            run.feed("in", data, key=data)
        run.settle()
        dues = [held.due for held in run.held()]
        assert len(dues) == len(events)
        assert len(set(dues)) > 0.95 * len(events)
        assert all(0 <= due - run.now <= 1 for due in dues)
        run.advance(61)
        assert len(run.held()) <= len(events)
        run.finish()
        assert sorted(event.data for event in run.outputs("done")) == sorted(events)
        assert run.held() == []
        assert run.dead() == []
        assert run.now < fixed_at + 31
    # Without back-off it would be thousands each; with full jitter from 1 s, doubling to 30 s, about ten.
    assert sum(attempts.values()) < 15 * len(events)
    assert max(attempts.values()) < 30
