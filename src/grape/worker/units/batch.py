"""The loop for handlers that get lists."""

from __future__ import annotations

from typing import Any

from grape.errors import HandlerError
from grape.model.event import Event
from grape.model.values import Unfit
from grape.worker import children
from grape.worker.stage import Stage
from grape.worker.units.node import EventUnit
from grape.worker.units.unit import Emissions, failure


class BatchUnit(EventUnit):
    """A handler that gets lists and returns a list of the same length: result, None, or an exception for one event."""

    def own_key(self) -> str | None:
        raise HandlerError(f"{self.node!r} gets its events in batches: a timer has a name per key, so not here")

    def place(self) -> object:
        raise HandlerError(f"{self.node!r} gets its events in batches: a call is made for one event, so not here")

    def event_at(self, stage: Stage) -> int | None:
        return 0 if stage.count == 1 else None

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
        self._emitting.begin()
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
                outcomes.update(zip(part, self._results([self._event(i) for i in part]), strict=True))
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
