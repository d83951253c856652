"""How deep a value may be nested. Whoever reads one is somewhere in a stack of his own, and all that lies in a log or
in state has to be readable from everywhere. How deep msgspec goes is no measure: that is a number of Python's in 3.11,
another one in 3.12, and as much as the stack holds in 3.14.
"""

from __future__ import annotations

from typing import Final

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


def is_too_deep(packed: bytes, most: int = MAX_DEPTH) -> bool:
    """Whether an encoded value is nested deeper than ``most``. Nearly all are told by their size, or by how many bytes
    of them may begin a container; the others mark by mark, which takes no memory, whatever they are. What is no value
    is as deep as it goes: its reader will say so."""
    if not packed or len(packed) <= most or packed[0] not in _CONTAINERS:
        return False
    if len(packed) - len(packed.translate(None, _CONTAINERS)) <= most:
        return False
    at, size = 0, len(packed)
    left, around = 1, list[int]()  # values still to come: in this container, and in those around it
    while at < size:
        mark = packed[at]
        at += 1
        left -= 1
        if mark in _CONTAINERS:
            if len(around) >= most:
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
