"""What can be called can be a slot; results have keys of their own; options that there are not are answered."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from grape import Node, State, Topology, TopologyError
from grape.authoring.handler import compile_handler
from grape.model.near import did_you_mean


def function(data: int) -> int:
    return data + 1


async def coroutine(data: int) -> int:
    return data + 1


def generator(data: int) -> Iterator[int]:
    yield data + 1


def passing(inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def wrapper(*arguments: Any) -> Any:
        return inner(*arguments)

    return wrapper


def running(inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def wrapper(*arguments: Any) -> Any:
        return asyncio.run(inner(*arguments))

    return wrapper


class Calls:
    def __call__(self, data: int) -> int:
        return data + 1

    def method(self, data: int) -> int:
        return data + 1


class Waits:
    async def __call__(self, data: int) -> int:
        return data + 1


def with_more(more: int, data: int, *, most: int = 10) -> int:
    return min(data + more, most)


TARGETS = {
    "method": (Calls().method, "method", "sync"),
    "callable": (Calls(), "Calls", "sync"),
    "partial": (functools.partial(with_more, 1, most=100), "with_more", "sync"),
    "wrapped": (passing(function), "function", "sync"),
    "cached": (functools.lru_cache(function), "function", "sync"),
    "async callable": (Waits(), "Waits", "async"),
    "partial of async": (functools.partial(coroutine), "coroutine", "async"),
    "wrapped async": (passing(coroutine), "coroutine", "async"),
    "twice wrapped async": (functools.partial(passing(passing(coroutine))), "coroutine", "async"),
    "partial of an async callable": (functools.partial(Waits()), "Waits", "async"),
    "runs its coroutine": (running(coroutine), "coroutine", "sync"),
    "wrapped generator": (passing(generator), "generator", "generator"),
}


@pytest.mark.parametrize("what", TARGETS)
def test_what_can_be_called_can_be_a_slot(what: str) -> None:
    target, name, kind = TARGETS[what]
    topology = Topology("t")
    topology.add_output("out")
    topology.slot("number", emits="out")(target)
    (handler,) = topology.handlers.values()
    assert (handler.node, handler.kind, handler.payload_type) == (name, kind, int)
    assert "test_callables.py:" in handler.where
    result = handler.call(1)
    if inspect.isgenerator(result):
        result = next(result)
    assert (asyncio.run(result) if inspect.iscoroutine(result) else result) == 2


def test_names_of_options_that_there_are_not() -> None:
    wrong: dict[str, Any] = {"retry": 1}
    topology = Topology("t")
    with pytest.raises(TopologyError, match=r"callables.py:\d+: a slot has no option 'retry'; did you mean 'retries'"):
        topology.add_slot("a", function, **wrong)
    with pytest.raises(TopologyError, match="did you mean 'retries'"):
        topology.slot("a", **wrong)(function)
    with pytest.raises(TopologyError, match="its options are emits, key, retries"):
        topology.slot("a", **{"zzz": 1})(function)  # type: ignore[misc]
    with pytest.raises(TopologyError, match="add_pool has no option 'runtme'; did you mean 'runtime'"):
        topology.add_pool("p", **{"runtme": "node"})  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match="State has no option 'defualt'; did you mean 'default'"):
        State(int, **{"defualt": 0})  # type: ignore[call-overload]
    with pytest.raises(TopologyError, match="Node has no option 'nmae'; did you mean 'name'"):
        Node(**{"nmae": "x"})  # type: ignore[arg-type]


def test_did_you_mean() -> None:
    assert did_you_mean("retry", ["retries", "emits"]) == "did you mean 'retries'?"
    assert did_you_mean("zzz", ["retries"], "no") == "no"
    assert did_you_mean(5, ["retries"]) == ""


class Order(msgspec.Struct):
    customer: str | None


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("customer", {"customer": "ann"}, "ann"),
        ("customer", Order("bob"), "bob"),
        ("customer", Order(None), None),
        (lambda value: value["id"][:1], {"id": "xyz"}, "x"),
    ],
)
def test_the_key_of_a_result(key: Any, value: Any, found: str | None) -> None:
    topology = Topology("t")
    topology.add_output("out")
    topology.add_slot("a", function, emits="out", key=key)
    assert topology.handlers["function"].keys["a"](value) == found


def test_keys_that_cannot_be() -> None:
    topology = Topology("t")
    with pytest.raises(TopologyError, match="emits= has exactly one name"):
        topology.add_slot("a", function, key="id")
    with pytest.raises(TopologyError, match="key= is a field of what is returned"):
        topology.add_slot("a", function, emits="out", key=5)  # type: ignore[arg-type]
    assert not compile_handler("f", function).keys
