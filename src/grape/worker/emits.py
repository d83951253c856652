"""The closures behind ``emit``, ``emit_many`` and ``reply`` in a worker, and the columns they fill."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from datetime import timedelta
from itertools import repeat
from typing import Any, Final

from msgspec import Struct

from grape.authoring.emitter import INHERIT, Emitter, column_length
from grape.authoring.objects import NodeStorage
from grape.errors import EventOver, NoKey, TooLarge, UnknownEvent, Unstoppable
from grape.hot import Tip, make_emit, make_emit_many
from grape.hot.pure import MEASURE_BYTES, MEASURE_EMITS
from grape.model.address import Partitions, check_timer_name
from grape.model.foreign import Peers, is_foreign, problem_of
from grape.model.near import did_you_mean
from grape.model.values import Raw, encode, seconds, to_value
from grape.worker.calls import Calls, Running
from grape.worker.objects import HandlerObjects, Written

_SMALL: Final = 256
_EMIT_BYTES: Final = 64
"""What a small emit is taken for until it is measured."""
_SIZED: Final = frozenset({str, bytes, Raw})


class Delayed(Struct, frozen=True):
    """Stands in the column of names for an emit with ``delay`` (microseconds)."""

    name: str
    delay: int
    timer: str = ""


class Cancelled(Struct, frozen=True):
    """Stands in the column of names for a timer that is cancelled."""

    timer: str


class Replied(Struct, frozen=True):
    """Stands in the column of names for a reply."""

    final: bool


class Names:
    """What may be emitted: the slots and outputs of the app, and the slots of its ``peers``."""

    def __init__(self, app: str, slots: Iterable[str], outputs: Iterable[str] = (), peers: Peers | None = None) -> None:
        self.app = app
        self._peers: Peers = {} if peers is None else peers
        self.outputs = frozenset(outputs)
        self.known = self.outputs.union(slots)

    def change_peers(self, peers: Peers) -> None:
        """For all who were made with the same ones."""
        self._peers.clear()
        self._peers.update(peers)

    def check(self, name: object, node: str) -> None:
        """Of what is not one of ``known``.

        Raises:
            TypeError, UnknownEvent: it leads nowhere, or only in other words.
        """
        if not isinstance(name, str):
            raise TypeError(f"the name of an event is text (str), not {type(name).__name__}")
        if is_foreign(name):
            problem = problem_of(name, self.app, self._peers)
            if problem:
                raise UnknownEvent(f"node {node!r} emits {name!r}, but {problem}")
            return
        hint = did_you_mean(name, self.known, f"known are {sorted(self.known)}")
        raise UnknownEvent(f"node {node!r} emits {name!r}, neither a slot nor an output of {self.app!r}; {hint}")


class TooMuch(Unstoppable):
    """What several events have done together is over ``max-result``: they have to run one by one."""


class EmitColumns(Tip):
    """What a stage emits, in order. ``runs``: the places where the name changes, as (first emit, name). A name is text,
    `Delayed`, `Cancelled`, `Replied` or `Written`.

    ``single``: all of it comes from one event, which fails if it is over ``max_result`` bytes; else it is `TooMuch`.
    """

    __slots__ = ("_max_result", "_size", "runs", "single")

    def __init__(self, max_result: int, single: bool = False) -> None:
        super().__init__()
        self.runs: list[tuple[int, Any]] = []
        self.single = single
        self._max_result = max_result
        self._size = 0  # of the first ``measured`` emits

    def put(self, name: Any, value: Any, key: Any = INHERIT) -> None:
        """One emit more, with the key of its event unless it has one of its own, which is checked."""
        size = weight(value)
        if key is not INHERIT:
            self.pad_keys()
            self.keys.append(key)
            size += 0 if key is None else len(key)
        self.go_on_as(name)
        self.data.append(value)
        self.weigh(size)

    def go_on_as(self, name: Any) -> None:
        """What follows is called ``name``."""
        if name != self.name:
            self.runs.append((len(self.data), name))
            self.name = name

    def take(self) -> tuple[str | list[Any], list[Any] | None, list[Any]]:
        """Names (one text if all have it), keys (None: all inherit) and data, and start anew. The lists themselves
        stay: closures hold on to them."""
        count = len(self.data)
        names: str | list[Any] = []
        if len(self.runs) == 1 and type(self.name) is str:
            names = self.name
        else:
            ends = [start for start, _ in self.runs[1:]] + [count]
            names = [name for (start, name), end in zip(self.runs, ends, strict=True) for _ in range(start, end)]
        keys = None
        if self.keys:
            self.pad_keys()
            keys = self.keys[:]
        data = self.data[:]
        self.runs.clear()  # cut off it would count as undone
        self.cut(0)
        return names, keys, data

    def pad_keys(self) -> None:
        """Say explicitly that what has been emitted without a key inherits it."""
        self.keys.extend(repeat(INHERIT, len(self.data) - len(self.keys)))

    def cut(self, mark: int) -> None:
        """Forget everything behind ``mark``."""
        del self.keys[mark:], self.data[mark:]
        while self.runs and self.runs[-1][0] >= mark:
            name = self.runs.pop()[1]
            if type(name) is Written:
                name.is_undone = True
        self.name = self.runs[-1][1] if self.runs else None
        self._size = self._size * mark // self.measured if mark < self.measured else self._size
        self.measured = min(self.measured, mark)
        if not mark:
            self.big = 0

    # -------------------------------------------------------------- how much it is

    @property
    def size(self) -> int:
        """Bytes, about."""
        return self._size + self.big + _EMIT_BYTES * (len(self.data) - self.measured)

    def weigh(self, size: int) -> None:
        """``size`` bytes more in keys and values that are not small.

        Raises:
            TooLarge, TooMuch: see the class.
        """
        self.big += size
        if self.big > MEASURE_BYTES or len(self.data) - self.measured >= MEASURE_EMITS:
            self.measure()

    def measure(self) -> None:
        """Look how much it really is. Errors as `weigh`."""
        keys = self.keys[self.measured :]
        self._size += len(encode(self.data[self.measured :])) + sum(len(key) for key in keys if type(key) is str)
        for start, name in reversed(self.runs):
            if start < self.measured:
                break
            if type(name) is Written:  # whose bytes are not in the data
                self._size += name.write.weight
        self.measured, self.big = len(self.data), 0
        if self._size > self._max_result:
            if not self.single:
                raise TooMuch
            raise TooLarge(
                f"one event emitted over {self._max_result >> 20} MiB (max-result) in {len(self.data)} events;"
                f" emit fewer, or emit events to itself that go on with the rest"
            )


def weight(value: Any) -> int:
    """Bytes of a value that has its size at hand, else 0."""
    return len(value) if type(value) in _SIZED else 0


class Emitting:
    """What one emitter emits with while its events are handled; outside of that it cannot.

    Args:
        emitter: gets the closures that fill ``columns``.
        running: the event that is handled.
    """

    def __init__(
        self,
        emitter: Emitter,
        columns: EmitColumns,
        node: str,
        names: Names,
        partitions: Partitions,
        max_event: int,
        running: Running,
    ) -> None:
        self.calls = Calls(node, running)
        self._emitter = emitter
        self._closures = _closures(columns, node, names, partitions, max_event, running, self.calls)
        self._objects: HandlerObjects | None = None
        access = running.objects()
        if access is not None:
            self._objects = HandlerObjects(access, columns, node, running)
            self._closures["storage"] = NodeStorage(self._objects, access.own)

        def over(*args: Any, **kwargs: Any) -> None:
            raise EventOver(f"node {node!r} used emit, reply or a timer outside of the handling of an event")

        self._over: dict[str, Any] = {**dict.fromkeys(self._closures, over), "storage": _OverStorage(node)}

    def begin(self) -> None:
        """Events are handled from now on."""
        self.calls.begin()
        if self._objects is not None:
            self._objects.begin_stage()
        self._emitter.__dict__.update(self._closures)

    def end(self) -> None:
        """None is."""
        if self._objects is not None:
            self._objects.is_open = False
        self._emitter.__dict__.update(self._over)


class _OverStorage:
    """In the place of objects while no event is handled."""

    def __init__(self, node: str) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        raise EventOver(f"node {self._node!r} used storage outside of the handling of an event")

    def __getitem__(self, name: str) -> Any:
        return self.storage


def _closures(
    columns: EmitColumns,
    node: str,
    names: Names,
    partitions: Partitions,
    max_event: int,
    running: Running,
    calls: Calls,
) -> dict[str, Any]:
    """By the names of the emitter's methods."""
    known = names.known
    all_data, all_keys = columns.data, columns.keys
    put_data, put_key = all_data.append, all_keys.append

    def emit(
        event: str,
        data: Any = None,
        *,
        key: Any = INHERIT,
        delay: float | timedelta | None = None,
        timer: str | None = None,
    ) -> None:
        # Whatever can be refused is refused before a column is touched.
        if event not in known:
            names.check(event, node)
        size = 0
        if data is not None:
            data = to_value(data, max_event)
            if key is not INHERIT or type(data) is not str or len(data) > _SMALL or not data.isascii():
                size = weight(data)  # short text alone counts for nothing, as in the short ways
        name: Any = event
        if delay is not None:
            name = Delayed(event, int(seconds(delay, "delay") * 1e6), "" if timer is None else timer_name(timer))
        elif timer is not None:
            raise ValueError(f"timer={timer!r:.300} names an emit with delay=..., and this one has none")
        if key is not INHERIT:
            if key is not None:
                partitions[key]
                size += len(key)
            if len(all_keys) != len(all_data):
                columns.pad_keys()
            put_key(key)
        if name is not columns.name:
            columns.go_on_as(name)
        put_data(data)
        columns.weigh(size)

    def emit_many(
        event: str, *, keys: Collection[str | None] | None = None, data: Collection[Any] | None = None
    ) -> None:
        if event not in known:
            names.check(event, node)
        count = column_length(keys, data)
        if keys is not None:
            keys = list(keys)
            checked = keys if None not in keys else [key for key in keys if key is not None]
            deque(map(partitions.__getitem__, checked), 0)  # type: ignore[arg-type]
        if not count:
            return
        size = 0
        values: Iterable[Any] = repeat(None, count)
        if data is not None:
            values = [to_value(item, max_event) for item in data]
            size = sum(map(weight, values))
        if keys is not None:
            columns.pad_keys()
            all_keys.extend(keys)
            size += sum(map(len, checked))  # type: ignore[arg-type]
        columns.go_on_as(event)
        all_data.extend(values)
        columns.weigh(size)

    def timer_name(timer: str) -> str:
        check_timer_name(timer)
        if running.own_key() is None:
            raise NoKey(
                f"node {node!r} used timer {timer!r} in an event that has no key: a timer's name is one of a "
                f"(node, key); emit the event with key=..., or feed it with a key"
            )
        return timer

    def cancel_timer(timer: str) -> None:
        columns.put(Cancelled(timer_name(timer)), None)

    def call(
        event: str, data: Any = None, *, key: Any = INHERIT, timeout: float | timedelta = 30.0, type: Any = Any
    ) -> Any:
        if event not in known:
            names.check(event, node)
        if event in names.outputs:
            raise UnknownEvent(f"node {node!r} calls {event!r}, which is an output: nothing answers there")
        if key is not INHERIT and key is not None:
            partitions[key]
        return calls.answer(event, to_value(data, max_event), key, timeout, type)

    def reply(data: Any = None, *, final: bool = True) -> None:
        columns.put(Replied(bool(final)), to_value(data, max_event))

    return {
        "emit": make_emit(columns, emit, INHERIT, partitions, min(_SMALL, max_event)),
        "emit_many": make_emit_many(columns, emit_many, partitions),
        "reply": reply,
        "cancel_timer": cancel_timer,
        "call": call,
    }
