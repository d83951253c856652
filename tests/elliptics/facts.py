"""What a real server and its client have said, from `facts.txt`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple


class Fact(NamedTuple):
    """``direction``: ">" to the server. ``is_raw``: as it was captured, else put together of its fields."""

    direction: str
    message: bytes
    is_raw: bool


def _read() -> dict[str, list[Fact]]:
    found = defaultdict(list)
    for line in (Path(__file__).parent / "facts.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            kind, exchange, direction, message = line.split()
            found[exchange].append(Fact(direction, bytes.fromhex(message), kind == "raw"))
    return dict(found)


FACTS = _read()


def asked(exchange: str, index: int = 0) -> bytes:
    """The request of this index."""
    return [each.message for each in FACTS[exchange] if each.direction == ">"][index]


def answered(exchange: str, index: int = 0) -> bytes:
    return [each.message for each in FACTS[exchange] if each.direction == "<"][index]
