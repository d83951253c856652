"""Types of the user's own: how their instances become values, and values become them.

msgspec knows builtins, Structs, dataclasses, attrs, enums, dates, UUID and Decimal. What else there is comes here: what
was registered, and models of pydantic. pydantic is never imported: whoever has a model of it has imported it.

A type travels as what its encoder makes of it, without a mark of the type: who reads it in another language, or without
an annotation, gets exactly that.
"""

from __future__ import annotations

import math
import sys
import typing
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar, overload

import msgspec
from msgspec import Struct

from grape.errors import BadPayload, Unstoppable
from grape.model.plain import shown

T = TypeVar("T")

_SHOWN_ERRORS: Final = 5


class Own(Struct, frozen=True):
    """A registered type. ``encode`` and ``decode`` (type, value) raise ValueError or TypeError alone; ``place`` is
    where it was registered."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any, Any], Any]
    place: str


registered: Final[dict[type, Own]] = {}


def of(kind: type) -> tuple[type, Own] | None:
    """The registration that holds for ``kind``: its own, or that of its nearest base class."""
    if registered:
        for base in kind.__mro__:
            own = registered.get(base)
            if own is not None:
                return base, own
    return None


def is_model(kind: Any) -> bool:
    """It is a model or a dataclass of pydantic (version 2)."""
    return isinstance(kind, type) and getattr(kind, "__pydantic_validator__", None) is not None


def is_own(kind: Any) -> bool:
    """Values of ``kind``, which msgspec does not know, can travel all the same."""
    kind = typing.get_origin(kind) or kind
    return isinstance(kind, type) and (is_model(kind) or of(kind) is not None)


def is_validated(kind: Any) -> bool:
    """Values of ``kind`` are read by the rules of pydantic as a whole."""
    return _adapter(kind) is not None


def check_complete(kind: Any) -> None:
    """
    Raises:
        NameError: a model names a type that is not there (yet).
    """
    for model in _named(kind):
        if is_model(model) and getattr(model, "__pydantic_complete__", True) is False:
            try:
                model.model_rebuild()
            except Exception as e:
                raise NameError(_line(e).partition("\n")[0]) from None


def to_plain(value: Any) -> Any:
    """What an object that msgspec does not know travels as: its ``enc_hook``.

    Raises:
        TypeError, ValueError: it cannot travel.
    """
    kind = type(value)
    found = of(kind)
    if found is not None:
        return found[1].encode(value)
    if is_model(kind) and hasattr(kind, "model_dump"):
        return _dumped(value, kind)
    raise TypeError(
        f"Encoding objects of type {kind.__qualname__} is unsupported; say how they travel with "
        f"grape.register({kind.__name__}, encode=..., decode=...), or emit builtins"
    )


def from_plain(kind: Any, value: Any) -> Any:
    """An instance of a type that msgspec does not know: its ``dec_hook``.

    Raises:
        ValueError, TypeError: the value does not fit.
    """
    cls = typing.get_origin(kind) or kind
    if is_model(cls):
        return _validated(_adapter(kind), value)
    found = of(cls)
    if found is None:
        raise TypeError(f"nothing says how a {cls.__qualname__} is read; register it with grape.register")
    made = found[1].decode(kind, value)
    if not isinstance(made, cls):
        raise TypeError(
            f"decode= of {found[0].__qualname__} ({found[1].place}) returned a {type(made).__name__}, no {cls.__name__}"
        )
    return made


def json_schema(kind: Any) -> dict[str, Any]:
    """What values of ``kind`` look like, as JSON Schema; ``{}``: any. References lead into ``$defs`` beside it.

    Raises:
        Exception: code of others was asked, or there can be no values of ``kind``.
    """
    adapter = _adapter(kind)
    found: dict[str, Any] = (
        msgspec.json.schema(kind, schema_hook=_schema_of_own) if adapter is None else adapter.json_schema()
    )
    return found


def _schema_of_own(kind: Any) -> dict[str, Any]:
    """A registered type travels as what its encoder makes of it, of which nothing is known."""
    return {"title": getattr(kind, "__name__", "")}


encode: Final = msgspec.msgpack.Encoder(enc_hook=to_plain).encode
_decode: Final = msgspec.msgpack.Decoder().decode


def decoder(kind: Any) -> Callable[[bytes], Any]:
    """Reads encoded values of ``kind``; raises `msgspec.ValidationError` for what does not fit.

    Raises:
        TypeError: there can be no values of ``kind``.
    """
    adapter = _adapter(kind)
    if adapter is None:
        return msgspec.msgpack.Decoder(kind, dec_hook=from_plain).decode

    def decode(packed: bytes) -> Any:
        value = _decode(packed)
        try:
            return _validated(adapter, value)
        except ValueError as e:
            raise msgspec.ValidationError(str(e)) from None

    return decode


def column_decoder(kind: Any) -> Callable[[bytes], list[Any]]:
    """`decoder` of an array of them, which may fail as a whole."""
    if _adapter(kind) is None:
        item: Any = list[Any] if kind is Any else list[kind]
        return msgspec.msgpack.Decoder(item, dec_hook=from_plain).decode
    one, raws = decoder(kind), msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
    return lambda packed: list(map(one, raws(packed)))


@overload
def convert(value: Any, kind: type[T], what: str = ...) -> T: ...
@overload
def convert(value: Any, kind: Any, what: str = ...) -> Any: ...
def convert(value: Any, kind: Any, what: str = "payload") -> Any:
    """``value``, made of builtins, as what ``kind`` says: a Struct, a dataclass, a pydantic model, a registered type,
    or a collection of them. A typed slot gets its payload in the same way. ``what``: what it is called in the error.

    Raises:
        BadPayload: it does not fit.
        TypeError: there can be no values of ``kind``.
    """
    adapter = _adapter(kind)
    try:
        if adapter is not None:
            return _validated(adapter, value)
        return msgspec.convert(value, kind, dec_hook=from_plain)
    except ValueError as e:
        raise misfit(kind, e, what) from None


def misfit(kind: Any, error: object, what: str = "payload") -> BadPayload:
    """What is raised for a payload that is no ``kind``."""
    name = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else f"{kind!r:.200}"
    return BadPayload(f"the {what} does not fit {name}: {error}")


# ------------------------------------------------------------------ pydantic


def _adapter(kind: Any) -> Any:
    """What validates ``kind`` by the rules of pydantic; None if these are not its own."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not any(map(is_model, _named(kind))):
        return None
    key = kind if isinstance(kind, type) else repr(kind)  # what is annotated may be unhashable
    known = _adapters.get(key)
    if known is None or known[0] is not kind:
        try:
            known = kind, pydantic.TypeAdapter(kind)
        except Exception:  # beside models it names something that only msgspec knows
            return None
        _adapters[key] = known
    return known[1]


_adapters: Final[dict[Any, tuple[Any, Any]]] = {}


def _named(kind: Any) -> Iterable[Any]:
    """The types that an annotation names: list[A | B] names list, A and B."""
    yield kind
    for part in typing.get_args(kind):
        yield from _named(part)


def _dumped(model: Any, kind: Any) -> Any:
    """What the model says of itself as JSON, such that it can read it again: aliases as it reads them, and no computed
    fields.

    Raises:
        ValueError: it cannot be said.
    """
    config = getattr(kind, "model_config", {})
    by_alias = config.get("serialize_by_alias", config.get("validate_by_alias", True))
    try:
        return model.model_dump(mode="json", round_trip=True, by_alias=by_alias)
    except Exception as e:
        line = _line(e)
        raise ValueError(f"model_dump raised {line}{f'; {_BYTES}' if 'utf-8' in line else ''}") from None


_BYTES: Final = 'bytes in a model travel with ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")'


def _validated(adapter: Any, value: Any) -> Any:
    """By the rules for JSON, as that is what models are written as, if JSON can hold the value.

    Raises:
        ValueError: it does not fit; the text names field and value.
    """
    try:
        if _is_json(value):
            return adapter.validate_json(msgspec.json.encode(value))
        return adapter.validate_python(value)
    except (KeyboardInterrupt, Unstoppable):
        raise
    except BaseException as e:
        errors = getattr(e, "errors", None)
        if isinstance(e, ValueError) and callable(errors):
            raise ValueError(_said(errors(include_url=False, include_context=False))) from None
        raise ValueError(f"a validator raised {_line(e)}") from None


def _line(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error!s:.500}"
    except BaseException:  # the text of an exception is code of others
        return type(error).__name__


def _is_json(value: Any) -> bool:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        return all(type(key) is str and _is_json(one) for key, one in value.items())
    return kind is list and all(map(_is_json, value))


def _said(errors: list[dict[str, Any]]) -> str:
    """Errors of pydantic in a line: ``lines.0.price: Input should be a valid number, got 'many'``."""
    lines = []
    for error in errors[:_SHOWN_ERRORS]:
        where = ".".join(map(str, error["loc"]))
        got = "" if error["type"] == "missing" else f", got {shown(error['input'])}"
        lines.append(f"{where}: {error['msg']}{got}" if where else f"{error['msg']}{got}")
    more = len(errors) - _SHOWN_ERRORS
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
