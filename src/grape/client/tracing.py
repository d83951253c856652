"""The trace in which a program hands in events: its own OpenTelemetry's, if it uses any."""

from __future__ import annotations

import sys

from msgspec import structs

from grape.client.events import ClientEvent


def current_traceparent() -> str:
    """That of the span that is current in this program; "": there is none. Nothing is imported for it: a program that
    has not done so itself has no span."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 0xFF:02x}"


def in_trace(event: ClientEvent, usual: str) -> ClientEvent:
    """The event in the trace that is current, else in that of ``usual``, a ``traceparent``."""
    trace = event.trace or current_traceparent() or usual
    return structs.replace(event, trace=trace, via=event.via or "client") if trace else event
