"""Spans under kills: of everything that is committed there is one, and of nothing else."""

from __future__ import annotations

from collections import Counter
from functools import partial
from random import Random

import msgspec
import pytest

from grape.engine import handshake
from grape.model import batch as codec
from grape.model.stored import encode
from grape.model.tracing import SPANS_LOG, Span, decode_spans
from grape.protocol.door import Emit
from grape.testing.machine import Machine
from grape.testing.simulator import Chaos
from grape.tools.why import tree, walk
from grape.transports.memory import Weakness
from grape.worker import tracing
from sim.test_eager import KEYS, AsyncCounts, Client, Clienteled, Counts, topology

SENDER = "00f067aa0ba902b7"


def spans_of(machine: Machine) -> list[Span]:
    """Each batch once, as whoever reads them gets them."""
    app, transport = machine.app, machine.engine.transport
    batches: dict[tuple[object, ...], list[Span]] = {}
    for number in range(app.partitions):
        for stored in transport.read(app.log(SPANS_LOG, number), 0, 1 << 30):
            header = codec.header_of(stored.batch)
            origin = header.origin, header.target, header.incarnation, header.sequence
            runs = codec.runs_of(codec.body_of(stored.batch, header))
            batches[origin] = [span for run in runs for span in decode_spans(run.data)]
    return [span for spans in batches.values() for span in spans]


@pytest.mark.parametrize("tells", [True, False], ids=["told", "seen"])
@pytest.mark.parametrize("seed", range(30))
def test_what_is_committed_is_told_once(seed: int, tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not tells:
        monkeypatch.setattr(handshake, "TRACES", "something else")
    rng = Random(seed)
    weakness = rng.choice((None, Weakness(0.05, 0.05, 0.1, 0.1)))
    chaos = Chaos(weakness, worker_kill=0.01, inner_kill=0.02, engine_kill=0.01, kills=6)
    run = Clienteled(
        partial(topology, rng.choice((Counts, AsyncCounts)), rng.random() < 0.3, "other"), seed, chaos=chaos
    )
    events = []
    for number in range(rng.randint(3, 30)):
        data = [number, rng.choice((0, 0, 1, 2)), rng.random() < 0.3]
        is_traced = rng.random() < 0.7
        trace = f"00-{number + 1:032x}-{SENDER}-{'01' if is_traced else '00'}"
        events.append(Emit(number, "in", rng.choice(KEYS), encode(data), f"id{number}", trace=trace))
    run.client = Client(run, list(events), rng.choice((1, 3, 100)))
    run.run()
    spans = spans_of(run.machine)
    assert max(Counter(span.span for span in spans).values(), default=0) <= 1
    known = {span.span for span in spans} | {SENDER}
    assert all(span.parent in known for span in spans)
    for event in events:
        number, fails, asks = msgspec.msgpack.decode(event.data)
        own = [(span.id, span.event, span) for span in spans if span.trace == f"{number + 1:032x}"]
        if event.trace.endswith("00"):
            assert own == []
            continue
        (came,) = [span for _, _, span in own if not span.node]
        assert (came.parent, came.id) == (SENDER, event.id)
        ran = [span for _, name, span in own if name == "in" and span.node == "Counts"]
        assert all(span.parent == came.span for span in ran)
        outcomes = Counter(span.outcome for span in ran)
        deaths = sum(span.kind == "worker-died" for span in ran)
        assert outcomes["ok"] == 1
        assert outcomes["error"] - deaths <= fails
        if not deaths:
            assert outcomes["error"] == fails
        quotes = [span for _, name, span in own if name == "quote"]
        assert len(quotes) == outcomes["call"]
        assert bool(quotes) == asks
        assert {span.parent for span in quotes} <= {span.span for span in ran if span.outcome == "call"}
        told = tree(f"{number + 1:032x}", [("", span) for _, _, span in own], event.id)
        assert sum(len(step.attempts) for step in walk(told.steps)) == len(own)
        assert [step.node for step in told.steps] == [""]
    run.stop()


@pytest.mark.parametrize("kind", [Counts, AsyncCounts])
def test_spans_over_the_bound_are_not_told(kind: type[Counts], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the events do is none the less."""
    monkeypatch.setattr(tracing, "MAX_SPANS", 0)
    run = Clienteled(partial(topology, kind, False, "other"), 1, chaos=Chaos(None, kills=0))
    trace = f"00-{1:032x}-{SENDER}-01"
    run.client = Client(run, [Emit(n, "in", "k", encode([n, 0, False]), f"id{n}", trace=trace) for n in range(20)], 100)
    run.run()
    assert sorted(event.data for event in run.machine.outputs["out"].committed) == list(range(20))
    assert {span.outcome for span in spans_of(run.machine)} == {"in"}
    run.stop()
