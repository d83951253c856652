"""Records as OTLP says them, in JSON. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from grape.logs.record import STREAMS, Entry, Record, readable
from grape.traces.otlp import attributes

_SEVERITY: Final = {"debug": 5, "info": 9, "warning": 13, "error": 17, "critical": 21}
_TRACE: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")


def request_of(entries: Iterable[Entry], resource: Mapping[str, str], version: str) -> bytes:
    """An ExportLogsServiceRequest: each app a scope of the one resource, and the server itself one."""
    scopes: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        record = readable(entry.record)
        scopes.setdefault(record.app, []).append(_record(entry.at, record))
    return msgspec.json.encode(
        {
            "resourceLogs": [
                {
                    "resource": {"attributes": attributes(resource)},
                    "scopeLogs": [
                        {"scope": {"name": f"grape.{app}" if app else "grape", "version": version}, "logRecords": found}
                        for app, found in scopes.items()
                    ],
                }
            ]
        }
    )


def _record(at: int, record: Record) -> dict[str, Any]:
    is_printed = record.level in STREAMS
    own = {
        "grape.app": record.app,
        "grape.part": record.part,
        "grape.worker": record.worker,
        "grape.node": record.slot,
        "grape.event.id": record.event,
        "grape.code": record.version,
        "log.iostream": record.level if is_printed else "",
    }
    return {
        "timeUnixNano": str(at),
        "observedTimeUnixNano": str(at),
        "severityNumber": _SEVERITY.get(record.level, 9),
        "severityText": "" if is_printed else record.level.upper(),
        "body": {"stringValue": record.text},
        "attributes": attributes({**record.fields, **own}),
        **({"traceId": record.trace} if _TRACE.fullmatch(record.trace) else {}),
    }
