"""Records as syslog has them: RFC 5424, and where its messages go. Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from grape.errors import UsageError
from grape.logs.record import SEVERITY, Record, readable
from grape.tools.terminal import escaped

DEFAULT: Final = "unix:///dev/log"
MAX_DATAGRAM: Final = 8 << 10
"""Bytes of a message; of longer ones the end is missing."""
_PORT: Final = 514
_DAEMON: Final = 3 << 3
_ID: Final = "grape@32473"
_FIELDS: Final = "fields@32473"
_BAD_HEADER: Final = re.compile(r"[^\x21-\x7e]")
_BAD_NAME: Final = re.compile(r'[^\x21-\x7e]|[="\]]')


class Address(NamedTuple):
    """``kind``: "unix", "udp" or "tcp". ``place``: a path, or (host, port)."""

    kind: str
    place: str | tuple[str, int]

    def __str__(self) -> str:
        where = self.place if isinstance(self.place, str) else f"{self.place[0]}:{self.place[1]}"
        return f"{self.kind}://{where}"


def address_of(url: str) -> Address:
    """
    Raises:
        UsageError: it is none.
    """
    url = url or DEFAULT
    try:
        parts = urlsplit(url)
        port = parts.port or _PORT
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return Address("unix", parts.path)
    if parts.scheme in ("udp", "tcp") and parts.hostname and parts.path in ("", "/"):
        return Address(parts.scheme, (parts.hostname, port))
    raise UsageError(f"{url!r:.200} is no address of syslog: udp://HOST:514, tcp://HOST:514 or {DEFAULT}")


def message_of(record: Record, host: str) -> bytes:
    """One message, without a line end in it."""
    record = readable(record)
    name = f"grape.{record.app}" if record.app else "grape"
    head = " ".join(
        (
            f"<{_DAEMON + SEVERITY.get(record.level, 6)}>1",
            record.time,
            _header(host, 255),
            _header(name, 48),
            _header(record.worker or record.part, 128),
            _header(record.slot, 32),
        )
    )
    about = [("app", record.app), ("part", record.part), ("level", record.level), ("worker", record.worker)]
    about += [("slot", record.slot), ("event", record.event), ("trace", record.trace), ("version", record.version)]
    data = _element(_ID, [(name, value) for name, value in about if value])
    if record.fields:
        data += _element(_FIELDS, [(name, _text(value)) for name, value in record.fields.items()])
    return _cut(f"{head} {data} {escaped(record.text, chr(9))}".encode())


def framed(message: bytes) -> bytes:
    """As it goes over TCP: its length before it (RFC 6587)."""
    return b"%d %b" % (len(message), message)


def _header(text: str, most: int) -> str:
    return _BAD_HEADER.sub("_", text)[:most] or "-"


def _element(name: str, values: list[tuple[str, str]]) -> str:
    parts = [f'{_BAD_NAME.sub("_", key)[:32] or "_"}="{_value(value)}"' for key, value in values]
    return f"[{' '.join((name, *parts))}]"


def _value(text: str) -> str:
    return re.sub(r'(["\\\]])', r"\\\1", escaped(text))


def _text(value: str | bool | float | None) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _cut(message: bytes) -> bytes:
    if len(message) <= MAX_DATAGRAM:
        return message
    return message[:MAX_DATAGRAM].decode("utf-8", "ignore").encode()
