"""Timers that have names: replaced and cancelled by the (node, key) that has set them."""

from __future__ import annotations

from typing import Any

import pytest

from grape import Context, Event, Node, Topology
from grape.engine.clock import FakeClock
from grape.engine.partition import timers
from grape.model import batch as codec
from grape.model.stored import TimerEntry, timer_name_key
from grape.testing import Harness
from grape.testing.machine import Machine
from grape.transports.memory import MemoryBroker


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
        def handle(data: Any, context: Context) -> None:
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
    context = Context()
    for use in (lambda: context.emit("x", delay=1, timer=name), lambda: context.cancel_timer(name)):
        with pytest.raises((TypeError, ValueError), match="the name of a timer"):
            use()
    assert "the name of a timer" in failing(lambda c: c.emit("out", delay=1, timer=name))


def test_a_timer_needs_a_delay() -> None:
    with pytest.raises(ValueError, match=r"timer='t' names an emit with delay="):
        Context().emit("x", timer="t")
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

    def end(event: Event, context: Context) -> None:
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
