"""The loops for nodes that emit, without State and with a single plain one."""

from __future__ import annotations

from typing import Any

from grape.authoring.state import LOADER
from grape.hot import count_events, run_events
from grape.hot.pure import Cells
from grape.model.event import Event
from grape.model.values import PLAIN, Raw
from grape.worker.stage import Stage
from grape.worker.state import MISSING, BadState
from grape.worker.units.access import no_key
from grape.worker.units.unit import Emissions, Unit


class EventUnit(Unit):
    """Of handlers that get events. ``_indexes``: of those of the stage, for whoever goes through it."""

    def _begin(self, stage: Stage, data: list[Any] | None) -> None:
        self._indexes = list(range(stage.count))
        self._values = data

    def _event(self, index: int) -> Event:
        stage = self.stage
        assert stage is not None
        data = None if self._values is None else self._values[index]
        return Event(stage.name_of(index), stage.key_of(index), data, stage, index)

    def abandon(self) -> None:
        self._indexes.clear()

    def _end(self) -> None:
        self._indexes, self._values = [], None
        super()._end()


class NodeUnit(EventUnit):
    """``Node.process(event)`` without State."""

    def _fast(self) -> None:
        stage = self.stage
        assert stage is not None
        run_events(
            self._call,
            Event,
            stage,
            self._values,
            self._indexes,
            self._marks,
            self._columns.data,
            self._returned,
        )

    def _one(self, index: int) -> None:
        event = self._event(index)
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
            for i in self._indexes:
                self._one(i)
                self._close(i)
            return
        cells = Cells(
            self._attributes,
            self._name,
            table.values,
            table.dirty,
            MISSING,
            state.default,
            Raw,
            state.read,
            self._checked,
        )
        count_events(
            self._call,
            Event,
            stage,
            self._values,
            self._indexes,
            self._marks,
            self._columns.data,
            self._returned,
            cells,
        )

    def _checked(self, new: Any) -> Any:
        if new is MISSING:
            return new
        if type(new) not in PLAIN:
            raise BadState(f"{self._name!r} of {self.node!r} was given a {type(new).__name__}: it is a {self._state!r}")
        return self._table.encode_value(self._name, new)

    def _one(self, index: int) -> None:
        event, table, name = self._event(index), self._table, self._name
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
