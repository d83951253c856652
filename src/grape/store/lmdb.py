"""The LMDB environment of a data directory: logs, partition heads and tables, one writer thread, one lock.

Layout of a data directory::

    DIR/format    "grape-data 1": readable without LMDB; written last, so its presence means the directory is complete
    DIR/lock      held with flock by the one engine; its pid and host are inside
    DIR/data.mdb  the environment (lock.mdb beside it is LMDB's table of readers)
    DIR/verify    left behind by an I/O error: the next open verifies every row before it serves

Keys begin with the packed partition, so that the rows of one partition are neighbours and a commit touches few pages.
Every row ends with a crc32 over (database, key, value). Batches carry a checksum of their own; what is added to them
here covers key, event count and length, so that a batch under another's key is noticed.
"""

from __future__ import annotations

import errno
import fcntl
import heapq
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar

import lmdb
from msgspec import Struct
from zlib_ng.zlib_ng import crc32

from grape.abc.transport import TABLES, Arrival, CommittedHead, Post, Rows, Stored, Table
from grape.errors import Corrupt, InUse, StorageFailed, UsageError
from grape.model.address import PartitionId

FORMAT: Final = 1
MIB: Final = 1 << 20
MAP_SIZE: Final = 256 * MIB
MAX_SIZE: Final = 64 << 30
GROUP_BYTES: Final = 32 * MIB
"""A transaction takes no further commit beyond this, so that its dirty pages (held in memory) stay bounded."""
SLICE_ROWS: Final = 10_000
SLICE_SECONDS: Final = 0.1

KEY_BYTES: Final = 511
"""LMDB's limit as built by default, and part of the format: a stored key of just this length ends in a hash."""
_HASH: Final = 16
LONG: Final = KEY_BYTES - 6 - _HASH
"""Row keys of up to this many bytes are stored as they are; of longer ones, this much and a 128-bit hash."""

_RESIDUE: Final = 0x2144DF1C
"""crc32 of anything followed by its own crc32 (little-endian)."""
_POSITION = struct.Struct(">6sQ")
_BATCH = struct.Struct(">II")
_HEAD = struct.Struct(">QQ")
_LOG = struct.Struct(">QQ")
_LENGTH = struct.Struct(">I")
_FIXED = ("meta", "head", "logs", "log")
_BASE: Final = {name: crc32(name.encode()) for name in (*_FIXED, *TABLES)}
_META_FORMAT: Final = b"format"
_LEAST_BYTES: Final = 2 * 4096
OURS: Final = frozenset({"lock", "data.mdb", "lock.mdb", "format", "format.new", "verify", "crashes", "damaged"})

R = TypeVar("R")
A = TypeVar("A")


class Holder(Struct, frozen=True):
    """Who holds a data directory. ``pid`` is 0 when it has not told yet."""

    pid: int
    host: str


class LogEnds(NamedTuple):
    """Of one log: everything below ``trim`` is gone, the next batch gets position ``tail``."""

    trim: int
    tail: int


class Finding(Struct, frozen=True):
    """Damage that `Reader.verify` found: which database, which partition (if the key tells), which row, and what."""

    database: str
    partition: PartitionId | None
    key: bytes
    problem: str

    def __str__(self) -> str:
        where = "" if self.partition is None else f" of partition {'/'.join(map(str, self.partition))}"
        return f"{self.database}{where}, row {self.key.hex()}: {self.problem}"


def _sealed(base: int, key: bytes, value: bytes) -> bytes:
    return value + crc32(value, crc32(key, base)).to_bytes(4, "little")


def _intact(base: int, key: bytes, value: bytes) -> bool:
    return len(value) >= 4 and crc32(value, crc32(key, base)) == _RESIDUE


def _long_key(packed: bytes, key: bytes) -> bytes:
    return packed + key[:LONG] + blake2b(key, digest_size=_HASH).digest()


def _unsealed_long(value: bytes) -> tuple[bytes, bytes]:
    end = 4 + _LENGTH.unpack_from(value)[0]
    return value[4:end], value[end:-4]


def _batch_seal(key: bytes, events: int, size: int) -> bytes:
    return _BATCH.pack(crc32(_BATCH.pack(events, size), crc32(key, _BASE["log"])), events)


def is_whole(database: str, key: bytes, value: bytes) -> bool:
    """Whether a row, as it lies there, is what was written."""
    if database != "log":
        least = {"head": 20, "logs": 20}.get(database, 4)
        return len(value) >= least and _intact(_BASE[database], key, value)
    if len(key) != 14 or len(value) < 8:
        return False
    return _batch_seal(key, _BATCH.unpack_from(value)[1], len(value) - 8) == value[:8]


def position_of_row(key: bytes) -> int:
    """Of a row of a log."""
    return int(_POSITION.unpack(key)[1])


def batch_of_row(value: bytes) -> bytes:
    """What a row of a log holds."""
    return value[8:]


def value_of_row(value: bytes) -> bytes:
    """What a row of another database holds, without its seal."""
    return value[:-4]


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_durably(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
        os.write(fd, text.encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(new, path)
    _fsync_directory(path.parent)


def _make_directory(path: Path) -> None:
    """``mkdir -p`` whose entries survive a power loss. What is stored is its owner's alone: the last one is closed to
    all others before anything is in it."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700 if directory == path else 0o777, exist_ok=True)
        _fsync_directory(directory.parent)


def _close_to_others(directory: Path) -> None:
    """Directories 0700, files 0600, whatever the umask says and whoever made them: an older Grape, or a `mkdir`.

    Raises:
        OSError: it is another user's.
    """
    os.chmod(directory, 0o700)
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            _close_to_others(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            os.chmod(entry.path, 0o600)


def _read_holder(fd: int) -> Holder:
    pid, _, host = os.pread(fd, 512, 0).decode(errors="replace").strip().partition(" ")
    return Holder(int(pid) if pid.isdigit() else 0, host)


def _try_flock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(directory: str | os.PathLike[str]) -> Holder | None:
    """Who holds ``directory`` now; None if nobody does. Never disturbs an opener for longer than one system call."""
    try:
        fd = os.open(Path(directory) / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _try_flock(fd, fcntl.LOCK_SH) else _read_holder(fd)
    finally:
        os.close(fd)


def _lock(directory: Path) -> int:
    """Take the lock of ``directory``; returns the descriptor that holds it.

    Raises:
        InUse: another engine has it.
    """
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _try_flock(fd, fcntl.LOCK_EX):
            # Somebody who only asks (`holder`) has a shared lock for a moment; a second engine never gets one.
            if not _try_flock(fd, fcntl.LOCK_SH):
                who = _read_holder(fd)
                raise InUse(
                    f"the data directory {directory} is in use by process {who.pid or '(unknown)'}"
                    f" on host {who.host or '(unknown)'}; stop it, or use another directory"
                )
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_format(directory: Path) -> bool:
    """Whether ``directory`` holds complete data of this format; False if it is yet to be made.

    Raises:
        UsageError: another format, or not a data directory at all.
    """
    try:
        text = (directory / "format").read_text(errors="replace")
    except FileNotFoundError:
        strangers = sorted({e.name for e in os.scandir(directory)} - OURS) if directory.exists() else []
        if strangers:
            raise UsageError(
                f"{directory} is no data directory of Grape: it has no file 'format', but {', '.join(strangers[:3])!s};"
                " name an empty or a new directory"
            ) from None
        return False
    word, _, version = text.strip().partition(" ")
    if word != "grape-data" or not version.isascii() or not version.isdecimal():
        raise Corrupt(
            f"{directory}/format says {text.strip()[:40]!r}, which no Grape wrote; if the rest is whole,"
            f" this mends it: grape repair --data {directory}"
        )
    if version != str(FORMAT):
        raise unknown_format(directory, text.strip())
    return True


def unknown_format(path: Path, found: str) -> UsageError:
    return UsageError(
        f"{path} has data format {found[:40]!r}, this version of Grape reads and writes"
        f" 'grape-data {FORMAT}'; use the version of Grape that wrote it, or another directory"
    )


def check_file(directory: Path) -> None:
    """LMDB would take an empty file for a new one, and begin anew in silence.

    Raises:
        Corrupt: a complete directory without its data.
    """
    data = directory / "data.mdb"
    size = data.stat().st_size if data.exists() else -1
    if size < _LEAST_BYTES:
        what = "is missing" if size < 0 else "is empty" if not size else f"is cut off ({size} bytes)"
        raise Corrupt(
            f"{data} {what}: what was in it is lost. Restore it from a backup; to begin anew: grape repair"
            f" --data {directory}"
        )


def open_error(directory: Path, error: lmdb.Error) -> Corrupt | StorageFailed:
    damaged = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)
    if isinstance(error, damaged):
        return Corrupt(f"the data in {directory} is damaged: {error}")
    return StorageFailed(f"the data in {directory} cannot be used: {error}")


def _open_to_read(directory: Path) -> lmdb.Environment:
    options: dict[str, Any] = {"readonly": True, "create": False, "max_dbs": 16, "map_size": MAP_SIZE}
    try:
        return lmdb.open(str(directory), mode=0o600, max_readers=126, **options)
    except (lmdb.ReadonlyError, lmdb.LockError):
        pass  # the table of readers cannot be written: nobody else writes there either
    except lmdb.Error as e:
        if getattr(e, "code", 0) not in (errno.EROFS, errno.EACCES) and "ermission" not in str(e):
            raise
    return lmdb.open(str(directory), lock=False, **options)


class Reader:
    """Reads a data directory, also while an engine works on it. Every read is a short transaction of its own.

    Args:
        directory: of a complete data directory.

    Raises:
        UsageError: no data directory, or one of another format.
        Corrupt: not an LMDB file.
    """

    _env: lmdb.Environment

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        if not _check_format(self.directory):
            raise UsageError(f"there is no data of Grape in {self.directory}")
        check_file(self.directory)
        try:
            self._env = _open_to_read(self.directory)
            self._open_databases(create=False)
        except lmdb.Error as e:
            raise open_error(self.directory, e) from e

    def _open_databases(self, *, create: bool) -> None:
        self._gate = threading.Lock()
        self._dbs: dict[str, Any] = {}
        self.closed = False
        if create:
            with self._env.begin(write=True) as txn:
                for name in _BASE:
                    self._dbs[name] = self._env.open_db(name.encode(), txn=txn)
                if txn.get(_META_FORMAT, db=self._dbs["meta"]) is None:
                    value = _sealed(_BASE["meta"], _META_FORMAT, str(FORMAT).encode())
                    txn.put(_META_FORMAT, value, db=self._dbs["meta"])
        else:
            for name in _BASE:
                try:
                    self._dbs[name] = self._env.open_db(name.encode(), create=False)
                except (lmdb.NotFoundError, lmdb.ReadonlyError):
                    continue  # made by an engine that does not know this table yet
        with self._reading() as txn:
            stored = txn.get(_META_FORMAT, db=self._dbs["meta"]) if "meta" in self._dbs else None
        if stored != _sealed(_BASE["meta"], _META_FORMAT, str(FORMAT).encode()):
            raise UsageError(
                f"{self.directory}/format says {FORMAT}, but its data.mdb says {(stored or b'nothing')[:-4]!r}:"
                " the files do not belong together"
            )

    @contextmanager
    def _reading(self, buffers: bool = False) -> Iterator[lmdb.Transaction[Any]]:
        with self._gate:
            if self.closed:
                raise StorageFailed(f"the data directory {self.directory} is closed")
            begin: Callable[..., lmdb.Transaction[Any]] = self._env.begin
            try:
                try:
                    txn = begin(buffers=buffers)
                except lmdb.MapResizedError:  # the engine, another process, has let the map grow
                    self._env.set_mapsize(0)
                    txn = begin(buffers=buffers)
                try:
                    yield txn
                finally:
                    txn.abort()
            except lmdb.Error as e:
                raise open_error(self.directory, e) from e

    def close(self) -> None:
        """Idempotent."""
        with self._gate:
            if not self.closed:
                self.closed = True
                self._env.close()

    def head(self, partition: PartitionId) -> CommittedHead | None:
        """The committed head of a partition, None if it never was claimed.

        Raises:
            Corrupt: it fails its checksum.
        """
        with self._reading() as txn:
            return self._head(txn, partition.packed())

    def _head(self, txn: lmdb.Transaction[bytes], packed: bytes) -> CommittedHead | None:
        value = txn.get(packed, db=self._dbs["head"])
        if value is None:
            return None
        if len(value) < 20 or not _intact(_BASE["head"], packed, value):
            raise self._damage("head", packed)
        term, number = _HEAD.unpack_from(value)
        return CommittedHead(term, number, value[16:-4])

    def heads(self) -> dict[PartitionId, CommittedHead]:
        """All partitions that were ever claimed.

        Raises:
            Corrupt: a head fails its checksum.
        """
        with self._reading() as txn:
            packed = [bytes(k) for k in txn.cursor(self._dbs["head"]).iternext(values=False)]
            found = {PartitionId.unpack(p) if len(p) == 6 else PartitionId(0, 0, 0): self._head(txn, p) for p in packed}
        return {p: h for p, h in found.items() if h is not None}

    def ends(self, log: PartitionId) -> LogEnds:
        """Where ``log`` begins and ends.

        Raises:
            Corrupt: the stored ends fail their checksum.
        """
        with self._reading() as txn:
            return self._ends(txn, log.packed())

    def _ends(self, txn: lmdb.Transaction[bytes], packed: bytes) -> LogEnds:
        trim = tail = 0
        value = txn.get(packed, db=self._dbs["logs"])
        if value is not None:
            if len(value) != 20 or not _intact(_BASE["logs"], packed, value):
                raise self._damage("logs", packed)
            trim, tail = _LOG.unpack_from(value)
        # The stored tail is of the last trim or drop; what was appended since stands in the log itself.
        cursor = txn.cursor(self._dbs["log"])
        if cursor.set_range(_POSITION.pack(packed, (1 << 64) - 1)):
            self._position(bytes(cursor.key()), cursor.value())
            found = cursor.prev()
        else:
            found = cursor.last()
        if found:
            key = bytes(cursor.key())
            position = self._position(key, cursor.value())
            if key[:6] == packed:
                tail = max(tail, position + 1)
        return LogEnds(trim, tail)

    def logs(self) -> list[PartitionId]:
        """All partitions whose log was ever written and trimmed or still holds a batch, in order."""
        found: set[bytes] = set()
        with self._reading() as txn:
            found.update(txn.cursor(self._dbs["logs"]).iternext(values=False))
            cursor = txn.cursor(self._dbs["log"])
            more = cursor.first()
            while more:
                packed = cursor.key()[:6]
                found.add(packed)
                more = cursor.set_range(_POSITION.pack(packed, (1 << 64) - 1))
        return [PartitionId.unpack(p) for p in sorted(found)]

    def read(self, log: PartitionId, after: int, max_bytes: int) -> list[Stored]:
        """As `grape.abc.transport.Transport.read`."""
        batches: list[Stored] = []
        size = 0
        with self._reading(buffers=True) as txn:
            for position, value in self._walk(txn, log, after):
                size += len(value) - 8
                if batches and size > max_bytes:
                    break
                batches.append(Stored(position, bytes(value[8:])))
        return batches

    def waiting(self, log: PartitionId, after: int) -> Arrival:
        """As `grape.abc.transport.Transport.waiting`."""
        batches = events = size = 0
        with self._reading(buffers=True) as txn:
            for _, value in self._walk(txn, log, after):
                batches, events, size = batches + 1, events + _BATCH.unpack_from(value)[1], size + len(value) - 8
        return Arrival(log, batches, events, size)

    def _walk(
        self, txn: lmdb.Transaction[memoryview], log: PartitionId, after: int
    ) -> Iterator[tuple[int, memoryview]]:
        """The rows of ``log`` from ``after`` on. Also looks at the neighbours at both ends: a batch whose key was
        damaged still lies where its key belongs."""
        packed = log.packed()
        cursor = txn.cursor(self._dbs["log"])
        first = _POSITION.pack(packed, after)
        if cursor.prev() if cursor.set_range(first) else cursor.last():
            below = bytes(cursor.key())
            self._position(below, cursor.value())
            if below >= first:
                raise self._damage("log", below)
        more = cursor.set_range(first)
        while more:
            key, value = bytes(cursor.key()), cursor.value()
            position = self._position(key, value)
            if key[:6] != packed:
                if key < first:
                    raise self._damage("log", key)
                break
            yield position, value
            more = cursor.next()

    def _position(self, key: bytes, value: memoryview | bytes) -> int:
        if len(key) != 14 or len(value) < 8:
            raise self._damage("log", key)
        if _batch_seal(key, _BATCH.unpack_from(value)[1], len(value) - 8) != bytes(value[:8]):
            raise self._damage("log", key)
        return position_of_row(key)

    def get(self, partition: PartitionId, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        """As `grape.abc.transport.Transport.get`."""
        if table not in self._dbs:
            return [None] * len(keys)
        packed = partition.packed()
        stored = [packed + k if len(k) <= LONG else _long_key(packed, k) for k in keys]
        with self._reading() as txn:
            cursor = txn.cursor(self._dbs[table])
            rows = dict(cursor.getmulti(stored))
            if len(rows) < len(stored):
                self._check_missing(table, cursor, sorted({k for k in stored if k not in rows}))
        base = _BASE[table]
        for k, v in rows.items():
            if crc32(v, crc32(k, base)) != _RESIDUE or len(v) < 4:
                raise self._damage(table, k)
        values: list[bytes | None] = []
        for key, k in zip(keys, stored, strict=True):
            value = rows.get(k)
            if value is not None:
                if len(key) <= LONG:
                    value = value[:-4]
                else:
                    true, value = _unsealed_long(value)
                    if true != key:
                        raise self._damage(table, k)
            values.append(value)
        return values

    def _check_missing(self, table: Table, cursor: lmdb.Cursor[bytes], missing: list[bytes]) -> None:
        """A row whose own key was damaged is not found, but it still lies where its key belongs: both neighbours of
        a missing key must be whole, and on their sides of it."""
        base = _BASE[table]
        above: bytes | None = b""
        for k in missing:
            if above is None or k < above:
                continue  # in the same gap as the one before
            if cursor.set_range(k):
                above, value = cursor.item()
                if above < k or crc32(value, crc32(above, base)) != _RESIDUE:
                    raise self._damage(table, above)
                found = cursor.prev()
            else:
                above = None
                found = cursor.last()
            if found:
                below, value = cursor.item()
                if below > k or crc32(value, crc32(below, base)) != _RESIDUE:
                    raise self._damage(table, below)

    def scan(
        self, partition: PartitionId, table: Table, after: bytes, limit: int, before: bytes | None = None
    ) -> list[tuple[bytes, bytes]]:
        """As `grape.abc.transport.Transport.scan`. Keys longer than `LONG` bytes that share their first `LONG` bytes
        are stored in no order, so that a page that meets such a group reads the whole group."""
        rows: list[tuple[bytes, bytes]] = []
        if table not in self._dbs or limit <= 0:
            return rows
        packed = partition.packed()
        base = _BASE[table]
        with self._reading() as txn:
            cursor = txn.cursor(self._dbs[table])
            more = cursor.set_range(packed + after[:LONG])
            while more and len(rows) < limit:
                k, v = cursor.item()
                if k[:6] != packed:
                    if k < packed or not _intact(base, k, v):
                        raise self._damage(table, k)  # a damaged key looks like another partition's
                    break
                if before is not None and k[6 : 6 + LONG] > before:
                    break
                if len(k) < KEY_BYTES:
                    if not _intact(base, k, v):
                        raise self._damage(table, k)
                    key = k[6:]
                    if before is not None and key >= before:
                        break
                    if key >= after:
                        rows.append((key, v[:-4]))
                    more = cursor.next()
                else:
                    group = k[: 6 + LONG]
                    rows += heapq.nsmallest(limit - len(rows), self._group(table, cursor, group, after, before))
                    more = cursor.set_range(group + b"\xff" * (_HASH + 1))
        return rows

    def _group(
        self, table: Table, cursor: lmdb.Cursor[bytes], group: bytes, after: bytes, before: bytes | None
    ) -> Iterator[tuple[bytes, bytes]]:
        for k, v in takewhile(lambda item: item[0].startswith(group), cursor.iternext()):
            if not _intact(_BASE[table], k, v):
                raise self._damage(table, k)
            key, value = _unsealed_long(v)
            if key >= after and (before is None or key < before):
                yield key, value

    def _damage(self, database: str, key: bytes) -> Corrupt:
        return Corrupt(
            f"{Finding(database, self._partition(key), key, 'fails its checksum')} (in {self.directory});"
            " it is not used; run `grape doctor --data` on the directory"
        )

    @staticmethod
    def _partition(key: bytes) -> PartitionId | None:
        return PartitionId.unpack(key[:6]) if len(key) >= 6 else None

    def verify(
        self,
        check_batch: Callable[[PartitionId, int, bytes], str | None] | None = None,
        progress: Callable[[int], None] | None = None,
        check_row: Callable[[str, bytes, bytes], str | None] | None = None,
    ) -> Iterator[Finding]:
        """Walk every tree and check every row; also on a directory in use. Read transactions are sliced
        (`SLICE_ROWS` rows or `SLICE_SECONDS`), so that the writer's freed pages are not held back.

        Args:
            check_batch: called with (log, position, batch); returns what is wrong with the batch, or None.
            progress: called after each slice with the number of rows checked so far.
            check_row: called with (database, key, value) of whole rows of the other databases, as they lie there but
                without their seal; returns what is wrong, or None.

        Yields:
            What is damaged. A tree that LMDB itself cannot walk ends with one finding for it.
        """
        rows = 0
        for name in self._dbs:
            after: bytes | None = b""
            previous: bytes | None = None
            while after is not None:
                findings: list[Finding] = []
                deadline = time.monotonic() + SLICE_SECONDS
                count = 0
                try:
                    with self._reading() as txn:
                        cursor = txn.cursor(self._dbs[name])
                        more = cursor.set_range(after) if after else cursor.first()
                        after = None
                        while more:
                            k, v = cursor.item()
                            if count >= SLICE_ROWS or time.monotonic() > deadline:
                                after = k
                                break
                            problem = self._problem(name, k, v, check_batch)
                            if problem is None and check_row is not None and name not in ("log", "meta"):
                                problem = check_row(name, k, v[:-4])
                            if previous is not None and k <= previous:
                                problem = "out of order"
                            if problem is not None:
                                findings.append(Finding(name, self._partition(k), k, problem))
                            previous = k
                            count += 1
                            more = cursor.next()
                except (Corrupt, StorageFailed) as e:
                    after = None
                    findings.append(Finding(name, None, b"", str(e)))
                rows += count
                yield from findings
                if progress is not None:
                    progress(rows)

    def _problem(
        self, name: str, k: bytes, v: bytes, check_batch: Callable[[PartitionId, int, bytes], str | None] | None
    ) -> str | None:
        if name == "log":
            try:
                position = self._position(k, v)
            except Corrupt:
                return "fails its checksum"
            return None if check_batch is None else check_batch(PartitionId.unpack(k[:6]), position, v[8:])
        return None if is_whole(name, k, v) else "fails its checksum"


class Writing:
    """The open write transaction, as the functions given to `Store.submit` see it. Writer thread only.

    What it remembers (heads, log ends) becomes the store's memory when the transaction is committed and is forgotten
    when it is aborted, so that a group can be replayed into a larger map.
    """

    def __init__(self, store: Store, txn: lmdb.Transaction[bytes]) -> None:
        self._store = store
        self._txn = txn
        self._dbs = store._dbs
        self._cursors: dict[str, lmdb.Cursor[bytes]] = {}
        self._trimmed: set[PartitionId] = set()
        self.heads: dict[PartitionId, tuple[int, int]] = {}
        self.ends: dict[PartitionId, LogEnds] = {}
        self.size = 0

    def _cursor(self, name: str) -> lmdb.Cursor[bytes]:
        cursor = self._cursors.get(name)
        if cursor is None:
            cursor = self._cursors[name] = self._txn.cursor(self._dbs[name])
        return cursor

    def term(self, partition: PartitionId) -> tuple[int, int]:
        """(term, number) of the last commit; (0, 0) for a partition that never was claimed.

        Raises:
            Corrupt: the stored head fails its checksum.
        """
        found = self.heads.get(partition) or self._store._terms.get(partition)
        if found is None:
            head = self._store._head(self._txn, partition.packed())
            found = (0, 0) if head is None else (head.term, head.number)
        return found

    def head(self, partition: PartitionId) -> CommittedHead | None:
        """As `Reader.head`, but what this transaction has written."""
        return self._store._head(self._txn, partition.packed())

    def set_head(self, partition: PartitionId, term: int, number: int, head: bytes) -> None:
        packed = partition.packed()
        self._txn.put(packed, _sealed(_BASE["head"], packed, _HEAD.pack(term, number) + head), db=self._dbs["head"])
        self.heads[partition] = (term, number)
        self.size += len(head)

    def log_ends(self, log: PartitionId) -> LogEnds:
        ends = self.ends.get(log) or self._store._known_ends.get(log)
        if ends is None:
            ends = self.ends[log] = self._store._ends(self._txn, log.packed())
        return ends

    def append(self, log: PartitionId, batch: bytes, events: int) -> int:
        """Put ``batch`` at the end of ``log``; returns its position."""
        trim, tail = self.log_ends(log)
        key = _POSITION.pack(log.packed(), tail)
        self._txn.put(key, _batch_seal(key, events, len(batch)) + batch, db=self._dbs["log"])
        self.ends[log] = LogEnds(trim, tail + 1)
        self.size += len(batch)
        return tail

    def trim(self, log: PartitionId, position: int) -> None:
        """Delete all batches of ``log`` below ``position``; the positions are never used again."""
        trim, tail = self.log_ends(log)
        position = min(position, tail)
        if position <= trim:
            return
        packed = log.packed()
        end = _POSITION.pack(packed, position)
        cursor = self._cursor("log")
        more = cursor.set_range(_POSITION.pack(packed, trim))
        while more and b"" < cursor.key() < end:
            more = cursor.delete()  # moves to the next one; behind the last one the key is empty
        self.ends[log] = LogEnds(position, tail)
        self._trimmed.add(log)

    def drop(self, log: PartitionId, position: int) -> None:
        """Delete one batch; no error if it is gone already."""
        self.log_ends(log)  # found before the batch is gone, which may be the last one
        if self._txn.delete(_POSITION.pack(log.packed(), position), db=self._dbs["log"]):
            self._trimmed.add(log)

    def put(self, partition: PartitionId, table: Table, rows: Rows) -> None:
        """Write or (value None) remove rows; the last one of a key counts."""
        packed = partition.packed()
        base = _BASE[table]
        changes: dict[bytes, Any] = dict(rows)
        puts: list[tuple[bytes, bytes]] = []
        gone: list[bytes] = []
        if None in changes.values() or max(map(len, changes), default=0) > LONG:
            plain = {}
            for key, value in changes.items():
                k = packed + key if len(key) <= LONG else _long_key(packed, key)
                if value is None:
                    gone.append(k)
                elif len(key) <= LONG:
                    plain[key] = value
                else:
                    puts.append((k, _sealed(base, k, _LENGTH.pack(len(key)) + key + value)))
            changes = plain
        # Every change of state passes here: `_sealed` is written out, a call costs as much as the rest.
        puts += [(k := packed + key, v + crc32(v, crc32(k, base)).to_bytes(4, "little")) for key, v in changes.items()]
        if puts:
            puts.sort()  # neighbours come one after the other, which LMDB finds without a search
            self._cursor(table).putmulti(puts)
            self.size += sum([len(v) for _, v in puts])
        db = self._dbs[table]
        for k in gone:
            self._txn.delete(k, db=db)

    def finish(self) -> None:
        # The tail is stored with every deletion: without its last batches a log does not show how far it reached.
        for log in self._trimmed:
            packed = log.packed()
            self._txn.put(packed, _sealed(_BASE["logs"], packed, _LOG.pack(*self.log_ends(log))), db=self._dbs["logs"])
        self._txn.commit()


class _Job(NamedTuple):
    apply: Callable[[Writing, Any], Any]
    argument: Any
    reply: Callable[[list[Any]], None] | None
    future: Future[Any] | None


class Store(Reader):
    """The data directory in the hands of its one engine.

    One thread owns all write transactions: it takes what is queued, puts it into one transaction, commits (fsync) and
    answers with one ``post`` for the group. Reads happen on the caller's thread.

    Args:
        directory: made if it does not exist.
        post: runs a function on the engine's thread; called from the writer thread.
        max_size: bytes the map may grow to.
        map_size: bytes it starts with.
        check_batch: for the verification after an I/O error (`Reader.verify`).

    Raises:
        InUse: another engine holds the directory; names its pid and host.
        UsageError: a directory of another format, or not of Grape.
        Corrupt: the data is damaged.
        StorageFailed: the disk refused.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        post: Post,
        *,
        max_size: int = MAX_SIZE,
        map_size: int = MAP_SIZE,
        check_batch: Callable[[PartitionId, int, bytes], str | None] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.max_size = max_size
        self.error: BaseException | None = None
        self._post = post
        self._on_failed: list[Callable[[BaseException], None]] = []
        self._terms: dict[PartitionId, tuple[int, int]] = {}
        self._known_ends: dict[PartitionId, LogEnds] = {}
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._next: _Job | None = None
        self._stopping = False
        self._room = (0.0, 0, 0)
        try:
            _make_directory(self.directory)
            _check_format(self.directory)
            _close_to_others(self.directory)
            self._lock_fd = _lock(self.directory)
        except OSError as e:
            raise UsageError(f"the data directory {self.directory} cannot be used: {e}") from e
        try:
            self._open(map_size, check_batch)
        except BaseException:
            if hasattr(self, "_env"):
                self._env.close()
            os.close(self._lock_fd)
            raise
        self._thread = threading.Thread(target=self._work, name="grape-store", daemon=True)
        self._thread.start()

    def _open(self, map_size: int, check_batch: Callable[[PartitionId, int, bytes], str | None] | None) -> None:
        complete = _check_format(self.directory)
        data = self.directory / "data.mdb"
        doubtful = (self.directory / "verify").exists()
        try:
            if not complete and data.exists() and data.stat().st_size <= 2 * 4096:
                data.unlink()  # killed while LMDB wrote its first two pages; nothing was ever accepted here
            if complete:
                check_file(self.directory)
            if doubtful:
                # After a failed fsync the page cache may hold what the disk does not; verify what the disk has.
                fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
            self._map_size = min(max(map_size, data.stat().st_size if data.exists() else 0), self.max_size)
            self._env = lmdb.open(str(self.directory), map_size=self._map_size, mode=0o600, max_dbs=16, max_readers=126)
            if self._env.max_key_size() < KEY_BYTES:
                raise UsageError(f"this build of LMDB allows keys of {self._env.max_key_size()} bytes, not {KEY_BYTES}")
            self._map_size = self._env.info()["map_size"]
            self._page = self._env.stat()["psize"]
            self._env.reader_check()
            self._open_databases(create=True)
            if not complete:
                _fsync_directory(self.directory)
                _close_to_others(self.directory)  # an odd umask takes the owner's rights as well
                _write_durably(self.directory / "format", f"grape-data {FORMAT}\n")
        except lmdb.Error as e:
            raise open_error(self.directory, e) from e
        except OSError as e:
            raise StorageFailed(f"the data directory {self.directory} cannot be opened: {e}") from e
        if doubtful:
            findings = [str(f) for f, _ in zip(self.verify(check_batch), range(10), strict=False)]
            if findings:
                raise Corrupt(
                    f"the last run on {self.directory} ended with an I/O error and left damage: {'; '.join(findings)}"
                )
            (self.directory / "verify").unlink()
            _fsync_directory(self.directory)
        self._check_small()

    def _check_small(self) -> None:
        # A damaged key of these would look as if the partition had never existed.
        with self._reading() as txn:
            for name in ("head", "logs"):
                for key, value in txn.cursor(self._dbs[name]).iternext():
                    if not _intact(_BASE[name], key, value):
                        raise self._damage(name, key)

    def on_failed(self, callback: Callable[[BaseException], None]) -> None:
        """``callback(error)`` runs on the engine's thread when a transaction fails; nothing is written after it."""
        self._on_failed.append(callback)

    def submit(self, apply: Callable[[Writing, A], R], argument: A, reply: Callable[[list[R]], None]) -> None:
        """Queue a write. Never blocks. After a failure (`on_failed`) it is dropped and never answered.

        Args:
            apply: called with the open transaction and ``argument`` on the writer thread; again if the transaction had
                to be replayed, so it must change nothing but the transaction. An exception fails the store.
            reply: called on the engine's thread, once per group, with the results of this ``reply``'s writes.
        """
        self._queue.put(_Job(apply, argument, reply, None))

    def call(self, apply: Callable[[Writing, A], R], argument: A) -> R:
        """A write of its own, after everything queued; returns when it is durable. Blocks.

        Raises:
            StorageFailed: the store has failed or is closed.
            Exception: what ``apply`` raised; then nothing was written.
        """
        if self._stopping:
            raise StorageFailed(f"the data directory {self.directory} is closed")
        future: Future[R] = Future()
        self._queue.put(_Job(apply, argument, None, future))
        return future.result()

    def room(self) -> int:
        """Bytes that map and disk can still take, from below; cheap enough to ask before every intake."""
        page = self._page
        with self._gate:
            used = (self._env.info()["last_pgno"] + 1) * page
        measured, bound, used_then = self._room
        now = time.monotonic()
        if now - measured > 1.0:
            used_then = used
            disk = os.statvfs(self.directory)
            with self._reading() as txn:
                stats = [self._env.stat(), *(txn.stat(db) for db in self._dbs.values())]
            taken = sum([s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats])
            # Half of the free pages: the last transactions' are not reusable yet, and large batches need neighbours.
            reusable = max(0, used // page - 2 - taken) * page // 2
            bound = min(self.max_size - used, disk.f_bavail * disk.f_frsize) + reusable
            self._room = (now, bound, used_then)
        return max(0, bound - max(0, used - used_then))

    def close(self) -> None:
        """Write what is queued, stop the writer, release the directory. Idempotent. No reply comes afterwards."""
        if self._stopping:
            return
        self._stopping = True
        self._queue.put(None)
        self._thread.join()
        super().close()
        os.close(self._lock_fd)

    # The writer thread

    def _work(self) -> None:
        checked = time.monotonic()
        while True:
            job = self._next or self._queue.get()
            self._next = None
            if job is None:
                return
            if self.error is not None:
                self._refuse(job)
                continue
            try:
                if time.monotonic() - checked > 60:
                    self._env.reader_check()  # a reader that was killed would hold freed pages for ever
                    checked = time.monotonic()
                self._write_group(job)
            except BaseException as e:
                self._fail(e, job)

    def _refuse(self, job: _Job) -> None:
        if job.future is not None:
            job.future.set_exception(StorageFailed(f"the data directory {self.directory} has failed: {self.error}"))

    def _write_group(self, first: _Job) -> None:
        jobs = [first]
        while True:
            writing, results = None, []
            try:
                txn = self._env.begin(write=True)
                try:
                    writing = Writing(self, txn)
                    for job in jobs:  # grows while it runs
                        results.append(job.apply(writing, job.argument))
                        if len(results) == len(jobs) and first.future is None and writing.size < GROUP_BYTES:
                            self._take_next(jobs)
                    writing.finish()
                except BaseException:
                    txn.abort()
                    raise
                break
            except lmdb.MapFullError:
                self._grow()
            except Exception as e:
                if first.future is None or isinstance(e, lmdb.Error | OSError):
                    raise
                first.future.set_exception(e)
                return
        self._terms.update(writing.heads)
        self._known_ends.update(writing.ends)
        if first.future is not None:
            first.future.set_result(results[0])
            return
        replies: dict[Callable[[list[Any]], None], list[Any]] = {}
        for job, result in zip(jobs, results, strict=True):
            if job.reply is not None:
                replies.setdefault(job.reply, []).append(result)
        self._tell(lambda: [None for reply, result in replies.items() if not self._stopping and reply(result)])

    def _take_next(self, jobs: list[_Job]) -> None:
        try:
            job = self._queue.get_nowait()
        except Empty:
            return
        if job is None:
            self._queue.put(None)  # stop after this group; nothing can be queued behind it
        elif job.future is not None:
            self._next = job
        else:
            jobs.append(job)

    def _grow(self) -> None:
        self._env.reader_check()
        if self._map_size >= self.max_size:
            raise StorageFailed(
                f"the data in {self.directory} has reached its largest size ({self.max_size} bytes);"
                " let it drain or allow more (max-size)"
            )
        self._map_size = min(self._map_size * 2, self.max_size)
        with self._gate:  # LMDB moves the map: no read transaction of this process may be open
            self._env.set_mapsize(self._map_size)

    def _fail(self, error: BaseException, job: _Job) -> None:
        if isinstance(error, lmdb.Error | OSError):
            failure = StorageFailed(f"writing to {self.directory} failed: {error}")
            failure.__cause__ = error
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            full = full or getattr(error, "code", 0) == errno.ENOSPC
            if not full:
                try:
                    _write_durably(self.directory / "verify", f"{error}\n")
                except OSError:
                    pass  # a disk that takes nothing; the error itself is reported
            error = failure
        self.error = error
        self._refuse(job)
        self._tell(lambda: [None for failed in self._on_failed if not self._stopping and failed(error)])

    def _tell(self, what: Callable[[], object]) -> None:
        def run() -> None:
            what()

        try:
            self._post(run)
        except RuntimeError:
            if not self._stopping:  # the loop is gone: nobody is left who could be told, or submit
                self.error = self.error or StorageFailed("the engine's loop has ended")
