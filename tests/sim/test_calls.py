"""Handlers that call, under kills: every event gets its answers, whoever answers does so once, order holds."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

import msgspec
import pytest
from msgspec import structs

from grape import CallFailed, Context, Event, Node, State, Topology
from grape.abc.source import Columns
from grape.model.topology import Limits
from grape.testing.simulator import Chaos, Simulator
from grape.transports.memory import Weakness

KEYS = ("k0", "k1", "k2")
FOREVER = 1e7


class Asker(Node):
    emits = ("out",)
    seen = State(list[int])

    def process(self, event: Event) -> None:
        number, asks, fails = event.data
        self.seen.append(number)
        answers = []
        for ordinal, (key, ok) in enumerate(asks):
            try:
                answers.append(self.call("quote", [number, ordinal, ok], key=key, timeout=FOREVER))
            except CallFailed as e:
                answers.append(e.node)
        if event.attempt <= fails:
            raise ValueError("not yet")
        self.emit("out", [number, answers])


class AsyncAsker(Asker):
    async def process(self, event: Event) -> None:  # type: ignore[override]
        Asker.process(self, event)


class Quoter(Node):
    """Fails at first, or for ever; may ask somebody itself."""

    asked = State(list[list[int]])

    def process(self, event: Event) -> None:
        number, ordinal, ok = event.data
        if ok == "never" or (ok == "later" and event.attempt == 1):
            raise ValueError(ok)
        more = self.call("more", number, timeout=FOREVER) if ok == "deep" else 0
        self.asked.append([number, ordinal])
        self.reply([number, ordinal, more])


def topology(asker: type[Node], pool: str) -> Topology:
    t = Topology("asking")
    t.add_output("out")
    t.add_slot("in", asker(name="Asker"), retries=3)
    t.add_slot("quote", Quoter(), pool=pool, retries=1)

    def more(data: Any, context: Context) -> None:
        context.reply(data * 2)

    t.add_slot("more", more, pool=pool)
    return t


@pytest.mark.parametrize("seed", range(40))
def test_every_call_is_answered_once(seed: int) -> None:
    rng = Random(seed)
    chaos = Chaos(Weakness(0.05, 0.05, 0.1, 0.1), worker_kill=0.01, inner_kill=0.02, engine_kill=0.01, kills=6, lag=0.1)
    limits = Limits(hold_events=rng.choice((3, 1000)), named_deaths=9)
    asker = rng.choice((Asker, AsyncAsker))
    pools = rng.choice(("main", "other")), rng.choice(("main", "other", "third"))
    chaos = structs.replace(chaos, change=0.01)
    later = [partial(topology, asker, pool) for pool in pools[1:] if seed % 2]
    run = Simulator(partial(topology, asker, pools[0]), seed, changed=later, chaos=chaos, limits=limits)
    wanted: dict[str, list[list[Any]]] = {key: [] for key in KEYS}
    asked = []
    for number in range(rng.randint(3, 25)):
        key = rng.choice(KEYS)
        asks = [
            (f"q{rng.randint(0, 3)}", rng.choice(("yes", "yes", "later", "never", "deep")))
            for _ in range(rng.randint(0, 3))
        ]
        fails = 0 if any(ok == "never" for _, ok in asks) else rng.choice((0, 0, 1))
        answers: list[Any] = []
        for ordinal, (_, ok) in enumerate(asks):
            answers.append("Quoter" if ok == "never" else [number, ordinal, number * 2 if ok == "deep" else 0])
            if ok != "never":
                asked.append([number, ordinal])
        wanted[key].append([number, answers])
        run.machine.source.chunks.append([Columns("in", [key], [[number, asks, fails]])])
    run.machine.read()
    run.run()
    out = run.machine.outputs["out"].committed
    for key, rows in wanted.items():
        assert [event.data for event in out if event.key == key] == rows
    states = [row for p in partitions(run) for row in p.ledger.rows("state")]
    assert sorted(pair for row in states for pair in pairs(row)) == sorted(asked)
    assert [row for p in partitions(run) for row in p.ledger.rows("hold")] == []
    app = run.machine.app
    assert (app.holds, app.backlog_events, app.backlog_bytes) == (0, 0, 0)
    for p in partitions(run):
        assert p.answers.log is not None
        assert run.machine.transport.waiting(p.answers.log, p.head.answers.cursor.position).batches == 0
    run.machine.stop()


def partitions(run: Simulator) -> list[Any]:
    return [p for pool in run.machine.engine.pools.values() for p in pool.partitions.values()]


def pairs(row: tuple[bytes, bytes]) -> list[list[int]]:
    record = msgspec.msgpack.decode(row[1])
    found: list[list[int]] = record.get("asked", [])
    return found
