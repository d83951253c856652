"""Timers that have names, under kills: of what was set, replaced and cancelled exactly the last word counts."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

import pytest

from grape import Event, Node, State, Topology
from grape.abc.source import Columns
from grape.testing.simulator import Chaos, Simulator
from grape.transports.memory import Weakness

LATE = 1_000_000.0
NAMES = ("a", "b")
KEYS = ("k0", "k1", "k2", "k3")


class Alarms(Node):
    """Does what its events say; some fail at first, after they have done it."""

    emits = ("rang", "far")
    seen: State[list[int]] = State(list)

    def process(self, event: Event) -> None:
        number, steps, fails = event.data
        for step, name, value in steps:
            if step == "set":
                self.emit("rang", value, delay=LATE + number % 3, timer=name)
            elif step == "far":  # with another key: the name is still one of this event's
                self.emit("far", value, key=f"other {value}", delay=LATE, timer=name)
            else:
                self.cancel_timer(name)
        if event.attempt <= fails:
            raise ValueError("not yet")
        self.seen.append(number)


class AsyncAlarms(Alarms):
    async def process(self, event: Event) -> None:  # type: ignore[override]
        Alarms.process(self, event)


def build(node: type[Node], pools: bool) -> Topology:
    t = Topology("alarms")
    t.add_output("out")
    t.add_slot("do", node(name="Alarms"), retries=3, chain=False)

    def rang(value: Any) -> Any:
        return value

    t.add_slot("rang", rang, emits="out")
    t.add_slot("far", rang, name="far", emits="out", **({"pool": "other"} if pools else {}))
    return t


def plan(rng: Random) -> list[tuple[str, Any]]:
    value = 0
    events = []
    for number in range(rng.randint(5, 40)):
        steps = []
        for _ in range(rng.randint(0, 3)):
            value += 1
            steps.append((rng.choice(("set", "set", "far", "cancel")), rng.choice(NAMES), value))
        events.append((rng.choice(KEYS), [number, steps, rng.choice((0, 0, 0, 1, 2))]))
    return events


@pytest.mark.parametrize("seed", range(40))
def test_the_last_word_counts(seed: int) -> None:
    rng = Random(seed)
    node = rng.choice((Alarms, AsyncAlarms))
    chaos = Chaos(Weakness(0.05, 0.05, 0.1, 0.1), worker_kill=0.01, inner_kill=0.02, engine_kill=0.01, kills=6)
    run = Simulator(partial(build, node, rng.random() < 0.5), seed, chaos=chaos)
    expected: dict[tuple[str, str], int] = {}
    for key, (number, steps, fails) in plan(rng):
        run.machine.source.chunks.append([Columns("do", [key], [[number, steps, fails]])])
        for step, name, value in steps:
            expected.pop((key, name), None)
            if step != "cancel":
                expected[key, name] = value
    run.machine.read()
    run.run()
    assert sorted(event.data for event in run.machine.outputs["out"].committed) == sorted(expected.values())
    assert run.machine.app.timers == 0
    partitions = [p for pool in run.machine.engine.pools.values() for p in pool.partitions.values()]
    assert not any(p.timers._cancelled for p in partitions)
    left = [row for p in partitions for row in p.ledger.rows("text", b"timer:", b"timer;")]
    assert left == []
    run.machine.stop()
