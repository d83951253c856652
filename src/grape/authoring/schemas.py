"""What payloads look like, as JSON Schema (2020-12): for those who read about an app, nothing is decided by it."""

from __future__ import annotations

import collections.abc
import functools
import operator
import types
import typing
from collections.abc import Callable
from typing import Any, Final

import msgspec

from grape.model import own
from grape.model.topology import MAX_SCHEMA

_YIELDING: Final = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)


def schema_of(kind: Any) -> str:
    """The schema of values of ``kind`` as JSON; "": nothing can be said of them, or too much."""
    if kind is Any or kind is object:
        return ""
    try:
        schema = own.json_schema(kind)
        text = msgspec.json.encode(schema, order="deterministic")
    except Exception:  # types of others say what they are in code of their own, which is not asked for more
        return ""
    return "" if schema == {} or len(text) > MAX_SCHEMA else text.decode()


def result_of(function: Callable[..., Any], kind: str, is_batch: bool, scope: dict[str, Any]) -> Any:
    """What one result of a function is, by its annotation; Any: it does not say, or not in a way that can be read.

    Args:
        kind: what a call gives (`Handler.kind`).
        scope: names that the annotation may use beside the module's.
    """
    annotated = getattr(function, "__annotations__", {}).get("return", Any)
    one = types.SimpleNamespace(__annotations__={"return": annotated})
    try:
        found = typing.get_type_hints(
            one, globalns=getattr(function, "__globals__", {}), localns=scope, include_extras=True
        )["return"]
    except Exception:  # whatever evaluating the user's text raises; what is returned is not checked by it
        return Any
    if is_batch or kind in ("generator", "async-generator"):
        wanted = (list,) if is_batch else _YIELDING
        if typing.get_origin(found) not in wanted:
            return Any
        found = typing.get_args(found)[0]
    return _without_none(found)


def _without_none(kind: Any) -> Any:
    """None is what a handler returns if it has nothing to say."""
    if kind is type(None) or kind is None:
        return Any
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        others = [part for part in typing.get_args(kind) if part is not type(None)]
        return functools.reduce(operator.or_, others)
    return kind
