"""docs/protocol.md says what the code speaks: its tables are compared with the messages, its vectors are computed."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgspec
import pytest
from msgspec import NODEFAULT, Struct

from grape.model import batch as codec
from grape.model import cursor, topology
from grape.model.address import MAX_KEY_BYTES, partition_of
from grape.protocol import base, messages
from grape.protocol.framing import MAX_FRAME, frame, worker_frames
from grape.protocol.messages import Beat, FromWorker, Revoke, ToWorker

TEXT: Final = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
SECTION: Final = re.compile(r"^### (\w+)(?: \((\d+)\))?\n(.*?)(?=^##)", re.MULTILINE | re.DOTALL)
ROW: Final = re.compile(r"^\| (\d+) \| (\w+) \| ([^|]+) \| ([^|]*)\|", re.MULTILINE)
SECTIONS: Final = {name: (tag, body) for name, tag, body in SECTION.findall(TEXT)}


def structs_of(module: Any) -> dict[str, type[Struct]]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Struct) and value.__module__ == module.__name__
    }


SPOKEN: Final = {
    **structs_of(messages),
    **structs_of(base),
    **structs_of(topology),
    "Progress": cursor.Progress,
    "RunMeta": codec.RunMeta,
}


def type_of(kind: Any) -> str:
    """As the document writes it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (list, frozenset) or (origin is tuple and arguments[-1] is ...):
        return f"[{type_of(arguments[0])}]"
    if origin is tuple:
        return f"[{', '.join(map(type_of, arguments))}]"
    if origin is dict:
        return f"{{{type_of(arguments[0])}: {type_of(arguments[1])}}}"
    if origin is typing.Literal:
        return "str"
    if type(None) in arguments:
        return " or ".join(type_of(a) for a in arguments if a is not type(None)) + "?"
    if arguments:
        return " or ".join(map(type_of, arguments))
    return "any" if kind in (msgspec.Raw, Any) else str(kind.__name__)


def default_of(field: Any) -> str | None:
    """As the document writes it; None: it says so in words."""
    value = field.default_factory() if field.default_factory is not NODEFAULT else field.default
    if value is NODEFAULT:
        return ""
    if value is None:
        return "nil"
    if isinstance(value, bytes):
        return '""'
    if isinstance(value, Struct) or (isinstance(value, tuple) and value):
        return None
    if isinstance(value, tuple | frozenset):
        return "[]"
    return msgspec.json.encode(value).decode()


@pytest.mark.parametrize("name", SPOKEN)
def test_a_table_is_what_the_code_speaks(name: str) -> None:
    struct = SPOKEN[name]
    tag, body = SECTIONS[name]
    assert (int(tag) if tag else None) == struct.__struct_config__.tag
    first = 1 if tag else 0
    hints = typing.get_type_hints(struct)
    want = [
        (str(number), field.name, type_of(hints[field.name]), default_of(field))
        for number, field in enumerate(msgspec.structs.fields(struct), first)
    ]
    found = [(number, field, kind.strip(), default.strip()) for number, field, kind, default in ROW.findall(body)]
    assert [row[:3] for row in found] == [row[:3] for row in want]
    assert [f[3] for f, w in zip(found, want, strict=True) if w[3] is not None] == [
        w[3] for w in want if w[3] is not None
    ]


def test_maps_and_arrays_are_told_apart() -> None:
    maps = {name for name, struct in SPOKEN.items() if not struct.__struct_config__.array_like}
    assert maps == {"TopologySpec", "NodeSpec", "StateSpec", "SlotSpec", "PoolSpec", "Limits", "RunMeta"}


def test_all_messages_are_described_and_nothing_else() -> None:
    assert SECTIONS.keys() == SPOKEN.keys()
    sides = {
        s.__name__ for side in (ToWorker, FromWorker, base.ToSpeaker, base.FromSpeaker) for s in typing.get_args(side)
    }
    assert {name for name, (tag, _) in SECTIONS.items() if tag} == sides


def test_the_version_and_the_limits() -> None:
    assert TEXT.startswith(f"# The worker protocol, version {messages.VERSION}\n")
    assert f"at most {MAX_FRAME:,} bytes" in TEXT
    assert f"1 to {MAX_KEY_BYTES:,} bytes" in TEXT
    assert codec.MAX_EVENTS == 2**31 - 1


def test_the_partitions() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \| (\d+) \| (\d+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 5
    for key, crc, of32, of7 in rows:
        assert (crc32(key.encode()), partition_of(key, 32), partition_of(key, 7)) == (int(crc), int(of32), int(of7))


def test_the_bytes() -> None:
    shown = [bytes.fromhex(line) for line in re.findall(r"^(?:[0-9a-f]{2}\s*)+$", TEXT, re.MULTILINE)]
    whole = b"".join(shown)
    for wanted in (frame(Beat()), frame(Revoke(3, 1)), codec.one("word", "k", 1)):
        assert bytes(wanted) in whole
    assert worker_frames().feed(bytes(frame(Beat()))) == [Beat()]


def test_what_may_be_left_out() -> None:
    decode = msgspec.msgpack.Decoder(ToWorker).decode
    assert decode(msgspec.msgpack.encode([2, 0, 1])) == messages.Assign(0, 1)
    assert decode(msgspec.msgpack.encode([2, 0, 1, [], True, True, "new"])) == messages.Assign(0, 1, empty=True)
