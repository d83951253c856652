"""How deep values may be nested: the same at every door, and what is let in can be read everywhere."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape import hot
from grape.model.depth import LET_IN, MAX_DEPTH, is_too_deep
from grape.model.values import BadValue, to_value


def nested(depth: int, inner: Any, shapes: list[int]) -> Any:
    for i in range(depth):
        shape = shapes[i % len(shapes)]
        inner = (
            [inner] if shape == 0 else {"k": inner} if shape == 1 else ["x" * 9, inner, {}] if shape == 2 else (inner,)
        )
    return inner


SCALARS = [
    *(None, True, 0, 200, -1, -200, 1 << 15, 1 << 31, 1 << 63, -(1 << 15), -(1 << 31), -(1 << 62), 1.5),
    *("x" * n for n in (0, 9, 31, 32, 300, 70_000)),
    *(b"\x91" * n for n in (0, 9, 300, 70_000)),
    *(msgspec.msgpack.Ext(5, b"\x81" * n) for n in (0, 1, 2, 3, 4, 8, 16, 300, 70_000)),
    datetime(2026, 1, 1, tzinfo=UTC),
]
WIDE: list[Any] = [[], {}, [0] * 20, [[]] * 700, dict.fromkeys(range(20)), dict.fromkeys(range(700), ())]


@given(
    st.integers(MAX_DEPTH - 3, MAX_DEPTH + 3) | st.integers(0, 2 * MAX_DEPTH),
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.sampled_from([1, "x", "\u0434" * 300, ["\u0434"] * 300, [[]] * 300, {}]),
    st.lists(st.sampled_from([*SCALARS, *WIDE]), max_size=3),
)
def test_the_depth_of_any_value_is_told(depth: int, shapes: list[int], inner: Any, beside: list[Any]) -> None:
    value = nested(depth, [*beside, inner, *beside], shapes)
    deepest = depth_of(value)
    packed = msgspec.msgpack.encode(value)
    assert is_too_deep(packed) == (deepest > MAX_DEPTH)
    for most in (0, 1, deepest - 1, deepest, deepest + 1, LET_IN):
        assert is_too_deep(packed, most) == hot.is_deeper(packed, most) == (deepest > most)


@pytest.mark.parametrize(
    "opens", [b"\x91", b"\x81\xc0", b"\x82\1\1\xc0", b"\xdc\0\1", b"\xdd\0\0\0\1", b"\xde\0\1\xc0", b"\xdf\0\0\0\1\xc0"]
)
@pytest.mark.parametrize(("before", "after"), [(b"\x81\x80", b""), (b"\x81", b"\xc0")], ids=["in a value", "in a key"])
def test_what_python_cannot_read_is_as_deep_as_any(opens: bytes, before: bytes, after: bytes) -> None:
    """A map with a map as a key."""
    for depth in range(MAX_DEPTH - 3, MAX_DEPTH + 3):
        packed = before + opens * (depth - 1) + b"\xc0" + after
        assert is_too_deep(packed) == (depth > MAX_DEPTH)


@given(st.binary(max_size=40), st.integers(0, 700))
def test_what_is_no_value_has_no_depth(garbage: bytes, opens: int) -> None:
    """Nothing is raised."""
    assert not is_too_deep(garbage)
    assert is_too_deep(b"\x91" * opens + garbage) in (True, False)
    assert is_too_deep(b"\x81\x80" * opens + garbage) in (True, False)


def depth_of(value: Any) -> int:
    """The plain way."""
    deepest, level = 0, [value]
    while level := [each for each in level if isinstance(each, list | tuple | dict)]:
        deepest += 1
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return deepest


def test_what_is_nested_too_deep_does_not_travel() -> None:
    allowed = nested(MAX_DEPTH, 1, [0, 1])
    assert to_value(allowed, 1 << 20) == msgspec.Raw(msgspec.msgpack.encode(allowed))
    with pytest.raises(BadValue, match=r"a list cannot travel: lists and maps may be nested 256 deep"):
        to_value([allowed], 1 << 20)
