"""Spans of traced events: what ran, when, for whom, and what came of it. Nothing here runs for an event that is not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from grape.model.tracing import MAX_TEXT, Span, Trace, read_context
from grape.protocol.messages import DERIVED, Answer
from grape.worker.effects import SPAN_COSTS, Assigned, Effects
from grape.worker.stage import Stage
from grape.worker.state import StateTable
from grape.worker.units.unit import Unit

MAX_SPANS: Final = 100_000
"""Of one result; what is more is not told."""


class Place(Protocol):
    """Where events run: what it needs of the ground."""

    part: Assigned
    effects: Effects

    def answers(self, unit: Unit, stage: Stage, index: int) -> Sequence[Answer]: ...

    def table(self, node: str) -> StateTable: ...


class Tracer:
    """Of one worker.

    Attributes:
        worker: its name.
    """

    def __init__(self, ground: Place) -> None:
        self.worker = ""
        self._ground = ground
        self._begun: dict[tuple[str, str], int] = {}

    def trace_of(self, context: int) -> Trace | None:
        """That of the events with this context; None: they are not traced."""
        if context >= DERIVED:
            found = self._ground.effects.traced.get(context)
        else:
            found = self._ground.part.traced.get(context)
        return None if found is None else read_context(found)

    def is_traced(self, stage: Stage) -> bool:
        """Whether one of its events is."""
        contexts = stage.contexts
        return contexts is not None and any(self.trace_of(context) is not None for context in set(contexts))

    def pieces(self, stage: Stage) -> Iterator[tuple[Stage, bool]]:
        """A stage in its order, each of its traced events alone; and whether it is one. (Alone also if it is: the same
        stage may run at other nodes.)"""
        start = 0
        for i in range(stage.count):
            if self.trace_of(stage.context_of(i)) is None:
                continue
            if start < i:
                yield stage.pick(list(range(start, i))), False
            yield stage.pick([i]), True
            start = i + 1
        if start < stage.count:
            yield stage.pick(list(range(start, stage.count))), False

    # ------------------------------------------------------------------ what happens to an event

    def begin(self, unit: Unit, stage: Stage) -> None:
        """The only event of ``stage`` starts."""
        self._begun[stage.id_of(0), unit.node] = time.time_ns()

    def before(self, unit: Unit, stage: Stage) -> bool:
        """Whether the state of its key has changed before; to be told to `after`."""
        key = stage.key_of(0)
        if not unit.has_state or key is None:
            return False
        return self._ground.table(unit.node).dirty.pop(key, 0) is None

    def after(self, unit: Unit, stage: Stage, was_dirty: bool) -> bool:
        """Whether the event has changed it."""
        key = stage.key_of(0)
        if not unit.has_state or key is None:
            return False
        dirty = self._ground.table(unit.node).dirty
        wrote = key in dirty
        if was_dirty:
            dirty[key] = None
        return wrote

    def end(self, unit: Unit, stage: Stage, *, wrote: bool) -> None:
        """It has run, and has not failed. What comes of it from now on is caused by this."""
        own = self._record(unit, stage, 0, "ok", wrote=wrote)
        if own is not None:
            stage.contexts = [self._derive(stage.context_of(0), own)]

    def forget(self, unit: Unit, stage: Stage) -> None:
        """It did not run, or what came of it is told already."""
        self._begun.pop((stage.id_of(0), unit.node), None)

    def failed(self, unit: Unit, stage: Stage, index: int, kind: str, text: str) -> None:
        """An event that may be traced has failed."""
        self._record(unit, stage, index, "error", kind, text)

    def asks(self, unit: Unit, stage: Stage, index: int, event: str) -> None:
        """It was left, to wait for the answer to ``event``."""
        self._record(unit, stage, index, "call", event)

    def _record(
        self, unit: Unit, stage: Stage, index: int, outcome: str, kind: str = "", text: str = "", *, wrote: bool = False
    ) -> str | None:
        trace = self.trace_of(stage.context_of(index))
        if trace is None:
            return None
        ground, event_id, key = self._ground, stage.id_of(index), stage.key_of(index)
        now = time.time_ns()
        started = self._begun.pop((event_id, unit.node), now)
        attempt, answers = stage.attempt_of(index), len(ground.answers(unit, stage, index))
        own = trace.span(event_id, unit.node, attempt, answers)
        states = sorted(unit.handler.states) if key is not None else []
        effects = ground.effects
        if len(effects.spans) < MAX_SPANS:
            effects.add_size(SPAN_COSTS)
            effects.spans.append(
                Span(
                    *(trace.trace, own, trace.parent, event_id, stage.name_of(index), unit.node, key, attempt),
                    *(min(started, now), now, outcome, kind[:255], text[:MAX_TEXT]),
                    [f"{name}!" for name in states] if wrote else states,
                    self.worker,
                )
            )
        return own

    def _derive(self, context: int, span: str) -> int:
        return derive(self._ground.effects, self._ground.part.deadlines, context, span, self.trace_of(context))


def derive(effects: Effects, deadlines: dict[int, int], context: int, span: str, trace: Trace | None) -> int:
    """The number of a context that is as ``context``, but caused by ``span``."""
    number = DERIVED + len(effects.derived)
    effects.derived.append((context, span))
    effects.traced[number] = str(Trace("" if trace is None else trace.trace, span))
    if context in deadlines:
        deadlines[number] = deadlines[context]
    else:
        deadlines.pop(number, None)
    return number
