"""What a row of a data directory is: its key, its value, its checksum.

Keys begin with the packed partition, so that the rows of one partition are neighbours and a commit touches few pages.
Every row ends with a crc32 over (database, key, value). Batches carry a checksum of their own; what is added to them
here covers key, event count and length, so that a batch under another's key is noticed.

The rows of ``changes`` are keyed as batches are; each holds what one commit has changed of `LATE` (`grape.store.late`).
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from hashlib import blake2b
from operator import itemgetter
from typing import Final

import msgspec
from msgspec import Struct
from zlib_ng.zlib_ng import crc32

from grape.abc.transport import TABLES, Rows, Table
from grape.model.address import PartitionId

KEY_BYTES: Final = 511
"""LMDB's limit as built by default, and part of the format: a stored key of just this length ends in a hash."""
HASH: Final = 16
LONG: Final = KEY_BYTES - 6 - HASH
"""Row keys of up to this many bytes are stored as they are; of longer ones, this much and a 128-bit hash."""

RESIDUE: Final = 0x2144DF1C
"""crc32 of anything followed by its own crc32 (little-endian)."""
POSITION: Final = struct.Struct(">6sQ")
BATCH: Final = struct.Struct(">II")
HEAD: Final = struct.Struct(">QQ")
LOG: Final = struct.Struct(">QQ")
LENGTH: Final = struct.Struct(">I")
CHANGES: Final = "changes"
LARGE: Final = "large"
"""The database that tells which rows lie in files (`grape.store.large`)."""
LATE: Final[Table] = "state"
"""The table whose changes go there first: its keys are scattered, and read one by one."""
BASE: Final = {name: crc32(name.encode()) for name in ("meta", "head", "logs", "log", CHANGES, LARGE, *TABLES)}
"""Of each database, where the checksum of its rows begins."""
META_FORMAT: Final = b"format"
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[tuple[bytes, bytes | None]]).decode


class Finding(Struct, frozen=True):
    """Damage that `Reader.verify` found: which database, which partition (if the key tells), which row, and what."""

    database: str
    partition: PartitionId | None
    key: bytes
    problem: str

    def __str__(self) -> str:
        where = "" if self.partition is None else f" of partition {'/'.join(map(str, self.partition))}"
        return f"{self.database}{where}, row {self.key.hex()}: {self.problem}"


def sealed(base: int, key: bytes, value: bytes) -> bytes:
    return value + crc32(value, crc32(key, base)).to_bytes(4, "little")


def is_intact(base: int, key: bytes, value: bytes | memoryview) -> bool:
    return len(value) >= 4 and crc32(value, crc32(key, base)) == RESIDUE


def sealed_format(number: int) -> bytes:
    """The row of ``meta`` that says the format."""
    return sealed(BASE["meta"], META_FORMAT, str(number).encode())


def format_of(row: bytes | None) -> int:
    """0: that is no such row."""
    text = row[:-4] if row is not None and is_intact(BASE["meta"], META_FORMAT, row) else b""
    return int(text) if text.isdigit() else 0


def long_key(packed: bytes, key: bytes) -> bytes:
    return packed + key[:LONG] + blake2b(key, digest_size=HASH).digest()


def unsealed_long(value: bytes) -> tuple[bytes, bytes]:
    end = 4 + LENGTH.unpack_from(value)[0]
    return value[4:end], value[end:-4]


def stored_rows(
    table: str, packed: bytes, changes: Collection[tuple[bytes, bytes | None]]
) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """What changes of a partition, one of a key, are in the tree of ``table``: rows to be written, in order, and keys
    that go."""
    base = BASE[table]
    # Every change of state passes here: `sealed` is written out, a call costs as much as the rest.
    puts = [
        (k := packed + key, value + crc32(k + value, base).to_bytes(4, "little"))
        for key, value in changes
        if value is not None and len(key) <= LONG
    ]
    gone: list[bytes] = []
    if len(puts) < len(changes):
        for key, value in changes:
            k = packed + key if len(key) <= LONG else long_key(packed, key)
            if value is None:
                gone.append(k)
            elif len(key) > LONG:
                puts.append((k, sealed(base, k, LENGTH.pack(len(key)) + key + value)))
    puts.sort(key=itemgetter(0))  # neighbours come one after the other, which LMDB finds without a search
    return puts, gone


def change_row(packed: bytes, number: int, rows: Rows) -> tuple[bytes, bytes]:
    key = POSITION.pack(packed, number)
    return key, sealed(BASE[CHANGES], key, _encode(rows))


def changed_rows(key: bytes, value: bytes | memoryview) -> Rows | None:
    """What a row of ``changes`` holds; None: it is damaged."""
    if len(key) != 14 or not is_intact(BASE[CHANGES], key, value):
        return None
    try:
        return _decode(memoryview(value)[:-4])
    except msgspec.MsgspecError:
        return None


def batch_seal(key: bytes, events: int, size: int) -> bytes:
    return BATCH.pack(crc32(BATCH.pack(events, size), crc32(key, BASE["log"])), events)


def is_whole(database: str, key: bytes, value: bytes | memoryview) -> bool:
    """Whether a row, as it lies there, is what was written."""
    if database == CHANGES:
        return changed_rows(key, value) is not None
    if database != "log":
        least = {"head": 20, "logs": 20}.get(database, 4)
        return len(value) >= least and is_intact(BASE[database], key, value)
    if len(key) != 14 or len(value) < 8:
        return False
    return batch_seal(key, BATCH.unpack_from(value)[1], len(value) - 8) == value[:8]


def position_of_row(key: bytes) -> int:
    """Of a row of a log."""
    return int(POSITION.unpack(key)[1])


def batch_of_row(value: bytes) -> bytes:
    """What a row of a log holds."""
    return value[8:]


def value_of_row(value: bytes) -> bytes:
    """What a row of another database holds, without its seal."""
    return value[:-4]
