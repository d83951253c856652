"""A data directory as its tools see it: apps, keyed state, dead letters, stopped events, and whether it is whole.

Nothing here takes the directory's lock, and no read transaction lasts longer than a slice of rows, so that all of it
works beside a running engine. What is read then is of one moment per slice, not of one moment as a whole.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from grape.abc.transport import AtRest, Table
from grape.engine.catalog import read_catalog
from grape.engine.letters import run_of
from grape.errors import Corrupt, EngineError, StorageFailed, UsageError
from grape.model import batch as codec
from grape.model.address import CATALOG, PartitionId, partition_of
from grape.model.cursor import Cursor
from grape.model.objects import OBJECTS
from grape.model.spots import Place, near
from grape.model.stored import (
    OUTPUT,
    REPLIES,
    SOURCE,
    TAKER,
    AppRecord,
    Catalog,
    DeadLetter,
    Head,
    HoldEntry,
    Reading,
    decode_dead,
    decode_head,
    decode_hold,
    decode_source,
    decode_taker,
    decode_timer,
    row_key,
    state_key,
)
from grape.store.files import OURS, Holder, holder
from grape.store.reader import Reader
from grape.store.rows import Finding
from grape.tools.sound import Rules, Waiting, position_problem

T = TypeVar("T")

SLICE: Final = 256
"""Rows a read transaction: few, as a row may be large."""


class Letter(Struct, frozen=True):
    """A dead letter, or an event on hold: it waits for its next attempt, for an operator (``on_fail="stop"``), or
    ``behind`` another (its id). ``waiting``: how many wait behind it."""

    place: Place
    row: DeadLetter | HoldEntry
    behind: str = ""
    waiting: int = 0

    @property
    def status(self) -> str:
        """dead, stopped, held or behind."""
        if isinstance(self.row, DeadLetter):
            return "dead"
        return "stopped" if self.row.stopped else "behind" if self.behind else "held"

    @property
    def failed(self) -> int | None:
        """When it was given up, microseconds of wall time; None: not known (stopped events)."""
        return self.row.failed if isinstance(self.row, DeadLetter) else None

    @property
    def origin(self) -> str:
        """file:line of an input that never became an event."""
        return self.row.origin if isinstance(self.row, DeadLetter) else ""

    def data(self) -> Any:
        """The payload; bytes if it cannot be read as msgpack.

        Raises:
            Corrupt: the body holds no event.
        """
        run = run_of(self.row.body, self.place.id)
        try:
            return (codec.data_of(run) or [None])[0]
        except (msgspec.MsgspecError, RecursionError, TypeError, ValueError):
            return run.data


class StateRow(Struct, omit_defaults=True):
    """The keyed state of one (node, key): State name -> value. ``problem``: why what is stored cannot be read."""

    node: str
    key: str
    state: dict[str, Any] | None
    problem: str = ""


class Directory:
    """A data directory, opened for reading.

    Args:
        reader: open; closed with this.

    Raises:
        UsageError: it holds no app, or was written by a newer Grape.
        Corrupt: the catalog cannot be read.
    """

    def __init__(self, reader: AtRest) -> None:
        self.reader = reader
        head = reader.head(CATALOG)
        self.catalog: Catalog = read_catalog(b"" if head is None else head.head)
        if not self.catalog.apps:
            raise UsageError(f"{reader.directory} holds no app yet: nothing was run in it")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Directory:
        """
        Raises:
            UsageError: missing, empty, or not a data directory of this format.
            Corrupt: damaged.
            StorageFailed: it cannot be read.
        """
        reader = open_reader(path)
        try:
            return cls(reader)
        except BaseException:
            reader.close()
            raise

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.reader.close()

    def app(self, name: str | None) -> AppRecord:
        """The app called ``name``; None: the only one.

        Raises:
            UsageError: there is no such app, or there are several to choose from.
        """
        apps = self.catalog.apps
        known = ", ".join(sorted(apps))
        if name is None:
            if len(apps) == 1:
                return next(iter(apps.values()))
            raise UsageError(f"{self.reader.directory} holds several apps: say which one with --app ({known})")
        if name not in apps:
            raise UsageError(f"{self.reader.directory} holds no app {name!r}{near(name, apps)}; its apps: {known}")
        return apps[name]

    # ------------------------------------------------------------------ state

    def states(self, record: AppRecord, node: str | None, prefix: str) -> Iterator[StateRow]:
        """The state of ``node`` (None: of all nodes), of keys that begin with ``prefix``, by node and key.

        Raises:
            UsageError: there is no such node.
            Corrupt: a row fails its checksum.
        """
        for name in [node] if node is not None else sorted(record.nodes):
            number, pool = self._home(record, name)
            start = state_key(number, prefix.encode("utf-8", "surrogateescape"))
            homes = [PartitionId(record.id, pool, n) for n in range(record.partitions)]
            # Partitions hold their rows in the order of keys; merged, all of a node are.
            for key, value in heapq.merge(*(rows_of(self.reader, home, "state", start) for home in homes)):
                row = _state_row(name, key[2:], value)
                if row is not None:
                    yield row

    def state(self, record: AppRecord, node: str, keys: Iterable[str]) -> Iterator[StateRow]:
        """The state of these keys of ``node``, as far as they have any.

        Raises:
            UsageError: there is no such node.
            Corrupt: a row cannot be read.
        """
        for key in keys:
            home, place = self.state_place(record, node, key)
            (value,) = self.reader.get(home, "state", [place])
            row = None if value is None else _state_row(node, place[2:], value)
            if row is not None:
                yield row

    def state_place(self, record: AppRecord, node: str, key: str) -> tuple[PartitionId, bytes]:
        """Where the state of ``key`` of ``node`` lies: its partition, and the key of its row.

        Raises:
            UsageError: there is no such node.
        """
        number, pool = self._home(record, node)
        packed = key.encode("utf-8", "surrogateescape")
        home = PartitionId(record.id, pool, partition_of(packed.decode("utf-8", "replace"), record.partitions))
        return home, state_key(number, packed)

    def _home(self, record: AppRecord, node: str) -> tuple[int, int]:
        found = record.nodes.get(node)
        if found is None:
            known = ", ".join(sorted(record.nodes))
            raise UsageError(f"app {record.name!r} has no node {node!r}{near(node, record.nodes)}; its nodes: {known}")
        return found.id, record.logs[found.pool]

    # ------------------------------------------------------------------ dead letters

    def letters(self, record: AppRecord) -> Iterator[Letter]:
        """Dead letters and stopped events, log by log.

        Raises:
            Corrupt: a row cannot be read.
        """
        for log, partition in partitions_of(record):
            for key, value in rows_of(self.reader, partition, "dead"):
                place = Place(log, partition, False, int.from_bytes(key, "big"))
                yield Letter(place, decoded(decode_dead, value, "dead letter"))
            if not log.startswith(SOURCE):
                for key, value in rows_of(self.reader, partition, "hold"):
                    entry = decoded(decode_hold, value, "hold entry")
                    if entry.stopped:
                        yield Letter(Place(log, partition, True, int.from_bytes(key, "big")), entry)

    def held(self, record: AppRecord, only: PartitionId | None = None) -> Iterator[Letter]:
        """Events on hold (of one partition), as they stand in their lines, partition by partition.

        Raises:
            Corrupt: a row cannot be read.
        """
        for log, partition in partitions_of(record):
            if log.startswith(SOURCE) or (only is not None and partition != only):
                continue
            lines: dict[tuple[str, str], list[Place]] = {}
            found: list[tuple[Place, HoldEntry]] = []
            for key, value in rows_of(self.reader, partition, "hold"):
                place = Place(log, partition, True, int.from_bytes(key, "big"))
                entry = decoded(decode_hold, value, "hold entry")
                found.append((place, msgspec.structs.replace(entry, body=b"")))  # a full hold list is large
                if entry.key is not None and (entry.locks or entry.behind):
                    lines.setdefault((entry.node, entry.key), []).append(place)
            heads = {place: line for line in lines.values() for place in line}
            for place, entry in found:
                line = heads.get(place, [place])
                behind = "" if line[0] == place else line[0].id
                whole = self._hold_entry(place) or entry
                yield Letter(place, whole, behind, 0 if behind else len(line) - 1)

    def _hold_entry(self, place: Place) -> HoldEntry | None:
        (value,) = self.reader.get(place.partition, "hold", [row_key(place.number)])
        return None if value is None else decoded(decode_hold, value, "hold entry")

    def letter(self, place: Place, held: bool = False) -> Letter | None:
        """What lies at ``place`` now; None: nothing (any more). ``held``: also an event that is not stopped.

        Raises:
            Corrupt: it cannot be read.
        """
        table: Table = "hold" if place.stopped else "dead"
        (value,) = self.reader.get(place.partition, table, [row_key(place.number)])
        if value is None:
            return None
        if not place.stopped:
            return Letter(place, decoded(decode_dead, value, "dead letter"))
        entry = decoded(decode_hold, value, "hold entry")
        return Letter(place, entry) if entry.stopped or held else None

    def text(self, letter: Letter) -> str:
        """The letter's traceback, "" if it has none."""
        if not letter.row.trace:
            return ""
        (value,) = self.reader.get(letter.place.partition, "text", [letter.row.trace])
        return "" if value is None else value.decode("utf-8", "replace")


def open_reader(path: str | os.PathLike[str]) -> Reader:
    """A reader of the data directory ``path``; errors as `Directory.open`, but for an empty catalog."""
    directory = Path(path)
    try:
        if not directory.exists():
            raise UsageError(f"there is no directory {directory}")
        if not directory.is_dir():
            raise UsageError(f"{directory} is no directory")
        if not (directory / "format").exists():
            raise UsageError(f"{directory} holds no data of Grape: it has no file 'format'")
        return Reader(directory)
    except OSError as e:
        raise UsageError(f"the data directory {directory} cannot be read: {e}") from None


def rows_of(reader: AtRest, partition: PartitionId, table: Table, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    """Rows whose key begins with ``prefix``, in key order.

    Raises:
        Corrupt: a row fails its checksum.
    """
    after = prefix
    while rows := reader.scan(partition, table, after, SLICE):
        for key, value in rows:
            if not key.startswith(prefix):
                return
            yield key, value
        after = rows[-1][0] + b"\0"


def partitions_of(record: AppRecord) -> Iterator[tuple[str, PartitionId]]:
    """Every (log name, partition) that may hold letters: of pools and of sources."""
    for name, number in record.logs.items():
        if not name.startswith((OUTPUT, REPLIES, TAKER, OBJECTS)):
            for n in range(1 if name.startswith(SOURCE) else record.partitions):
                yield name, PartitionId(record.id, number, n)


def decoded(decode: Callable[[bytes], T], value: bytes, what: str) -> T:
    """``decode(value)``.

    Raises:
        Corrupt: it cannot be decoded.
    """
    try:
        return decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise Corrupt(f"a stored {what} cannot be read: {e}") from None


def _state_row(node: str, key: bytes, value: bytes) -> StateRow | None:
    """A stored record without what has expired; None: nothing is left of it."""
    text = key.decode("utf-8", "replace")
    try:
        fields = {name: _value(bytes(raw)) for name, raw in decoded(decode_fields, value, "state record").items()}
    except Corrupt as e:
        return StateRow(node, text, None, str(e))
    expires = fields.pop("", None)
    now = time.time() * 1e6
    dues = expires.items() if isinstance(expires, dict) else ()
    gone = {name for name, due in dues if isinstance(due, int | float) and due <= now}
    state = {name: v for name, v in fields.items() if name not in gone}
    return StateRow(node, text, state) if state else None


decode_fields: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


def _value(packed: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(packed)
    except (msgspec.MsgspecError, RecursionError, TypeError, ValueError):  # such as a map with a map as a key
        return packed


# ------------------------------------------------------------------ doctor


class LogReport(Struct):
    """What a log of an app holds, and the rows beside it. ``app``: number of the app. ``what``: what its batches hold,
    "" if it never has any. ``events``, ``batches``, ``size`` (bytes): what waits."""

    app: int
    title: str
    what: str
    is_pool: bool
    batches: int = 0
    events: int = 0
    size: int = 0
    held: int = 0
    stopped: int = 0
    timers: int = 0
    dead: int = 0
    note: str = ""


class Checkup:
    """The doctor's visit: `run` walks everything once. On a directory in use the counts are of several moments.

    Args:
        path: the data directory.

    Raises:
        UsageError, Corrupt, StorageFailed: as `Directory.open`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.reader = open_reader(path)
        self.path = self.reader.directory
        self.holder: Holder | None = holder(self.path)
        self.size = (self.path / "data.mdb").stat().st_size
        with contextlib.suppress(Corrupt, StorageFailed):  # the walk names what is wrong
            self.size += sum(place.size for place in self.reader.large_rows()[0].values())
        self.doubtful = (self.path / "verify").exists()
        self.apps: list[AppRecord] = []
        self.logs: list[LogReport] = []
        self.rows = 0
        self._reports: dict[tuple[int, int], LogReport] = {}
        self._heads: dict[PartitionId, Head] = {}
        self._readers: dict[PartitionId, list[Cursor]] = {}
        """How far those are who read a log."""
        self._findings: list[str] = []
        self._rules = Rules(Catalog())
        self._waiting: dict[PartitionId, list[Waiting]] = {}
        self.strangers = sorted({entry.name for entry in os.scandir(self.path)} - OURS)
        """What lies in the directory and is not Grape's."""

    def __enter__(self) -> Checkup:
        return self

    def __exit__(self, *exc: object) -> None:
        self.reader.close()

    def run(self, progress: Callable[[int], None] | None) -> list[str]:
        """Check and count everything. ``progress``: called with the number of rows checked so far.

        Returns:
            What is damaged, a line each.
        """
        try:
            self._read_heads()
        except (EngineError, UsageError) as e:
            self._findings.append(str(e))

        def counted(rows: int) -> None:
            self.rows = rows
            if progress is not None:
                progress(rows)

        try:
            for finding in self.reader.verify(self._check_batch, counted, self._rules.row):
                self._findings.append(self._named(finding))
            self._check_positions()
        except Exception as e:  # a tree so broken that not even the walk over it ends in order
            self._findings.append(f"the file cannot be walked: {type(e).__name__}: {e}")
        for record in self.apps:
            for log, partition in partitions_of(record):
                self._count_rows(self._reports[record.id, record.logs[log]], log, partition)
        return list(dict.fromkeys(self._findings))

    def _read_heads(self) -> None:
        head = self.reader.head(CATALOG)
        catalog = read_catalog(b"" if head is None else head.head)
        self.apps = sorted(catalog.apps.values(), key=lambda record: record.name)
        self._rules = Rules(catalog)
        for record in self.apps:
            for name, number in record.logs.items():
                self.logs.append(_report(record, name))
                self._reports[record.id, number] = self.logs[-1]
        for record in self.apps:
            for name, number in record.logs.items():
                parts = 1 if name.startswith((SOURCE, TAKER)) else record.partitions
                for n in range(parts):
                    with contextlib.suppress(Corrupt):  # the walk names it
                        self._read_head(record, name, PartitionId(record.id, number, n))

    def _read_head(self, record: AppRecord, name: str, partition: PartitionId) -> None:
        head = self.reader.head(partition)
        if head is None or not head.head:
            return
        report = self._reports[partition.app, partition.pool]
        if name.startswith(SOURCE):
            report.note = f"{decoded(decode_source, head.head, 'head of a source').fed:,} events fed"
        elif name.startswith(TAKER):
            taker = decoded(decode_taker, head.head, "head of a taker")
            report.note = f"{taker.taken:,} events taken, {taker.length:,} bytes"
            for n in range(record.partitions) if taker.log >= 0 else ():
                self._reads(PartitionId(record.id, taker.log, n), taker.logs.get(n, Reading()).cursor)
        elif report.is_pool:
            found = self._heads[partition] = decoded(decode_head, head.head, "head of a partition")
            self._reads(partition, found.cursor)
            answers = record.logs.get(REPLIES + name)
            if answers is not None:
                self._reads(PartitionId(record.id, answers, partition.number), found.answers.cursor)

    def _reads(self, log: PartitionId, cursor: Cursor) -> None:
        # What a reader has and another one misses was trimmed: that one was not there, and nobody waits for it.
        if cursor.position >= self.reader.ends(log).trim:
            self._readers.setdefault(log, []).append(cursor)

    def _check_positions(self) -> None:
        """Whether what the heads say fits what lies in the logs; not while an engine changes both."""
        if self.holder is not None:
            return
        for partition in sorted({*self._heads, *self._waiting}):
            if self._rules.is_pool(partition):
                tail = self.reader.ends(partition).tail
                head = self._heads.get(partition, Head())
                problem = position_problem(head, self._waiting.get(partition, []), tail)
                if problem is not None:
                    self._findings.append(self._named(Finding("head", partition, partition.packed(), problem)))

    def _check_batch(self, log: PartitionId, position: int, batch: bytes) -> str | None:
        head = self._heads.get(log, Head())
        problem = self._rules.batch(log, batch, head.cursor.progress(position))
        if problem is not None:
            return problem
        header = codec.header_of(batch)
        if self._rules.is_pool(log):
            self._waiting.setdefault(log, []).append(Waiting(position, header))
        report = self._reports.get((log.app, log.pool))
        # That a reader has it and it lies there still is nothing: it goes with the next trim.
        readers = [cursor for cursor in self._readers.get(log, [Cursor()]) if not cursor.is_finished(position)]
        if report is not None and readers:
            report.batches += 1
            report.events += header.events - min(cursor.progress(position).finished() for cursor in readers)
            report.size += len(batch)
        return None

    def _named(self, finding: Finding) -> str:
        partition = finding.partition
        report = None if partition is None else self._reports.get((partition.app, partition.pool))
        where = f" (log {report.title}, partition {partition.number})" if report is not None and partition else ""
        return f"{finding}{where}"

    def _count_rows(self, report: LogReport, log: str, partition: PartitionId) -> None:
        try:
            for _, value in rows_of(self.reader, partition, "dead"):
                decoded(decode_dead, value, f"dead letter of {report.title}")
                report.dead += 1
            if log.startswith(SOURCE):
                return
            for _, value in rows_of(self.reader, partition, "hold"):
                report.held += 1
                report.stopped += decoded(decode_hold, value, f"hold entry of {report.title}").stopped
            for _, value in rows_of(self.reader, partition, "timer"):
                decoded(decode_timer, value, f"timer of {report.title}")
                report.timers += 1
        except (Corrupt, StorageFailed) as e:
            if not self._findings:  # else the walk over the file has named it
                self._findings.append(str(e))


def _report(record: AppRecord, log: str) -> LogReport:
    if log.startswith(OUTPUT):
        return LogReport(record.id, f"output {log[1:]}", "events not taken", False)
    if log.startswith(SOURCE):
        return LogReport(record.id, f"source {log[1:]}", "", False)
    if log.startswith(TAKER):
        return LogReport(record.id, f"taker {log[1:]}", "", False)
    if log == REPLIES:
        return LogReport(record.id, "replies", "replies not taken", False)
    if log.startswith(REPLIES):
        return LogReport(record.id, f"answers for pool {log[1:]}", "answers waiting", False)
    return LogReport(record.id, f"pool {log}", "events waiting", True)
