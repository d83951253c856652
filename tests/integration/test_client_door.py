"""Whatever a client passes: it is refused at the call, by an error that is a GrapeError, or it is an event. Nothing
that was passed harms the engine, or what others hand in."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import grape
from grape import GrapeError, Node, State, Topology
from grape.errors import BadArgument, Conflict, TooLarge, UnknownEvent
from grape.model.topology import Limits
from grape.model.values import BadValue
from grape.running import RunningEngine

LIMITS = Limits(max_event=2_000)

t = Topology("door")
t.add_output("out")


class Count(Node):
    seen = State(int, default=0)

    def process(self, event: grape.Event) -> None:
        if event.key is not None:
            self.seen += 1
        if event.data == "fail":
            raise ValueError("as it was asked")
        self.emit("out", event.data)


t.add_slot("x", Count(), retries=0)
t.add_slot("y", Count(name="far"), pool="far", retries=0)
t.add_slot("x", Count(name="also"), pool="far", retries=0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    with grape.open(t, data=tmp_path_factory.mktemp("door") / "d", inline=True, limits=LIMITS) as running:
        yield running


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __str__(self) -> str:
        raise RuntimeError("no str")

    def __float__(self) -> float:
        raise RuntimeError("no float")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]


class Text(str):
    """Not exactly a text."""


deep: list[Any] = []
for _ in range(100_000):
    deep = [deep]

texts = st.text(st.characters(exclude_categories=()), max_size=5) | st.sampled_from(
    ["", "x", "y", "out", "\ud800", "k" * 4096, "k" * 4097, "é" * 2049, "a\0b", "\x1b[31m", Text("x"), "fail"]
)
numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 1e308, 10**400, 2**63, -(2**63) - 1, True])
ODD = [None, b"x", b"", Hostile(), object, (), [], {}, {1: 2}, {1, 2}, 1j, timedelta(1), deep, ...]


class Odd(int):
    """One of them, by its number: hypothesis is not to look at them."""


odd = st.integers(0, len(ODD) - 1).map(Odd)


def meant(value: Any) -> Any:
    return ODD[value] if isinstance(value, Odd) else value


anything = st.one_of(texts, numbers, odd)
data = st.one_of(
    anything,
    st.recursive(texts | numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner)),
    st.binary(max_size=3_000),
)


def still_serves(engine: RunningEngine, name: str) -> None:
    engine.emit("x", name, key=name)
    for event in engine.outputs("out", timeout=20):
        if event.data == name:
            return
    raise AssertionError("the engine does not serve any more")


@given(name=anything, data=data, key=anything, event_id=anything, deadline=anything)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_argument_of_emit(
    engine: RunningEngine, name: Any, data: Any, key: Any, event_id: Any, deadline: Any
) -> None:
    name, data, key, event_id, deadline = map(meant, (name, data, key, event_id, deadline))
    for arguments in (
        {"key": key},
        {"id": event_id},
        {"deadline": deadline},
        {"key": key, "id": event_id, "deadline": deadline},
    ):
        for event in (name, "x"):
            with contextlib.suppress(GrapeError):
                engine.emit(event, data, **arguments)
    # what came in is worked off, and comes out
    for _ in engine.outputs("out", timeout=0):
        pass


def test_it_served_on(engine: RunningEngine) -> None:
    still_serves(engine, "at the end")
    assert engine.numbers().worker_deaths == 0


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("x", 1, ""), BadArgument, "a key has 1 to 4,096 bytes of UTF-8, this one has 0"),
        (("x", 1, "k" * 5000), BadArgument, "this one has 5,000"),
        (("x", 1, 7), BadArgument, "a key is text (str), not int: 7"),
        (("x", 1, "\ud800"), BadArgument, "valid UTF-8"),
        (("", 1, None), BadArgument, "the name of an event"),
        (("xx", 1, None), UnknownEvent, "did you mean 'x'?"),
        (("oute", 1, None), UnknownEvent, "no slot 'oute'"),
        (("x", "t" * 2001, None), TooLarge, "over max-event (2000)"),
        (("x", ["t" * 1001, "t" * 1001], None), TooLarge, "over max-event (2000)"),
        (("x", 2**63, None), BadValue, "from -2^63"),
        (("x", {1, object()}, None), BadValue, "cannot travel"),
        (("x", deep, None), BadValue, "cannot travel"),
        (("x", "\ud800", None), BadValue, "not valid Unicode"),
        (("x", ["\ud800"], None), BadValue, "cannot travel"),
    ],
)
def test_what_is_wrong_is_said(
    engine: RunningEngine, arguments: tuple[Any, ...], error: type[GrapeError], says: str
) -> None:
    name, value, key = arguments
    with pytest.raises(error) as caught:
        engine.emit(name, value, key=key)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"id": ""}, "id= has 1 to 1,024 bytes"),
        ({"id": "i" * 1025}, "id= has 1 to 1,024 bytes"),
        ({"id": 7}, "id= is text (str), not int: 7"),
        ({"deadline": -1}, "deadline= must be finite and not negative"),
        ({"deadline": "soon"}, "deadline= is a number of seconds, not 'soon'"),
        ({"deadline": float("nan")}, "deadline="),
        ({"deadline": 10**400}, "deadline= is at most"),
        ({"timeout": "1"}, "timeout= is a number of seconds"),
        ({"timeout": -1.0}, "timeout= must be"),
    ],
)
def test_options_that_cannot_be(engine: RunningEngine, option: dict[str, Any], says: str) -> None:
    with pytest.raises(BadArgument) as caught:
        engine.emit("x", 1, **option)
    assert says in str(caught.value)


def test_errors_of_arguments_are_what_python_calls_them(engine: RunningEngine) -> None:
    with pytest.raises(TypeError):
        engine.emit("x", 1, key=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        engine.emit("x", 1, key="")


def test_nothing_known_in_time_is_an_error_of_its_own(tmp_path: Path) -> None:
    with grape.open(t, data=tmp_path / "d", inline=True) as engine:
        with pytest.raises(grape.GrapeError, match="not known whether the event was accepted") as caught:
            engine.emit("x", 1, timeout=0)
        assert isinstance(caught.value, TimeoutError)
        still_serves(engine, "afterwards")


def test_an_id_is_one_event_for_all_pools(engine: RunningEngine) -> None:
    for _ in range(3):
        engine.emit("x", "once", key="k-once", id="only")
    with pytest.raises(Conflict):
        engine.emit("x", "twice", key="k-once", id="only")
    with pytest.raises(Conflict):
        engine.emit("y", "once", key="k-once", id="only")
    still_serves(engine, "after ids")


def test_during_a_run_garbage_is_looked_for_less_often_and_then_as_before() -> None:
    before = gc.get_threshold()
    seen: list[int] = []

    def read(position: int | None) -> tuple[list[str], int] | None:
        seen.append(gc.get_threshold()[0])
        return None if position else (["a"], 1)

    grape.run(t, feed={"x": read}, inline=True)
    assert set(seen) == {20_000}
    assert gc.get_threshold() == before
