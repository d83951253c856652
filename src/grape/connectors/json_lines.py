"""Outputs and replies as lines of JSON."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from grape.authoring.raised import line_of
from grape.connectors.outputs import Part, Unreadable


class _Line(Struct):
    event: str
    key: str | None
    data: Any
    id: str


class _Reply(Struct):
    id: str | None
    final: bool
    data: Any


def _in_json(value: Any) -> Any:
    """What JSON has no form for: extension types of msgpack, from workers in other languages, and keys of maps that are
    neither text nor numbers, which become the text of their JSON."""
    if isinstance(value, msgspec.msgpack.Ext):
        return value.data
    return _encoder.encode(value).decode()


_encoder: Final = msgspec.json.Encoder(enc_hook=_in_json)


def event_lines(part: Part) -> tuple[list[bytes], list[Unreadable]]:
    """Events as JSON objects ``{"event","key","data","id"}``, one a line, without newlines, and those that have no form
    in JSON.

    Bytes become base64, NaN and the infinities null, keys of maps text. An event whose data cannot be read as
    msgpack values has its bytes, as base64.
    """
    return _encoded(part, list(map(_Line, part.names, part.keys, part.data, part.ids)))


def reply_lines(part: Part) -> tuple[list[bytes], list[Unreadable]]:
    """Replies as JSON objects ``{"id","final","data"}``: see `event_lines`.

    ``id`` is that of the event that is answered.
    """
    finals = [name == "final" for name in part.names]
    return _encoded(part, list(map(_Reply, part.keys, finals, part.data)))


def _encoded(part: Part, lines: list[Any]) -> tuple[list[bytes], list[Unreadable]]:
    if not lines:
        return [], []
    try:
        return _encoder.encode_lines(lines)[:-1].split(b"\n"), []
    except Exception:  # one of them is something that JSON cannot say; below, which
        out: list[bytes] = []
        bad: list[Unreadable] = []
        for i, line in enumerate(lines):
            try:
                out.append(_encoder.encode(line))
            except Exception as e:
                text = f"an output cannot be written as JSON: {line_of(e)}"
                bad.append(Unreadable(part.indexes[i], 1, part.names[i], part.keys[i], b"", text))
        return out, bad
