"""Events over which every worker ends, although it should hand them in as failed: the engine gives them up itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from grape import Context, Topology
from grape.engine.clock import FakeClock
from grape.engine.walk import walk
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.batch import RunMeta
from grape.model.cursor import Progress
from grape.model.stored import decode_dead
from grape.protocol.messages import Announce, Ask, Beat, Hello
from grape.testing.machine import Machine
from grape.transports.memory import MemoryBroker
from unit.lying import CAPABILITIES, EVENTS, TOPOLOGY, VERSION, Rig, result, run

LIMIT = 3 + 2


def die(rig: Rig, lie: Callable[[Rig], Any]) -> None:
    """The worker lies, and is replaced."""
    assert rig.engine is not None
    worker = rig.worker
    rig.say(lie(rig))
    assert worker.killed
    rig.engine.gone("main", 0, worker, "it was killed by signal 9 (SIGKILL)")
    rig.transport.pump()
    while rig.worker is worker:  # it backs off
        rig.clock.advance(60)
        rig.engine.tick()
    rig.say(Hello(VERSION, 2, "test", TOPOLOGY, CAPABILITIES))
    rig.say(Beat())


def letters(rig: Rig) -> list[Any]:
    log = rig.app.log("main", 0)
    return [decode_dead(value) for _, value in rig.transport.scan(log, "dead", b"", 100)]


def lie(rig: Rig) -> Ask:
    return Ask(0, rig.work.epoch, "nobody", [b"k"])


def test_an_event_that_ends_every_worker_becomes_a_dead_letter() -> None:
    """It is never announced, as these workers do not care: it is the first that is not handed in."""
    rig = Rig()
    for _ in range(LIMIT):
        assert letters(rig) == []
        die(rig, lie)
    die(rig, lie)  # (the first one died before anybody was careful)
    (letter,) = letters(rig)
    assert (letter.event, letter.node, letter.key, letter.kind) == ("word", "Count", "k0", "worker-died")
    assert "no worker can handle it, nor hand it in as failed: it broke the protocol" in letter.text
    assert rig.app.backlog_events == EVENTS - 1
    assert rig.work.batches[0].done == Progress(1)  # the others go on
    rig.say(result(rig, done=[(0, Progress(EVENTS))]))
    assert not rig.worker.killed
    assert rig.app.backlog_events == 0


def test_a_held_event_that_ends_every_worker_becomes_a_dead_letter() -> None:
    rig = Rig()
    rig.fail_one()
    for _ in range(LIMIT + 1):
        die(rig, lie)
        assert rig.engine is not None
        rig.clock.advance(100)
        rig.engine.tick()
    (letter,) = letters(rig)
    assert letter.attempts == 2
    assert rig.app.holds == 0


def test_what_is_handed_in_between_counts_anew() -> None:
    rig = Rig()
    for index in range(3):
        for _ in range(LIMIT - 1):
            die(rig, lie)
        rig.say(result(rig, ended=[], done=[(0, Progress(index + 1))]))
        assert not rig.worker.killed
    assert letters(rig) == []


def announced(rig: Rig, event: str) -> Announce:
    return Announce(0, rig.work.epoch, event, "Count")


def test_deaths_over_events_that_are_named_one_after_the_other_are_steps() -> None:
    """One root runs many events when pairs chain: each may cost its deaths."""
    rig = Rig()
    die(rig, lie)
    for count in range(2 * LIMIT):
        rig.say(announced(rig, f"event {count}"))
        die(rig, lie)
    assert letters(rig) == []
    assert [one.id for one in rig.work.named] == [f"event {count}" for count in range(2 * LIMIT)]


def test_a_result_with_nothing_in_it_takes_no_announcement_back() -> None:
    """An async worker hands in by the clock, also in the middle of the event that it has announced."""
    rig = Rig()
    die(rig, lie)
    rig.say(announced(rig, "event"))
    rig.say(result(rig, ended=[]))
    die(rig, lie)
    assert [one.id for one in rig.work.named] == ["event"]
    rig.say(announced(rig, "another"))
    rig.say(result(rig, ended=[], done=[(0, Progress(1))]))
    die(rig, lie)
    assert [one.id for one in rig.work.named] == ["event"]


@pytest.mark.parametrize("key", ["", "k" * 5000])
def test_a_key_that_cannot_be_is_stored_already(key: str) -> None:
    """As an older client could hand it in. The handler fails, which no worker can say: its word has that key, too."""

    def build() -> Topology:
        t = Topology("stored")
        t.add_output("out")

        @t.slot("x", retries=0)
        def handle(data: Any, context: Context) -> None:
            if data == "bad":
                raise ValueError("no")
            context.emit("out", data)

        return t

    machine = Machine(build, FakeClock(), MemoryBroker(), partitions=1)
    partition = machine.engine.partition("main", 0)
    for at, value in ((key, "bad"), ("good", 1), (key, "bad"), ("good", 2)):
        packed = msgspec.msgpack.encode(value)
        partition.memory.take_in("main", 0, "x", at, packed, "", codec.Context(), machine.clock.now())
    partition.flush()
    for _ in range(20_000):
        if moves := machine.moves():
            moves[0]()
        elif machine.is_finished:
            break
        elif (wake := machine.tick()) is not None:
            machine.clock.advance_to(wake)
    assert machine.is_finished, machine.left()
    assert sorted(event.data for event in machine.outputs["out"].committed) == [1, 2]
    dead = [decode_dead(value) for _, value in machine.transport.scan(partition.id, "dead", b"", 10)]
    assert [letter.key for letter in dead] == [key, key]
    machine.stop()


def test_an_event_whose_columns_cannot_be_read_can_be_taken_out() -> None:
    body = run(2, b"\x92\xc4\x01x\xc0", b"\x92\xa5a") + codec.encode_run(RunMeta(["b"]), 1, ["k"], [7])
    log = PartitionId(1, 1, 0)
    batch = codec.seal(body, 3, log, log, 1, 0, 5)
    singles = list(walk(batch, codec.header_of(batch), 0))
    assert [single.entry.event for single in singles] == ["line", "line", "b"]
    assert [single.entry.key for single in singles] == [None, None, "k"]
    for single in singles:
        codec.check_body(single.entry.body, 1)
    assert codec.data_of(next(codec.runs_of(singles[0].entry.body))) == [b"\x92\xa5a"]
