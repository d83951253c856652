"""Where the events of a worker run: a partition and the effects so far, and all that units ask of them.

What a handler has raised becomes a `Failure` of the result here; its lock on the key holds from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grape.authoring.handler import Handler
from grape.model.batch import one
from grape.model.policy import Verdict, after_failure, locks_key
from grape.model.topology import Limits
from grape.protocol.messages import Answer, Ask, Assign, Call, Failure, Named, RetryItem
from grape.worker.blame import blame
from grape.worker.calls import Suspended
from grape.worker.delivery import Delivery
from grape.worker.effects import FAILURE_COSTS, Assigned, Effects
from grape.worker.objects import Access
from grape.worker.stage import Stage
from grape.worker.state import StateTable
from grape.worker.together import Together
from grape.worker.tracing import Tracer
from grape.worker.units.unit import Unit


class Ground:
    """
    Args:
        handlers: of the nodes whose state is asked for.
        ask: sends `Ask` and waits for the answer.
        now_us: wall time.

    Attributes:
        part, effects: of what runs now, see `enter`.
        retries: held events that run right now, by (id, node).
        tracer: keeps what happens to traced events.
        single: root events run one by one, so that what one of them does too much of is its own failure.
        together: the work that is handed in as a whole; None: each part of it by itself.
    """

    def __init__(
        self,
        limits: Limits,
        handlers: Mapping[str, Handler],
        ask: Callable[[Ask], list[bytes | None]],
        now_us: Callable[[], int],
    ) -> None:
        self.limits = limits
        self.now_us = now_us
        self.part = Assigned(Assign(0, 0))
        self.effects = Effects(limits)
        self.retries: dict[tuple[str, str], RetryItem] = {}
        self.single = False
        self.together: Together | None = None
        self.objects: Access | None = None
        self.tracer = Tracer(self)
        self.delivery: Delivery
        self._handlers = handlers
        self._ask = ask

    def enter(self, part: Assigned, effects: Effects) -> None:
        """What runs from now on belongs to ``part``, and goes into ``effects``."""
        self.part = part
        self.effects = effects

    def without_lost(self, unit: Unit, stage: Stage) -> Stage:
        """Without events that must not be processed any more: those are dead."""
        limit, hops = self.limits.max_hops, stage.hops
        is_far = limit and (hops if isinstance(hops, int) else max(hops)) > limit
        if not is_far and (not self.part.deadlines or stage.contexts is None):
            return stage
        kept = []
        for i in range(stage.count):
            lost = self.lost(unit, stage, i)
            if lost is None:
                kept.append(i)
            else:
                self.count(unit, stage.pick([i]))
                self.fail(unit, stage, i, None, lost, final=True)
        return stage.pick(kept)

    def lost(self, unit: Unit, stage: Stage, index: int) -> Named | None:
        """Why the event must not be processed any more: it has come too far, or too late. None: it may."""
        limit = self.limits.max_hops
        if limit and stage.hops_of(index) > limit:
            text = (
                f"the event was emitted over {limit} hops away from the outside (max-hops): does "
                f"{stage.name_of(index)!r} go round in a circle? A delayed emit starts at 0 again"
            )
            return Named("", unit.node, "too-many-hops", text, False)
        deadline = self.part.deadlines.get(stage.context_of(index))
        if deadline is not None and (late := self.now_us() - deadline) > 0:
            text = f"its deadline had passed {late / 1e6:.3f} s before {unit.node!r} could get it"
            return Named("", unit.node, "deadline", text, False)
        return None

    def fill(self, unit: Unit, stage: Stage) -> None:
        table = self.table(unit.node)
        missing = table.missing(stage.keys or ())
        if missing:
            part = self.part
            answer = self._ask(Ask(part.number, part.epoch, unit.node, [key.encode() for key in missing]))
            table.fill(missing, answer)

    def trace_of(self, stage: Stage, index: int) -> str:
        trace = self.tracer.trace_of(stage.context_of(index)) if self.part.traced else None
        return "" if trace is None else trace.trace

    def count(self, unit: Unit, stage: Stage) -> None:
        counts = self.effects.counts
        if isinstance(stage.names, str):
            name = f"{stage.names}>{unit.node}"
            counts[name] = counts.get(name, 0) + stage.count
        else:
            for event in stage.names:
                name = f"{event}>{unit.node}"
                counts[name] = counts.get(name, 0) + 1

    def answers(self, unit: Unit, stage: Stage, index: int) -> Sequence[Answer]:
        item = self.retries.get((stage.id_of(index), unit.node)) if self.retries else None
        return () if item is None else item.answers

    def locked(self, node: str) -> set[str]:
        return self.part.locks.setdefault(node, set())

    def table(self, node: str) -> StateTable:
        tables = self.part.tables
        if node not in tables:
            tables[node] = StateTable(
                node, self._handlers[node].states, self.limits.max_event, complete=self.part.empty
            )
        return tables[node]

    def fail(
        self,
        unit: Unit,
        stage: Stage,
        index: int,
        error: BaseException | None,
        named: Named | None = None,
        final: bool = False,
    ) -> None:
        if isinstance(error, Suspended):
            self._suspend(unit, stage, index, error)
            return
        slot = unit.slots[stage.name_of(index)]
        retrying = self.retries.get((stage.id_of(index), unit.node))
        died = named is not None and named.death
        deaths = 0 if not died else 1 if retrying is None else retrying.named_deaths + 1
        attempt = stage.attempt_of(index)
        verdict = "dead" if final else after_failure(slot, attempt, deaths, self.limits.named_deaths)
        self._lock(unit, stage, index, verdict)
        if named is not None:
            kind, text, trace = named.kind, named.text, named.trace
        else:
            assert error is not None
            kind, text, trace = blame(error)
        if self.part.traced:
            self.tracer.failed(unit, stage, index, kind, text)
        self._record(
            unit,
            stage,
            index,
            kind=kind,
            text=text,
            trace=trace,
            named=died,
            final=final,
        )

    def _lock(self, unit: Unit, stage: Stage, index: int, verdict: Verdict) -> None:
        """Later events of its key wait, if it is held for them to."""
        key = stage.key_of(index)
        if locks_key(unit.slots[stage.name_of(index)], key, verdict) and key is not None:
            self.locked(unit.node).add(key)
            self.part.lines.setdefault((unit.node, key), set()).add(stage.id_of(index))

    def _suspend(self, unit: Unit, stage: Stage, index: int, call: Suspended) -> None:
        """The event waits for an answer."""
        self._lock(unit, stage, index, "retry")
        if self.part.traced:
            self.tracer.asks(unit, stage, index, call.event)
        requests = self.delivery.requests(self.part, unit, stage, index, call)
        self.effects.add_size(sum(len(request.body) for request in requests))
        self._record(unit, stage, index, call=Call(call.event, call.digest, call.timeout, requests))

    def behind(self, unit: Unit, stage: Stage, index: int) -> None:
        key = stage.key_of(index)
        assert key is not None
        self.part.lines.setdefault((unit.node, key), set()).add(stage.id_of(index))
        self._record(unit, stage, index, behind=True)

    def _record(self, unit: Unit, stage: Stage, index: int, **what: Any) -> None:
        name, key = stage.name_of(index), stage.key_of(index)
        event_id = stage.id_of(index)
        retrying = self.retries.get((event_id, unit.node)) if self.retries else None
        body = one(name, key, stage.data_of(index), hops=stage.hops_of(index))
        self.effects.add_size(FAILURE_COSTS)
        self.effects.failures.append(
            Failure(
                unit.node,
                name,
                event_id,
                key,
                stage.created(),
                body,
                hold=-1 if retrying is None else retrying.hold,
                context=stage.context_of(index),
                **what,
            )
        )
        slot = f"{name}>{unit.node}"
        self.effects.counts[slot] = self.effects.counts.get(slot, 0) - 1
