"""The event as a handler sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from msgspec import Struct


class Lineage(ABC):
    """Where the events of one batch come from. Events share it and ask with their index in the batch, so that an id or
    a time is worked out for the handlers that read it, and for no others."""

    __slots__ = ()

    @abstractmethod
    def id_of(self, index: int) -> str:
        """The id: the same on every attempt."""

    @abstractmethod
    def time_of(self, index: int) -> float:
        """When the event was made: wall time, seconds since 1970."""

    @abstractmethod
    def attempt_of(self, index: int) -> int:
        """1 for the first attempt."""

    @abstractmethod
    def hops_of(self, index: int) -> int:
        """How many emits lie between the event and the outside."""

    @abstractmethod
    def trace_of(self, index: int) -> str | None:
        """The trace that the event inherited, if any."""

    @abstractmethod
    def progress(self) -> None:
        """The running handler is alive: its timeout begins anew."""


class Event(Struct, gc=False):
    """An event: name, key, data, and who it is.

    ``data`` is decoded to the handler's annotation, otherwise to builtins. ``lineage`` and ``index`` belong to the
    runtime; without them (``Event("word", key="a", data=1)`` in a unit test) the rest has fixed values.
    Not tracked by the garbage collector: an event that a handler stores inside its own data is never freed.
    """

    name: str
    key: str | None = None
    data: Any = None
    lineage: Lineage | None = None
    index: int = 0

    @property
    def id(self) -> str:
        """The same on every attempt: the idempotency key for effects outside Grape."""
        return "test" if self.lineage is None else self.lineage.id_of(self.index)

    @property
    def time(self) -> float:
        """When the event was made: wall time, seconds since 1970."""
        return 0.0 if self.lineage is None else self.lineage.time_of(self.index)

    @property
    def attempt(self) -> int:
        """1 for the first attempt."""
        return 1 if self.lineage is None else self.lineage.attempt_of(self.index)

    @property
    def hops(self) -> int:
        """How many emits lie between this event and the outside."""
        return 0 if self.lineage is None else self.lineage.hops_of(self.index)

    @property
    def trace(self) -> str | None:
        """The trace that this event inherited, if any."""
        return None if self.lineage is None else self.lineage.trace_of(self.index)

    def progress(self) -> None:
        """Tell the watchdog that the handler is alive: its timeout begins anew."""
        if self.lineage is not None:
            self.lineage.progress()
