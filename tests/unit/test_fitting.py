"""What a transport can commit binds everything that is committed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape import Context, Event, Node, State, Topology
from grape.abc.transport import Features, size_of
from grape.engine.clock import FakeClock
from grape.engine.fitting import fit
from grape.model.stored import decode_dead
from grape.model.topology import Limits
from grape.testing.machine import Machine
from grape.transports.memory import MemoryBroker

MIB = 1 << 20


@given(st.integers(10_000, 1 << 30), st.integers(1_000, 1 << 26), st.integers(1_000, 1 << 26))
def test_limits_fit(commit: int, batch: int, event: int) -> None:
    features = Features(True, True, True, event, batch, commit, commit, True)
    limits = fit(Limits(), features)
    assert limits.max_event <= event
    assert limits.batch_target <= limits.batch_max <= batch
    assert limits.max_result + 2 * limits.max_event <= commit
    assert fit(limits, features) == limits


class Big(Node):
    kept = State(bytes)

    def process(self, event: Event) -> None:
        count, size = event.data
        self.kept = bytes(size)
        for _ in range(count):
            self.emit("out", bytes(size))


class Slow(Node):
    """Ends after one another: results come while others are being committed."""

    async def process(self, event: Event) -> None:
        count, size = event.data
        for _ in range(count):
            self.emit("out", bytes(size))
        await asyncio.sleep(int((event.key or "k0")[1:]) * 0.03)


def build() -> Topology:
    t = Topology("big")
    t.add_output("out")
    t.add_slot("x", Big(), retries=0)
    t.add_slot("slow", Slow(), retries=0, pool="slow")

    @t.slot("later")
    def later(data: Any, context: Context) -> None:
        for _ in range(data):
            context.emit("out", bytes(10_000), delay=1)

    return t


def run(events: list[tuple[str, Any]], largest: int = MIB) -> tuple[Machine, int]:
    """The machine when all is done, and the largest commit."""
    machine = Machine(build, FakeClock(), MemoryBroker(largest_commit=largest), partitions=1)
    sizes: list[int] = []
    inner = machine.transport.commit

    def commit(commit: Any) -> None:
        sizes.append(size_of(commit))
        inner(commit)

    machine.transport.commit = commit  # type: ignore[method-assign]
    patient = machine.clock.now() + 10_000_000
    for n, (event, data) in enumerate(events):
        machine.add(event, data, key=f"k{n}")
    for _ in range(1_000_000):
        moves = [move for move in machine.moves() if move != machine._step]
        if moves:
            moves[0]()
        elif machine.is_finished:
            break
        elif (wake := machine.tick()) is not None and (wake < patient or not machine.transport.outstanding):
            machine.clock.advance_to(wake)  # the transport is the slowest of all
        elif machine.transport.outstanding:
            machine._step()
    assert machine.is_finished, machine.left()
    return machine, max(sizes)


def test_results_that_do_not_fit_one_commit_go_into_several() -> None:
    machine, largest = run([("slow", [5, 80_000])] * 40)
    assert len(machine.outputs["out"].committed) == 200
    assert largest <= MIB
    machine.stop()


def test_an_event_that_does_not_fit_fails_alone() -> None:
    machine, largest = run([("x", [1, 100]), ("x", [40, 100_000]), ("x", [2, 100])])
    partition = machine.engine.partition("main", 0)
    (letter,) = [decode_dead(value) for _, value in partition.ledger.rows("dead")]
    assert letter.key == "k1"
    assert letter.kind == "too-large"
    assert len(machine.outputs["out"].committed) == 3
    assert largest <= MIB
    machine.stop()


def test_timers_that_are_due_together_go_off_in_several_commits() -> None:
    machine, largest = run([("later", 25)] * 8)
    assert len(machine.outputs["out"].committed) == 200
    assert largest <= MIB
    machine.stop()


@pytest.mark.parametrize("largest", [20_000, 60_000])
def test_the_smallest_commits(largest: int) -> None:
    machine, most = run([("x", [2, 200])] * 100, largest)
    assert len(machine.outputs["out"].committed) == 200
    assert most <= largest
    machine.stop()
