"""What stands in the 64 bits that an application may keep with a record, and in its first bytes. Pure.

Elliptics knows no empty record, no removal under a condition, and nothing that is another one after every write. So the
64 bits say when a record was written, with some noise; and a record that begins with a mark is the object without it,
or none: of 32 bytes that nobody writes by chance. What is appended to a marked record is so of the object as well.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from grape.storage.elliptics.wire import Stamp

BEGINS: Final = b"\0grape: it begins\0" + bytes.fromhex("8d3f60a1c59e47b2f1067ad8e492")
"""The object is what follows."""
GONE: Final = b"\0grape: was removed" + bytes.fromhex("c3b95e1f7a20d84c96ea73f108")
"""There is none; with something behind it, that is one."""
MARK: Final = 32

_SINCE: Final = 1_577_836_800_000_000
"""2020: earlier moments are numbers of somebody else."""


class Kind(IntEnum):
    OBJECT = 0xA
    HEAD = 0xC
    DATA = 0xD
    GONE = 0xE
    """A head that says that there is none."""


_KINDS: Final = frozenset(map(int, Kind))


def flags_of(moment: int, kind: Kind) -> int:
    """``moment``: microseconds since 1970."""
    return moment << 12 & 0xFFFF_FFFF_FFFF_F000 | random.getrandbits(8) << 4 | kind


def kind_of(flags: int) -> Kind | None:
    """None: somebody else's."""
    return Kind(flags & 0xF) if flags & 0xF in _KINDS and flags >> 12 >= _SINCE else None


def moment_of(flags: int, stamp: Stamp) -> int:
    """When a record was written: as we say, else as its time does."""
    return flags >> 12 if kind_of(flags) is not None else stamp.micros


def order_of(flags: int, stamp: Stamp) -> tuple[int, Stamp, int]:
    """Of two copies of a record the greater is the newer."""
    return moment_of(flags, stamp), stamp, flags


def marked(data: bytes) -> bytes:
    """What is stored of an object."""
    return BEGINS + data if not data or is_marked(data) else data


def is_marked(start: bytes) -> bool:
    """Whether what begins so has a mark; ``start``: at least 32 bytes of it, if there are."""
    return start[:MARK] in (BEGINS, GONE)


def is_gone(start: bytes, total: int) -> bool:
    return total == MARK and start[:MARK] == GONE


class Moments:
    """Microseconds since 1970, each once.

    Args:
        clock: what time it is.
    """

    def __init__(self, clock: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._clock = clock
        self._last = 0

    def next(self, after: int = 0) -> int:
        """Later than ``after``; what somebody else's clock says makes no later than it has to."""
        self._last = max(self._clock(), self._last + 1)
        return max(self._last, after + 1)
