"""One record of a log: what is known of it, and as a line. Pure."""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from grape.tools.terminal import escaped

Fields = dict[str, str | int | float | bool | None]

MAX_FIELDS: Final = 32
LONGEST: Final = 16 << 10
"""Characters of a text; what is more is counted."""
STREAMS: Final = ("stdout", "stderr")
SEVERITY: Final = {"debug": 7, "info": 6, "stdout": 6, "stderr": 6, "warning": 4, "error": 3, "critical": 2}
"""As syslog and systemd count."""
_decode: Final = msgspec.json.Decoder(Fields).decode


class Record(Struct, frozen=True, omit_defaults=True):
    """A line of a log. ``time``: UTC. ``level``: "stdout" or "stderr" of what was printed, else as of a log record.
    ``part``: of the server that says it, or "app". ``worker``: who printed it, of an app. ``slot``: the node that ran.
    ``event``: the id of the one that was handled, or has failed; with ``trace`` if it is traced. ``version``: of the
    app. ``fields``: what its author has said beside the text."""

    time: str
    level: str
    part: str
    text: str
    app: str = ""
    worker: str = ""
    slot: str = ""
    event: str = ""
    trace: str = ""
    version: str = ""
    fields: Fields = {}


class Entry(NamedTuple):
    """``at``: nanoseconds since 1970."""

    at: int
    record: Record

    @property
    def size(self) -> int:
        """About so many bytes in memory."""
        record = self.record
        return 1_000 + len(record.text) + 100 * len(record.fields) + sum(len(str(v)) for v in record.fields.values())


def time_of(at: int) -> str:
    """As records have it, of nanoseconds since 1970."""
    seconds, rest = divmod(at, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest // 1_000_000:03}Z"


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} .. ({len(text) - LONGEST:,} more)"


def fields_of(text: str) -> Fields:
    """What a worker has written beside a text; nothing of what is not as it should be."""
    if not text:
        return {}
    try:
        found = _decode(text)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        return {}
    return {name: _fit(value) for name, value in list(found.items())[:MAX_FIELDS]}


def _fit(value: Any) -> Any:
    """What everybody can have who counts to 2^63."""
    return value if type(value) is not int or -(1 << 63) <= value < 1 << 63 else str(value)


def line_of(record: Record, *, is_json: bool) -> str:
    """In which nothing is that a terminal would act on."""
    if is_json:
        return escaped(json_of(record))
    who = f"{record.slot} {record.worker}" if record.slot else record.worker or record.part
    level = "" if record.level in STREAMS or (record.part != "app" and record.level == "info") else record.level.upper()
    fields = msgspec.json.encode(_readable(record.fields)).decode() if record.fields else ""
    where = f"{record.app}: {who}" if record.app else who
    words = filter(None, (level, record.text, fields))
    return escaped(f"{record.time} [{where}] {' '.join(words)}", "\t")


def json_of(record: Record) -> str:
    try:
        return msgspec.json.encode(record).decode()
    except UnicodeEncodeError:  # of a text that never was one
        return msgspec.json.encode(readable(record)).decode()


def readable(record: Record) -> Record:
    """It with nothing in it that cannot be encoded."""
    values = {name: _readable(getattr(record, name)) for name in record.__struct_fields__}
    return Record(**values)


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_readable(name): _readable(each) for name, each in value.items()}
    return value
