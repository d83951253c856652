"""Reading a data directory: heads, logs and rows, and whether all of it is whole."""

from __future__ import annotations

import errno
import heapq
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb
from zlib_ng.zlib_ng import crc32

from grape.abc.transport import Arrival, CommittedHead, Stored, Table
from grape.errors import Corrupt, StorageFailed, UsageError
from grape.model.address import PartitionId
from grape.store import large
from grape.store.files import FORMAT, READABLE, check_file, stored_format
from grape.store.late import overlaid
from grape.store.rows import (
    BASE,
    BATCH,
    CHANGES,
    HEAD,
    KEY_BYTES,
    LARGE,
    LATE,
    LOG,
    LONG,
    META_FORMAT,
    POSITION,
    RESIDUE,
    Finding,
    changed_rows,
    format_of,
    is_intact,
    is_whole,
    long_key,
    position_of_row,
    sealed_format,
    stored_rows,
    unsealed_long,
)

MIB: Final = 1 << 20
MAP_SIZE: Final = 256 * MIB
SLICE_ROWS: Final = 10_000
SLICE_SECONDS: Final = 0.1


class LogEnds(NamedTuple):
    """Of one log: everything below ``trim`` is gone, the next batch gets position ``tail``."""

    trim: int
    tail: int


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


def _is_sound(database: str, key: bytes, value: bytes | memoryview) -> bool:
    """What lies in the tree is what was written: the row, or where it is."""
    return is_whole(database, key, value) or large.place_of(database, key, value) is not None


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
        if not stored_format(self.directory):
            raise UsageError(f"there is no data of Grape in {self.directory}")
        check_file(self.directory)
        try:
            self._env = _open_to_read(self.directory)
            self._open_databases(create=False)
        except lmdb.Error as e:
            raise open_error(self.directory, e) from e

    def _open_databases(self, *, create: bool) -> None:
        self._gate = threading.Lock()
        self.databases: dict[str, Any] = {}
        self.closed = False
        if create:
            with self._env.begin(write=True) as txn:
                for name in BASE:
                    self.databases[name] = self._env.open_db(name.encode(), txn=txn)
                stored = txn.get(META_FORMAT, db=self.databases["meta"])
                if stored is None or format_of(stored) in READABLE - {FORMAT}:
                    txn.put(META_FORMAT, sealed_format(FORMAT), db=self.databases["meta"])
        else:
            for name in BASE:
                try:
                    self.databases[name] = self._env.open_db(name.encode(), create=False)
                except (lmdb.NotFoundError, lmdb.ReadonlyError):
                    continue  # made by an engine that does not know this table yet
        with self._reading() as txn:
            stored = txn.get(META_FORMAT, db=self.databases["meta"]) if "meta" in self.databases else None
        if format_of(stored) not in READABLE:
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
            return self.head_in(txn, partition.packed())

    def rows_in(
        self, txn: lmdb.Transaction[bytes], packed: bytes, table: Table, keys: Sequence[bytes]
    ) -> Sequence[bytes | None]:
        """Rows of a table other than `LATE`."""
        return self._get_in(txn, table, packed, keys)

    def head_in(self, txn: lmdb.Transaction[bytes], packed: bytes) -> CommittedHead | None:
        value = txn.get(packed, db=self.databases["head"])
        if value is None:
            return None
        if len(value) < 20 or not is_intact(BASE["head"], packed, value):
            raise self._damage("head", packed)
        term, number = HEAD.unpack_from(value)
        return CommittedHead(term, number, value[16:-4])

    def heads(self) -> dict[PartitionId, CommittedHead]:
        """All partitions that were ever claimed.

        Raises:
            Corrupt: a head fails its checksum.
        """
        with self._reading() as txn:
            packed = [bytes(k) for k in txn.cursor(self.databases["head"]).iternext(values=False)]
            found = {
                PartitionId.unpack(p) if len(p) == 6 else PartitionId(0, 0, 0): self.head_in(txn, p) for p in packed
            }
        return {p: h for p, h in found.items() if h is not None}

    def ends(self, log: PartitionId) -> LogEnds:
        """Where ``log`` begins and ends.

        Raises:
            Corrupt: the stored ends fail their checksum.
        """
        with self._reading() as txn:
            return self.ends_in(txn, log.packed())

    def ends_in(self, txn: lmdb.Transaction[bytes], packed: bytes) -> LogEnds:
        trim = tail = 0
        value = txn.get(packed, db=self.databases["logs"])
        if value is not None:
            if len(value) != 20 or not is_intact(BASE["logs"], packed, value):
                raise self._damage("logs", packed)
            trim, tail = LOG.unpack_from(value)
        # The stored tail is of the last trim or drop; what was appended since stands in the log itself.
        cursor = txn.cursor(self.databases["log"])
        if cursor.set_range(POSITION.pack(packed, (1 << 64) - 1)):
            self._check_numbered("log", bytes(cursor.key()), cursor.value())
            found = cursor.prev()
        else:
            found = cursor.last()
        if found:
            key = bytes(cursor.key())
            self._check_numbered("log", key, cursor.value())
            if key[:6] == packed:
                tail = max(tail, position_of_row(key) + 1)
        return LogEnds(trim, tail)

    def logs(self) -> list[PartitionId]:
        """All partitions whose log was ever written and trimmed or still holds a batch, in order."""
        found: set[bytes] = set()
        with self._reading() as txn:
            found.update(txn.cursor(self.databases["logs"]).iternext(values=False))
            cursor = txn.cursor(self.databases["log"])
            more = cursor.first()
            while more:
                packed = cursor.key()[:6]
                found.add(packed)
                more = cursor.set_range(POSITION.pack(packed, (1 << 64) - 1))
        return [PartitionId.unpack(p) for p in sorted(found)]

    def read(self, log: PartitionId, after: int, max_bytes: int) -> list[Stored]:
        """As `grape.abc.transport.Transport.read`."""
        batches: list[Stored] = []
        size = 0
        with self._reading(buffers=True) as txn:
            for key, value in self._walk(txn, "log", log.packed(), after):
                place = large.place_of("log", key, value)
                size += (len(value) if place is None else place.size) - 8
                if batches and size > max_bytes:
                    break
                row = value if place is None else self._apart("log", key, value)
                if row is not None:
                    batches.append(Stored(position_of_row(key), bytes(row[8:])))
        return batches

    def waiting(self, log: PartitionId, after: int, before: int | None = None) -> Arrival:
        """As `grape.abc.transport.Transport.waiting`."""
        batches = events = size = 0
        with self._reading(buffers=True) as txn:
            for key, value in self._walk(txn, "log", log.packed(), after):
                if before is not None and position_of_row(key) >= before:
                    break
                place = large.place_of("log", key, value)
                begin, length = (value, len(value)) if place is None else (place.begin, place.size)
                batches, events, size = batches + 1, events + BATCH.unpack_from(begin)[1], size + length - 8
        return Arrival(log, batches, events, size)

    def _walk(
        self, txn: lmdb.Transaction[Any], database: str, packed: bytes, after: int
    ) -> Iterator[tuple[bytes, memoryview | bytes]]:
        """The rows of a partition from number ``after`` on, in ``log`` or `CHANGES`. Also looks at the neighbours at
        both ends: a row whose key was damaged still lies where its key belongs."""
        cursor = txn.cursor(self.databases[database])
        first = POSITION.pack(packed, after)
        if cursor.prev() if cursor.set_range(first) else cursor.last():
            below = bytes(cursor.key())
            self._check_numbered(database, below, cursor.value())
            if below >= first:
                raise self._damage(database, below)
        more = cursor.set_range(first)
        while more:
            key, value = bytes(cursor.key()), cursor.value()
            self._check_numbered(database, key, value)
            if key[:6] != packed:
                if key < first:
                    raise self._damage(database, key)
                break
            yield key, value
            more = cursor.next()

    def _check_numbered(self, database: str, key: bytes, value: memoryview | bytes) -> None:
        if not _is_sound(database, key, value):
            raise self._damage(database, key)

    def _apart(self, database: str, key: bytes, value: memoryview | bytes) -> bytes | None:
        """The row that lies in the file of which ``value`` tells; None: it has gone meanwhile.

        Raises:
            Corrupt: ``value`` tells of no file, or of one that is not there, or not whole.
        """
        place = large.place_of(database, key, value)
        if place is None:
            raise self._damage(database, key)
        try:
            found = large.read(self.directory, place)
        except FileNotFoundError:
            with self._env.begin() as now:  # another one than that in which ``value`` was read
                if now.get(key, db=self.databases[database]) != bytes(value):
                    return None
            raise self._damage(database, key, f"its file {large.path_of(self.directory, place.name)} is lost") from None
        except OSError as e:
            raise StorageFailed(f"{e.filename}: {e.strerror or e}") from e
        if not is_whole(database, key, found):
            raise self._damage(database, key, f"fails its checksum, in {large.path_of(self.directory, place.name)}")
        return found

    def large_rows(self) -> tuple[dict[bytes, large.Place], list[bytes], bool]:
        """By their entries, rows that lie in files; entries that say nothing any more; whether all could be read."""
        found: dict[bytes, large.Place] = {}
        stale: list[bytes] = []
        are_whole = True
        with self._reading() as txn:
            for entry, row in txn.cursor(self.databases[LARGE]).iternext() if LARGE in self.databases else ():
                if not is_whole(LARGE, entry, row):
                    are_whole = False
                    continue
                database, key = large.row_of_entry(entry)
                told = txn.get(key, db=self.databases[database])
                there = None if told is None else large.place_of(database, key, told)
                if there == large.place_of_entry(row):
                    found[entry] = there
                else:
                    stale.append(entry)
        return found, stale, are_whole

    def get(self, partition: PartitionId, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        """As `grape.abc.transport.Transport.get`."""
        if table not in self.databases:
            return [None] * len(keys)
        packed = partition.packed()
        with self._reading() as txn:
            changed: dict[bytes, bytes | None] = {}
            for layer in reversed(self._changes(txn, packed)) if table == LATE else ():
                changed.update([(key, layer[key]) for key in keys if key in layer])
            if not changed:
                return self._get_in(txn, table, packed, keys)
            rest = [key for key in keys if key not in changed]
            return [*map((changed | dict(zip(rest, self._get_in(txn, table, packed, rest), strict=True))).get, keys)]

    def _get_in(
        self, txn: lmdb.Transaction[bytes], table: Table, packed: bytes, keys: Sequence[bytes]
    ) -> list[bytes | None]:
        """What is in the tree."""
        stored = [packed + k if len(k) <= LONG else long_key(packed, k) for k in keys]
        cursor = txn.cursor(self.databases[table])
        rows: dict[bytes, bytes | None] = dict(cursor.getmulti(stored))
        if len(rows) < len(stored):
            self._check_missing(table, cursor, sorted({k for k in stored if k not in rows}))
        base = BASE[table]
        for k, v in rows.items():
            if v is not None and (crc32(v, crc32(k, base)) != RESIDUE or len(v) < 4):
                rows[k] = self._apart(table, k, v)
        values: list[bytes | None] = []
        for key, k in zip(keys, stored, strict=True):
            value = rows.get(k)
            if value is not None:
                if len(key) <= LONG:
                    value = value[:-4]
                else:
                    true, value = unsealed_long(value)
                    if true != key:
                        raise self._damage(table, k)
            values.append(value)
        return values

    def _changes(self, txn: lmdb.Transaction[bytes], packed: bytes) -> Sequence[Mapping[bytes, bytes | None]]:
        """Changes of a partition that are in no tree yet, the newest first."""
        if CHANGES not in self.databases:
            return ()  # an older Grape's
        changes: dict[bytes, bytes | None] = {}
        for key, value in self._walk(txn, CHANGES, packed, 0):
            changes.update(changed_rows(key, value) or ())
        return (changes,) if changes else ()

    def _check_missing(self, table: Table, cursor: lmdb.Cursor[bytes], missing: list[bytes]) -> None:
        """A row whose own key was damaged is not found, but it still lies where its key belongs: both neighbours of
        a missing key must be whole, and on their sides of it."""
        above: bytes | None = b""
        for k in missing:
            if above is None or k < above:
                continue  # in the same gap as the one before
            if cursor.set_range(k):
                above, value = cursor.item()
                if above < k or not _is_sound(table, above, value):
                    raise self._damage(table, above)
                found = cursor.prev()
            else:
                above = None
                found = cursor.last()
            if found:
                below, value = cursor.item()
                if below > k or not _is_sound(table, below, value):
                    raise self._damage(table, below)

    def scan(
        self, partition: PartitionId, table: Table, after: bytes, limit: int, before: bytes | None = None
    ) -> list[tuple[bytes, bytes]]:
        """As `grape.abc.transport.Transport.scan`. Keys longer than `LONG` bytes that share their first `LONG` bytes
        are stored in no order, so that a page that meets such a group reads the whole group."""
        if table not in self.databases or limit <= 0:
            return []
        packed = partition.packed()
        with self._reading() as txn:
            changed: dict[bytes, bytes | None] = {}
            for layer in reversed(self._changes(txn, packed)) if table == LATE else ():
                changed.update([item for item in layer.items() if item[0] >= after])
            most = limit + sum([value is None for value in changed.values()])
            rows = self._walk_rows(txn, table, packed, after, before, most)
            if not changed:
                return list(islice(rows, limit))
            changes = heapq.nsmallest(most, [item for item in changed.items() if before is None or item[0] < before])
            return list(islice(overlaid(rows, changes), limit))

    def _walk_rows(
        self, txn: lmdb.Transaction[bytes], table: Table, packed: bytes, after: bytes, before: bytes | None, most: int
    ) -> Iterator[tuple[bytes, bytes]]:
        """What is in the tree, in order; of a group of long keys ``most`` rows. Whatever lies between the first one and
        the last, and beside them, is whole: so nothing is passed over because it looks as if it belonged elsewhere."""
        base = BASE[table]
        cursor = txn.cursor(self.databases[table])
        low, high = packed + after, packed + (b"\xff" * LONG if before is None else before)
        if not self._is_at(table, cursor, packed + after[:LONG]):
            return
        group: list[tuple[bytes, bytes]] = []
        of = b""
        for k, v in cursor.iternext():
            if low <= k < high and len(k) < KEY_BYTES and is_intact(base, k, v):  # as nearly all are
                if group:
                    yield from heapq.nsmallest(most, group)
                    group = []
                yield k[6:], v[:-4]
                continue
            if not _is_sound(table, k, v):
                raise self._damage(table, k)
            if k[:6] != packed or (before is not None and k[6 : 6 + LONG] > before):
                break
            is_long = len(k) >= KEY_BYTES
            if group and (not is_long or k[: 6 + LONG] != of):
                yield from heapq.nsmallest(most, group)
                group = []
            row = v if is_intact(base, k, v) else self._apart(table, k, v)
            if row is None:
                continue
            key, value = unsealed_long(row) if is_long else (k[6:], row[:-4])
            if before is not None and key >= before and not is_long:
                break
            if key < after or (before is not None and key >= before):
                continue
            if not is_long:
                yield key, value
                continue
            of = k[: 6 + LONG]
            group.append((key, value))
            if len(group) > 2 * most:
                group = heapq.nsmallest(most, group)
        yield from heapq.nsmallest(most, group)

    def _is_at(self, table: Table, cursor: lmdb.Cursor[bytes], first: bytes) -> bool:
        """The cursor is at the first row whose key is not below ``first``; False: there is none. The one before it is
        whole, and belongs there: else what is searched for may lie elsewhere.

        Raises:
            Corrupt: it is not.
        """
        there_is = cursor.set_range(first)
        if not (cursor.prev() if there_is else cursor.last()):
            return there_is and bool(cursor.set_range(first))
        below, value = cursor.item()
        if below >= first or not _is_sound(table, below, value):
            raise self._damage(table, below)
        return bool(cursor.next())

    def _damage(self, database: str, key: bytes, problem: str = "fails its checksum") -> Corrupt:
        return Corrupt(
            f"{Finding(database, self._partition(key), key, problem)} (in {self.directory});"
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
        for name in self.databases:
            after: bytes | None = b""
            previous: bytes | None = None
            while after is not None:
                findings: list[Finding] = []
                deadline = time.monotonic() + SLICE_SECONDS
                count = 0
                try:
                    with self._reading() as txn:
                        cursor = txn.cursor(self.databases[name])
                        more = cursor.set_range(after) if after else cursor.first()
                        after = None
                        while more:
                            k, v = cursor.item()
                            if count >= SLICE_ROWS or time.monotonic() > deadline:
                                after = k
                                break
                            if previous is not None and k <= previous:
                                findings.append(Finding(name, self._partition(k), k, "out of order"))
                            else:
                                findings += self._problems(name, k, v, check_batch, check_row)
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

    def _problems(
        self,
        name: str,
        k: bytes,
        v: bytes,
        check_batch: Callable[[PartitionId, int, bytes], str | None] | None,
        check_row: Callable[[str, bytes, bytes], str | None] | None,
    ) -> Iterator[Finding]:
        """Of a row: as it lies there, and what is in it."""
        partition = self._partition(k)
        if large.place_of(name, k, v) is not None:
            try:
                row = self._apart(name, k, v)
            except Corrupt as e:
                yield Finding(name, partition, k, str(e))
                return
            if row is None:
                return
            v = row
        if not is_whole(name, k, v):
            yield Finding(name, partition, k, "fails its checksum")
        elif name == "log":
            log, position = PartitionId.unpack(k[:6]), position_of_row(k)
            if check_batch is not None and (problem := check_batch(log, position, v[8:])) is not None:
                yield Finding(name, log, k, problem)
        elif check_row is not None and name not in ("meta", LARGE):
            table, rows = name, [(k, v)]
            if name == CHANGES:  # as they will be in their tree
                table, (rows, _) = LATE, stored_rows(LATE, k[:6], dict(changed_rows(k, v) or ()).items())
            for key, value in rows:
                if (problem := check_row(table, key, value[:-4])) is not None:
                    yield Finding(table, partition, key, problem)
