"""What documents of protocols say in tables, to be compared with the code."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import NODEFAULT, Raw, Struct

DOCS: Final = Path(__file__).parents[2] / "docs"
SECTION: Final = re.compile(r"^### (\w+)(?: \((\d+)\))?\n(.*?)(?=^##)", re.MULTILINE | re.DOTALL)
ROW: Final = re.compile(r"^\| (\d+) \| (\w+) \| ([^|]+) \| ([^|]*)\|", re.MULTILINE)

Sections = dict[str, tuple[str, str]]


def sections_of(text: str) -> Sections:
    """name -> (tag, text) of everything that is described."""
    return {name: (tag, body) for name, tag, body in SECTION.findall(text)}


def structs_of(module: Any) -> dict[str, type[Struct]]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Struct) and value.__module__ == module.__name__
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
    if kind is memoryview:
        return "bytes"
    return "any" if kind in (Raw, Any) else str(kind.__name__)


def default_of(field: Any) -> str | None:
    """As the document writes it; None: it says so in words."""
    value = field.default_factory() if field.default_factory is not NODEFAULT else field.default
    if value is NODEFAULT:
        return ""
    if isinstance(value, Raw):
        value = msgspec.msgpack.decode(value)
    if value is None:
        return "nil"
    if isinstance(value, bytes):
        return '""'
    if isinstance(value, Struct) or (isinstance(value, tuple) and value):
        return None
    if isinstance(value, tuple | frozenset):
        return "[]"
    return msgspec.json.encode(value).decode()


def check_table(sections: Sections, name: str, struct: type[Struct]) -> None:
    """The table of one struct is what the code speaks."""
    tag, body = sections[name]
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


def tagged(sections: Sections) -> set[str]:
    """The messages."""
    return {name for name, (tag, _) in sections.items() if tag}


def names_of(*sides: Any) -> set[str]:
    """Of unions of messages."""
    return {s.__name__ for side in sides for s in typing.get_args(side)}


def shown_bytes(text: str) -> list[bytes]:
    """Lines that are bytes in hexadecimal digits."""
    return [bytes.fromhex(line) for line in re.findall(r"^(?:[0-9a-f]{2} *)+$", text, re.MULTILINE)]
