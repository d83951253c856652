"""The loop for every other synchronous shape."""

from __future__ import annotations

from typing import Any

from grape.authoring.emitter import Emitter
from grape.authoring.handler import Handler
from grape.authoring.state import LOADER, WRITTEN
from grape.model.event import Event
from grape.worker.stage import Stage
from grape.worker.units.access import Cell, StateAccess
from grape.worker.units.node import EventUnit
from grape.worker.units.unit import Emissions


class GeneralUnit(EventUnit):
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
        for i in self._indexes:
            self._one(i)
            self._close(i)

    def _load(self, name: str) -> Any:
        assert self._access is not None
        value = self.emitter.__dict__[name] = self._access.read(name)
        self._touched.add(name)
        return value

    def _one(self, index: int) -> None:
        event = self._event(index)
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
