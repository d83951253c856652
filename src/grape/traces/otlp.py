"""Spans as OTLP says them, in JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from grape.model.tracing import Span, reason

_INTERNAL: Final = 1
_SERVER: Final = 2
_CONSUMER: Final = 5
_OK: Final = 1
_ERROR: Final = 2
_LONGEST: Final = 4_096


def request_of(spans: Iterable[tuple[str, Span]], resource: Mapping[str, str], version: str) -> bytes:
    """An ExportTraceServiceRequest: spans with their app, each app a scope of the one resource."""
    scopes: dict[str, list[dict[str, Any]]] = {}
    for app, span in spans:
        scopes.setdefault(app, []).append(_span(app, span))
    return msgspec.json.encode(
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": attributes(resource)},
                    "scopeSpans": [
                        {"scope": {"name": f"grape.{app}", "version": version}, "spans": found}
                        for app, found in scopes.items()
                    ],
                }
            ]
        }
    )


def _span(app: str, span: Span) -> dict[str, Any]:
    came_in = not span.node
    what: dict[str, Any] = {
        "grape.app": app,
        "grape.event": span.event,
        "grape.node": span.node,
        "grape.event.id": span.id,
        "grape.key": span.key,
        "grape.attempt": None if came_in else span.attempt,
        "grape.worker": span.worker,
        "grape.code": span.code,
        "grape.state": [name.rstrip("!") for name in span.state],
        "grape.state.written": [name[:-1] for name in span.state if name.endswith("!")],
        "grape.calls": span.kind if span.outcome == "call" else "",
        "grape.via": span.kind if came_in else "",
        "error.type": span.kind if span.outcome == "error" else "",
    }
    status: dict[str, Any] = {} if span.outcome in ("in", "call") else {"code": _OK}
    if span.outcome == "error":
        status = {"code": _ERROR, "message": reason(span)}
    return {
        "traceId": span.trace,
        "spanId": span.span,
        **({"parentSpanId": span.parent} if span.parent else {}),
        "name": f"{app}@{span.event}" if came_in else f"{span.event} > {span.node}",
        "kind": _SERVER if came_in else _CONSUMER if span.attempt == 1 else _INTERNAL,
        "startTimeUnixNano": str(span.start),
        "endTimeUnixNano": str(span.end),
        "attributes": attributes(what),
        "status": status,
    }


def attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that say something."""
    return [
        {"key": key, "value": _value(value)}
        for key, value in values.items()
        if value is not None and value != "" and value != []
    ]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    return {"stringValue": str(value)[:_LONGEST]}
