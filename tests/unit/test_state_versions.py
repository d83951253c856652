"""State of an older form, read by newer code."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape import Event, Node, State, Topology
from grape.errors import TopologyError
from grape.testing import Harness
from grape.worker.state import StateTable


class Cart(msgspec.Struct):
    lines: list[str]
    total: int = 0


def to_cart(old: Any, version: int) -> Cart:
    if version == 1:  # it was a list of names
        if "bad" in old:
            raise ValueError("a bad name")
        old = {"lines": old}
    return Cart(old["lines"], len(old["lines"]))


class Old(Node):
    cart = State(list[str])
    seen = State(int, default=0)

    def process(self, event: Event) -> None:
        self.cart.append(event.data)
        self.seen += 1


class New(Node):
    cart = State(Cart, version=3, upgrade=to_cart)
    seen = State(int, default=0, version=2, upgrade=lambda old, version: old * 100)

    def process(self, event: Event) -> None:
        self.seen += 1
        if event.data == "only count":
            return
        assert self.cart is not None
        if event.data:
            self.cart.lines.append(event.data)
        self.reply([self.cart.lines, self.cart.total, self.seen])


class Single(Node):
    n = State(int, default=0, version=2, upgrade=lambda old, version: old * 10)

    def process(self, event: Event) -> None:
        self.n += 1


def topology(node: type[Node]) -> Any:
    def build() -> Topology:
        t = Topology("shop")
        t.add_slot("put", node(name="cart"), retries=0)
        return t

    return build


class Shop:
    """One app, whose code changes."""

    def __init__(self, node: type[Node]) -> None:
        self.harness = Harness(topology(node))

    def become(self, node: type[Node]) -> None:
        self.harness._machine.build = topology(node)  # what the next start loads
        self.harness.restart()

    def put(self, what: Any, key: str = "k") -> None:
        self.harness.feed("put", what, key=key)
        self.harness.settle()


def test_a_value_is_upgraded_when_it_is_read_and_once_it_is_written() -> None:
    shop = Shop(Old)
    shop.put("a")
    shop.put("b")
    shop.become(New)
    shop.put("only count")
    assert shop.harness.state("cart", "k") == {"cart": Cart(["a", "b"], 2), "seen": 201}
    shop.become(New)
    shop.put("c")
    assert shop.harness.state("cart", "k") == {"cart": Cart(["a", "b", "c"], 2), "seen": 202}


def test_what_cannot_be_upgraded_fails_who_reads_it_and_stays_what_it_was() -> None:
    shop = Shop(Old)
    shop.put("bad")
    shop.become(New)
    shop.put("x")
    (letter,) = shop.harness.dead()
    assert letter.kind == "bad-state"
    assert "state 'cart' of version 1 cannot be read as version 3: ValueError: a bad name" in letter.text
    assert "in to_cart" in letter.text
    shop.put("only count")  # writes the other state of the key
    shop.become(Old)
    shop.put("y")  # the older code finds its own state, but the other one is newer by now
    assert "it was written by newer code" in shop.harness.dead()[-1].text
    assert shop.harness._machine is not None


def test_newer_state_is_not_taken_by_older_code() -> None:
    shop = Shop(Single)
    shop.put(None)
    shop.become(type("Before", (Node,), {"n": State(int, default=0), "process": Single.process}))
    shop.put(None)
    (letter,) = shop.harness.dead()
    assert letter.kind == "bad-state"
    shop.become(Single)
    shop.put(None)
    assert shop.harness.state("cart", "k") == {"n": 2}


@given(st.lists(st.sampled_from(["old", "new"]), max_size=6))
def test_every_key_is_upgraded_once(phases: list[str]) -> None:
    class Before(Node):
        n = State(int, default=0)

        def process(self, event: Event) -> None:
            self.n += 1

    shop = Shop(Before)
    for _ in phases:
        shop.put(None)
    shop.become(Single)
    for _ in range(3):
        shop.put(None)
        shop.become(Single)
    assert shop.harness.state("cart", "k") == {"n": len(phases) * 10 + 3}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"version": 2}, "belong together"),
        ({"upgrade": to_cart}, "belong together"),
        ({"version": 0}, "a number from 1 on"),
        ({"version": True}, "a number from 1 on"),
        ({"version": 2, "upgrade": 3}, "is a function"),
        ({"verson": 2}, "verson"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], what: str) -> None:
    with pytest.raises(TopologyError, match=what):
        State(int, default=0, **options)


def test_what_this_program_does_not_have_keeps_its_version_and_its_end() -> None:
    """Else the program that has it again upgrades what is new already, or keeps for ever what was to expire."""
    versioned, passing = State(Cart, version=3, upgrade=to_cart), State(int, default=0, ttl=60.0)
    count = State(int, default=0)

    def table(**states: State[Any]) -> StateTable:
        return StateTable("node", states, 1 << 20, complete=False)

    def written(by: StateTable, **values: Any) -> bytes:
        by.store("k", {name: by.encode_value(name, value) for name, value in values.items()}, 1_000_000)
        changes = by.take_changes()
        assert changes is not None
        assert changes.values[0] is not None
        return changes.values[0]

    first = table(cart=versioned, passing=passing, count=count)
    first.fill(["k"], [None])
    record = written(first, cart=Cart(["a"], 1), passing=7, count=1)
    for without in (table(count=count), table(count=count, more=passing)):
        without.fill(["k"], [record])
        record = written(without, count=2)
    again = table(cart=versioned, passing=passing, count=count)
    again.fill(["k"], [record])
    assert again.types["cart"].read(again.cached("k", "cart", 0)) == Cart(["a"], 1)
    assert again.cached("k", "passing", 60_000_000) == 7
    assert again.types["passing"].read(again.cached("k", "passing", 62_000_000)) == 0
    assert again.cached("k", "count", 0) == 2
