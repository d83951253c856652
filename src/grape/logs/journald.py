"""Records as systemd's journal has them: its native protocol. Pure."""

from __future__ import annotations

import re
from typing import Final

from grape.logs.record import SEVERITY, Record, readable

SOCKET: Final = "/run/systemd/journal/socket"
_BAD: Final = re.compile(r"[^A-Z0-9_]")
_LONGEST: Final = 64


def message_of(record: Record) -> bytes:
    """One datagram."""
    record = readable(record)
    about = {
        "MESSAGE": record.text,
        "PRIORITY": str(SEVERITY.get(record.level, 6)),
        "SYSLOG_IDENTIFIER": f"grape.{record.app}" if record.app else "grape",
        "GRAPE_APP": record.app,
        "GRAPE_PART": record.part,
        "GRAPE_LEVEL": record.level,
        "GRAPE_WORKER": record.worker,
        "GRAPE_SLOT": record.slot,
        "GRAPE_EVENT": record.event,
        "GRAPE_VERSION": record.version,
        "TRACE_ID": record.trace,
        **{_name(name): "" if value is None else str(value) for name, value in record.fields.items()},
    }
    return b"".join(_field(name, value.encode()) for name, value in about.items() if value)


def _name(name: str) -> str:
    """Of what its author has said: apart from all that others know."""
    return f"FIELD_{_BAD.sub('_', name.upper())}"[:_LONGEST]


def _field(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return b"%b=%b\n" % (name.encode(), value)
    return b"%b\n%b%b\n" % (name.encode(), len(value).to_bytes(8, "little"), value)
