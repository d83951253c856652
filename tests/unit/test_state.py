"""State as declared: types, defaults, and the protocol with the runtime."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec import Struct

from grape import Event, Node, State, TopologyError
from grape.authoring.state import LOADER


class Cart(Struct):
    items: list[str] = []


class Tree(Struct):
    children: list[Tree] = []


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


class Foreign:
    pass


class HoldsForeign(Struct):
    inner: list[Foreign]


class Keeper(Node):
    seen = State(int, default=0)
    last = State(str)
    words = State(list[str])
    cart = State(Cart, default=Cart(["bread"]))

    def process(self, event: Event) -> None:
        self.seen += 1
        self.words.append(event.data)


class TestDeclaration:
    @pytest.mark.parametrize(
        "value_type",
        [
            int,
            str,
            float,
            bool,
            bytes,
            list,
            dict[str, int],
            set[int],
            Cart,
            Tree,
            Point,
            Colour,
            datetime,
            int | None,
            Any,
        ],
    )
    def test_what_msgspec_encodes_is_allowed(self, value_type: Any) -> None:
        assert State(value_type).ttl is None

    @pytest.mark.parametrize("value_type", [Foreign, HoldsForeign, list[Foreign], complex, 5, "int", [int]])
    def test_the_rest_is_refused_where_it_is_declared(self, value_type: Any) -> None:
        with pytest.raises(TopologyError, match=r"test_state\.py:\d+: State: .*cannot be encoded and decoded"):
            State(value_type)

    @pytest.mark.parametrize(
        ("value_type", "plain"),
        [
            (int, True),
            (int | None, True),
            (str | float | bool, True),
            (type(None), True),
            (list, False),
            (Cart, False),
            (int | list[int], False),
            (Colour, False),
            (datetime, False),
            (Any, False),
        ],
    )
    def test_is_plain(self, value_type: Any, plain: bool) -> None:
        assert State(value_type).is_plain is plain

    @pytest.mark.parametrize(
        ("value_type", "default"), [(int, None), (str, None), (Cart, None), (list[int], []), (dict, {}), (set, set())]
    )
    def test_default_of_a_type(self, value_type: Any, default: object) -> None:
        state: State[Any] = State(value_type)
        assert state.make_default() == default

    def test_a_default_of_none_makes_the_stored_type_optional(self) -> None:
        assert State(int).value_type == int | None
        assert State(int, default=None).value_type == int | None
        assert State(int, default=0).value_type is int

    def test_a_default_has_to_fit(self) -> None:
        with pytest.raises(TopologyError, match=r"test_state\.py:\d+: State: default='x' is no int"):
            State(int, default="x")

    @pytest.mark.parametrize(("ttl", "stored"), [(5, 5.0), (timedelta(hours=1), 3600.0), (None, None)])
    def test_ttl(self, ttl: float | timedelta | None, stored: float | None) -> None:
        assert State(int, default=0, ttl=ttl).ttl == stored

    @pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "1", True])
    def test_ttl_has_to_be_a_time(self, ttl: Any) -> None:
        with pytest.raises(TopologyError, match="State: ttl"):
            State(int, default=0, ttl=ttl)

    def test_repr(self) -> None:
        assert repr(State(int, default=0, ttl=5)) == "State(int, default=0, ttl=5)"


class TestOutsideAWorker:
    def test_a_handler_is_callable(self) -> None:
        keeper = Keeper()
        keeper.process(Event("word", data="a"))
        keeper.process(Event("word", data="b"))
        assert (keeper.seen, keeper.last, keeper.words) == (2, None, ["a", "b"])

    def test_on_the_class_it_is_the_declaration(self) -> None:
        assert isinstance(Keeper.seen, State)
        assert Keeper.seen.name == "seen"

    def test_mutable_defaults_are_not_shared(self) -> None:
        one, other = Keeper(), Keeper()
        one.words.append("x")
        one.cart.items.append("wine")
        assert (other.words, other.cart.items) == ([], ["bread"])

    def test_delete(self) -> None:
        keeper = Keeper()
        keeper.process(Event("word", data="a"))
        del keeper.seen
        del keeper.words
        assert (keeper.seen, keeper.words) == (0, [])

    def test_what_is_decoded_can_be_deleted_unread(self) -> None:
        keeper = Keeper()
        del keeper.words
        assert keeper.words == []

    def test_value_of_a_function(self) -> None:
        state = State(int, default=0)
        state.value += 1
        assert state.value == 1
        del state.value
        assert state.value == 0

    def test_mutable_value_of_a_function(self) -> None:
        state = State(list[int])
        state.value.append(1)
        assert state.value == [1]
        assert state.make_default() == []


class TestRuntime:
    def test_a_plain_state_is_no_data_descriptor(self) -> None:
        assert not hasattr(type(Keeper.seen), "__set__")
        assert not hasattr(type(Keeper.seen), "__delete__")

    def test_preloaded_values_are_read_and_written_in_the_instance(self) -> None:
        keeper = Keeper()
        keeper.__dict__.update(seen=41, words=["x"])
        keeper.process(Event("word", data="y"))
        assert (keeper.__dict__["seen"], keeper.__dict__["words"]) == (42, ["x", "y"])

    def test_the_loader_is_asked_once_for_what_is_not_loaded(self) -> None:
        keeper, asked = Keeper(), []

        def load(name: str) -> Any:
            asked.append(name)
            keeper.__dict__[name] = ["stored"]
            return keeper.__dict__[name]

        keeper.__dict__[LOADER] = load
        keeper.words.append("more")
        assert keeper.words == ["stored", "more"]
        assert asked == ["words"]

    def test_the_loader_hears_of_a_delete(self) -> None:
        keeper, asked = Keeper(), []

        def load(name: str) -> Any:
            asked.append(name)
            keeper.__dict__[name] = ["stored"]

        keeper.__dict__[LOADER] = load
        del keeper.words
        assert asked == ["words"]
        assert "words" not in keeper.__dict__

    def test_a_write_needs_no_load(self) -> None:
        keeper = Keeper()
        keeper.__dict__[LOADER] = lambda name: pytest.fail(f"asked for {name}")
        keeper.words = ["new"]
        keeper.seen = 1
        assert keeper.__dict__["words"] == ["new"]
