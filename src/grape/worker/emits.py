"""The closures behind ``emit``, ``emit_many`` and ``reply`` in a worker, and the columns they fill."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from itertools import repeat
from typing import Any, Final

from msgspec import Struct

from grape.authoring.emitter import INHERIT, Emitter, column_length, seconds
from grape.errors import EventOver, TooLarge, UnknownEvent
from grape.model.address import Partitions
from grape.worker.values import encode, to_value

_CHECK_EVERY: Final = 32_768
"""Emits of one stage after which their size is looked at."""


class Delayed(Struct, frozen=True):
    """Stands in the column of names for an emit with ``delay`` (microseconds)."""

    name: str
    delay: int


class Replied(Struct, frozen=True):
    """Stands in the column of names for a reply."""

    final: bool


class Names:
    """What may be emitted: the slots and outputs of the app."""

    def __init__(self, app: str, known: Iterable[str]) -> None:
        self.app = app
        self.known = frozenset(known)

    def unknown(self, name: object, node: str) -> Exception:
        """The error for an emit that leads nowhere."""
        if not isinstance(name, str):
            return TypeError(f"the name of an event is text (str), not {type(name).__name__}")
        if "@" in name:
            return UnknownEvent(
                f"node {node!r} emits {name!r}, but no app {name.partition('@')[0]!r} runs here (no-such-app)"
            )
        near = difflib.get_close_matches(name, self.known, 3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; known are {sorted(self.known)}"
        return UnknownEvent(f"node {node!r} emits {name!r}, neither a slot nor an output of {self.app!r}{hint}")


class Sink:
    """Columns of what a stage emits, in order. ``names`` may hold `Delayed` and `Replied` beside text; ``keys`` may
    hold INHERIT."""

    __slots__ = ("_max_result", "_next_check", "data", "keys", "names")

    def __init__(self, max_result: int) -> None:
        self.names: list[Any] = []
        self.keys: list[Any] = []
        self.data: list[Any] = []
        self._max_result = max_result
        self._next_check = _CHECK_EVERY

    def take(self) -> tuple[list[Any], list[Any], list[Any]]:
        """The columns, and start anew. The lists themselves stay: closures hold on to them."""
        out = self.names[:], self.keys[:], self.data[:]
        self.cut(0)
        return out

    def cut(self, mark: int) -> None:
        """Forget everything behind ``mark``."""
        del self.names[mark:], self.keys[mark:], self.data[mark:]
        self._next_check = max(_CHECK_EVERY, mark + _CHECK_EVERY)

    def check_size(self, start: int) -> None:
        """Raise TooLarge if what was emitted since ``start`` has outgrown ``max-result``."""
        if len(self.names) < self._next_check:
            return
        self._next_check = len(self.names) + _CHECK_EVERY
        size = len(encode(self.data[start:])) + 12 * (len(self.keys) - start)
        if size > self._max_result:
            raise TooLarge(
                f"one event emitted over {self._max_result >> 20} MiB (max-result) in {len(self.names) - start} events;"
                f" emit fewer, or emit events to itself that go on with the rest"
            )


def bind(
    emitter: Emitter,
    sink: Sink,
    node: str,
    names: Names,
    partitions: Partitions,
    max_event: int,
    start: Callable[[], int],
) -> None:
    """Give ``emitter`` the closures that fill ``sink``. ``start`` tells where the running event's emits begin."""
    known = names.known
    put_name, put_key, put_data = sink.names.append, sink.keys.append, sink.data.append
    column = sink.names

    def emit(event: str, data: Any = None, *, key: Any = INHERIT, delay: float | timedelta | None = None) -> None:
        if event not in known:
            raise names.unknown(event, node)
        if data is not None:
            kind = type(data)
            if kind is not str or not data.isascii() or len(data) > max_event:
                data = to_value(data, max_event)
        if key is not INHERIT and key is not None:
            partitions[key]
        if delay is not None:
            put_name(Delayed(event, int(seconds(delay, "delay") * 1e6)))
        else:
            put_name(event)
        put_key(key)
        put_data(data)
        if len(column) >= _CHECK_EVERY:
            sink.check_size(start())

    def emit_many(
        event: str, *, keys: Collection[str | None] | None = None, data: Collection[Any] | None = None
    ) -> None:
        if event not in known:
            raise names.unknown(event, node)
        count = column_length(keys, data)
        if keys is None:
            all_keys: Iterable[Any] = repeat(INHERIT, count)
        else:
            all_keys = keys = list(keys)
            deque(map(partitions.__getitem__, (key for key in keys if key is not None)), 0)  # checks them all
        all_data = repeat(None, count) if data is None else [to_value(item, max_event) for item in data]
        sink.names.extend(repeat(event, count))
        sink.keys.extend(all_keys)
        sink.data.extend(all_data)
        if len(column) >= _CHECK_EVERY:
            sink.check_size(start())

    def reply(data: Any = None, *, final: bool = True) -> None:
        value = to_value(data, max_event)
        put_name(Replied(bool(final)))
        put_key(None)
        put_data(value)

    attributes = emitter.__dict__
    attributes["emit"] = emit
    attributes["emit_many"] = emit_many
    attributes["reply"] = reply


def unbind(emitter: Emitter, node: str) -> None:
    """Outside of its events a handler cannot emit."""

    def over(*args: Any, **kwargs: Any) -> None:
        raise EventOver(f"node {node!r} used emit or reply outside of the handling of an event")

    emitter.__dict__.update(emit=over, emit_many=over, reply=over)
