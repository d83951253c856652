"""What a request brings, as events: JSON, lines of JSON, msgpack, text or bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from grape.client.events import ClientEvent, client_event
from grape.errors import BadArgument, GrapeError
from grape.gateway.problems import Problem, problem_of

JSON: Final = "application/json"
LINES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-lines"})
MSGPACK: Final = frozenset({"application/msgpack", "application/vnd.msgpack", "application/x-msgpack"})
TEXT: Final = "text/plain"
BYTES: Final = "application/octet-stream"
UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, ValueError)
"""What reading JSON or msgpack of others raises; text that is no UTF-8 is a ValueError."""
MAX_EVENTS: Final = 100_000
"""Of one request."""
_KNOWN: Final = ", ".join([JSON, "application/x-ndjson", "application/msgpack", TEXT, BYTES])


class Item(msgspec.Struct, forbid_unknown_fields=True):
    """An event of a batch that names each."""

    event: str
    data: Any = None
    key: str | None = None
    id: str | None = None


def media_of(content_type: bytes) -> str:
    """Without its parameters; "" if none is said."""
    return content_type.decode("latin-1").partition(";")[0].strip().lower()


def value_of(body: bytes, media: str) -> Any:
    """The data of the one event that the body is.

    Raises:
        Problem: it is not of that type, or nothing here reads that.
    """
    if media in ("", JSON):
        return _read(body, msgspec.json.decode, "JSON") if body else None
    if media in MSGPACK:
        return _read(body, msgspec.msgpack.decode, "msgpack")
    if media == TEXT:
        return _read(body, lambda text: text.decode(), "UTF-8")
    if media == BYTES:
        return body
    raise Problem(415, "media-type", f"{media[:100]!r} is not read here; known are {_KNOWN}")


def items_of(body: bytes, media: str) -> list[Any]:
    """What a body that brings several events has, one value for each.

    Raises:
        Problem: it is not of that type, or nothing here reads that.
    """
    if media in LINES:
        found = [_line(line, number) for number, line in enumerate(body.splitlines(), 1) if line.strip()]
    elif media in ("", JSON):
        found = _read(body, msgspec.json.decode, "JSON")
    elif media in MSGPACK:
        found = _read(body, msgspec.msgpack.decode, "msgpack")
    else:
        raise Problem(
            415, "media-type", f"{media[:100]!r} is not read here; several events are JSON, NDJSON or msgpack"
        )
    if type(found) is not list:
        raise Problem(
            400, "bad-argument", "several events come as an array, or as lines of JSON (application/x-ndjson)"
        )
    if len(found) > MAX_EVENTS:
        raise Problem(413, "too-large", f"{len(found):,} events in one request; {MAX_EVENTS:,} are allowed")
    return found


def named_events(found: list[Any], max_event: int) -> list[ClientEvent]:
    """Of a batch whose items name their events.

    Raises:
        Problem: one of them cannot be; its number is told, and nothing has been handed in.
    """

    def made() -> Iterator[ClientEvent]:
        for value in found:
            item = msgspec.convert(value, Item)
            yield client_event(item.event, item.data, item.key, item.id, None, max_event)

    return _each(made())


def events_of(found: list[Any], name: str, key_field: str, max_event: int) -> list[ClientEvent]:
    """Of a batch of one event. ``key_field``: of each object, the field that has its key; "": they have none.

    Raises:
        Problem: as `named_events`.
    """

    def made() -> Iterator[ClientEvent]:
        for value in found:
            key = None
            if key_field:
                if type(value) is not dict or key_field not in value:
                    raise BadArgument(f"it has no field {key_field[:100]!r}, which is to be its key")
                key = value[key_field]
                key = key if type(key) is str else msgspec.json.encode(key).decode()
            yield client_event(name, value, key, None, None, max_event)

    return _each(made())


def _each(made: Iterator[ClientEvent]) -> list[ClientEvent]:
    events: list[ClientEvent] = []
    try:
        events.extend(made)
    except GrapeError as e:
        problem = problem_of(e, 422)
    except msgspec.ValidationError as e:
        problem = Problem(422, "bad-payload", str(e))
    else:
        return events
    problem.document |= {"item": len(events), "detail": f"item {len(events)}: {problem}"}
    raise problem


def _line(line: bytes, number: int) -> Any:
    try:
        return msgspec.json.decode(line)
    except UNREADABLE as e:
        raise Problem(400, "bad-argument", f"line {number} is no JSON: {e}", {"line": number}) from None


def _read(body: bytes, read: Callable[[bytes], Any], what: str) -> Any:
    try:
        return read(body)
    except UNREADABLE as e:
        raise Problem(400, "bad-argument", f"the body is no {what}: {e}") from None
