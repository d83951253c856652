"""Data are values: what is emitted, replied or stored is encoded at that line."""

from __future__ import annotations

import math
from datetime import timedelta
from types import CoroutineType
from typing import Any, Final

import msgspec

from grape.errors import BadPayload, HandlerError, TooLarge
from grape.model import own
from grape.model.depth import MAX_DEPTH, is_too_deep
from grape.model.plain import MAX_INT as MAX_INT
from grape.model.plain import MIN_INT as MIN_INT
from grape.model.plain import PLAIN as PLAIN
from grape.model.plain import shown as shown

Raw = msgspec.Raw

encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder().decode
_encode_own: Final = own.encode

_MAX_SECONDS: Final = 100 * 365.25 * 86_400


def seconds(value: float | timedelta, what: str) -> float:
    """``value`` in seconds, checked: not negative, at most a hundred years.

    Raises:
        TypeError: neither a number nor a timedelta.
        ValueError: negative, not finite or too long.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} is a number of seconds or a timedelta, not {type(value).__name__}: {shown(value)}")
    if value > _MAX_SECONDS and value != math.inf:
        raise ValueError(f"{what} is at most {_MAX_SECONDS:g} s (a hundred years), not {shown(value)}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{what} must be finite and not negative, not {shown(value)}")
    return float(value)


class BadValue(HandlerError):
    """A value that cannot travel."""

    code = "bad-value"


def to_value(data: Any, max_event: int) -> Any:
    """Return ``data`` if it is plain, else its encoding as Raw.

    Raises:
        BadValue: it cannot be encoded.
        TooLarge: its encoding has more than ``max_event`` bytes.
    """
    kind = type(data)
    if kind is str:
        if not data.isascii():
            try:
                size = len(data.encode())
            except UnicodeEncodeError as e:
                raise BadValue(f"text that is not valid Unicode cannot travel: {e.reason}") from None
        else:
            size = len(data)
        if size > max_event:
            raise TooLarge(f"text of {size} bytes is over max-event ({max_event})")
        return data
    if kind is int:
        if MIN_INT <= data <= MAX_INT:
            return data
        raise BadValue(f"{shown(data)} cannot travel: an integer must be from -2^63 to 2^63-1")
    if kind is bytes:
        if len(data) > max_event:
            raise TooLarge(f"{len(data)} bytes are over max-event ({max_event})")
        return data
    if kind in PLAIN:
        return data
    try:
        packed = _encode_own(data)
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        why = str(e)
        if kind is CoroutineType:
            data.close()  # nobody awaits it
            why = "write the handler as `async def`, or let functools.wraps say that it wraps one"
        raise BadValue(f"a {kind.__name__} cannot travel: {why}") from None
    if len(packed) > max_event:
        raise TooLarge(f"a {kind.__name__} of {len(packed)} encoded bytes is over max-event ({max_event})")
    if len(packed) > MAX_DEPTH and is_too_deep(packed):
        raise BadValue(f"a {kind.__name__} cannot travel: lists and maps may be nested {MAX_DEPTH} deep")
    return Raw(packed)


class Unfit:
    """Stands in a column for a value that does not fit the handler's annotation."""

    __slots__ = ("error",)

    def __init__(self, error: BadPayload) -> None:
        self.error = error


class Payload:
    """How the values of a column become what a handler's annotation asks for. ``may_be_unfit``: there may be `Unfit` in
    its columns: one has been made."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._any = kind is Any
        self.may_be_unfit = False
        self._column = own.column_decoder(kind)
        self._item = own.decoder(kind)
        self._exact = frozenset({kind}) if isinstance(kind, type) and kind in PLAIN else frozenset()

    def column(self, packed: bytes) -> list[Any]:
        """A msgpack array; what does not fit is `Unfit`."""
        try:
            return self._column(packed)
        except _UNREADABLE:
            return [self._one(raw) for raw in _raw_column(packed)]

    def items(self, values: list[Any], kinds: set[type] | None = None) -> list[Any]:
        """Values as they travelled inside the worker: plain ones, and Raw. ``kinds``: their types, if known."""
        if kinds is None:
            kinds = set(map(type, values))
        if self._any:
            return [decode(v) if type(v) is Raw else v for v in values] if Raw in kinds else values
        if kinds <= self._exact:
            return values
        return [self._one(v if type(v) is Raw else encode(v)) for v in values]

    def nils(self, count: int) -> list[Any] | None:
        """A column of ``count`` nils; None where the handler takes anything."""
        if self._any:
            return None
        first = self._one(b"\xc0")
        if first is None or type(first) is Unfit:
            return [first] * count
        return [first, *(self._one(b"\xc0") for _ in range(count - 1))]  # each event gets an object of its own

    def _one(self, packed: Any) -> Any:
        try:
            return self._item(packed)
        except _UNREADABLE as e:
            self.may_be_unfit = True
            return Unfit(own.misfit(self._kind, e))


_UNREADABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
"""That texts in values are UTF-8 is looked at by whoever reads them, and by nobody before."""
_raw_column = msgspec.msgpack.Decoder(list[Raw]).decode
