"""When the engine of an app is started and stopped: decided by a machine that only has the time."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from grape.server.keeper import LONGEST, STABLE, Keeper


def running(now: float = 0.0) -> Keeper:
    keeper = Keeper(now)
    keeper.want(now, runs=True)
    assert keeper.step(now) == "start"
    keeper.begun(now)
    assert keeper.state == "running"
    return keeper


def test_it_starts_once_and_stops_once() -> None:
    keeper = running()
    assert keeper.step(1) is None
    keeper.want(2, runs=False)
    assert keeper.step(2) == "stop"
    assert keeper.step(3) is None
    keeper.ended(4, "killed")
    assert keeper.state == "stopped"
    assert keeper.step(5) is None


# F69
def test_it_waits_longer_and_longer_while_it_keeps_dying() -> None:
    keeper = running()
    now, waits = 0.0, []
    for _ in range(9):
        keeper.ended(now, "killed")
        due = keeper.due()
        assert due is not None
        waits.append(due - now)
        now = due
        assert keeper.step(now - 0.001) is None or waits[-1] == 0
        if keeper.state != "starting":
            assert keeper.step(now) == "start"
        keeper.begun(now)
    assert waits == [0, 1, 2, 4, 8, 16, 32, 32, LONGEST]
    keeper.ended(now + STABLE, "killed")
    assert keeper.due() == now + STABLE  # it has left its crashes behind
    assert keeper.deaths == 10


# F68
def test_what_cannot_begin_is_not_tried_until_somebody_says_so() -> None:
    keeper = Keeper(0)
    keeper.want(0, runs=True)
    keeper.step(0)
    keeper.ended(1, "SyntaxError", is_hopeless=True)
    assert (keeper.state, keeper.why) == ("broken", "SyntaxError")
    assert keeper.step(10_000) is None
    keeper.want(10_001, runs=True)
    assert keeper.step(10_001) == "start"
    keeper.begun(10_002)
    assert keeper.why == ""


def test_a_restart_stops_first() -> None:
    keeper = running()
    keeper.want(1, runs=True, again=True)
    assert keeper.step(1) == "stop"
    keeper.ended(2)
    assert keeper.step(2) == "start"


def test_one_that_waits_is_started_at_once_by_its_operator() -> None:
    keeper = running()
    for now in (1, 1, 1):
        keeper.ended(now, "killed")
        keeper.step(now)
    assert keeper.state == "waiting"
    keeper.want(1, runs=True)
    assert keeper.step(1) == "start"


def test_one_with_nothing_to_do_is_parked_until_it_is_wanted_or_due() -> None:
    keeper = running()
    keeper.park(1)
    assert keeper.step(1) == "stop"
    assert keeper.is_parking
    keeper.parked(2, due=100)
    assert keeper.step(99) is None
    assert keeper.due() == 100
    assert keeper.step(100) == "start"
    keeper.begun(101)
    keeper.park(102)
    keeper.step(102)
    keeper.wake(103)  # before it has ended
    assert not keeper.is_parking
    keeper.ended(104)
    assert keeper.step(104) == "start"
    keeper.begun(105)
    keeper.park(106)
    keeper.step(106)
    keeper.ended(107)  # with something left to do
    assert keeper.step(107) == "start"
    keeper.begun(108)
    assert keeper.step(108) is None


class Machine(RuleBasedStateMachine):
    """Whatever happens in whatever order: never two engines, and what is wanted comes about."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.keeper = Keeper(0.0)
        self.engines = 0
        self.is_asked_to_stop = False

    @rule(seconds=st.floats(0, 100))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(runs=st.booleans(), again=st.booleans())
    def want(self, runs: bool, again: bool) -> None:
        self.keeper.want(self.now, runs=runs, again=again)

    @rule()
    def step(self) -> None:
        match self.keeper.step(self.now):
            case "start":
                self.engines += 1
                self.is_asked_to_stop = False
            case "stop":
                assert self.engines == 1
                assert not self.is_asked_to_stop
                self.is_asked_to_stop = True

    @rule()
    def park(self) -> None:
        self.keeper.park(self.now)

    @rule()
    def wake(self) -> None:
        self.keeper.wake(self.now)

    @rule(due=st.none() | st.floats(0, 1_000))
    def is_parked(self, due: float | None) -> None:
        if self.engines and self.keeper.is_parking:
            self.engines -= 1
            self.keeper.parked(self.now, due)

    @rule()
    def begin(self) -> None:
        if self.engines:
            self.keeper.begun(self.now)

    @rule(why=st.sampled_from(["", "killed"]), is_hopeless=st.booleans())
    def end(self, why: str, is_hopeless: bool) -> None:
        if self.engines:
            self.engines -= 1
            self.keeper.ended(self.now, why, is_hopeless=is_hopeless)

    @invariant()
    def one_engine(self) -> None:
        assert self.engines == (self.keeper.state in ("starting", "running", "stopping"))

    def teardown(self) -> None:
        self.keeper.want(self.now, runs=False)
        self.step()
        self.end("", False)
        self.keeper.step(self.now)
        assert self.keeper.state == "stopped"
        assert self.engines == 0


Machine.TestCase.settings = settings(max_examples=200, deadline=None)
TestMachine = Machine.TestCase
