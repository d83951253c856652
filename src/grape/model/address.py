"""Addresses: the partitions that own logs and state, and which key lives where."""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple
from zlib import crc32

from grape.model.values import shown

MAX_KEY_BYTES: Final = 4096
MAX_ID_BYTES: Final = 1_024
DEFAULT_PARTITIONS: Final = 32
MAX_PARTITIONS: Final = 4096
MAX_LOGS: Final = 1 << 16
"""Numbers that a catalog can give to pools, outputs, sources and takers of an app."""

_PACKED = struct.Struct(">HHH")


class PartitionId(NamedTuple):
    """The unit of log, ownership, commit and recovery: (app, pool, number).

    ``pool`` is the number that the catalog gave to a pool. Outputs, sources, takers and the reply home
    are numbered from the same space, so that everything that commits is a partition.
    """

    app: int
    pool: int
    number: int

    def packed(self) -> bytes:
        """Six bytes, big-endian, so that stored rows of one partition are neighbours in partition order."""
        return _PACKED.pack(*self)

    @classmethod
    def unpack(cls, packed: bytes) -> PartitionId:
        return cls(*_PACKED.unpack(packed))


CATALOG: Final = PartitionId(0, 0, 0)
"""Where a transport keeps the catalog of its apps: one more partition."""


def partition_of(key: str, partitions: int) -> int:
    """The partition number of a key: zlib's crc32 of its UTF-8 bytes, modulo ``partitions``."""
    return crc32(key.encode()) % partitions


def check_text(value: object, what: str, most: int) -> str:
    """Return ``value`` if it is text of 1 to ``most`` bytes of UTF-8. ``what`` it is to be, for the error.

    Raises:
        TypeError: it is not text.
        ValueError: it is empty, too long, or holds lone surrogates.
    """
    if type(value) is not str:
        raise TypeError(f"{what} is text (str), not {type(value).__name__}: {shown(value)}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as e:
        raise ValueError(f"{what} must be valid UTF-8 text: {e.reason}") from None
    if not 1 <= size <= most:
        raise ValueError(f"{what} has 1 to {most:,} bytes of UTF-8, this one has {size:,}")
    return value


def check_key(key: object) -> str:
    """Return ``key`` if it can be a key: text of 1 to 4,096 bytes of UTF-8.

    Raises:
        TypeError: it is not text.
        ValueError: it is empty, too long, or holds lone surrogates.
    """
    return check_text(key, "a key", MAX_KEY_BYTES)


MAX_TIMER_NAME: Final = 255


def check_timer_name(name: object) -> str:
    """Return ``name`` if a timer can be called so: text of 1 to 255 bytes of UTF-8.

    Raises:
        TypeError: it is not text.
        ValueError: it is empty, too long, or holds lone surrogates.
    """
    return check_text(name, "the name of a timer", MAX_TIMER_NAME)


_CACHED_KEYS: Final = 65_536


class Partitions(dict[str, int]):
    """key -> partition number, worked out once for each key (of the last 65,536); also the check that it is a key."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def __missing__(self, key: Any) -> int:
        check_key(key)
        if len(self) >= _CACHED_KEYS:
            self.clear()
        number = self[key] = partition_of(key, self._count)
        return number
