"""The open write transaction of a data directory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import lmdb

from grape.abc.transport import CommittedHead, Rows, Table
from grape.model.address import PartitionId
from grape.store import large
from grape.store.late import ROW, SLICE_BYTES, Change, Done, Late
from grape.store.reader import LogEnds, Reader
from grape.store.rows import (
    BASE,
    CHANGES,
    HEAD,
    KEY_BYTES,
    LARGE,
    LATE,
    LOG,
    POSITION,
    batch_seal,
    change_row,
    sealed,
    stored_rows,
)

PAGE: Final = 4096


class Known:
    """What committed transactions have left, so that it need not be read again: (term, number) of the last commit of
    each partition, the ends of logs, changes that are in no tree yet, and how many bytes of rows lie in files."""

    def __init__(self, late: Late) -> None:
        self.late = late
        self.large_bytes = 0
        self.heads: dict[PartitionId, tuple[int, int]] = {}
        self.ends: dict[PartitionId, LogEnds] = {}

    def learn(self, writing: Writing) -> None:
        """Its transaction is committed."""
        self.heads.update(writing.heads)
        self.ends.update(writing.ends)
        self.large_bytes += sum(place.size for place in writing.added) - sum(place.size for place in writing.over)
        late = self.late
        for _ in range(writing.cleared):
            late.merged.popleft()
        for done in writing.merges:
            late.finish(done)
        for change in writing.changes:
            late.add(change)


class Writing:
    """The open write transaction, as the functions given to `Store.submit` see it. Writer thread only.

    What it remembers (heads, log ends) becomes `Known` when the transaction is committed and is forgotten when it is
    aborted, so that a group can be replayed into a larger map.
    """

    def __init__(
        self, reader: Reader, known: Known, files: large.Files, inline_limit: int, txn: lmdb.Transaction[bytes]
    ) -> None:
        self._reader = reader
        self._known = known
        self._files = files
        self._inline_limit = inline_limit
        self._txn = txn
        self._dbs = reader.databases
        self._cursors: dict[str, lmdb.Cursor[bytes]] = {}
        self._trimmed: set[PartitionId] = set()
        self.heads: dict[PartitionId, tuple[int, int]] = {}
        self.ends: dict[PartitionId, LogEnds] = {}
        self._size = 0
        self._touched: dict[Table, int] = {}
        """Of each table, how many rows were written or removed."""
        self.added: list[large.Place] = []
        self.over: list[large.Place] = []
        """Files of rows that are gone."""
        self._has_large = txn.stat(reader.databases[LARGE])["entries"] > 0
        self._numbers: dict[bytes, int] = {}
        self.changes: list[Change] = []
        self.merges: list[Done] = []
        self.cleared = 0

    @property
    def pages(self) -> int:
        """How many pages the transaction holds in memory, at most and about: a row that lies alone costs a whole one,
        and a tree has no more than it has. What it changes late counts as well: another one will merge as much."""
        stat = self._txn.stat
        rows = sum([min(count, stat(self._dbs[table])["leaf_pages"]) for table, count in self._touched.items()])
        return rows + sum([len(change.rows) for change in self.changes]) + self._size // PAGE

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
        found = self.heads.get(partition) or self._known.heads.get(partition)
        if found is None:
            head = self._reader.head_in(self._txn, partition.packed())
            found = (0, 0) if head is None else (head.term, head.number)
        return found

    def head(self, partition: PartitionId) -> CommittedHead | None:
        """As `Reader.head`, but what this transaction has written."""
        return self._reader.head_in(self._txn, partition.packed())

    def set_head(self, partition: PartitionId, term: int, number: int, head: bytes) -> None:
        packed = partition.packed()
        self._txn.put(packed, sealed(BASE["head"], packed, HEAD.pack(term, number) + head), db=self._dbs["head"])
        self.heads[partition] = (term, number)
        self._size += len(head)

    def log_ends(self, log: PartitionId) -> LogEnds:
        ends = self.ends.get(log) or self._known.ends.get(log)
        if ends is None:
            ends = self.ends[log] = self._reader.ends_in(self._txn, log.packed())
        return ends

    def append(self, log: PartitionId, batch: bytes, events: int) -> int:
        """Put ``batch`` at the end of ``log``; returns its position."""
        trim, tail = self.log_ends(log)
        key = POSITION.pack(log.packed(), tail)
        row = self._placed("log", key, batch_seal(key, events, len(batch)) + batch)
        self._txn.put(key, row, db=self._dbs["log"])
        self.ends[log] = LogEnds(trim, tail + 1)
        self._size += len(row)
        return tail

    def _placed(self, database: str, key: bytes, row: bytes) -> bytes:
        """What lies in the tree: the row, or in which file it does."""
        if len(row) <= self._inline_limit:
            return row
        place = self._files.add(row)
        self.added.append(place)
        entry = large.entry_key(database, key)
        self._txn.put(entry, large.entry_row(entry, place), db=self._dbs[LARGE])
        self._has_large = True
        return large.place_row(database, key, place)

    def _unplace(self, database: str, keys: Iterable[bytes]) -> None:
        """These rows go, or others come in their place."""
        for key in keys if self._has_large and large.may_lie_apart(database) else ():
            if len(key) < KEY_BYTES and (row := self._txn.pop(large.entry_key(database, key), db=self._dbs[LARGE])):
                self.over.append(large.place_of_entry(row))

    def _unplace_below(self, first: bytes, end: bytes) -> None:
        """Batches of a log go, from one position to another."""
        if not self._has_large:
            return
        cursor = self._cursor(LARGE)
        last = large.entry_key("log", end)
        more = cursor.set_range(large.entry_key("log", first))
        while more and b"" < cursor.key() < last:
            self.over.append(large.place_of_entry(cursor.value()))
            more = cursor.delete()

    def trim(self, log: PartitionId, position: int) -> None:
        """Delete all batches of ``log`` below ``position``; the positions are never used again."""
        trim, tail = self.log_ends(log)
        position = min(position, tail)
        if position <= trim:
            return
        packed = log.packed()
        first, end = POSITION.pack(packed, trim), POSITION.pack(packed, position)
        self._unplace_below(first, end)
        cursor = self._cursor("log")
        more = cursor.set_range(first)
        while more and b"" < cursor.key() < end:
            more = cursor.delete()  # moves to the next one; behind the last one the key is empty
        self.ends[log] = LogEnds(position, tail)
        self._trimmed.add(log)

    def drop(self, log: PartitionId, position: int) -> None:
        """Delete one batch; no error if it is gone already."""
        self.log_ends(log)  # found before the batch is gone, which may be the last one
        key = POSITION.pack(log.packed(), position)
        self._unplace("log", [key])
        if self._txn.delete(key, db=self._dbs["log"]):
            self._trimmed.add(log)

    def get(self, partition: PartitionId, table: Table, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Rows of a table other than `LATE`, as this transaction has them.

        Raises:
            Corrupt: one fails its checksum.
        """
        return self._reader.rows_in(self._txn, partition.packed(), table, keys)

    def first(self, partition: PartitionId, table: Table, begin: bytes) -> bytes | None:
        """The first key, not a long one, of such a table that is not before ``begin``."""
        packed = partition.packed()
        cursor = self._txn.cursor(self._dbs[table])
        if not cursor.set_range(packed + begin) or cursor.key()[:6] != packed:
            return None
        return cursor.key()[6:]

    def put(self, partition: PartitionId, table: Table, rows: Rows) -> None:
        """Write or (value None) remove rows; the last one of a key counts."""
        packed = partition.packed()
        if table != LATE:
            self._into_tree(table, packed, dict(rows).items())
        elif rows:
            number = self._numbers.get(packed, self._known.late.next_number(packed))
            key, value = change_row(packed, number, rows)
            self._txn.put(key, value, db=self._dbs[CHANGES])
            self._numbers[packed] = number + 1
            self._size += len(value)
            self.changes.append(Change(packed, number, rows, len(value)))

    def _into_tree(self, table: Table, packed: bytes, changes: Collection[tuple[bytes, bytes | None]]) -> None:
        puts, gone = stored_rows(table, packed, changes)
        if table != LATE:
            self._unplace(table, [*gone, *(k for k, _ in puts)])
            puts = [(k, self._placed(table, k, v) if len(k) < KEY_BYTES else v) for k, v in puts]
        if puts:
            self._cursor(table).putmulti(puts)
        db = self._dbs[table]
        for k in gone:
            self._txn.delete(k, db=db)
        self._touched[table] = self._touched.get(table, 0) + len(changes)

    def merge(self, most: int) -> None:
        """Take what is too much in memory over into the tree, ``most`` rows of it. Comes before all that is put."""
        for done in self._known.late.due(most):
            self._into_tree(LATE, done.merge.packed, done.merge.left(done.taken))
            self.merges.append(done)

    def clear(self) -> None:
        """Remove what has been merged from ``changes``: somewhat more than this transaction and what was written beside
        merges bring about. From the front: what is left at a crash has to be the newest."""
        left = 1 + 2 * (SLICE_BYTES // ROW + len(self.changes))
        cursor = self._cursor(CHANGES)
        for packed, last in self._known.late.merged:
            more = cursor.set_range(POSITION.pack(packed, 0))
            end = POSITION.pack(packed, last)
            while more and b"" < cursor.key() <= end:
                if not left:
                    return
                more = cursor.delete()
                left -= 1
            self.cleared += 1

    def finish(self) -> None:
        # The tail is stored with every deletion: without its last batches a log does not show how far it reached.
        for log in self._trimmed:
            packed = log.packed()
            self._txn.put(packed, sealed(BASE["logs"], packed, LOG.pack(*self.log_ends(log))), db=self._dbs["logs"])
        if self.added:
            self._files.settle()
        self._txn.commit()
