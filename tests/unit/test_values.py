"""Values as they travel, and as a handler gets them."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from msgspec import Raw, Struct

from grape import Context, Topology
from grape.errors import TooLarge
from grape.model import own
from grape.model.stored import decode_dead
from grape.model.values import MAX_INT, MIN_INT, BadValue, Payload, Unfit, encode, seconds, to_value
from grape.testing import Harness

CENTURY = 100 * 365.25 * 86_400


class TestSeconds:
    @pytest.mark.parametrize(
        ("value", "result"),
        [(0, 0.0), (1.5, 1.5), (timedelta(minutes=2), 120.0), (CENTURY, CENTURY), (timedelta(0), 0.0)],
    )
    def test_a_number_or_a_timedelta(self, value: Any, result: float) -> None:
        got = seconds(value, "a delay")
        assert got == result
        assert type(got) is float

    @pytest.mark.parametrize("value", [True, "1", None, 1j])
    def test_nothing_else(self, value: Any) -> None:
        with pytest.raises(TypeError, match="a delay is a number of seconds or a timedelta"):
            seconds(value, "a delay")

    @pytest.mark.parametrize("value", [-1, -0.1, math.nan, math.inf, -math.inf, timedelta(-1)])
    def test_finite_and_not_negative(self, value: Any) -> None:
        with pytest.raises(ValueError, match="a delay must be finite and not negative"):
            seconds(value, "a delay")

    @pytest.mark.parametrize("value", [CENTURY * 1.01, 10**400, timedelta(days=40_000)])
    def test_at_most_a_hundred_years(self, value: Any) -> None:
        with pytest.raises(ValueError, match="at most"):
            seconds(value, "a delay")


class TestTravelling:
    @pytest.mark.parametrize("value", [None, True, 1.5, b"", b"x" * 10, "", "x" * 10, "é" * 5, 0, MIN_INT, MAX_INT])
    def test_what_is_plain_travels_as_it_is(self, value: Any) -> None:
        assert to_value(value, 10) is value

    @pytest.mark.parametrize("value", [b"x" * 11, "x" * 11, "é" * 6, ["x" * 9], {"k": "x" * 9}])
    def test_no_more_bytes_than_an_event_may_have(self, value: Any) -> None:
        with pytest.raises(TooLarge, match=r"over max-event \(10\)"):
            to_value(value, 10)

    @pytest.mark.parametrize("value", [MIN_INT - 1, MAX_INT + 1, 1 << 20_000], ids=hex)
    def test_no_more_bits_than_an_integer_has(self, value: int) -> None:
        with pytest.raises(BadValue, match=r"from -2\^63 to 2\^63-1"):
            to_value(value, 10)

    def test_text_has_to_be_valid(self) -> None:
        with pytest.raises(BadValue, match="not valid Unicode"):
            to_value("\ud800", 10)

    def test_the_rest_is_encoded(self) -> None:
        for value in ([1, "a"], {"k": None}, (1, 2)):
            packed = to_value(value, 100)
            assert type(packed) is Raw
            assert bytes(packed) == msgspec.msgpack.encode(value)
        assert len(bytes(to_value([b"x" * 7], 10))) == 10

    def test_what_cannot_be_is_said(self) -> None:
        endless: list[Any] = []
        endless.append(endless)
        for value, why in ((object(), "a object cannot travel"), ([1 << 70], "a list"), (endless, "a list")):
            with pytest.raises(BadValue, match=why):
                to_value(value, 100)

    def test_a_coroutine_that_nobody_awaits_is_said_and_closed(self) -> None:
        async def handler() -> None: ...

        coroutine = handler()
        with pytest.raises(BadValue, match="write the handler as `async def`"):
            to_value(coroutine, 100)
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            coroutine.send(None)


class Point(Struct):
    x: int


class Made:
    """A registered type, of which there is one even for nil."""


class TestPayloads:
    """What a handler's annotation asks for."""

    def test_a_column_as_it_comes(self) -> None:
        assert Payload(Any).column(encode([1, "a", None])) == [1, "a", None]
        assert Payload(int).column(encode([1, 2])) == [1, 2]
        assert Payload(Point).column(encode([{"x": 1}, {"x": 2}])) == [Point(1), Point(2)]

    @pytest.mark.parametrize("kind", [int, Point, list[int], int | None])
    def test_what_does_not_fit_stands_for_itself_alone(self, kind: Any) -> None:
        good: dict[Any, Any] = {int: 7, Point: {"x": 7}, list[int]: [7], (int | None): 7}
        payload = Payload(kind)
        first, bad, last = payload.column(encode([good[kind], "bad", good[kind]]))
        assert type(bad) is Unfit
        assert "the payload does not fit" in str(bad.error)
        assert first == last == msgspec.convert(good[kind], kind)
        (bad,) = payload.items(["bad"])
        assert type(bad) is Unfit

    @pytest.mark.parametrize("kind", [Any, str])
    def test_a_text_that_is_not_utf8_is_of_its_event_alone(self, kind: Any) -> None:
        """Workers in other languages can emit one."""
        one, bad = Payload(kind).column(b"\x92\xa1a\xa1\xff")
        assert one == "a"
        assert type(bad) is Unfit

        def build() -> Topology:
            t = Topology("texts")
            t.add_output("out")

            def handle(data: Any, context: Context) -> None:
                context.emit("out", data)

            handle.__annotations__["data"] = kind
            t.add_slot("text", handle, retries=0, emits="out")
            return t

        with Harness(build) as run:
            for text in (b"\xa1a", b"\xa1\xff", b"\xa1b"):
                run.feed("text", Raw(text), key="k")
            run.settle()
            assert [event.data for event in run.outputs("out")] == ["a", "b"]
            assert [decode_dead(letter).kind for _, letter in run._rows("dead")] == ["bad-payload"]

    @pytest.mark.parametrize("kind", [Any, str])
    def test_it_is_told_when_there_is_something_to_look_for(self, kind: Any) -> None:
        payload = Payload(kind)
        payload.column(b"\x91\xa1a")
        assert not payload.may_be_unfit
        payload.column(b"\x91\xa1\xff")
        assert payload.may_be_unfit

    def test_values_as_they_travelled_in_a_worker(self) -> None:
        raw = Raw(encode([1]))
        plain: list[Any] = [1, "a", None]
        assert Payload(Any).items(plain) is plain
        assert Payload(Any).items([1, raw]) == [1, [1]]
        assert Payload(Any).items([1, raw], {int, Raw}) == [1, [1]]
        numbers = [1, 2]
        assert Payload(int).items(numbers) is numbers
        assert Payload(int).items(numbers, {int}) is numbers
        assert Payload(float).items([1, 2.5]) == [1.0, 2.5]
        assert type(Payload(float).items([1])[0]) is float
        assert Payload(list[int]).items([raw]) == [[1]]
        assert Payload(Point).items([Raw(encode({"x": 1}))]) == [Point(1)]
        first, bad = Payload(int).items([1, True])
        assert first == 1
        assert type(bad) is Unfit

    def test_nils(self) -> None:
        assert Payload(Any).nils(3) is None
        assert Payload(int | None).nils(3) == [None] * 3
        unfit = Payload(int).nils(3)
        assert unfit is not None
        assert [type(each) for each in unfit] == [Unfit] * 3

    def test_each_event_gets_an_object_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(own.registered, Made, own.Own(lambda value: None, lambda kind, value: Made(), "here"))
        made = Payload(Made).nils(3)
        assert made is not None
        assert [type(each) for each in made] == [Made] * 3
        assert len(set(map(id, made))) == 3
