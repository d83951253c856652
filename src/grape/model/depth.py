"""How deep a value may be nested. Whoever reads one is somewhere in a stack of his own, and all that lies in a log or
in state has to be readable from everywhere. How deep msgspec goes is no measure: that is a number of Python's in 3.11,
another one in 3.12, and as much as the stack holds in 3.14.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final

import msgspec

MAX_DEPTH: Final = 256
"""Lists and maps in one another, of what Python sends."""
LET_IN: Final = 600
"""What an engine lets in of what workers send, with the column or record around a value: more than any SDK sends (512),
less than a process of any Python reads, also from within a handler."""

_CONTAINERS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
"""What an array or map begins with."""
_MAPS: Final = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])
_SIZED: Final = {
    **{0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)},
    **{0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)},
}
"""Bytes, texts and extensions: how many bytes of their mark say how long they are, and how many are not counted."""
_FIXED: Final = {
    **{0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8},
    **{0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17},
    **{mark: mark & 0x1F for mark in range(0xA0, 0xC0)},
}
"""Bytes after all other marks that have some."""
_PEELED: Final = 8
"""Levels that are taken off one by one, whose small parts are not looked at any more; few values have more."""
_LONG: Final = 64
"""Of longer values it costs less to find where they end than to look at their bytes."""

_decode_items: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def is_too_deep(packed: bytes, most: int = MAX_DEPTH) -> bool:
    """Whether an encoded value is nested deeper than ``most``. Nearly all are told by their size, or by how many bytes
    of them may begin a container. What is no value is not: its reader will say so."""
    return _may_be(packed, most) and _is(packed, most)


def is_column_too_deep(packed: bytes, count: int) -> bool:
    """Whether an array of ``count`` values is nested deeper than an engine lets in."""
    if len(packed) <= LET_IN or (len(packed) <= _LONG * count and not _may_be(packed, LET_IN)):
        return False
    return _is(packed, LET_IN)


def _may_be(packed: bytes, most: int) -> bool:
    if len(packed) <= most or packed[0] not in _CONTAINERS:
        return False
    return len(packed) - len(packed.translate(None, _CONTAINERS)) > most


def _is(packed: bytes, most: int) -> bool:
    level = [packed]
    try:
        for below in range(most - 1, most - 1 - _PEELED, -1):
            level = [item for each in level for item in _inside(each, below) if _may_be(item, below)]
            if not level:
                return False
    except RecursionError:
        return True
    except msgspec.DecodeError:
        return False
    return any(_is_by_marks(each, most - _PEELED) for each in level)


def _inside(container: bytes, below: int) -> list[bytes]:
    """Arrays and maps of more than ``below`` bytes in an array, or among the keys and values of a map."""
    mark = container[0]
    if mark in _MAPS:
        head = 1 if mark < 0x90 else 3 if mark == 0xDE else 5
        pairs = mark & 0x0F if head == 1 else int.from_bytes(container[1:head], "big")
        container = b"\xdd" + (2 * pairs).to_bytes(4, "big") + container[head:]
    sizes = list(map(len, _decode_items(container)))
    if max(sizes, default=0) <= below:
        return []
    starts = accumulate(sizes, initial=len(container) - sum(sizes))
    return [
        container[start : start + size]
        for start, size in zip(starts, sizes, strict=False)
        if size > below and container[start] in _CONTAINERS
    ]


def _is_by_marks(packed: bytes, most: int) -> bool:
    """Mark by mark, so that its cost does not grow with the depth."""
    at, size = 0, len(packed)
    left, around = 1, list[int]()  # values still to come: in this container, and in those around it
    while at < size:
        mark = packed[at]
        at += 1
        left -= 1
        if mark in _CONTAINERS:
            if len(around) == most:
                return True
            around.append(left)
            if mark < 0xA0:
                left = mark & 0x0F
            else:
                head = 2 if mark in (0xDC, 0xDE) else 4
                left = int.from_bytes(packed[at : at + head], "big")
                at += head
            if mark in _MAPS:
                left *= 2
        elif mark in _SIZED:
            head, beside = _SIZED[mark]
            at += head + beside + int.from_bytes(packed[at : at + head], "big")
        else:
            at += _FIXED.get(mark, 0)
        while not left:
            if not around:
                return False
            left = around.pop()
    return False
