"""A node and its loop: one stage in, what it emitted out, every event undone alone if it fails."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Protocol

from msgspec import Struct

from grape.authoring.emitter import INHERIT, Context, Emitter
from grape.authoring.handler import Handler
from grape.errors import HandlerError, Unstoppable
from grape.model.address import Partitions
from grape.model.topology import Limits, SlotSpec
from grape.model.values import Payload, Unfit, to_value
from grape.protocol.messages import Answer, Named
from grape.worker import children
from grape.worker.calls import Calls
from grape.worker.emits import EmitColumns, Emitting, Names, TooMuch
from grape.worker.objects import Access, Part
from grape.worker.stage import Stage
from grape.worker.state import StateTable
from grape.worker.together import Together


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
    """What a unit needs of the runtime. ``single``, ``together``: see `Ground`. ``objects``: how handlers have them.
    ``part``: of the stage that runs."""

    single: bool
    together: Together | None
    objects: Access | None

    @property
    def part(self) -> Part: ...

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

    def trace_of(self, stage: Stage, index: int) -> str:
        """Id of its trace; "": it is not traced."""


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
        self.has_rate = any(slot.rate for slot in slots.values())
        self.stage: Stage | None = None
        self.payload = Payload(handler.payload_type)
        self._host = host
        self._limits = limits
        self._call = handler.call
        self._columns = EmitColumns(limits.max_result)
        self._marks: list[int] = []
        self.emitter: Emitter = handler.instance if handler.instance is not None else Context()
        self._emitting = Emitting(self.emitter, self._columns, self.node, names, partitions, limits.max_event, self)
        self._calls: Calls = self._emitting.calls
        self._names = names
        self._partitions = partitions

    # What the emitter wants to know of the event that runs

    def own_key(self) -> str | None:
        assert self.stage is not None
        return self.stage.key_of(self.position())

    def keys_ahead(self) -> Sequence[str | None]:
        assert self.stage is not None
        keys, at = self.stage.keys, self.position()
        return () if keys is None else keys[at:]

    @property
    def together(self) -> Together | None:
        return self._host.together

    def answers(self) -> Sequence[Answer]:
        assert self.stage is not None
        return self._host.answers(self, self.stage, self.position())

    def place(self) -> object:
        return id(self.stage), self.position()

    def is_left(self) -> None:  # noqa: B027
        """For `_reopen`."""

    def objects(self) -> Access | None:
        return self._host.objects

    @property
    def part(self) -> Part:
        return self._host.part

    def _reopen(self) -> None:
        """The only event of the stage counts as running again."""
        self._marks.clear()

    def _event_start(self) -> int:
        return self._marks[-1] if self._marks else 0

    def position(self) -> int:
        """Index of the event that is running."""
        return len(self._marks)

    def event_at(self, stage: Stage) -> int | None:
        """Index of the event that runs, of what runs; None: several do, or it is not known."""
        index = self.position()
        return index if self.is_exact and index < stage.count else None

    def run(self, stage: Stage) -> Emissions | None:
        """Process the events of ``stage`` in order. Failures go to the host; returns what the others emitted."""
        self.stage = stage
        data = stage.values(self.payload)
        locked = self._host.locked(self.node)
        self._marks.clear()
        self._columns.cut(0)
        self._columns.single = stage.count == 1 or self._host.single
        self._emitting.begin()
        self._begin(stage, data)
        start = 0
        try:
            if not locked and not (self.payload.may_be_unfit and data is not None and Unfit in set(map(type, data))):
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
                        if data is not None and type(data[i]) is Unfit:
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

    def abandon(self) -> None:  # noqa: B027
        """In a child that was forked by the handler: the stage ends with the event that runs."""

    def _end(self) -> None:
        """The stage is over, however it ended: nothing of it is kept."""
        self._emitting.end()
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
