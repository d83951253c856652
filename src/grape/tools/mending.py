"""`grape repair`: takes exactly what is damaged out of a data directory, so that the next start works.

    walk every row (`grape.tools.sound`) -> put aside what is damaged -> one write: removed, or made anew

- A row that is damaged is removed. Of a batch, events that a worker cannot take become dead letters, the others stay.
- What says how far a partition is (its head, the ends of its log) is made anew from what lies in the logs and what the
  others have sent: what was not finished for sure is done again.
- Without a catalog nothing has a name: it is taken from its copy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from grape.engine.catalog import COPY, read_catalog
from grape.engine.inbox import origin_key, own_origin
from grape.engine.logged import UNREADABLE, events_of
from grape.errors import Corrupt, GrapeError, UsageError
from grape.model import batch as codec
from grape.model.address import CATALOG, PartitionId
from grape.model.batch import Header, RunMeta
from grape.model.cursor import Cursor, Progress
from grape.model.plural import counted
from grape.model.stored import (
    NO_POOLS,
    SOURCE,
    TAKER,
    Catalog,
    DeadLetter,
    Head,
    SourceHead,
    TakerHead,
    decode_head,
    decode_source,
    decode_taker,
    encode,
    row_key,
)
from grape.store.mending import ALL, Changes, Mending, RawRow, put_all_aside
from grape.store.rows import batch_of_row, is_whole, position_of_row, value_of_row
from grape.tools.sound import Rules, Waiting, position_problem

_LETTER_KIND: Final = "damaged"


class Mended(Struct):
    """What a repair did, or would do: a line each. ``aside``: the file in which what was removed lies."""

    lines: list[str]
    aside: Path | None = None


class _Scan:
    """All of a directory, looked at once."""

    def __init__(self, mending: Mending, catalog: Catalog) -> None:
        self.rules = Rules(catalog)
        self.damaged: list[tuple[RawRow, str]] = []
        self.heads: dict[PartitionId, tuple[int, bytes]] = {}
        self.ends: dict[PartitionId, tuple[int, int]] = {}
        self._decoded: dict[PartitionId, Head | None] = {}
        self.logs: dict[PartitionId, list[Waiting]] = {}
        self.torn: dict[PartitionId, list[RawRow]] = {}
        """Batches whose bytes are whole, with events that cannot be handed out."""
        self.numbers: dict[PartitionId, dict[str, int]] = {}
        """Highest numbers among the rows beside a log."""
        for database in ALL:
            for row in mending.rows(database):
                problem = self._look(row)
                if problem is not None:
                    self.damaged.append((row, problem))

    def _look(self, row: RawRow) -> str | None:
        if not is_whole(row.database, row.key, row.value):
            return "fails its checksum"
        if row.database == "log":
            return self._look_at_batch(row)
        value = value_of_row(row.value)
        problem = self.rules.row(row.database, row.key, value)
        if problem is None:
            partition = PartitionId.unpack(row.key[:6])
            if row.database == "head":
                self.heads[partition] = int.from_bytes(value[:8], "big"), value[16:]
            elif row.database == "logs":
                self.ends[partition] = int.from_bytes(value[:8], "big"), int.from_bytes(value[8:], "big")
            elif row.database in ("hold", "dead", "timer", "expiry"):
                number = int.from_bytes(row.key[-8:], "big")
                numbers = self.numbers.setdefault(partition, {})
                numbers[row.database] = max(numbers.get(row.database, -1), number)
        return problem

    def _look_at_batch(self, row: RawRow) -> str | None:
        log, position = PartitionId.unpack(row.key[:6]), position_of_row(row.key)
        batch = batch_of_row(row.value)
        head = self.head(log) if self.rules.is_pool(log) else None
        progress = Progress() if head is None else head.cursor.progress(position)
        problem = self.rules.batch(log, batch, progress)
        if problem is None:
            self.logs.setdefault(log, []).append(Waiting(position, codec.header_of(batch)))
        elif self.rules.is_pool(log) and _can_be_split(batch):
            self.torn.setdefault(log, []).append(row)
            self.logs.setdefault(log, []).append(Waiting(position, codec.header_of(batch), good=False))
        return problem

    def head(self, partition: PartitionId) -> Head | None:
        """The head of a pool's partition, if it is whole."""
        if partition not in self._decoded:
            found = self.heads.get(partition)
            self._decoded[partition] = decode_head(found[1]) if found is not None and found[1] else None
        return self._decoded[partition]

    def problems_of_positions(self) -> Iterator[tuple[PartitionId, str]]:
        """Heads and ends of logs that are whole, but do not fit what lies in the log."""
        for partition in sorted({*self.heads, *self.ends, *self.logs}):
            if self.rules.is_pool(partition):
                head = self.head(partition) or Head()
                problem = position_problem(head, self.logs.get(partition, []), self.tail(partition))
                if problem is not None:
                    yield partition, problem

    def tail(self, log: PartitionId) -> int:
        """Where the next batch goes."""
        batches = self.logs.get(log)
        return max(self.ends.get(log, (0, 0))[1], batches[-1].position + 1 if batches else 0)


def _can_be_split(batch: bytes) -> bool:
    try:
        header = codec.check(batch)
        contexts = codec.contexts_of(batch, header)
        codec.check_body(codec.body_of(batch, header), header.events, len(contexts), stored=True)
    except (GrapeError, *UNREADABLE):
        return False
    return True


class DirectoryRepair:
    """The repair of the data directory ``path``.

    Raises:
        UsageError: no data directory, or one of another format; InUse.
        Corrupt: LMDB cannot open it: see `start_over`.
        StorageFailed: the disk refused.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._mending = Mending(path)
        self.path = self._mending.directory

    def __enter__(self) -> DirectoryRepair:
        return self

    def __exit__(self, *exc: object) -> None:
        self._mending.close()

    def run(self, dry: bool) -> Mended:
        """Mend everything; ``dry``: only say what is to be done.

        Raises:
            Corrupt: there is no catalog, nor a copy of it: see `start_over`.
            StorageFailed: the disk refused; nothing has changed.
        """
        mending = self._mending
        catalog, copied = self._catalog()
        scan = _Scan(mending, catalog)
        positions = list(scan.problems_of_positions())
        plan = _Plan(scan, dict(positions))
        lines = [
            *(["the file 'format' is written anew"] if mending.format_missing else []),
            *([] if mending.meta_is_whole else ["the format in data.mdb is written anew"]),
            *(["the catalog is taken from its copy"] if copied else []),
            *plan.lines,
        ]
        if dry or not lines:
            return Mended(lines)
        aside = mending.put_aside(scan.damaged) if scan.damaged else None

        def change(changes: Changes) -> None:
            for row, _ in scan.damaged:
                changes.remove(row)
            if copied:
                changes.set_head(CATALOG, scan.heads.get(CATALOG, (1, b""))[0] + 1, encode(catalog))
            changes.put(CATALOG, "text", COPY, encode(catalog))
            plan.write(changes)

        mending.write(change)
        return Mended(lines, aside)

    def _catalog(self) -> tuple[Catalog, bool]:
        """The catalog, and whether it is the copy.

        Raises:
            Corrupt: there is none.
            UsageError: a newer Grape wrote it.
        """
        key = CATALOG.packed()
        row = next((row for row in self._mending.rows("head") if row.key == key), None)
        if row is not None and is_whole("head", row.key, row.value):
            try:
                return read_catalog(value_of_row(row.value)[16:]), False
            except Corrupt:
                pass
        for row in self._mending.rows("text"):
            if row.key == key + COPY and is_whole("text", row.key, row.value):
                try:
                    return read_catalog(value_of_row(row.value)), True
                except Corrupt:
                    break
        if row is None and not any(True for name in ("head", "log") for _ in self._mending.rows(name)):
            return Catalog(), False
        raise Corrupt("the catalog is damaged, and so is its copy: nothing in the directory has a name any more")


class _Plan:
    """What is to be written, and in words. ``misplaced``: partitions whose positions do not fit their logs."""

    def __init__(self, scan: _Scan, misplaced: dict[PartitionId, str]) -> None:
        self._scan = scan
        self.lines: list[str] = []
        self._heads: dict[PartitionId, bytes] = {}
        self._ends: dict[PartitionId, tuple[int, int]] = {}
        self._batches: list[tuple[PartitionId, int, bytes, int]] = []
        self._letters: dict[PartitionId, list[DeadLetter]] = {}
        self._next_dead: dict[PartitionId, int] = {}
        lost = self._note_rows()
        for partition, problem in misplaced.items():
            self.lines.append(f"{self._place(partition)}: {problem}; its head is made anew")
            lost.add(partition)
        for partition in sorted(lost):
            self._mend(partition)

    def _place(self, partition: PartitionId) -> str:
        found = self._scan.rules.log(partition)
        if found is None:
            return "catalog" if partition == CATALOG else f"partition {'/'.join(map(str, partition))}"
        record, name = found
        kinds = {SOURCE: "source ", TAKER: "taker ", ">": "output ", "?": "replies"}
        log = kinds[name[0]] + name[1:] if name[0] in kinds else f"pool {name}"
        return f"app {record.name}, {log}, partition {partition.number}"

    def _note_rows(self) -> set[PartitionId]:
        """Say what is removed; returns the partitions whose heads or ends have to be made anew."""
        lost: set[PartitionId] = set()
        torn = {row.key for rows in self._scan.torn.values() for row in rows}
        for row, problem in self._scan.damaged:
            partition = PartitionId.unpack(row.key[:6]) if len(row.key) >= 6 else None
            where = "" if partition is None else f" of {self._place(partition)}"
            what = f"row {row.key[6:].hex() or '(its only one)'} of {row.database}{where}: {problem}"
            if row.database in ("head", "logs", "log") and partition is not None and partition != CATALOG:
                lost.add(partition)
                if row.database == "log" and row.key in torn:
                    self.lines.append(f"{what}; the events that cannot be handed out become dead letters")
                    continue
                end = "removed" if row.database == "log" else "made anew from what lies in the logs"
                self.lines.append(f"{what}; {end}")
            else:
                self.lines.append(f"{what}; removed")
        return lost

    # ------------------------------------------------------------------ one partition

    def _mend(self, partition: PartitionId) -> None:
        found = self._scan.rules.log(partition)
        if found is None:
            return
        name = found[1]
        if name.startswith(SOURCE):
            if partition not in self._scan.heads:
                self._heads[partition] = encode(SourceHead(sent=self._sent(partition)))
                self.lines.append(f"{self._place(partition)}: where it was is lost; its input is read from its start")
        elif name.startswith(TAKER):
            if partition not in self._scan.heads:
                self._heads[partition] = encode(TakerHead())
                self.lines.append(f"{self._place(partition)}: what it took is not known; give it a new file")
        else:
            self._mend_ends(partition)
            if not name.startswith(NO_POOLS):
                self._mend_pool(partition)

    def _mend_ends(self, log: PartitionId) -> None:
        """No position is used again: beyond everything that a reader has passed."""
        readers = [h.cursor for h in (self._scan.head(log),) if h is not None and self._scan.rules.is_pool(log)]
        for partition, (_, packed) in self._scan.heads.items():
            found = self._scan.rules.log(partition)
            if packed and found is not None and found[1].startswith(TAKER):
                reading = decode_taker(packed).logs.get(log.number)
                if reading is not None and reading.cursor.position <= _SANE:
                    readers.append(reading.cursor)
        tops = [max([c.position, *(p + 1 for p in (*c.finished, *c.partial))]) for c in readers]
        tail = max([self._scan.tail(log), *(top for top in tops if top <= _SANE)])
        trim = min(self._scan.ends.get(log, (0, 0))[0], tail)
        self._ends[log] = trim, tail

    def _mend_pool(self, partition: PartitionId) -> None:
        """A new head: all batches that lie there and are not finished are accepted as they stand."""
        scan = self._scan
        old = scan.head(partition)
        head = old or Head(sent=self._sent(partition), catching_up=True)
        numbers = scan.numbers.get(partition, {})
        head.next_hold = max(head.next_hold, numbers.get("hold", -1) + 1)
        head.next_dead = max(head.next_dead, numbers.get("dead", -1) + 1)
        head.next_timer = max(head.next_timer, numbers.get("timer", -1) + 1, numbers.get("expiry", -1) + 1)
        tail = self._ends[partition][1]
        cursor = head.cursor
        if old is None or cursor.position > tail:
            cursor = Cursor(min(scan.ends.get(partition, (0, 0))[0], tail))
        self._letters[partition] = []
        self._next_dead[partition] = head.next_dead
        torn = {position_of_row(row.key): row for row in scan.torn.get(partition, [])}
        partial: dict[int, Progress] = {}
        finished = {p for p in cursor.finished if p < tail}
        seen = dict(head.seen)
        lying = {batch.position: batch for batch in scan.logs.get(partition, [])}
        accepted = [p for p in cursor.partial if p in lying]  # in the order in which they were accepted
        for position in dict.fromkeys([*accepted, *sorted(lying, key=lambda p: lying[p].header.sequence)]):
            batch = lying[position]
            key = origin_key(batch.header)
            twice = position not in cursor.partial and batch.header.sequence < head.seen.get(key, 0)
            is_over = position < cursor.position or position in finished or twice
            progress = cursor.progress(position)
            if not 0 <= progress.first <= batch.header.events:
                progress = Progress()
            seen[key] = max(seen.get(key, 0), batch.header.sequence + 1)
            if is_over:
                finished |= {position} if position >= cursor.position else set()
                continue
            if not batch.good:
                left = self._split(partition, torn[position], position, progress)
                progress = Progress()
                if not left:
                    finished.add(position)
                    continue
            partial[position] = progress
        self._catch_up(partition, seen)
        head.cursor = Cursor(cursor.position, partial, finished)
        head.seen = seen
        head.next_dead += len(self._letters[partition])
        self._heads[partition] = encode(head)
        if old is None:
            self.lines.append(f"{self._place(partition)}: {counted(len(partial), 'batch', 'batches')} are done again")

    def _catch_up(self, partition: PartitionId, seen: dict[bytes, int]) -> None:
        """Whatever others have sent here is there, or lost: the next batch of each is the next one it sends."""
        packed = partition.packed()
        for origin, _, sent in self._origins():
            if packed in sent and origin.app == partition.app:
                found = self._scan.rules.log(origin)
                assert found is not None
                key = own_origin(origin, found[0].incarnation)
                seen[key] = max(seen.get(key, 0), sent[packed])

    def _origins(self) -> Iterator[tuple[PartitionId, str, dict[bytes, int]]]:
        """Every partition that sends, the name of its log, and how many batches it sent to each target."""
        for origin, (_, packed) in self._scan.heads.items():
            found = self._scan.rules.log(origin)
            if found is None or not packed:
                continue
            if found[1].startswith(SOURCE):
                yield origin, found[1], decode_source(packed).sent
            elif self._scan.rules.is_pool(origin):
                yield origin, found[1], decode_head(packed).sent

    def _sent(self, origin: PartitionId) -> dict[bytes, int]:
        """How many batches a partition whose head is lost has sent to each target, as those know it."""
        found = self._scan.rules.log(origin)
        assert found is not None
        own = own_origin(origin, found[0].incarnation)
        sent: dict[bytes, int] = {}

        def note(target: PartitionId, number: int) -> None:
            packed = target.packed()
            sent[packed] = max(sent.get(packed, 0), number)

        for log, batches in self._scan.logs.items():
            for batch in batches:
                if origin_key(batch.header) == own:
                    note(log, batch.header.sequence + 1)
        for partition, (_, packed) in self._scan.heads.items():
            place = self._scan.rules.log(partition)
            if place is None or not packed or place[0].id != origin.app:
                continue
            if self._scan.rules.is_pool(partition):
                note(partition, decode_head(packed).seen.get(own, 0))
            elif place[1].startswith(TAKER):
                for log_name in (name for name in place[0].logs if name.startswith((">", "?"))):
                    for number, reading in decode_taker(packed).logs.items():
                        target = PartitionId(origin.app, place[0].logs[log_name], number)
                        note(target, reading.seen.get(own, 0))
        return {target: number for target, number in sent.items() if number}

    def _split(self, partition: PartitionId, row: RawRow, position: int, progress: Progress) -> int:
        """The events of a batch that cannot be handed out become dead letters, the others a batch of their own.
        Returns how many these are."""
        batch = batch_of_row(row.value)
        header = codec.header_of(batch)
        body = codec.body_of(batch, header)
        ids = codec.ids_of(header, body)
        contexts = codec.contexts_of(batch, header)
        runs: list[bytes] = []
        left = at = 0
        for run in codec.runs_of(body):
            good: list[int] = []
            names = codec.names_of(run)
            for i, problem in events_of(run):
                if progress.is_done(at + i):
                    continue
                if problem:
                    self._letters[partition].append(_letter(names[i], ids[at + i], header, run, i, problem))
                else:
                    good.append(i)
            if good:
                runs.append(_part(run, good, {n: ids[at + i] for n, i in enumerate(good)}))
                left += len(good)
            at += run.count
        if left:
            sealed = codec.seal(
                b"".join(runs),
                left,
                header.origin,
                header.target,
                header.incarnation,
                header.sequence,
                header.created,
                contexts,
                header.flags,
            )
            self._batches.append((partition, position, sealed, left))
        return left

    # ------------------------------------------------------------------ the write

    def write(self, changes: Changes) -> None:
        for partition, head in self._heads.items():
            changes.set_head(partition, self._scan.heads.get(partition, (0, b""))[0] + 1, head)
        for log, (trim, tail) in self._ends.items():
            changes.set_ends(log, trim, tail)
        for log, position, batch, events in self._batches:
            changes.set_batch(log, position, batch, events)
        for partition, letters in self._letters.items():
            for i, letter in enumerate(letters):
                changes.put(partition, "dead", row_key(self._next_dead[partition] + i), encode(letter))


_SANE: Final = 1 << 62


def _letter(name: str, event_id: str, header: Header, run: codec.Run, index: int, problem: str) -> DeadLetter:
    try:
        data = (codec.raw_data_of(run) or [msgspec.Raw(b"\xc0")] * run.count)[index]
    except UNREADABLE:
        data = msgspec.Raw(encode(run.data))
    body = codec.encode_run(RunMeta([name]), 1, None, [data])
    now = int(time.time() * 1e6)
    return DeadLetter("", name, event_id, None, header.created, body, 0, now, _LETTER_KIND, problem)


def _part(run: codec.Run, good: list[int], ids: dict[int, str]) -> bytes:
    """The events ``good`` of a run, under their old ids."""
    keys, data, meta = codec.keys_of(run), codec.raw_data_of(run), run.meta
    return codec.encode_run(
        RunMeta(
            meta.names,
            index=None if meta.index is None else bytes(meta.index[i] for i in good),
            hops=meta.hops if isinstance(meta.hops, int) else [meta.hops[i] for i in good],
            only=meta.only,
            ids=ids,
            contexts=None if meta.contexts is None else [meta.contexts[i] for i in good],
        ),
        len(good),
        None if keys is None else [keys[i] for i in good],
        None if data is None else [data[i] for i in good],
    )


def start_over(path: str | os.PathLike[str]) -> Path:
    """Put all data of a directory aside that nobody can read any more; returns where they are.

    Raises:
        UsageError: it holds none; InUse.
        StorageFailed: the disk refused.
    """
    directory = Path(path)
    if not (directory / "data.mdb").exists() and not (directory / "format").exists():
        raise UsageError(f"{directory} holds no data of Grape")
    return put_all_aside(directory)
