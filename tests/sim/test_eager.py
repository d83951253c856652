"""Events that run before they are accepted, under kills: what was confirmed counts once, what was not at most once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import msgspec
import pytest

from grape import CallFailed, Context, Event, Node, State, Topology
from grape.engine.clients import Clients
from grape.engine.engine import Engine
from grape.errors import Full
from grape.model.stored import encode
from grape.protocol.door import Emit
from grape.testing.machine import Move
from grape.testing.simulator import Chaos, Simulator
from grape.transports.memory import Weakness

KEYS = ("k0", "k1", "k2", None)
FOREVER = 1e7


class Counts(Node):
    """Remembers the numbers of its events in their order; some fail at first, some for ever, some ask somebody."""

    emits = ("out",)
    seen = State(list[int])

    def process(self, event: Event) -> None:
        number, fails, asks = event.data
        if event.key is not None:
            self.seen.append(number)
        if asks:
            try:
                self.call("quote", number, timeout=FOREVER)
            except CallFailed:
                raise AssertionError from None
        self.emit("out", number)
        self.reply(number)
        if event.attempt <= fails:
            raise ValueError("not yet")


class AsyncCounts(Counts):
    async def process(self, event: Event) -> None:  # type: ignore[override]
        Counts.process(self, event)


class Beside(Node):
    """Hears the same events."""

    emits = ("beside",)

    def process(self, event: Event) -> None:
        self.emit("beside", event.data[0])


def topology(node: type[Node], second: bool, pool: str) -> Topology:
    t = Topology("eager", eager=True)
    t.add_output("out")
    t.add_output("beside")
    t.add_slot("in", node(name="Counts"), retries=3)
    if second:
        t.add_slot("in", Beside())

    def quote(data: Any, context: Context) -> None:
        context.reply(data)

    t.add_slot("quote", quote, pool=pool)
    return t


class Client:
    """Sends one event after the other, several at once; again, by its id, what it does not know to be accepted."""

    def __init__(self, run: Clienteled, events: list[Emit], at_once: int) -> None:
        self._run = run
        self._left = events
        self._at_once = at_once
        self._out: list[tuple[Emit, Engine]] = []
        self.accepted: list[Emit] = []

    def moves(self) -> list[Move]:
        engine = self._run.machine.engine
        lost = [event for event, given in self._out if given is not engine and event.id]
        self._out = [one for one in self._out if one[1] is engine]
        self._left = lost + self._left
        return [self.send] if self._left and len(self._out) < self._at_once else []

    def send(self) -> None:
        engine, event = self._run.machine.engine, self._left.pop(0)
        self._out.append((event, engine))
        try:
            Clients(engine).accept(event, self._run.clock.now(), partial(self._durable, event, engine))
        except Full:
            self._out.remove((event, engine))
            self._left.insert(0, event)

    def _durable(self, event: Emit, engine: Engine) -> None:
        self._out.remove((event, engine))
        self.accepted.append(event)


class Clienteled(Simulator):
    client: Client

    def _moves(self) -> list[Move]:
        return [*super()._moves(), *self.client.moves()]


@pytest.mark.parametrize("seed", range(60))
def test_what_is_confirmed_counts_once(seed: int) -> None:
    rng = Random(seed)
    node, second = rng.choice((Counts, AsyncCounts)), rng.random() < 0.3
    kills = {"worker_kill": 0.01, "inner_kill": 0.02, "engine_kill": 0.01, "kills": 6}
    weakness = rng.choice((None, Weakness(0.05, 0.05, 0.1, 0.1)))
    chaos = Chaos(weakness, **kills, lag=rng.choice((0.0, 0.2)), orders=rng.choice((0.0, 0.01)))
    build: Callable[[], Topology] = partial(topology, node, second, rng.choice(("main", "other")))
    run = Clienteled(build, seed, chaos=chaos)
    events = []
    for number in range(rng.randint(3, 40)):
        key = rng.choice(KEYS)
        data = [number, rng.choice((0, 0, 1, 2)), rng.random() < 0.2]
        named = rng.random() < 0.7
        request = f"r{number}" if named and rng.random() < 0.5 else ""
        wait = 10**15 if request and rng.random() < 0.5 else None
        events.append(Emit(number, "in", key, encode(data), f"id{number}" if named else "", wait, request))
    run.client = Client(run, list(events), rng.choice((1, 1, 3, 100)))
    run.run()
    accepted = [msgspec.msgpack.decode(event.data)[0] for event in run.client.accepted]
    assert {event.id for event in run.client.accepted} >= {event.id for event in events if event.id}
    out = Counter(event.data for event in run.machine.outputs["out"].committed)
    assert all(out[number] == 1 for number in accepted)
    assert max(out.values()) == 1
    assert out.keys() <= {*range(len(events))}
    beside = Counter(event.data for event in run.machine.outputs["beside"].committed)
    assert beside == (out if second else Counter())
    seen: dict[str, list[int]] = {}
    partitions = [p for pool in run.machine.engine.pools.values() for p in pool.partitions.values()]
    for partition in partitions:
        for key, row in partition.ledger.rows("state"):
            seen[key[2:].decode()] = msgspec.msgpack.decode(row)["seen"]
        assert list(partition.ledger.rows("hold")) == []
    keyed = {msgspec.msgpack.decode(event.data)[0]: event.key for event in events if event.key}
    assert Counter(n for numbers in seen.values() for n in numbers) == Counter(n for n in out if n in keyed)
    asked = {event.request for event in events if event.request}
    finals = Counter(event.key for event in run.machine.replies.committed)
    assert set(finals) == asked
    app = run.machine.app
    assert (app.holds, app.backlog_events, app.backlog_bytes) == (0, 0, 0)
    run.stop()


@pytest.mark.parametrize("seed", range(30))
def test_a_key_keeps_its_order(seed: int) -> None:
    """One client sends one after the other: whoever comes later sees what those before have done."""
    rng = Random(seed)
    chaos = Chaos(Weakness(0.05, 0.05, 0.1, 0.1), worker_kill=0.01, inner_kill=0.02, engine_kill=0.0, kills=6)
    run = Clienteled(partial(topology, rng.choice((Counts, AsyncCounts)), False, "main"), seed, chaos=chaos)
    events = [
        Emit(number, "in", rng.choice(KEYS[:2]), encode([number, rng.choice((0, 0, 1)), False]), "")
        for number in range(30)
    ]
    run.client = Client(run, list(events), 100)
    run.run()
    for partition in run.machine.engine.pools["main"].partitions.values():
        for key, row in partition.ledger.rows("state"):
            wanted = [event.number for event in events if event.key == key[2:].decode()]
            assert msgspec.msgpack.decode(row)["seen"] == wanted
    run.stop()
