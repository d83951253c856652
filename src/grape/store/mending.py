"""A data directory as it is, also a damaged one, in the hands of a repair: rows with their seals, and one write.

Nothing is checked here but who holds the directory and which format it is of: what is damaged says somebody else. What
is taken out is put aside first, durably, in ``DIR/damaged``.
"""

from __future__ import annotations

import base64
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb
import msgspec

from grape.abc.transport import TABLES, Table
from grape.errors import Corrupt, StorageFailed, UsageError
from grape.model.address import PartitionId
from grape.store import blobs, large
from grape.store.files import FORMAT, READABLE, fsync_directory, lock, say_format, unknown_format, write_durably
from grape.store.reader import MIB, open_error
from grape.store.rows import (
    BASE,
    CHANGES,
    HEAD,
    KEY_BYTES,
    LARGE,
    LATE,
    LOG,
    LONG,
    META_FORMAT,
    POSITION,
    batch_seal,
    changed_rows,
    format_of,
    sealed,
    sealed_format,
    stored_rows,
)

FOLDER: Final = "damaged"


class RawRow(NamedTuple):
    """A row as it lies there: ``database``, its whole key, its value with its seal; of one that lies in a file what is
    in that, or in which it should be."""

    database: str
    key: bytes
    value: bytes


class Changes:
    """The one write of a repair. Functions put whole rows, with their seals."""

    def __init__(self, txn: lmdb.Transaction[bytes], dbs: dict[str, Any]) -> None:
        self._txn = txn
        self._dbs = dbs
        self.removed: set[RawRow] = set()

    def remove(self, row: RawRow) -> None:
        self.removed.add(row)
        self._txn.delete(row.key, db=self._dbs[row.database])

    def set_head(self, partition: PartitionId, term: int, head: bytes) -> None:
        packed = partition.packed()
        self._txn.put(packed, sealed(BASE["head"], packed, HEAD.pack(term, 0) + head), db=self._dbs["head"])

    def set_ends(self, log: PartitionId, trim: int, tail: int) -> None:
        packed = log.packed()
        self._txn.put(packed, sealed(BASE["logs"], packed, LOG.pack(trim, tail)), db=self._dbs["logs"])

    def set_batch(self, log: PartitionId, position: int, batch: bytes, events: int) -> None:
        key = POSITION.pack(log.packed(), position)
        self._txn.put(key, batch_seal(key, events, len(batch)) + batch, db=self._dbs["log"])

    def put(self, partition: PartitionId, table: Table, key: bytes, value: bytes) -> None:
        """A row of a key of at most `LONG` bytes."""
        assert len(key) <= LONG
        whole = partition.packed() + key
        self._txn.put(whole, sealed(BASE[table], whole, value), db=self._dbs[table])


class Mending:
    """The data directory ``path``, locked.

    Raises:
        UsageError: no data directory, or one of another format; InUse.
        Corrupt, StorageFailed: LMDB cannot open it at all.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.directory = Path(path)
        self.format_missing = _mended_format(self.directory)
        try:
            self._lock_fd = lock(self.directory)
        except OSError as e:
            raise UsageError(f"the data directory {self.directory} cannot be changed: {e}") from None
        try:
            size = (self.directory / "data.mdb").stat().st_size
            self._env = lmdb.open(
                str(self.directory), map_size=size + 256 * MIB, mode=0o600, max_dbs=16, max_readers=126
            )
            if self._env.max_key_size() < KEY_BYTES:
                raise UsageError(f"this build of LMDB allows keys of {self._env.max_key_size()} bytes, not {KEY_BYTES}")
            with self._env.begin(write=True) as txn:
                self._dbs = {name: self._env.open_db(name.encode(), txn=txn) for name in BASE}
            self.meta_is_whole = self._check_meta()
        except lmdb.Error as e:
            self.close()
            raise open_error(self.directory, e) from e
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Mending:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if hasattr(self, "_env"):
            self._env.close()
        os.close(self._lock_fd)

    def _check_meta(self) -> bool:
        """Whether the file says its format.

        Raises:
            UsageError: another one.
        """
        with self._env.begin() as txn:
            stored = txn.get(META_FORMAT, db=self._dbs["meta"])
        found = format_of(stored)
        if found and found not in READABLE:
            raise unknown_format(self.directory / "data.mdb", str(found))
        return found > 0

    def rows(self, database: str) -> Iterator[RawRow]:
        """All of a database, in order; of `LATE` then those that its changes make, and changes that are damaged.

        Raises:
            Corrupt: LMDB cannot walk it.
        """
        try:
            with self._env.begin() as txn:
                for key, value in txn.cursor(self._dbs[database]).iternext():
                    yield RawRow(database, key, self._whole(database, key, value))
                if database == LATE:
                    changes, damaged = self._changes(txn)
                    for packed, changed in changes.items():
                        puts, _ = stored_rows(LATE, packed, changed.items())
                        yield from [RawRow(LATE, key, value) for key, value in puts]
                    yield from damaged
        except lmdb.Error as e:
            raise Corrupt(f"the table {database} in {self.directory} cannot be walked: {e}") from e

    def _whole(self, database: str, key: bytes, value: bytes) -> bytes:
        place = large.place_of(database, key, value)
        try:
            return value if place is None else large.read(self.directory, place)
        except OSError:
            return value  # which is no row that is whole

    def _find_large(self, txn: lmdb.Transaction[bytes]) -> None:
        """Say anew which rows lie in files."""
        txn.drop(self._dbs[LARGE], delete=False)
        for database in large.WHERE:
            for key, value in txn.cursor(self._dbs[database]).iternext():
                place = large.place_of(database, key, value)
                if place is not None:
                    entry = large.entry_key(database, key)
                    txn.put(entry, large.entry_row(entry, place), db=self._dbs[LARGE])

    def _changes(self, txn: lmdb.Transaction[bytes]) -> tuple[dict[bytes, dict[bytes, bytes | None]], list[RawRow]]:
        """What is to be changed in the tree of `LATE`, by packed partition, and rows that do not say so any more."""
        changes: dict[bytes, dict[bytes, bytes | None]] = {}
        damaged: list[RawRow] = []
        for key, value in txn.cursor(self._dbs[CHANGES]).iternext():
            rows = changed_rows(key, value)
            if rows is None:
                damaged.append(RawRow(CHANGES, key, value))
            else:
                changes.setdefault(key[:6], {}).update(rows)
        return changes, damaged

    def _merge(self, txn: lmdb.Transaction[bytes], removed: set[RawRow]) -> None:
        """All that has changed, into the tree, but rows that are to go."""
        db = self._dbs[LATE]
        for packed, changes in self._changes(txn)[0].items():
            puts, gone = stored_rows(LATE, packed, changes.items())
            txn.cursor(db).putmulti([(key, value) for key, value in puts if RawRow(LATE, key, value) not in removed])
            for key in gone:
                txn.delete(key, db=db)
        txn.drop(self._dbs[CHANGES], delete=False)

    def put_aside(self, rows: Iterable[tuple[RawRow, str]]) -> Path:
        """Write rows, and what is wrong with each, to a file below ``DIR/damaged``: a JSON object a line."""
        text = "".join(
            msgspec.json.encode(
                {
                    "database": row.database,
                    "key": row.key.hex(),
                    "value": base64.b64encode(row.value).decode(),
                    "problem": problem,
                }
            ).decode()
            + "\n"
            for row, problem in rows
        )
        try:
            path = _new_place(self.directory, ".jsonl")
            write_durably(path, text)
        except OSError as e:
            raise _refused(self.directory, e) from None
        return path

    def write(self, change: Callable[[Changes], None]) -> None:
        """All that ``change`` does, or nothing.

        Raises:
            StorageFailed: the disk refused; nothing has changed.
        """
        try:
            with self._env.begin(write=True) as txn:
                if not self.meta_is_whole:
                    txn.put(META_FORMAT, sealed_format(FORMAT), db=self._dbs["meta"])
                changes = Changes(txn, self._dbs)
                change(changes)
                self._merge(txn, changes.removed)
                self._find_large(txn)
            if self.format_missing:
                say_format(self.directory)
        except lmdb.Error as e:
            raise open_error(self.directory, e) from e
        except OSError as e:
            raise _refused(self.directory, e) from None


def _mended_format(directory: Path) -> bool:
    """Whether the file that says the format has to be written anew.

    Raises:
        UsageError: it says another one, or there are no data.
    """
    if not (directory / "data.mdb").is_file():
        raise UsageError(f"{directory} holds no data of Grape: it has no file 'data.mdb'")
    try:
        text = (directory / "format").read_text(errors="replace").strip()
    except FileNotFoundError:
        return True
    except OSError as e:
        raise UsageError(f"the data directory {directory} cannot be read: {e}") from None
    word, _, version = text.partition(" ")
    if word != "grape-data" or not version.isascii() or not version.isdecimal():
        return True
    if int(version) not in READABLE:
        raise unknown_format(directory, text)
    return False


def put_all_aside(directory: Path) -> Path:
    """The whole file goes to ``DIR/damaged``: the next start begins with nothing. Returns where it is.

    Raises:
        UsageError: it cannot be locked; InUse.
        StorageFailed: the disk refused.
    """
    fd = -1
    try:
        fd = lock(directory)
        place = _new_place(directory, "")
        place.mkdir(mode=0o700)
        for name in ("data.mdb", "lock.mdb", "format", "verify", large.FOLDER, blobs.FOLDER):
            if (directory / name).exists():
                os.replace(directory / name, place / name)
        fsync_directory(place)
        fsync_directory(directory)
    except OSError as e:
        raise _refused(directory, e) from None
    finally:
        if fd >= 0:
            os.close(fd)
    return place


def _new_place(directory: Path, suffix: str) -> Path:
    folder = directory / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    fsync_directory(directory)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    number = 0
    while (path := folder / f"{stamp}{f'-{number}' if number else ''}{suffix}").exists():
        number += 1
    return path


def _refused(directory: Path, error: OSError) -> StorageFailed:
    hint = "; make room and try again, nothing has changed" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return StorageFailed(f"{directory} cannot be changed: {error}{hint}")


ALL: Final = ("head", "logs", "log", *TABLES)
