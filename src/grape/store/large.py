"""Rows that are too large for a tree: each lies in a file of its own, and in the tree is said in which.

    DIR/large/NAME    the row's value, as it would lie in the tree, seal and all; no name is ever used again
    DIR/large/lock    see `grape.store.keeping`

The database ``large`` has an entry for each such row, in the transaction that writes the row and until the one that
removes it, so that a file of which it says nothing is nobody's: left by a transaction that never was, or by a death.
A file is durable before the transaction that refers to it, and goes after the one that does not any more.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from zlib_ng.zlib_ng import crc32

from grape.abc.transport import TABLES
from grape.store.files import fsync_directory, make_directory
from grape.store.keeping import LOCK, Keepers
from grape.store.rows import BASE, LARGE, LATE, RESIDUE, sealed

FOLDER: Final = "large"
INLINE_LIMIT: Final = 1 << 20
"""Bytes of a row that lie in the tree; more lie in a file."""
_PLACE: Final = struct.Struct(">12sQ8s")
_PLACE_BYTES: Final = _PLACE.size + 4
_BASE: Final = {name: crc32(b"in a file", base) for name, base in BASE.items()}
"""Another beginning than that of rows: no row that lies in a tree can be taken for one that does not."""
WHERE: Final = ("log", *(table for table in TABLES if table != LATE))
"""Databases whose rows may lie in files: the others have none that are so large, or read them all."""


class Place(NamedTuple):
    """Where a row lies. ``size``: bytes of its value, of which ``begin`` are the first."""

    name: bytes
    size: int
    begin: bytes


def place_row(database: str, key: bytes, place: Place) -> bytes:
    """What lies in the tree instead of the row."""
    return sealed(_BASE[database], key, _PLACE.pack(*place))


def place_of(database: str, key: bytes, value: bytes | memoryview) -> Place | None:
    """None: the row itself lies there."""
    if len(value) != _PLACE_BYTES or crc32(value, crc32(key, _BASE[database])) != RESIDUE:
        return None
    return Place(*_PLACE.unpack_from(value))


def entry_key(database: str, key: bytes) -> bytes:
    """Of a row, in ``large``: those of one partition and database are in the order of their keys."""
    return key[:6] + bytes([WHERE.index(database)]) + key[6:]


def row_of_entry(entry: bytes) -> tuple[str, bytes]:
    """The same back: database and key.

    Raises:
        IndexError: there is no such database.
    """
    return WHERE[entry[6]], entry[:6] + entry[7:]


def entry_row(entry: bytes, place: Place) -> bytes:
    return sealed(BASE[LARGE], entry, _PLACE.pack(*place))


def place_of_entry(row: bytes) -> Place:
    """What a whole row of ``large`` says."""
    return Place(*_PLACE.unpack_from(row))


def may_lie_apart(database: str) -> bool:
    return database in WHERE


def path_of(directory: Path, name: bytes) -> Path:
    return directory / FOLDER / name.hex()


def read(directory: Path, place: Place) -> bytes:
    """The row's value; whether it is whole says its seal.

    Raises:
        FileNotFoundError: the row is gone by now, or its file is lost.
        OSError: the disk refused.
    """
    return path_of(directory, place.name).read_bytes()


class Files:
    """Those of a data directory, in the hands of whoever writes it. Not more than one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._folder = directory / FOLDER
        make_directory(self._folder)
        fsync_directory(directory)  # who made it may have died over it
        self._keepers = Keepers(directory)
        self._over: set[bytes] = set()
        """Nobody has these any more."""

    def add(self, value: bytes) -> Place:
        """Write it. What it has is durable, its name once `settle` has been called."""
        name = secrets.token_bytes(12)
        path = path_of(self._directory, name)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            left = memoryview(value)
            while left:
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(fd)
        return Place(name, len(value), value[:8])

    def settle(self) -> None:
        """All that was added has its name, also after a power loss."""
        fsync_directory(self._folder)

    def remove(self, names: Iterable[bytes]) -> None:
        """These are over: now, or when no moment is kept any more."""
        self._over.update(names)
        if not self._over:
            return
        with self._keepers.away() as are_away:
            for name in self._over if are_away else ():
                with contextlib.suppress(OSError):  # what stays is found at the next start
                    path_of(self._directory, name).unlink()
            if are_away:
                self._over.clear()

    def sweep(self, names: Collection[bytes]) -> None:
        """All but these are nobody's."""
        there = {entry.name for entry in os.scandir(self._folder)} - {LOCK, *(name.hex() for name in names)}
        self.remove([bytes.fromhex(name) for name in there if len(name) == 24 and set(name) <= _DIGITS])

    def close(self) -> None:
        self._keepers.close()


_DIGITS: Final = frozenset("0123456789abcdef")
