"""How a node's events are run: one stage in, what it emitted out, every event undone alone if it fails.

There are several loops instead of one because this is the only code of Grape that runs once per event:
`FunctionUnit` (payload in, result out), `NodeUnit` (``process`` and ``emit``), `CountingUnit` (a node with one plain
State), `BatchUnit`, and `GeneralUnit` for every other shape. ``benchmarks/`` has a row for each.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Protocol

from msgspec import Struct

from grape.authoring.emitter import INHERIT, Context, Emitter
from grape.authoring.handler import Handler
from grape.authoring.state import LOADER, WRITTEN, State
from grape.errors import HandlerError, NoKey, Unstoppable
from grape.model.address import Partitions
from grape.model.event import Event
from grape.model.topology import Limits, SlotSpec
from grape.model.values import MAX_INT, MIN_INT, PLAIN, Payload, Raw, Unfit, to_value
from grape.protocol.messages import Answer, Named
from grape.worker import children
from grape.worker.calls import Calls
from grape.worker.emits import EmitColumns, Names, TooMuch, bind, unbind, weight
from grape.worker.stage import Stage
from grape.worker.state import MISSING, BadState, StateTable


def failure(error: BaseException) -> BaseException:
    """``error``, which a handler has raised: whatever it is, it is the failure of its event.

    Raises:
        Unstoppable: it is no failure. Nor is a KeyboardInterrupt where Ctrl-C still raises one, in no matter what runs:
            in the harness, never in a worker.
    """
    children.end_child(error)
    if isinstance(error, Unstoppable) or (
        isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        raise error
    return error


class Emissions(Struct, frozen=True):
    """What a stage emitted. ``marks[i]``: how many its events up to i emitted; None: one an event at most, entry j
    comes from event ``flat[j]`` (flat None: from event j). ``names``: one for all, or one an entry (with `Delayed`,
    `Cancelled` and `Replied` among them). ``keys`` None: all inherit; else one an entry, INHERIT among them. ``size``:
    about how many bytes. ``kinds``: the types of ``data``, if known."""

    names: str | list[Any]
    keys: list[Any] | None
    data: list[Any]
    marks: list[int] | None
    flat: list[int] | None
    size: int
    kinds: set[type] | None = None

    def __len__(self) -> int:
        return len(self.data)


_ONE_EACH: Final = list(range(1, 8193))
"""Marks of a stage each of whose events emitted once."""


class Host(Protocol):
    """What a unit needs of the runtime. ``single``: see `Runtime`."""

    single: bool

    def fail(
        self, unit: Unit, stage: Stage, index: int, error: BaseException | None, named: Named | None = None
    ) -> None:
        """The event failed: it goes to the hold list, and its key may be locked from now on. ``named`` says what it
        is, if there is no ``error``."""

    def behind(self, unit: Unit, stage: Stage, index: int) -> None:
        """The event has to wait behind a failed one of its key."""

    def locked(self, node: str) -> set[str]:
        """Keys of ``node`` that are locked in the current partition; grows while a stage runs."""

    def table(self, node: str) -> StateTable:
        """The state of ``node`` in the current partition, filled for the keys of the stage."""

    def now_us(self) -> int:
        """Wall time."""

    def answers(self, unit: Unit, stage: Stage, index: int) -> Sequence[Answer]:
        """To the calls that the event has made before."""


class Unit(ABC):
    """A node and its loop. ``run`` is called from one thread at a time; ``position`` from any. ``is_exact``: that is
    the event that runs, not one before it."""

    is_exact = True

    def __init__(
        self,
        handler: Handler,
        slots: dict[str, SlotSpec],
        host: Host,
        names: Names,
        partitions: Partitions,
        limits: Limits,
    ) -> None:
        self.handler = handler
        self.node = handler.node
        self.slots = slots
        self.is_async = handler.is_async
        self.has_state = bool(handler.states)
        self.stage: Stage | None = None
        self.payload = Payload(handler.payload_type)
        self._typed = handler.payload_type is not Any
        self._host = host
        self._limits = limits
        self._call = handler.call
        self._columns = EmitColumns(limits.max_result)
        self._marks: list[int] = []
        self._events: list[Event] = []
        self._data: list[Any] = []
        self.emitter: Emitter = handler.instance if handler.instance is not None else Context()
        self._names = names
        self._partitions = partitions
        self._calls: Calls

    def _bind(self) -> None:
        self._calls = bind(
            self.emitter,
            self._columns,
            self.node,
            self._names,
            self._partitions,
            self._limits.max_event,
            self,
        )

    # What the emitter wants to know of the event that runs

    def own_key(self) -> str | None:
        assert self.stage is not None
        return self.stage.key_of(self.position())

    def answers(self) -> Sequence[Answer]:
        assert self.stage is not None
        return self._host.answers(self, self.stage, self.position())

    def place(self) -> object:
        return id(self.stage), self.position()

    def is_left(self) -> None:
        """For `_reopen`."""

    def _reopen(self) -> None:
        """The only event of the stage counts as running again."""
        self._marks.clear()

    def _event_start(self) -> int:
        return self._marks[-1] if self._marks else 0

    def position(self) -> int:
        """Index of the event that is running."""
        return len(self._marks)

    def run(self, stage: Stage) -> Emissions | None:
        """Process the events of ``stage`` in order. Failures go to the host; returns what the others emitted."""
        self.stage = stage
        data = stage.values(self.payload)
        locked = self._host.locked(self.node)
        self._marks.clear()
        self._columns.cut(0)
        self._columns.single = stage.count == 1 or self._host.single
        self._bind()
        self._begin(stage, data)
        start = 0
        try:
            if not locked and not (self._typed and data is not None and Unfit in set(map(type, data))):
                try:
                    self._fast()
                    children.end_child()
                    self._check_calls(stage.count)
                    start = stage.count
                except BaseException as e:
                    failed = failure(e)
                    if stage.count > 1 and self._calls.was_caught_before(failed):
                        raise TooMuch from None
                    start = self.position()
                    self._undo()
                    self._host.fail(self, stage, start, failed)
                    self._close(start)
                    start += 1
            for i in range(start, stage.count):
                if locked and self._must_wait(stage, i):
                    self._host.behind(self, stage, i)
                else:
                    try:
                        if self._typed and data is not None and type(data[i]) is Unfit:
                            raise data[i].error
                        self._one(i)
                    except BaseException as e:
                        failed = failure(e)
                        self._undo()
                        self._host.fail(self, stage, i, failed)
                self._close(i)
            return self._finish(stage)
        finally:
            self._end()

    def _check_calls(self, count: int) -> None:
        """No handler of the last ``count`` events went on although it was to be left.

        Raises:
            HandlerError: the one did.
            TooMuch: one of them did. They have to run one by one.
        """
        if self._calls.suspended is not None:
            if count > 1:
                raise TooMuch
            self._reopen()
            self._calls.check()

    def abandon(self) -> None:
        """In a child that was forked by the handler: the stage ends with the event that runs."""
        self._events.clear()
        self._data.clear()

    def _end(self) -> None:
        """The stage is over, however it ended: nothing of it is kept."""
        unbind(self.emitter, self.node)
        self.stage = None

    def _must_wait(self, stage: Stage, index: int) -> bool:
        """Whether a failed event of the same key has to be done with first."""
        return stage.key_of(index) in self._host.locked(self.node) and self.slots[stage.name_of(index)].ordered

    @abstractmethod
    def _begin(self, stage: Stage, data: list[Any] | None) -> None: ...

    @abstractmethod
    def _fast(self) -> None:
        """All events, the first failure is raised; `position` tells which one it was."""

    @abstractmethod
    def _one(self, index: int) -> None:
        """One event; leaves the closing mark to `_close`."""

    def _undo(self) -> None:
        """Forget what the running event emitted and changed."""
        self._calls.suspended = None
        self._columns.cut(self._event_start())

    def _close(self, index: int) -> None:
        """Event ``index`` is over, however it ended."""
        children.end_child()
        self._marks.append(len(self._columns.data))

    def _finish(self, stage: Stage) -> Emissions | None:
        if not self._columns.data:
            return None
        size = self._columns.size
        names, keys, data = self._columns.take()
        marks = self._marks
        if keys is None and type(names) is str and len(data) == len(marks) and marks == _ONE_EACH[: len(marks)]:
            return Emissions(names, None, data, None, None, size)
        return Emissions(names, keys, data, marks[:], None, size)

    def _returned(self, event: str, value: Any) -> None:
        """A handler returned or yielded something: emit it."""
        if value is None:
            return
        emits = self.slots[event].emits
        if len(emits) != 1:
            raise stray_result(self.node, emits, value)
        out = to_value(value, self._limits.max_event)
        self._columns.put(emits[0], out, key_for(self.handler, event, value, self._partitions))


def key_for(handler: Handler, event: str, value: Any, partitions: Partitions) -> Any:
    """The key of what a handler returned or yielded.

    Raises:
        TypeError, ValueError: it is none.
    """
    of = handler.keys.get(event) if handler.keys else None
    if of is None:
        return INHERIT
    key = of(value)
    if key is not None:
        partitions[key]
    return key


def stray_result(node: str, emits: tuple[str, ...], value: Any) -> HandlerError:
    declared = f"declares several ({', '.join(emits)})" if emits else "declares none"
    return HandlerError(
        f"{node!r} returned or yielded a {type(value).__name__}, but its slot {declared}: exactly one emits= says "
        f"where results go; otherwise emit them, and return None"
    )


class FunctionUnit(Unit):
    """A plain function of the payload: its result is what it emits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._out: list[Any] = []

    def position(self) -> int:
        return len(self._out)

    def _begin(self, stage: Stage, data: list[Any] | None) -> None:
        self._out = []
        self._data = data if data is not None else [None] * stage.count

    def _fast(self) -> None:
        if len(self._data) == 1:
            self._one(0)
            return
        # What a failing map has given stays in the list: `position` is the failed one.
        self._out.extend(map(self._call, self._data))
        if len(self._out) < len(self._data):  # a StopIteration is the end of a map, and gone
            raise StopIteration(f"raised by {self.node!r} ({self.handler.where})")

    def _one(self, index: int) -> None:
        self._out.append(self._call(self._data[index]))

    def _undo(self) -> None:
        pass

    def _close(self, index: int) -> None:
        children.end_child()
        if len(self._out) == index:
            self._out.append(None)

    def _finish(self, stage: Stage) -> Emissions | None:
        out, names = self._out, stage.names
        kinds: set[type] | None = set(map(type, out))
        if kinds == {type(None)}:
            return None
        emits = self._emits(names)
        size = _ascii_size(out, self._limits.max_event) if kinds == {str} and all(emits) else -1
        if size >= 0:
            flat = None
        else:
            self._settle(stage, out, emits)
            flat = [i for i, value in enumerate(out) if value is not None]
            if not flat:
                return None
            if len(flat) == len(out):
                flat = None
            else:
                out = [out[i] for i in flat]
            size = sum(map(weight, out))
        if flat is not None or kinds != {str}:
            kinds = None
        if isinstance(names, str):
            return Emissions(emits[0] or "", None, out, None, flat, size, kinds)
        return Emissions([emits[i] for i in flat] if flat is not None else emits, None, out, None, flat, size, kinds)

    def _emits(self, names: str | list[str]) -> list[str | None]:
        """Where results go, per event (one entry if all have one name); None: nowhere."""
        to = {event: slot.emits[0] if len(slot.emits) == 1 else None for event, slot in self.slots.items()}
        return [to[names]] if isinstance(names, str) else [to[name] for name in names]

    def _settle(self, stage: Stage, out: list[Any], emits: list[str | None]) -> None:
        """Turn results into values in place. An event whose result cannot travel has failed; as a function has no other
        effect, later ones of its key can still be taken back to wait behind it."""
        locked = self._host.locked(self.node)
        uniform = len(emits) == 1
        failed = False
        for i, value in enumerate(out):
            if value is None:
                continue
            if failed and stage.key_of(i) in locked:
                out[i] = None
                self._host.behind(self, stage, i)
                continue
            try:
                if emits[0 if uniform else i] is None:
                    raise stray_result(self.node, self.slots[stage.name_of(i)].emits, value)
                if type(value) not in (bool, float):
                    out[i] = to_value(value, self._limits.max_event)
            except BaseException as e:
                out[i] = None
                failed = True
                self._host.fail(self, stage, i, failure(e))


def _ascii_size(texts: list[str], largest: int) -> int:
    """Bytes of all together if each can travel as it is, else -1. Looked at as one text, which costs a tenth of looking
    at each."""
    together = "".join(texts)
    if not together.isascii() or (len(together) > largest and max(map(len, texts)) > largest):
        return -1
    return len(together)


class NodeUnit(Unit):
    """``Node.process(event)`` without State."""

    def _begin(self, stage: Stage, data: list[Any] | None) -> None:
        self._events = stage.events(data)

    def _end(self) -> None:
        # Through an event, which the garbage collector does not look into, a whole worker would hold on to itself.
        self._events = []
        super()._end()

    def _fast(self) -> None:
        process, mark, emitted = self._call, self._marks.append, self._columns.data
        for event in self._events:
            result = process(event)
            if result is not None:
                self._returned(event.name, result)
            mark(len(emitted))

    def _one(self, index: int) -> None:
        event = self._events[index]
        self._returned(event.name, self._call(event))
        self._calls.check()


class CountingUnit(NodeUnit):
    """``Node.process(event)`` with one State of a plain type: it is loaded into the instance before each event, where
    reading and writing it costs an attribute access, and compared after it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ((self._name, self._state),) = self.handler.states.items()
        self._attributes: dict[str, Any] = self.emitter.__dict__
        self._attributes[LOADER] = self._load

    def _load(self, name: str) -> Any:
        """The state was read although it is not loaded: the event has no key, or the handler deleted it."""
        stage = self.stage
        if stage is not None and stage.key_of(self.position()) is None:
            raise no_key(self.node, name, stage.name_of(self.position()))
        return self._state.make_default()

    def _begin(self, stage: Stage, data: list[Any] | None) -> None:
        super()._begin(stage, data)
        self._table = self._host.table(self.node)

    def is_left(self) -> None:
        assert self.stage is not None
        key = self.stage.key_of(self.position())
        self._kept = key, self._table.values.get(key or "", MISSING), key in self._table.dirty

    def _reopen(self) -> None:
        super()._reopen()
        key, value, was_dirty = self._kept
        if key is not None:
            self._table.values[key] = value
            if not was_dirty:
                self._table.dirty.pop(key, None)

    def _fast(self) -> None:
        table = self._table
        state = table.single
        assert state is not None
        stage = self.stage
        assert stage is not None
        if state.default is MISSING or stage.keys is None or None in stage.keys:
            for i in range(len(self._events)):
                self._one(i)
                self._close(i)
            return
        process, mark, emitted = self._call, self._marks.append, self._columns.data
        attributes, name, default = self._attributes, self._name, state.default
        values, dirty = table.values, table.dirty
        for event in self._events:
            key: str = event.key  # type: ignore[assignment]
            old = values[key]
            if old is MISSING:
                old = default
            elif type(old) is Raw:
                old = state.read(old)
            attributes[name] = old
            result = process(event)
            if result is not None:
                self._returned(event.name, result)
            new = attributes.get(name, MISSING)
            if new is not old:
                if type(new) is not int or not MIN_INT <= new <= MAX_INT:
                    new = self._checked(new)
                values[key] = new
                dirty[key] = None
            mark(len(emitted))

    def _checked(self, new: Any) -> Any:
        if new is MISSING:
            return new
        if type(new) not in PLAIN:
            raise BadState(f"{self._name!r} of {self.node!r} was given a {type(new).__name__}: it is a {self._state!r}")
        return self._table.encode_value(self._name, new)

    def _one(self, index: int) -> None:
        event, table, name = self._events[index], self._table, self._name
        attributes = self._attributes
        key = event.key
        if key is None:
            attributes.pop(name, None)
            self._returned(event.name, self._call(event))
            self._calls.check()
            if name in attributes:
                raise no_key(self.node, name, event.name)
            return
        state = table.single
        assert state is not None
        old = state.read(table.cached(key, name, 0))
        attributes[name] = old
        self._returned(event.name, self._call(event))
        self._calls.check()
        new = attributes.get(name, MISSING)
        if new is not old:
            table.store(key, {name: self._checked(new)}, 0)

    def _undo(self) -> None:
        super()._undo()
        self._attributes.pop(self._name, None)

    def _finish(self, stage: Stage) -> Emissions | None:
        self._attributes.pop(self._name, None)
        return super()._finish(stage)


def no_key(node: str, state: str, event: str) -> NoKey:
    return NoKey(
        f"node {node!r} used its state {state!r} in an event {event!r} that has no key; "
        f"emit it with key=..., or feed it with a key"
    )


class Cell:
    """What a function gets for a ``State`` argument: ``value`` reads, writes and deletes."""

    __slots__ = ("_access", "_name")

    def __init__(self, access: StateAccess, name: str) -> None:
        self._access = access
        self._name = name

    @property
    def value(self) -> Any:
        return self._access.read(self._name)

    @value.setter
    def value(self, value: Any) -> None:
        self._access.write(self._name, value)

    @value.deleter
    def value(self) -> None:
        self._access.delete(self._name)


class StateAccess:
    """The state of one event while its handler runs: read on demand, applied only when it has succeeded."""

    def __init__(self, node: str, table: StateTable, event: Event, now_us: int) -> None:
        self._node = node
        self._table = table
        self._event = event
        self._now = now_us
        self._seen: dict[str, Any] = {}
        self._values: dict[str, Any] = {}
        self._prolonged: set[str] = set()

    def _cached(self, name: str) -> Any:
        key = self._event.key
        if key is None:
            raise no_key(self._node, name, self._event.name)
        if name not in self._seen:
            self._seen[name] = self._table.cached(key, name, self._now)
        return self._seen[name]

    def read(self, name: str) -> Any:
        if name in self._values and self._values[name] is not MISSING:
            return self._values[name]
        cached = self._cached(name)
        if name in self._values:
            cached = MISSING
        value = self._table.types[name].read(cached)
        if type(value) not in PLAIN:
            self._values[name] = value
        return value

    def write(self, name: str, value: Any, assigned: bool = True) -> None:
        """``assigned`` prolongs a state with a ttl, whether or not the value is another one."""
        self._cached(name)
        self._values[name] = value
        if assigned and self._table.types[name].ttl_us is not None:
            self._prolonged.add(name)

    def delete(self, name: str) -> None:
        self._cached(name)
        self._values[name] = MISSING

    def apply(self) -> None:
        """The event has succeeded: hand the changes to the table.

        Raises:
            BadValue, TooLarge, BadState: a new value cannot be stored; nothing is changed then.
        """
        changes: dict[str, Any] = {}
        for name, value in self._values.items():
            seen = self._seen[name]
            new = MISSING if value is MISSING else self._table.encode_value(name, value)
            if name in self._prolonged and new is not MISSING:
                pass
            elif new is not seen and not (new is MISSING or seen is MISSING) and type(new) is type(seen):
                if bytes(new) == bytes(seen) if type(new) is Raw else new == seen:
                    continue
            elif new is seen or (seen is MISSING and is_default(self._table, name, new)):
                continue
            changes[name] = new
        if changes:
            key = self._event.key
            assert key is not None
            self._table.store(key, changes, self._now)


def is_default(table: StateTable, name: str, new: Any) -> bool:
    """Whether ``new`` is the cached form of the default: loading it and leaving it alone is no change."""
    default = table.encode_value(name, table.types[name].make_default())
    return type(new) is type(default) and bool(new == default)


class GeneralUnit(NodeUnit):
    """Every other synchronous shape: generators, functions that ask for event, context or state, several states."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._access: StateAccess | None = None
        self._is_generator = self.handler.kind == "generator"
        self._is_node = self.handler.instance is not None
        self._bare = [name for name, state in self.handler.states.items() if state.is_bare]
        if self._is_node and self.has_state:
            self.emitter.__dict__[LOADER] = self._load

    def _begin(self, stage: Stage, data: list[Any] | None) -> None:
        super()._begin(stage, data)
        self._table = self._host.table(self.node) if self.has_state else None

    def _fast(self) -> None:
        for i in range(len(self._events)):
            self._one(i)
            self._close(i)

    def _load(self, name: str) -> Any:
        assert self._access is not None
        value = self.emitter.__dict__[name] = self._access.read(name)
        self._touched.add(name)
        return value

    def _one(self, index: int) -> None:
        event = self._events[index]
        access: StateAccess | None = None
        if self._table is not None:
            self._access = access = StateAccess(self.node, self._table, event, self._host.now_us())
            self._touched: set[str] = set()
            self._clear()
            self._written: set[str] = set()
            self.emitter.__dict__[WRITTEN] = self._written
            if self._is_node and event.key is not None:
                for name in self._bare:  # so that they can be deleted without having been read
                    self._load(name)
        result = self._call(*arguments(self.handler, event, self.emitter, access))
        if self._is_generator and hasattr(result, "__next__"):  # a wrapper may give something else
            for item in result:
                self._returned(event.name, item)
        else:
            self._returned(event.name, result)
        self._calls.check()
        if access is not None:
            if self._is_node:
                self._collect(access)
            access.apply()
            self._access = None

    def _collect(self, access: StateAccess) -> None:
        """What the handler left in the instance's attributes."""
        attributes = self.emitter.__dict__
        for name in self.handler.states:
            if name in attributes:
                access.write(name, attributes[name], assigned=name in self._written)
            elif name in self._touched:
                access.delete(name)

    def _clear(self) -> None:
        if self._is_node:
            for name in self.handler.states:
                self.emitter.__dict__.pop(name, None)

    def _end(self) -> None:
        self._access = None
        super()._end()

    def _undo(self) -> None:
        super()._undo()
        self._clear()

    def _finish(self, stage: Stage) -> Emissions | None:
        self._clear()
        return super()._finish(stage)


def arguments(handler: Handler, event: Event, context: Emitter, access: StateAccess | None) -> list[Any]:
    """What ``handler`` is called with."""
    out: list[Any] = []
    for argument in handler.arguments:
        if argument == "payload":
            out.append(event.data)
        elif argument == "event":
            out.append(event)
        elif argument == "context":
            out.append(context)
        else:
            assert access is not None
            out.append(Cell(access, argument.removeprefix("state:")))
    return out


class BatchUnit(NodeUnit):
    """A handler that gets lists and returns a list of the same length: result, None, or an exception for one event."""

    def own_key(self) -> str | None:
        raise HandlerError(f"{self.node!r} gets its events in batches: a timer has a name per key, so not here")

    def place(self) -> object:
        raise HandlerError(f"{self.node!r} gets its events in batches: a call is made for one event, so not here")

    def _begin(self, stage: Stage, data: list[Any] | None) -> None:
        super()._begin(stage, data)
        self._size = max(slot.batch for slot in self.slots.values())

    def _fast(self) -> None:
        raise _Unbatched

    def run(self, stage: Stage) -> Emissions | None:
        """Slices of up to ``batch`` events; see `Unit.run` for what it promises."""
        self.stage = stage
        data = stage.values(self.payload)
        self._marks.clear()
        self._columns.cut(0)
        self._columns.single = stage.count == 1 or self._host.single
        self._bind()
        self._begin(stage, data)
        host = self._host
        outcomes: dict[int, Any] = {}
        todo: list[int] = []
        try:
            for i in range(stage.count):
                if data is not None and type(data[i]) is Unfit:
                    outcomes[i] = data[i].error
                elif self._must_wait(stage, i):
                    outcomes[i] = None
                else:
                    todo.append(i)
            for at in range(0, len(todo), self._size):
                part = todo[at : at + self._size]
                outcomes.update(zip(part, self._results([self._events[i] for i in part]), strict=True))
            for i in range(stage.count):
                outcome = outcomes[i]
                if self._must_wait(stage, i):
                    host.behind(self, stage, i)
                elif isinstance(outcome, BaseException):
                    host.fail(self, stage, i, outcome)
                else:
                    try:
                        self._returned(stage.name_of(i), outcome)
                    except BaseException as e:
                        host.fail(self, stage, i, failure(e))
                self._close(i)
            return self._finish(stage)
        finally:
            self._end()

    def _results(self, events: list[Event]) -> list[Any]:
        """One outcome an event; a raise fails all of them singly."""
        try:
            results = self._call([e.data for e in events] if self.handler.arguments == ("payload",) else events)
            children.end_child()
            if not isinstance(results, list | tuple) or len(results) != len(events):
                sized = isinstance(results, list | tuple)
                got = f"{len(results)} results" if sized else f"a {type(results).__name__}"
                raise HandlerError(f"{self.node!r} got {len(events)} events and returned {got}, not one result each")
        except BaseException as e:
            failed = failure(e)
            self._columns.cut(self._event_start())
            return [failed] * len(events)
        return list(results)

    def _one(self, index: int) -> None:
        raise _Unbatched


class _Unbatched(Exception):
    pass


def make_unit(
    handler: Handler, slots: dict[str, SlotSpec], host: Host, names: Names, partitions: Partitions, limits: Limits
) -> Unit:
    """The loop that fits ``handler``."""
    kind: type[Unit]
    if handler.is_batch:
        kind = BatchUnit
    elif handler.kind == "sync" and handler.arguments == ("payload",) and not handler.states and not handler.keys:
        kind = FunctionUnit
    elif handler.kind == "sync" and handler.instance is not None and not handler.states:
        kind = NodeUnit
    elif handler.kind == "sync" and handler.instance is not None and _is_countable(handler.states):
        kind = CountingUnit
    else:
        kind = GeneralUnit
    return kind(handler, slots, host, names, partitions, limits)


def _is_countable(states: dict[str, State[Any]]) -> bool:
    return len(states) == 1 and all(s.is_bare for s in states.values())
