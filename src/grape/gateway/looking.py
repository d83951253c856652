"""What lies in the directory of an app, as it is shown over HTTP: page by page, beside the engine that works on it.

Everything here blocks, takes no lock of the engine's, and reads a few rows at a time.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from grape.abc.transport import Table
from grape.errors import Corrupt
from grape.model.address import PartitionId
from grape.model.spots import Place
from grape.model.stored import SOURCE, AppRecord, HoldEntry, decode_dead, decode_hold, row_key
from grape.tools.backlog import waiting
from grape.tools.choice import Choice
from grape.tools.directory import Directory, Letter, decoded, partitions_of
from grape.tools.sharing import give_back, share

T = TypeVar("T")

MOST: Final = 500
"""Rows of a page."""
_SLICE: Final = 16
"""Rows of one read: each may be as large as an event."""
_TEXT: Final = 500
"""Characters of an error in a list."""
_WHOLE: Final = 64 << 10
"""Characters of data that are shown."""
_SECONDS: Final = 1.0
"""For one page; what is not found in it is on the next."""
_TAIL: Final = 512 << 10
_COUNTED: Final = 20_000
_COUNTING: Final = 0.1
_pretty: Final = msgspec.json.Encoder(enc_hook=repr, decimal_format="string").encode


class Looker:
    """Opens directories, one look into each at a time. Any thread."""

    def look(self, data: str, name: str | None, do: Callable[[Directory, AppRecord], T]) -> T:
        """What ``do`` finds. ``name``: of the topology, if the directory holds several.

        Raises:
            UsageError: nothing was run in it yet.
            Corrupt: something in it is damaged.
            StorageFailed: it cannot be read.
        """
        with self.opened(Path(data)) as directory:
            return do(directory, directory.app(name if name in directory.catalog.apps else None))

    @contextmanager
    def opened(self, data: Path) -> Iterator[Directory]:
        """A directory, which nobody else looks into meanwhile. Errors are those of `look`."""
        shared = share(data)
        try:
            with shared.opened() as directory:
                yield directory
        finally:
            give_back(shared)


# ---------------------------------------------------------------------- dead letters, held events


def letters(directory: Directory, record: AppRecord, held: bool, after: Place | None = None) -> Iterator[Letter]:
    """Dead letters and stopped events, or all that are held, behind ``after``; partition by partition.

    Raises:
        Corrupt: one cannot be read.
    """
    tables: tuple[Table, ...] = ("hold",) if held else ("dead", "hold")
    homes = list(partitions_of(record))
    first = 0
    if after is not None:
        first = next((i for i, (log, home) in enumerate(homes) if (log, home) == (after.log, after.partition)), 0)
    for log, home in homes[first:]:
        for table in tables:
            stopped = table == "hold"
            if stopped and log.startswith(SOURCE):
                continue
            begin = 0
            if after is not None and (log, home) == (after.log, after.partition):
                if after.stopped and not stopped:
                    continue
                begin = after.number + 1 if after.stopped == stopped else 0
            for number, packed in _rows(directory, home, table, begin):
                row = decoded(decode_hold, packed, "hold entry") if stopped else decoded(decode_dead, packed, "letter")
                if held or not isinstance(row, HoldEntry) or row.stopped:
                    yield Letter(Place(log, home, stopped, number), row)


def _rows(directory: Directory, home: PartitionId, table: Table, begin: int) -> Iterator[tuple[int, bytes]]:
    after = row_key(begin)
    while rows := directory.reader.scan(home, table, after, _SLICE):
        for key, value in rows:
            yield int.from_bytes(key, "big"), value
        after = rows[-1][0] + b"\0"


class Page(Struct, frozen=True):
    """``next``: id behind which there may be more; "": there is none."""

    letters: list[dict[str, Any]]
    next: str = ""


def page_of_letters(
    directory: Directory, record: AppRecord, held: bool, choice: Choice, after: Place | None, limit: int
) -> Page:
    """
    Raises:
        Corrupt: one cannot be read.
    """
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + _SECONDS
    last = after
    for letter in letters(directory, record, held, after):
        if len(found) == limit or time.monotonic() > deadline:
            return Page(found, "" if last is None else last.id)
        last = letter.place
        if choice.fits(letter.row):
            found.append(_shown(letter))
    return Page(found)


class Kind(Struct, frozen=True):
    """Letters that failed alike. ``last``: when one did, seconds of wall time. ``text``: of that one."""

    node: str
    event: str
    kind: str
    count: int
    last: float
    text: str


class Kinds(Struct, frozen=True):
    """``is_all``: False: there are more than could be counted."""

    kinds: list[Kind]
    count: int
    is_all: bool


def kinds_of_letters(directory: Directory, record: AppRecord, held: bool) -> Kinds:
    """The letters by how they failed, most first.

    Raises:
        Corrupt: one cannot be read.
    """
    found: dict[tuple[str, str, str], tuple[int, float, str]] = {}
    deadline = time.monotonic() + 2 * _SECONDS
    count, is_all = 0, True
    for letter in letters(directory, record, held):
        if time.monotonic() > deadline:
            is_all = False
            break
        row, count = letter.row, count + 1
        before, last, text = found.get((row.node, row.event, row.kind), (0, -1.0, ""))
        when = (letter.failed or 0) / 1e6
        if when >= last:
            last, text = when, row.text[:_TEXT]
        found[row.node, row.event, row.kind] = before + 1, last, text
    kinds = [Kind(*alike, *about) for alike, about in found.items()]
    return Kinds(sorted(kinds, key=lambda kind: -kind.count), count, is_all)


def _shown(letter: Letter) -> dict[str, Any]:
    row = letter.row
    found: dict[str, Any] = {
        "id": letter.place.id,
        "status": _status(letter),
        "event": row.event,
        "node": row.node,
        "key": row.key,
        "attempts": row.attempts,
        "kind": row.kind,
        "text": row.text[:_TEXT],
        "created": row.created / 1e6,
        "failed": None if letter.failed is None else letter.failed / 1e6,
        "origin": letter.origin,
    }
    if isinstance(row, HoldEntry):
        found["due"] = None if row.stopped or row.behind else row.due / 1e6
    return found


def _status(letter: Letter) -> str:
    row = letter.row
    if isinstance(row, HoldEntry) and not row.stopped:
        return "behind" if row.behind else "suspended" if row.is_suspended else "held"
    return letter.status


def whole_letter(directory: Directory, place: Place) -> dict[str, Any] | None:
    """All of one; None: there is none (any more).

    Raises:
        Corrupt: it cannot be read.
    """
    letter = directory.letter(place, held=True)
    if letter is None:
        return None
    row = letter.row
    found = {
        **_shown(letter),
        "text": row.text[:_WHOLE],
        "event_id": row.id,
        "trace": directory.text(letter)[:_WHOLE],
    }
    try:
        found |= in_text("data", letter.data())
    except Corrupt as e:
        found |= {"data": "", "problem": str(e)}
    return found


def in_text(name: str, value: Any) -> dict[str, Any]:
    """A value as JSON for people to read, and how much of it was too much."""
    try:
        text = msgspec.json.format(_pretty(value), indent=2).decode("utf-8", "replace")
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        text = repr(value)
    return {name: text[:_WHOLE], f"{name}_cut": max(0, len(text) - _WHOLE)}


def chosen(directory: Directory, record: AppRecord, held: bool, choice: Choice) -> list[Place]:
    """Where all letters lie that fit.

    Raises:
        Corrupt: one cannot be read.
    """
    return [letter.place for letter in letters(directory, record, held) if choice.fits(letter.row)]


# ---------------------------------------------------------------------- state, what waits, what was printed


def states(
    directory: Directory, record: AppRecord, node: str, key: str | None, prefix: str, limit: int
) -> dict[str, Any]:
    """State of one key, or of those that begin with ``prefix``.

    Raises:
        UsageError: there is no such node.
        Corrupt: a row cannot be read.
    """
    rows = directory.states(record, node, prefix) if key is None else directory.state(record, node, [key])
    found = list(islice(rows, limit + 1))
    return {
        "rows": [{"key": row.key, "problem": row.problem, **in_text("state", row.state)} for row in found[:limit]],
        "more": len(found) > limit,
    }


class Backlog(Struct, frozen=True):
    """What waits, by slot. ``is_all``: False: at least so many."""

    slots: dict[str, int]
    is_all: bool


def backlog(directory: Directory, record: AppRecord) -> Backlog:
    """Counts for as long as that takes little.

    Raises:
        Corrupt: a head, or a row of a log, is not what was written.
    """
    found: Counter[str] = Counter()
    deadline = time.monotonic() + _COUNTING
    for number, event in enumerate(waiting(directory, record)):
        if number >= _COUNTED or time.monotonic() > deadline:
            return Backlog(dict(found), False)
        for node in event.nodes:
            found[f"{event.event}>{node}"] += 1
    return Backlog(dict(found), True)


def last_lines(log: Path, count: int) -> list[str]:
    """Of what an app printed; the file is turned over when it is full."""
    text = b""
    for path in (log, log.with_name(f"{log.name}.1")):
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                begin = max(0, size - (_TAIL - len(text)))
                file.seek(begin)
                part = file.read(_TAIL)
        except OSError:
            break
        text = (part.partition(b"\n")[2] if begin else part) + text
        if text.count(b"\n") >= count or begin:
            break
    return text.decode("utf-8", "replace").splitlines()[-count:]
