"""What traced events did, as it is shown over HTTP: what `grape why` tells. Everything here blocks, and reads beside
the engines."""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from grape.model.stored import AppRecord
from grape.model.tracing import Span
from grape.tools.directory import Directory
from grape.tools.why import Apps, document, spans_of

MOST: Final = 1_000
"""Steps of a trace that are told of."""
LONGEST: Final = 4_000
"""Characters of an id: those of what was chained grow with each hop."""
_PATIENCE: Final = 2.0
_NEWEST: Final = 64
"""Batches of spans that are looked through for the newest traces, of each partition."""


def why(apps: Apps, wanted: str) -> dict[str, Any]:
    """The traces of an event, or the one of that id; else what is known of it without one.

    Raises:
        GrapeError: a directory cannot be read.
    """
    found = apps.told(wanted)
    known = [] if found else apps.fates(wanted, _PATIENCE)
    return {
        "id": wanted,
        "traced": bool(found),
        "traces": [document(told, MOST) for told in found],
        "known": known,
    }


class Recent(Struct, frozen=True):
    """A trace, as far as it went through this app lately. ``event``, ``key``, ``node``: of how it began here; ``id``:
    of that event. ``start``, ``end``: seconds of wall time. ``errors``: attempts that failed."""

    trace: str
    event: str
    node: str
    key: str | None
    id: str
    start: float
    end: float
    spans: int
    errors: int


def recent(directory: Directory, record: AppRecord, limit: int) -> list[Recent]:
    """The newest traces, the newest first.

    Raises:
        Corrupt: what is stored is not what was written.
    """
    found: dict[str, dict[str, Span]] = {}
    for span in spans_of(directory, record, _NEWEST):
        found.setdefault(span.trace, {})[span.span] = span
    traces = [_recent(trace, list(spans.values())) for trace, spans in found.items()]
    return sorted(traces, key=lambda each: -each.start)[:limit]


def _recent(trace: str, spans: list[Span]) -> Recent:
    first = min(spans, key=lambda span: (span.start, bool(span.node)))
    return Recent(
        trace,
        first.event,
        first.node,
        first.key,
        first.id,
        first.start / 1e9,
        max(span.end for span in spans) / 1e9,
        len(spans),
        sum(span.outcome == "error" for span in spans),
    )
