"""Spans of traced events: those that workers tell, and for workers that cannot tell any, what can be seen from here.

For these every traced event of a work has a context of its own, whose parent is the span of that very event. So
whatever it emits hangs below it, in whatever language it runs.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct, structs

from grape.engine.partition.ledger import Ledger
from grape.model import batch as codec
from grape.model.batch import Context, Header, RunMeta
from grape.model.cursor import Progress
from grape.model.stored import HoldEntry
from grape.model.tracing import MAX_TEXT, Span, Trace, read_context
from grape.protocol.messages import Failure


class _Seen(Struct):
    """A traced event that a worker has. ``nodes``: those that it is for; its own span is that at the first one."""

    trace: Trace
    id: str
    event: str
    key: str | None
    nodes: list[str]
    attempt: int
    answers: int
    started: int


class Spans:
    """Of one partition.

    Attributes:
        worker: that has it. are_told: it tells spans itself. are_logged: it logs with the ids of traces.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.worker = ""
        self.are_told = True
        self.are_logged = True
        self._batches: dict[int, dict[int, _Seen]] = {}
        self._holds: dict[int, _Seen] = {}
        self._originals: dict[int, Context] = {}

    def forget(self) -> None:
        """No work is out."""
        if self._originals:
            self._batches, self._holds, self._originals = {}, {}, {}

    @property
    def follows(self) -> bool:
        """Something is out of which nobody else would tell."""
        return bool(self._batches or self._holds)

    def inherited(self, number: int, context: Context) -> Context:
        """What an event had in the place of ``context``, which has this number."""
        return self._originals.get(number, context) if self._originals else context

    # ------------------------------------------------------------------ what goes out

    def follow(
        self, position: int, header: Header, body: bytes, contexts: list[Context], base: int
    ) -> tuple[bytes, list[Context]]:
        """A batch and its contexts, as a worker gets them that tells no spans. ``base``: number of the first."""
        if self.are_told or not any(context.trace for context in contexts):
            return body, contexts
        table, seen, offset = list(contexts), self._batches.setdefault(position, {}), 0
        now, nodes_of = self._now(), self._nodes_of()
        runs: list[bytes] = []
        for run in codec.runs_of(body):
            meta, names = run.meta, codec.names_of(run)
            keys = codec.keys_of(run)
            numbers = list(meta.contexts or ())
            for i, number in enumerate(numbers):
                trace = None if number < 0 else read_context(contexts[number].trace)
                nodes = nodes_of(names[i], meta)
                if trace is None or not nodes:
                    continue
                event_id = (meta.ids or {}).get(i) or f"{header.id_prefix}{offset + i}"
                one = _Seen(trace, event_id, names[i], keys[i] if keys else None, nodes, 1, 0, now)
                seen[offset + i] = one
                numbers[i] = len(table)
                table.append(self._own(base + len(table), contexts[number], one))
            if meta.contexts is not None:
                meta = structs.replace(meta, contexts=numbers)
            runs.append(codec.packed_run(codec.encode(meta), run.count, run.keys, run.data))
            offset += run.count
        return b"".join(runs), table

    def follow_retry(self, hold: int, entry: HoldEntry, context: Context, number: int) -> Context:
        """The context of a held event, which gets this number, for a worker as in `follow`."""
        trace = None if self.are_told or not context.trace else read_context(context.trace)
        if trace is None:
            return context
        what = entry.id, entry.event, entry.key, [entry.node], entry.attempts + 1, len(entry.calls)
        one = self._holds[hold] = _Seen(trace, *what, self._now())
        return self._own(number, context, one)

    def _own(self, number: int, context: Context, one: _Seen) -> Context:
        self._originals[number] = context
        return structs.replace(context, trace=str(Trace(one.trace.trace, _span_at(one, one.nodes[0]))))

    def _nodes_of(self) -> Callable[[str, RunMeta], list[str]]:
        routing, pool = self._ledger.app.routing, self._ledger.pool
        known: dict[str, list[str]] = {}

        def nodes_of(event: str, meta: RunMeta) -> list[str]:
            if event not in known:
                listeners = routing.listeners.get(event, ())
                known[event] = [node for one in listeners if one.pool == pool for node in one.nodes]
            found = known[event]
            return found if meta.only is None else [node for node in found if node in meta.only]

        return nodes_of

    def _now(self) -> int:
        return self._ledger.clock.now() * 1_000

    # ------------------------------------------------------------------ what comes back

    def took(
        self,
        done: list[tuple[int, Progress, Progress]],
        retried: list[int],
        failures: list[Failure],
        told: list[Span],
        now: int,
    ) -> None:
        """A result. ``done``: positions of batches, with the progress before and after. Its spans are committed with
        it."""
        spans = list(told)
        if self.follows:
            end = now * 1_000
            failed = {(failure.id, failure.node): failure for failure in failures}
            for position, before, after in done:
                open_ = self._batches.get(position, {})
                for index in [i for i in open_ if after.is_done(i) and not before.is_done(i)]:
                    spans += self._over(open_.pop(index), failed, end)
            for hold in (*retried, *(failure.hold for failure in failures if failure.hold >= 0)):
                if (one := self._holds.pop(hold, None)) is not None:
                    spans += self._over(one, failed, end)
        if spans:
            self._ledger.trace(spans, now)

    def _over(self, one: _Seen, failed: dict[tuple[str, str], Failure], end: int) -> list[Span]:
        spans = []
        for node in one.nodes:
            failure = failed.get((one.id, node))
            if failure is not None and failure.behind:
                continue  # it did not run
            spans.append(self._span(one, node, end, failure))
        return spans

    def _span(self, one: _Seen, node: str, end: int, failure: Failure | None) -> Span:
        outcome, kind, text = "ok", "", ""
        if failure is not None and failure.call is not None:
            outcome, kind = "call", failure.call.event
        elif failure is not None:
            outcome, kind, text = "error", failure.kind[:255], failure.text[:MAX_TEXT]
        return Span(
            *(one.trace.trace, _span_at(one, node), one.trace.parent, one.id, one.event, node, one.key, one.attempt),
            *(one.started, max(end, one.started), outcome, kind, text, _states(self._ledger, node, one.key)),
            self.worker,
        )


def came_in(trace: Trace, span: str, event: str, key: str | None, event_id: str, via: str, now: int) -> Span:
    """An event has come from outside."""
    at = now * 1_000
    return Span(trace.trace, span, trace.parent, event_id, event, "", key, 1, at, at, "in", via)


def given_up(entry: HoldEntry, now: int) -> list[Span]:
    """No worker could even hand it in as failed."""
    trace = None if entry.context is None else read_context(entry.context.trace)
    if trace is None:
        return []
    own = trace.span(entry.id, entry.node, entry.attempts, len(entry.calls))
    at = now * 1_000
    what = entry.id, entry.event, entry.node, entry.key, entry.attempts, at, at, "error", entry.kind
    return [Span(trace.trace, own, trace.parent, *what, entry.text[:MAX_TEXT])]


def below(trace: str, entry: HoldEntry) -> str:
    """What a call inherits that the event makes: it is caused by this run of its handler."""
    found = read_context(trace)
    if found is None:
        return ""
    own = found.span(entry.id, entry.node, entry.attempts + 1, len(entry.calls))
    return str(Trace(found.trace, own))


def _span_at(one: _Seen, node: str) -> str:
    return one.trace.span(one.id, node, one.attempt, one.answers)


def _states(ledger: Ledger, node: str, key: str | None) -> list[str]:
    spec = ledger.app.node(node)
    return [] if spec is None or key is None else [state.name for state in spec.states]
