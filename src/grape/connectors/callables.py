"""Sources written in Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Final

import msgspec

from grape.abc.source import Bad, Chunk, Columns, Pairs, Source, Values
from grape.authoring.raised import line_of
from grape.connectors.lines import MAX_EVENT, RAW
from grape.connectors.picks import Pick, Unfit, are_short, are_unicode, pick_of
from grape.errors import HandlerError, UsageError
from grape.model.address import check_key
from grape.model.event import Event
from grape.model.values import MAX_INT, MIN_INT, shown, to_value

MAX_POSITION: Final = 1 << 20
"""Bytes of a position."""
MAX_EVENTS: Final = 1_000_000
"""Events that one read takes out of an iterable, which might have no end."""

_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder().decode
_CONTRACT: Final = "read(position), which returns (events, position)"


class CallableSource(Source):
    """A custom source: ``read(position) -> (events, position)``.

    ``position`` is None at the start, then what the source returned last, as msgpack keeps it (tuples become lists).
    The source must return the same events for the same position again. Events are `Event`s, or pairs (key, data), a
    key of None being keyless, or bare data; a tuple is always a pair. They are committed with the position, all
    together, so some thousand at a time are best. No events and the same position, or None instead of both, is the end.

    An event whose key or value cannot travel is bad, "name[index]", index counted in its list. What ``read`` raises is
    its own affair: it is asked for the same position again.

    Args:
        event: what events are called that do not say it themselves.
        read: the function, or an object with a method ``read`` (and perhaps ``close``).
        name: tells the source from all others, for ever: its position is stored under it.
        max_event: bytes; a larger value is bad.
        key, id: what they are taken from, of an event's data (`grape.connectors.picks.pick_of`).
    """

    def __init__(
        self, event: str, read: Any, name: str, max_event: int = MAX_EVENT, *, key: Any = None, id: Any = None
    ) -> None:
        if inspect.isgenerator(read) or inspect.iscoroutine(read) or inspect.isasyncgen(read):
            raise UsageError(
                f"source {name!r}: a {type(read).__name__} cannot be asked again from a position. "
                f"Give a function {_CONTRACT}"
            )
        method = getattr(read, "read", read)
        if not callable(method):
            raise UsageError(f"source {name!r}: {type(read).__name__} has no {_CONTRACT}")
        self.name = name
        self._event = event
        self._read: Callable[[Any], Any] = method
        self._close = getattr(read, "close", None)
        self._max_event = max_event
        self._key = None if key is None else pick_of("key", key)
        self._id = None if id is None else pick_of("id", id)
        self._closed = False

    def open(self, position: bytes) -> None:
        self._closed = False

    def read(self, position: bytes) -> Chunk | None:
        if self._closed:
            return None
        result = self._read(_unpack(position) if position else None)
        if result is None:
            return None
        items, new = self._unpacked(result)
        packed = self._packed(new)
        if not items and packed == (position or _pack(None)):
            return None
        if items and self._key is None and self._id is None:
            kind = Pairs if type(items[0]) is tuple else Values
            return Chunk([kind(self._event, items, self._max_event, partial(self._sift, items))], packed, [], 0)
        columns, bad = self._sift(items)
        return Chunk(columns, packed, bad, 0)

    def close(self) -> None:
        self._closed = True
        if callable(self._close):
            self._close()

    def _packed(self, position: Any) -> bytes:
        try:
            packed = _pack(position)
            _unpack(packed)
        except Exception as e:  # whatever its encoding runs into
            raise UsageError(f"source {self.name!r}: its position cannot be stored: {line_of(e)}") from None
        if len(packed) > MAX_POSITION:
            raise UsageError(
                f"source {self.name!r}: its position has {len(packed):,} bytes; at most {MAX_POSITION:,} are stored "
                "with every commit"
            )
        return packed

    def _unpacked(self, result: Any) -> tuple[list[Any], Any]:
        if not isinstance(result, tuple | list) or len(result) != 2:
            what = shown(result)
            if isinstance(result, tuple | list):
                what = f"{what} of {len(result)}"
            elif inspect.isgenerator(result):
                what += ": read() is called for each position, so it cannot yield; return lists"
            elif inspect.iscoroutine(result):
                result.close()
                what += ": read() is called on a thread of its own, write it without async"
            raise UsageError(
                f"source {self.name!r}: read() must return (events, position), or None at the end; it returned {what}"
            )
        events, position = result
        if events is None:
            return [], position
        if type(events) is list:
            return events, position
        if isinstance(events, str | bytes | bytearray | dict | Event) or not isinstance(events, Iterable):
            raise UsageError(
                f"source {self.name!r}: events must be a list or another iterable of events, "
                f"not {type(events).__name__}: {shown(events)}"
            )
        found = list(islice(events, MAX_EVENTS + 1))
        if len(found) > MAX_EVENTS:
            raise UsageError(
                f"source {self.name!r}: more than {MAX_EVENTS:,} events in one read; they are committed together with "
                "the position, so return some thousand at a time"
            )
        return found, position

    # -------------------------------------------------------------- items to columns

    def _sift(self, items: list[Any]) -> tuple[list[Columns], list[Bad]]:
        """The good ones in columns, and the bad ones."""
        bad: list[Bad] = []
        return self._columns(items, bad) if items else [], bad

    def _columns(self, items: list[Any], bad: list[Bad]) -> list[Columns]:
        kinds = set(map(type, items))
        is_picked = self._key is not None or self._id is not None
        if kinds == {tuple} and not is_picked:
            try:
                keys = [key for key, _ in items]
            except ValueError:  # not all are pairs: below, one by one
                pass
            else:
                return self._column(self._event, keys, list(map(itemgetter(1), items)), 0, bad)
        if tuple not in kinds and not is_picked and not any(issubclass(kind, Event) for kind in kinds):
            try:
                return [Columns(self._event, None, self._values(items, kinds))]
            except HandlerError:
                return self._column(self._event, None, items, 0, bad)
        events = [self._event_of(i, item) for i, item in enumerate(items)]
        columns: list[Columns] = []
        start = 0
        for name, group in groupby(events, itemgetter(0)):
            _, group_keys, group_data = map(list, zip(*group, strict=True))
            columns += self._column(name, group_keys, group_data, start, bad)
            start += len(group_keys)
        return columns

    def _event_of(self, index: int, item: Any) -> tuple[str, Any, Any]:
        if isinstance(item, Event):
            if type(item.name) is not str or not item.name:
                raise UsageError(f"source {self.name!r}, event {index}: its name is {shown(item.name)}")
            return item.name, item.key, item.data
        if type(item) is not tuple:
            return self._event, None, item
        if len(item) != 2:
            raise UsageError(
                f"source {self.name!r}, event {index}: a tuple is (key, data), this one has {len(item)} values; "
                "for data that is a tuple, return (None, data)"
            )
        return self._event, item[0], item[1]

    def _column(self, name: str, keys: list[Any] | None, data: list[Any], start: int, bad: list[Bad]) -> list[Columns]:
        """Events of one name. ``start``: the index of the first."""
        kinds = set() if keys is None else set(map(type, keys))
        if kinds == {type(None)}:
            keys = None
        is_picked = self._key is not None or self._id is not None
        is_keyed = kinds == {str} and are_unicode(keys or [], 0) and are_short(keys or [])
        if not is_picked and (keys is None or is_keyed):
            try:
                return [Columns(name, keys, self._values(data))]
            except HandlerError:
                pass
        good_keys: list[str | None] = []
        good_data: list[Any] = []
        ids: list[str] = []
        for i, (key, value) in enumerate(zip(keys or [None] * len(data), data, strict=True), start):
            kind = "bad-key"
            try:
                if self._key is not None:
                    key = self._key.one(_plain(self._key, value))
                elif key is not None:
                    check_key(key)
                own = "" if self._id is None else self._id.one(_plain(self._id, value))
                kind = "bad-value"
                value = to_value(value, self._max_event)
            except Exception as e:  # also what code of others runs into
                if isinstance(e, HandlerError):
                    kind = e.code
                elif isinstance(e, Unfit):
                    kind = e.kind
                text = str(e) if isinstance(e, HandlerError | Unfit | TypeError | ValueError) else line_of(e)
                bad.append(
                    Bad(f"{self.name}[{i}]", name, _raw(value), kind, f"source {self.name!r}, event {i}: {text}")
                )
                continue
            good_keys.append(key)
            good_data.append(value)
            ids.append(own)
        keyless = keys is None and self._key is None
        found = Columns(name, None if keyless else good_keys, good_data, None, ids if self._id is not None else None)
        return [found] if good_data else []

    def _values(self, data: list[Any], kinds: set[type] | None = None) -> list[Any]:
        """A column as values; one kind of plain ones is checked as a whole. ``kinds``: their types, if known.

        Raises:
            HandlerError: one cannot travel.
        """
        kinds = kinds or set(map(type, data))
        if kinds == {str} and are_unicode(data, self._max_event):
            return data
        if kinds == {int} and min(data) >= MIN_INT and max(data) <= MAX_INT:
            return data
        if kinds <= {float, bool, type(None)}:
            return data
        return [to_value(value, self._max_event) for value in data]


def _plain(pick: Pick, value: Any) -> Any:
    """A value as a field of it is looked for: an object of a class is what it will travel as."""
    if type(value) in (dict, str) or not pick.needs_plain:
        return value
    return msgspec.to_builtins(value)


def _raw(value: Any) -> bytes:
    try:
        return f"{value!r:.{RAW}}".encode(errors="backslashreplace")[:RAW]
    except Exception as e:
        return f"<a {type(value).__name__} that cannot be shown: {line_of(e)}>".encode()[:RAW]
