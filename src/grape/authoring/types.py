"""`grape.register`: how a type of the user's own travels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from grape.authoring.places import place_of_caller
from grape.authoring.raised import line_of
from grape.errors import TopologyError, Unstoppable
from grape.model import own

T = TypeVar("T")

_CONTAINERS = (list, dict, tuple, set, frozenset)


def register(kind: type[T], *, encode: Callable[[T], Any], decode: Callable[[Any], T]) -> None:
    """Let instances of ``kind`` be emitted, replied, stored and fed, and slots and `State` be annotated with it.

    Call it at the top of the module that defines the topology: every worker imports that, and so registers the type as
    well. It holds for subclasses too that have no registration of their own.

    Args:
        encode: makes a value of an instance: builtins, or anything else that can travel. It must come out the same for
            equal instances: state is written if its encoding has changed.
        decode: makes an instance of what ``encode`` made (as lists, dicts, text, numbers, bytes). What it raises says
            that a payload does not fit.

    Raises:
        TopologyError: it is no class, it travels already, or was registered elsewhere.
    """
    where = place_of_caller()
    _check(kind, encode, decode, where)
    known = own.registered.get(kind)
    if known is not None and known.place != where:  # a module may be imported under two names
        raise TopologyError(f"{where}: {kind.__qualname__} was registered at {known.place}; one registration is enough")
    name = kind.__name__

    def encoded(value: Any) -> Any:
        try:
            made = encode(value)
        except (KeyboardInterrupt, Unstoppable):
            raise
        except BaseException as e:
            raise ValueError(f"encode= of {name} ({where}) raised {line_of(e)}") from None
        if made is None or isinstance(made, kind):
            what = "None (is a `return` missing?)" if made is None else f"a {type(made).__name__}"
            raise ValueError(f"encode= of {name} ({where}) returned {what}; it returns a value made of builtins")
        return made

    def decoded(asked: Any, value: Any) -> Any:
        try:
            return decode(value)
        except (KeyboardInterrupt, Unstoppable):
            raise
        except BaseException as e:
            raise ValueError(f"decode= of {name} ({where}) raised {line_of(e)}") from None

    own.registered[kind] = own.Own(encoded, decoded, where)


def _check(kind: Any, encode: Any, decode: Any, where: str) -> None:
    """
    Raises:
        TopologyError: see `register`.
    """
    if not isinstance(kind, type) or kind is object:
        raise TopologyError(f"{where}: grape.register takes a class, not {kind!r:.60}")
    for what, function in (("encode", encode), ("decode", decode)):
        if not callable(function):
            raise TopologyError(f"{where}: {what}= of {kind.__qualname__} is a function, not {function!r:.60}")
    if own.is_model(kind):
        raise TopologyError(f"{where}: {kind.__qualname__} is a model of pydantic, which travels as it says itself")
    if issubclass(kind, _CONTAINERS) or not isinstance(msgspec.inspect.type_info(kind), msgspec.inspect.CustomType):
        raise TopologyError(
            f"{where}: {kind.__qualname__} travels already, without being registered: builtins and their collections, "
            f"msgspec.Struct, dataclasses, attrs, enums, datetime, UUID and Decimal do"
        )
