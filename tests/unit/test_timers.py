"""Timers that have names: replaced and cancelled by the (node, key) that has set them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

import grape
from grape import Event, Node, Topology
from grape.engine.clock import FakeClock
from grape.engine.partition import timers
from grape.model import batch as codec
from grape.model.batch import Context
from grape.model.stored import TimerEntry, timer_name_key
from grape.model.topology import Limits
from grape.testing import Harness
from grape.testing.machine import Machine
from grape.transports.memory import MemoryBroker
from unit.desk import Desk


class Session(Node):
    """Ends some time after its last event."""

    emits = ("end", "out")

    def process(self, event: Event) -> None:
        if event.name == "end":
            self.emit("out", [event.key, event.data])
        elif event.data == "bye":
            self.cancel_timer("end")
            self.emit("out", [event.key, "bye"])
        else:
            self.emit("end", event.data, delay=30, timer="end")


def sessions() -> Topology:
    t = Topology("sessions")
    t.add_output("out")
    session = Session()
    t.add_slot("click", session)
    t.add_slot("end", session)
    return t


def test_a_timer_is_replaced_and_cancelled() -> None:
    with Harness(sessions) as run:
        run.feed("click", 1, key="ann")
        run.feed("click", 1, key="bob")
        run.settle()
        run.advance(20)
        run.feed("click", 2, key="ann")
        run.advance(20)
        assert [e.data for e in run.outputs("out")] == [["bob", 1]]
        run.feed("click", 3, key="bob")
        run.feed("click", "bye", key="bob")
        run.advance(100)
        assert sorted(e.data for e in run.outputs("out")) == [["ann", 2], ["bob", "bye"]]


def test_it_is_there_after_a_restart() -> None:
    with Harness(sessions) as run:
        run.feed("click", 1, key="ann")
        run.settle()
        run.restart()
        run.feed("click", 2, key="ann")
        run.settle()
        run.restart()
        run.advance(100)
        assert [e.data for e in run.outputs("out")] == [["ann", 2]]


def test_a_name_without_a_timer_is_nothing() -> None:
    with Harness(sessions) as run:
        run.feed("click", "bye", key="ann")
        run.settle()
        assert [e.data for e in run.outputs("out")] == [["ann", "bye"]]
        assert run.dead() == []


def failing(what: Any, **options: Any) -> str:
    """What the dead letter of an event says whose handler does ``what``."""

    def build() -> Topology:
        t = Topology("failing")
        t.add_output("out")

        @t.slot("x", retries=0, emits="out", **options)
        def handle(data: Any, context: grape.Context) -> None:
            what(context)

        return t

    with Harness(build) as run:
        run.feed("x", 1, key=None if not options.get("keyed") else "k")
        run.settle()
        (letter,) = run.dead()
        return letter.text


def test_without_a_key_it_says_what_to_do() -> None:
    for what in (lambda c: c.emit("out", delay=1, timer="t"), lambda c: c.cancel_timer("t")):
        text = failing(what)
        assert "NoKey" in text
        assert "used timer 't' in an event that has no key" in text


@pytest.mark.parametrize("name", ["", "x" * 256, "\ud800", 7, b"x"])
def test_a_name_that_cannot_be_is_refused_at_the_line(name: Any) -> None:
    context = grape.Context()
    for use in (lambda: context.emit("x", delay=1, timer=name), lambda: context.cancel_timer(name)):
        with pytest.raises((TypeError, ValueError), match="the name of a timer"):
            use()
    assert "the name of a timer" in failing(lambda c: c.emit("out", delay=1, timer=name))


def test_a_timer_needs_a_delay() -> None:
    with pytest.raises(ValueError, match=r"timer='t' names an emit with delay="):
        grape.Context().emit("x", timer="t")
    assert "names an emit with delay=" in failing(lambda c: c.emit("out", timer="t"))


def test_a_unit_test_sees_what_was_set_and_cancelled() -> None:
    node = Session()
    node.emit("end", 1, delay=2, timer="t")
    node.cancel_timer("t")
    assert (node.emitted[0].timer, node.cancelled_timers) == ("t", ["t"])


def settled(machine: Machine) -> None:
    for _ in range(1_000_000):
        if moves := machine.moves():
            moves[0]()
        else:
            machine.tick()
            if not machine.moves():
                return


def test_memory_holds_a_window_of_them_whatever_is_set_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "_WINDOW", 50)
    machine = Machine(sessions, FakeClock(), MemoryBroker(), partitions=1)
    for turn in range(3):
        for n in range(400):
            machine.add("click", turn, key=f"k{n}")
        settled(machine)
        machine.clock.advance(1)
    partition = machine.engine.partition("main", 0)
    assert machine.app.timers == 400
    assert len(partition.timers._due) <= 100
    assert len(partition.timers._cancelled) <= 100
    for _ in range(400):
        settled(machine)
        if machine.is_finished:
            break
        wake = machine.tick()
        assert wake is not None
        machine.clock.advance_to(wake)
    out = machine.outputs["out"].committed
    assert sorted(e.data for e in out) == sorted([f"k{n}", 2] for n in range(400))
    assert machine.app.timers == 0
    machine.stop()


def test_the_names_of_timers_go_with_their_node_to_another_pool() -> None:
    pool = "main"

    def end(event: Event, context: grape.Context) -> None:
        context.emit("out", [event.key, event.data])

    def build() -> Topology:
        t = Topology("sessions")
        t.add_output("out")
        session = Session()
        t.add_slot("click", session, pool=pool)
        t.add_slot("end", end)
        return t

    clock = FakeClock()
    machine = Machine(build, clock, MemoryBroker(), partitions=2)
    for key in ("ann", "bob", "eve"):
        machine.add("click", 1, key=key)
    settled(machine)
    machine.stop()
    pool = "slow"
    machine.start()
    machine.add("click", 2, key="ann")
    machine.add("click", "bye", key="bob")
    settled(machine)
    assert machine.app.timers == 2
    clock.advance(100)
    settled(machine)
    assert sorted(e.data for e in machine.outputs["out"].committed) == [["ann", 2], ["bob", "bye"], ["eve", 1]]
    assert machine.is_finished
    machine.stop()


def test_a_worker_that_adds_to_a_name_for_ever_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """(An honest one cancels first.)"""
    monkeypatch.setattr(timers, "_SAME_NAME", 4)
    machine = Machine(sessions, FakeClock(), MemoryBroker(), partitions=1)
    partition = machine.engine.partition("main", 0)
    name = timer_name_key(machine.app.node_id("Session"), b"k", "t")
    for n in range(10):
        body = codec.one("end", "k", n)
        partition.timers.add(machine.clock.now() + 1_000 + n, TimerEntry("main", 0, body, None, name))
        partition.flush()
        settled(machine)
    assert machine.app.timers == 4
    machine.clock.advance(10)
    settled(machine)
    assert [e.data for e in machine.outputs["out"].committed] == [["k", n] for n in range(6, 10)]
    assert list(partition.ledger.rows("text")) == []
    machine.stop()


# ------------------------------------------------------------------ of one partition, without an engine


NAME = timer_name_key(0, b"k", "end")


def entry(data: Any, name: bytes = b"", log: str = ">total", **fields: Any) -> TimerEntry:
    return TimerEntry(log, 0, codec.one(log.lstrip(">"), None, data), name=name, **fields)


def set_timers(desk: Desk, *dues: int, name: bytes = b"") -> None:
    """Each due in so many microseconds, with that number."""
    for due in dues:
        desk.partition.timers.add(desk.now + due, entry(due, name))
    desk.settle()


def gone_off(desk: Desk, after: int) -> list[Any]:
    """What has gone off until so many microseconds from now, however many commits it takes."""
    desk.clock.advance_to(desk.now + after)
    while desk.partition.timers.fire(desk.now):
        desk.transport.pump()
    return desk.values(desk.app.log(">total", 0))


class TestGoingOff:
    def test_in_the_order_of_their_time_each_once(self) -> None:
        desk = Desk()
        set_timers(desk, 30, 10, 20)
        assert desk.app.timers == 3
        assert desk.partition.next_due() == desk.now + 10
        assert gone_off(desk, 9) == []
        assert gone_off(desk, 11) == [10, 20]
        assert desk.app.timers == 1
        assert desk.partition.next_due() == desk.now + 10
        assert gone_off(desk, 10) == [10, 20, 30]
        assert (desk.app.timers, desk.rows("timer"), desk.partition.next_due()) == (0, {}, None)

    def test_none_before_it_is_stored_nor_while_a_commit_is_under_way(self) -> None:
        desk = Desk()
        desk.partition.timers.add(desk.now, entry(1))
        assert desk.partition.timers.next_due() is None
        desk.settle()
        assert desk.partition.timers.next_due() == desk.now
        desk.ledger.put("text", b"k", b"v")
        assert desk.partition.timers.fire(desk.now) is False
        desk.partition.flush()
        assert desk.partition.timers.fire(desk.now) is False
        desk.settle()
        assert desk.partition.timers.fire(desk.now) is True

    def test_of_the_same_time_all(self) -> None:
        desk = Desk()
        set_timers(desk, 5, 5, 5)
        assert len(desk.rows("timer")) == 3
        assert gone_off(desk, 5) == [5, 5, 5]

    def test_they_are_there_after_a_restart(self) -> None:
        desk = Desk()
        set_timers(desk, 20, 10)
        desk.restart()
        assert desk.app.timers == 2
        set_timers(desk, 10)  # under a key of its own
        assert gone_off(desk, 20) == [10, 10, 20]

    def test_several_for_one_log_are_one_batch_up_to_its_size(self) -> None:
        desk = Desk()
        set_timers(desk, 1, 2, 3)
        gone_off(desk, 3)
        assert [header.events for header, *_ in desk.sent(desk.app.log(">total", 0))] == [3]
        desk = Desk(Limits(batch_max=2 * len(entry(1).body)))
        set_timers(desk, 1, 2, 3)
        gone_off(desk, 3)
        assert [header.events for header, *_ in desk.sent(desk.app.log(">total", 0))] == [2, 1]

    def test_each_goes_where_it_was_meant_to_with_whom_it_is_for(self) -> None:
        desk = Desk()
        asker = Context("17")
        for timer in (entry(1, context=asker), entry(2), replace(entry(3, log="far"), partition=1)):
            desk.partition.timers.add(desk.now + 1, timer)
        desk.settle()
        assert gone_off(desk, 1) == [1, 2]
        assert [contexts for _, contexts, _ in desk.sent(desk.app.log(">total", 0))] == [[asker], []]
        assert desk.values(desk.app.log("far", 1)) == [3]

    def test_for_an_output_that_is_gone_none(self) -> None:
        desk = Desk()
        desk.partition.timers.add(desk.now + 1, entry(1, log=">gone"))
        desk.settle()
        assert gone_off(desk, 1) == []
        assert (desk.app.timers, desk.rows("timer")) == (0, {})

    def test_a_bounded_number_at_once(self) -> None:
        desk = Desk()
        set_timers(desk, *range(1, 601))
        desk.clock.advance(1)
        assert desk.partition.timers.fire(desk.now)
        assert len(desk.partition.ledger.committing.sends) == 1  # type: ignore[union-attr]
        desk.transport.pump()
        assert desk.app.timers == 100
        assert gone_off(desk, 0) == list(range(1, 601))

    def test_and_of_bounded_bytes(self) -> None:
        size = 100 + len(entry(1).body)
        for most, left in ((2 * size, 3), (2 * size + 1, 2), (1, 4)):
            desk = Desk(Limits(dispatch_bytes=most))
            set_timers(desk, *range(1, 6))
            desk.clock.advance(1)
            desk.partition.timers.fire(desk.now)
            desk.transport.pump()
            assert desk.app.timers == left
            assert gone_off(desk, 0) == [1, 2, 3, 4, 5]


class TestNames:
    def test_cancelled_is_cancelled_before_and_after_it_is_stored(self) -> None:
        desk = Desk()
        desk.partition.timers.add(desk.now + 1, entry(1, NAME))
        desk.partition.timers.cancel(NAME)
        desk.settle()
        assert (desk.rows("timer"), desk.rows("text"), desk.app.timers) == ({}, {}, 0)
        set_timers(desk, 2, 3, name=NAME)
        set_timers(desk, 4)
        desk.partition.timers.cancel(NAME)
        desk.settle()
        assert desk.app.timers == 1
        assert desk.partition.next_due() == desk.now + 4
        assert gone_off(desk, 10) == [4]

    def test_it_is_forgotten_with_the_last_of_its_timers(self) -> None:
        desk = Desk()
        set_timers(desk, 1, 2, name=NAME)
        (keys,) = desk.rows("text").values()
        assert [keys[:16], keys[16:]] == list(desk.rows("timer"))
        gone_off(desk, 1)
        assert desk.rows("text") == {NAME: keys[16:]}
        gone_off(desk, 1)
        assert desk.rows("text") == {}

    def test_what_is_called_so_can_be_listed(self) -> None:
        desk = Desk()
        set_timers(desk, 1, 2, name=NAME)
        keys = desk.rows("text")[NAME]
        listed = list(desk.partition.timers.named(NAME, keys))
        assert listed == [(keys[:16], entry(1, NAME)), (keys[16:], entry(2, NAME))]
        gone_off(desk, 1)
        assert list(desk.partition.timers.named(NAME, keys)) == listed[1:]

    def test_an_older_one_that_went_off_is_cancelled_without_harm(self) -> None:
        desk = Desk()
        set_timers(desk, 1, name=NAME)
        gone_off(desk, 1)
        desk.partition.timers.cancel(NAME)
        desk.settle()
        assert desk.app.timers == 0


class TestTheWindow:
    """Five timers are kept in memory, the rest stays in its rows."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timers, "_WINDOW", 5)

    @pytest.mark.parametrize("restarts", [False, True])
    @pytest.mark.parametrize("order", [range(1, 31), range(30, 0, -1), [*range(20, 31), *range(1, 20)]])
    def test_all_go_off_in_their_order(self, order: Any, restarts: bool) -> None:
        desk = Desk()
        for due in order:
            set_timers(desk, due)
        if restarts:
            desk.restart()
        assert desk.app.timers == 30
        assert len(desk.partition.timers._due) <= 10
        gone = []
        for _ in range(30):
            due = desk.partition.next_due()
            assert due is not None
            gone = gone_off(desk, due - desk.now)
        assert gone == list(range(1, 31))
        assert desk.app.timers == 0

    @pytest.mark.parametrize("cancelled", [range(1, 6), range(4, 12), range(25, 31), range(1, 31)])
    @pytest.mark.parametrize("restarts", [False, True])
    def test_cancelled_wherever_they_are(self, cancelled: range, restarts: bool) -> None:
        desk = Desk()
        for due in range(1, 31):
            set_timers(desk, due, name=NAME if due in cancelled else b"")
        if restarts:
            desk.restart()
        desk.partition.timers.cancel(NAME)
        desk.settle()
        left = [due for due in range(1, 31) if due not in cancelled]
        assert desk.app.timers == len(left)
        assert gone_off(desk, 30) == left
        assert desk.partition.timers._cancelled == set()

    def test_what_was_cancelled_is_forgotten_when_memory_is_full(self) -> None:
        desk = Desk()
        set_timers(desk, 1)
        set_timers(desk, 11, 12, 13, 14, 15, 16, 17, 18, name=NAME)
        desk.partition.timers.cancel(NAME)
        set_timers(desk, 21, 22, 23)  # of twelve in memory eight are cancelled
        assert len(desk.partition.timers._due) == 4
        assert desk.partition.timers._cancelled == set()
        assert gone_off(desk, 30) == [1, 21, 22, 23]

    def test_not_what_is_cancelled_or_set_by_the_next_commit(self) -> None:
        desk = Desk()
        set_timers(desk, 1, 4)
        set_timers(desk, 2, 3, name=NAME)
        for due in range(5, 12):
            desk.partition.timers.add(desk.now + due, entry(due))
        desk.partition.flush()
        desk.partition.timers.cancel(NAME)
        desk.partition.timers.add(desk.now, entry(0))
        desk.settle()
        assert gone_off(desk, 30) == [0, 1, *range(4, 12)]

    def test_what_is_set_for_between_those_in_memory_and_the_rest_keeps_its_place(self) -> None:
        desk = Desk()
        set_timers(desk, *range(10, 120, 10))
        set_timers(desk, 45, 55, 65, 75)
        assert gone_off(desk, 80) == [10, 20, 30, 40, 45, 50, 55, 60, 65, 70, 75, 80]


def test_no_more_go_off_at_once_than_a_commit_holds() -> None:
    desk = Desk(broker=MemoryBroker(largest_commit=80_000))
    for due in range(6):
        large = replace(entry(due), body=codec.one("total", None, [due, b"x" * 9_000]), context=Context("17"))
        desk.partition.timers.add(desk.now + due, large)
        desk.settle()
    desk.ledger.most = 20_000
    desk.clock.advance(1)
    desk.partition.timers.fire(desk.now)
    desk.transport.pump()
    assert desk.app.timers == 3
    assert [due for due, _ in gone_off(desk, 0)] == list(range(6))
