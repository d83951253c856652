"""Stages: events in columns that one node is about to process, and where they come from."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import msgspec

from grape.model.batch import Run, keys_of, names_of, raw_data_of
from grape.model.event import Event, Lineage
from grape.model.values import Payload

Column = list[Any]


def _nothing() -> None:
    pass


class Stage(Lineage):
    """``names``: one for all, or one an event. ``keys`` None: all keyless. ``hops``: one for all, or one an event.
    ``contexts``: numbers of the work's contexts (-1 none), None: none has one.
    """

    __slots__ = ("contexts", "count", "hops", "keys", "names", "on_progress")

    def __init__(
        self,
        count: int,
        names: str | list[str],
        keys: list[str | None] | None,
        hops: int | list[int],
        contexts: list[int] | None,
    ) -> None:
        self.count = count
        self.names = names
        self.keys = keys
        self.hops = hops
        self.contexts = contexts
        self.on_progress: Callable[[], None] = _nothing

    @abstractmethod
    def created(self) -> int:
        """Microseconds of wall time."""

    @abstractmethod
    def data_of(self, index: int) -> Any:
        """The value as it travelled: plain or Raw."""

    @abstractmethod
    def values(self, payload: Payload) -> Column | None:
        """The values as a handler gets them, its own to change; None: all nil."""

    def travelled(self) -> Column | None:
        """The values as they travelled, plain or Raw; None: all nil."""
        return [self.data_of(i) for i in range(self.count)]

    def ids(self) -> tuple[str, int] | None:
        """If the ids are a text and consecutive numbers: the text, and the first of them."""
        return None

    def time_of(self, index: int) -> float:
        return self.created() / 1e6

    def attempt_of(self, index: int) -> int:
        return 1

    def hops_of(self, index: int) -> int:
        hops = self.hops
        return hops if isinstance(hops, int) else hops[index]

    def trace_of(self, index: int) -> str | None:
        return None

    def progress(self) -> None:
        self.on_progress()

    def name_of(self, index: int) -> str:
        return self.names if isinstance(self.names, str) else self.names[index]

    def key_of(self, index: int) -> str | None:
        return None if self.keys is None else self.keys[index]

    def context_of(self, index: int) -> int:
        return -1 if self.contexts is None else self.contexts[index]

    def key_column(self) -> Sequence[str | None]:
        return [None] * self.count if self.keys is None else self.keys

    def events(self, data: Column | None) -> list[Event]:
        """The events as objects, with ``data`` as decoded for the handler."""
        names = repeat(self.names) if isinstance(self.names, str) else self.names
        return list(
            map(
                Event,
                names,
                self.keys if self.keys is not None else repeat(None),
                data if data is not None else repeat(None),
                repeat(self),
                range(self.count),
            )
        )

    def pick(self, indexes: list[int]) -> Stage:
        """The stage of these events alone."""
        return PickedStage(self, indexes)


class RunColumns:
    """The columns of one run of the log, decoded when asked for. Each node gets values of its own, as a handler may
    change what it gets."""

    __slots__ = ("_decoded", "_decoder", "_raw", "keys", "names", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.names: str | list[str] = run.meta.names[0] if run.meta.index is None else names_of(run)
        self.keys = keys_of(run)
        self._decoder: Payload | None = None
        self._decoded: Column = []
        self._raw: list[msgspec.Raw] | None = None

    def values(self, payload: Payload) -> Column | None:
        if not self.run.data:
            return payload.nils(self.run.count)
        if payload is not self._decoder:
            self._decoded = payload.column(self.run.data)
            self._decoder = payload
        return self._decoded

    def raw(self, index: int) -> msgspec.Raw | None:
        """The value as it stands in the log."""
        column = self.raws()
        return column[index] if column else None

    def raws(self) -> list[msgspec.Raw]:
        """All values as they stand in the log; empty: all are nil."""
        if self._raw is None:
            self._raw = raw_data_of(self.run) or []
        return self._raw


class RootStage(Stage):
    """Events as they stand in the log: those from ``start`` to ``end`` of a run, whose first one has the index
    ``offset`` in its batch."""

    __slots__ = ("_columns", "_created", "_id_prefix", "_offset", "_start")

    def __init__(
        self,
        columns: RunColumns,
        start: int,
        end: int,
        created: int,
        id_prefix: str,
        offset: int,
        contexts: list[int] | None,
    ) -> None:
        meta = columns.run.meta
        super().__init__(
            end - start,
            columns.names if isinstance(columns.names, str) else columns.names[start:end],
            None if columns.keys is None else columns.keys[start:end],
            meta.hops if isinstance(meta.hops, int) else meta.hops[start:end],
            None if contexts is None else contexts[start:end],
        )
        self._columns = columns
        self._start = start
        self._created = created
        self._id_prefix = id_prefix
        self._offset = offset

    def created(self) -> int:
        return self._created

    def id_of(self, index: int) -> str:
        at = self._start + index
        ids = self._columns.run.meta.ids
        if ids is not None and at in ids:
            return ids[at]
        return f"{self._id_prefix}{self._offset + at}"

    def data_of(self, index: int) -> Any:
        return self._columns.raw(self._start + index)

    def travelled(self) -> Column | None:
        return self._columns.raws()[self._start : self._start + self.count] or None

    def ids(self) -> tuple[str, int] | None:
        return None if self._columns.run.meta.ids else (self._id_prefix, self._offset + self._start)

    def values(self, payload: Payload) -> Column | None:
        column = self._columns.values(payload)
        return None if column is None else column[self._start : self._start + self.count]


class RetryStage(Stage):
    """One held event."""

    __slots__ = ("_attempt", "_created", "_data", "_id")

    def __init__(
        self,
        name: str,
        key: str | None,
        data: Any,
        hops: int,
        context: int,
        created: int,
        event_id: str,
        attempt: int,
    ) -> None:
        super().__init__(1, name, [key], hops, None if context < 0 else [context])
        self._data = data
        self._created = created
        self._id = event_id
        self._attempt = attempt

    def created(self) -> int:
        return self._created

    def id_of(self, index: int) -> str:
        return self._id

    def attempt_of(self, index: int) -> int:
        return self._attempt

    def data_of(self, index: int) -> Any:
        return self._data

    def values(self, payload: Payload) -> Column | None:
        return payload.items([self._data])


class ChildStage(Stage):
    """Chained events. ``flat[i]`` is the place of event i among all that the parent stage emitted; ``marks[j]`` is how
    many the parent's events up to j emitted. Both None: event i is what event i of the parent emitted. ``kinds``: the
    types of ``data``, if known. ``branch``: stands before the ordinal in ids."""

    __slots__ = ("branch", "data", "flat", "kinds", "marks", "parent")

    def __init__(
        self,
        parent: Stage,
        count: int,
        names: str | list[str],
        keys: list[str | None] | None,
        data: Column,
        hops: int | list[int],
        contexts: list[int] | None,
        flat: list[int] | None,
        marks: list[int] | None,
        kinds: set[type] | None = None,
        branch: str = "",
    ) -> None:
        super().__init__(count, names, keys, hops, contexts)
        self.branch = branch
        self.data = data
        self.kinds = kinds
        self.parent = parent
        self.flat = flat
        self.marks = marks
        self.on_progress = parent.on_progress

    def created(self) -> int:
        return self.parent.created()

    def id_of(self, index: int) -> str:
        at = index if self.flat is None else self.flat[index]
        if self.marks is None:
            return f"{self.parent.id_of(at)}.{self.branch}0"
        origin = bisect_right(self.marks, at)
        ordinal = at - (self.marks[origin - 1] if origin else 0)
        return f"{self.parent.id_of(origin)}.{self.branch}{ordinal}"

    def data_of(self, index: int) -> Any:
        return self.data[index]

    def travelled(self) -> Column | None:
        return self.data

    def values(self, payload: Payload) -> Column | None:
        return payload.items(self.data, self.kinds)


class PickedStage(Stage):
    """Some events of another stage."""

    __slots__ = ("_base", "_indexes")

    def __init__(self, base: Stage, indexes: list[int]) -> None:
        def picked(column: Any) -> Any:
            return [column[i] for i in indexes] if isinstance(column, list) else column

        super().__init__(
            len(indexes),
            picked(base.names),
            picked(base.keys),
            picked(base.hops),
            picked(base.contexts),
        )
        self._base = base
        self._indexes = indexes
        self.on_progress = base.on_progress

    def created(self) -> int:
        return self._base.created()

    def id_of(self, index: int) -> str:
        return self._base.id_of(self._indexes[index])

    def attempt_of(self, index: int) -> int:
        return self._base.attempt_of(self._indexes[index])

    def data_of(self, index: int) -> Any:
        return self._base.data_of(self._indexes[index])

    def values(self, payload: Payload) -> Column | None:
        column = self._base.values(payload)
        return None if column is None else [column[i] for i in self._indexes]
