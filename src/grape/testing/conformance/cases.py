"""Cases as data: files of JSON, one a chapter. What JSON does not have is written as an object with one key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Final

from msgspec import Struct


class Case(Struct, frozen=True):
    """One case. ``steps``: see `Driver`, and `Adapter` for those of the chapter "base". ``limits``: other ones than
    usual, by name. ``heartbeat``: seconds. ``unchained``, ``peers``, ``levels``: see `Welcome`, which is not sent
    without ``welcome``. ``needs``: capabilities beside that of the chapter."""

    chapter: str
    name: str
    steps: list[dict[str, Any]]
    limits: dict[str, int] = {}
    heartbeat: float = 30.0
    welcome: bool = True
    unchained: list[list[str]] = []
    peers: dict[str, list[str] | None] = {}
    needs: list[str] = []
    levels: dict[str, str] = {}

    @property
    def title(self) -> str:
        return f"{self.chapter}: {self.name}"


CAPABILITY_OF: Final = {
    "base": "base",
    "partition": "partition",
    "state": "cache",
    "chain": "chain",
    "timers": "timers",
    "calls": "calls",
    "peers": "peers",
    "rates": "rates",
    "objects": "objects",
    "logs": "logs",
}
"""Of the chapters that are about one. Workers that lack it are not asked."""


def all_cases() -> Iterator[Case]:
    """In the order of the chapters' names."""
    folder = files(__package__).joinpath("cases")
    for file in sorted(folder.iterdir(), key=lambda found: found.name):
        if file.name.endswith(".json"):
            chapter = file.name.removesuffix(".json").partition("-")[2]
            for fields in json.loads(file.read_text()):
                yield Case(chapter=chapter, **value_of(fields))


def value_of(written: Any) -> Any:
    """What is meant by a value in a case."""
    if isinstance(written, list):
        return [value_of(item) for item in written]
    if not isinstance(written, dict):
        return written
    if len(written) == 1:
        ((tag, inner),) = written.items()
        match tag:
            case "$bytes":
                return bytes.fromhex(inner)
            case "$float":
                return float(inner)
            case "$time":
                return datetime.fromtimestamp(inner, UTC)
            case "$map":
                return {value_of(key): value_of(value) for key, value in inner}
            case "$text":
                return inner[0] * inner[1]
            case "$deep":
                value: Any = "the end"
                for _ in range(inner):
                    value = [value]
                return value
            case "$list":
                return [value_of(inner[0])] * inner[1]
    return {key: value_of(value) for key, value in written.items()}


def same(one: Any, other: Any) -> bool:
    """Equal, and of one type throughout: 1 is not 1.0, and text is not bytes. NaN is itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)
