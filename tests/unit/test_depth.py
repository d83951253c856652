"""How deep values may be nested: the same at every door, and what is let in can be read everywhere."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape.model.depth import MAX_DEPTH, is_too_deep
from grape.model.values import BadValue, to_value


def nested(depth: int, inner: Any, shapes: list[int]) -> Any:
    for i in range(depth):
        shape = shapes[i % len(shapes)]
        inner = (
            [inner] if shape == 0 else {"k": inner} if shape == 1 else ["x" * 9, inner, {}] if shape == 2 else (inner,)
        )
    return inner


@given(
    st.integers(MAX_DEPTH - 3, MAX_DEPTH + 3) | st.integers(0, 2 * MAX_DEPTH),
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.sampled_from([1, "x", "\u0434" * 300, ["\u0434"] * 300, [[]] * 300, {}]),
)
def test_the_depth_of_any_value_is_told(depth: int, shapes: list[int], inner: Any) -> None:
    value = nested(depth, inner, shapes)
    assert is_too_deep(msgspec.msgpack.encode(value)) == (depth_of(value) > MAX_DEPTH)


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
