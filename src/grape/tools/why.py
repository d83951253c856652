"""What led to an event, and what came of it: the spans of its trace, in the directories of all apps through which it
went; and what is known of an event that was not traced."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from grape.errors import UsageError
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.foreign import AT
from grape.model.stored import OUTPUT, SOURCE, AppRecord
from grape.model.tracing import SPANS_LOG, Span, decode_spans
from grape.tools.backlog import waiting
from grape.tools.directory import Directory

_READ: Final = 1 << 20
_TRACE: Final = re.compile(r"[0-9a-f]{32}")
_OWN: Final = re.compile(r"([0-9a-f]{8})-(\d+)\.(\d+)-(?:(\d+)\.(\d+)-)?(\d+)(?:-(\d+))?((?:\.[\d.-]+)?)")
"""incarnation-origin-target-sequence-index, and the way of what was chained."""
_HTTP_STREAM: Final = "http="
_DRIVER: Final = "driver="


class Step(Struct):
    """An event at a node, with all attempts; or (``node`` "") how it came in. ``app``: where. ``fate``: what lies in
    the directory of it now. ``is_asked``: it is the one that was asked for."""

    app: str
    event: str
    node: str
    id: str
    key: str | None
    attempts: list[Span]
    causes: list[Step] = []
    fate: str = ""
    is_asked: bool = False

    @property
    def start(self) -> int:
        return self.attempts[0].start


class Told(Struct):
    """``steps``: those that began it. ``spans``: how many there are."""

    trace: str
    steps: list[Step]
    spans: int


class Fate(Struct):
    """Where an event is found that nobody traced, or how it has ended."""

    app: str
    text: str


class Apps:
    """The directories of apps, opened one by one. ``paths``: by name."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)

    def spans(self) -> Iterator[tuple[str, Span]]:
        """All that are kept, with their app.

        Raises:
            GrapeError: a directory cannot be read.
        """
        for name, path in self._paths.items():
            if not (path / "format").exists():
                continue  # it has never run
            with Directory.open(path) as directory:
                for record in directory.catalog.apps.values():
                    for span in spans_of(directory, record):
                        yield record.name if len(self._paths) == 1 else name, span

    def told(self, wanted: str) -> list[Told]:
        """The traces of an event, or the one with that id; [] if nothing is known of it."""
        is_trace = _TRACE.fullmatch(wanted) is not None
        of_traces: dict[str, list[tuple[str, Span]]] = {}
        meant: set[str] = {wanted} if is_trace else set()
        for app, span in self.spans():
            of_traces.setdefault(span.trace, []).append((app, span))
            if not is_trace and span.id == wanted:
                meant.add(span.trace)
        found = [tree(trace, of_traces[trace], wanted) for trace in sorted(meant & of_traces.keys())]
        for told in found:
            self._tell_fates(told)
        return sorted(found, key=lambda told: told.steps[0].start)

    def _tell_fates(self, told: Told) -> None:
        steps = [step for step in walk(told.steps) if step.node and step.attempts[-1].outcome != "ok"]
        for name, path in self._paths.items():
            wanted = {(step.id, step.node): step for step in steps if len(self._paths) == 1 or step.app == name}
            if not wanted:
                continue
            with Directory.open(path) as directory:
                for record in directory.catalog.apps.values():
                    for event_id, node, text in _lies(directory, record):
                        step = wanted.get((event_id, node))
                        if step is not None:
                            step.fate = text

    def fates(self, event_id: str) -> list[Fate]:
        """What can be said of an event that was not traced: from its id, and from what lies in the directories."""
        found: list[Fate] = []
        for name, path in self._paths.items():
            if not (path / "format").exists():
                continue
            with Directory.open(path) as directory:
                for record in directory.catalog.apps.values():
                    app = record.name if len(self._paths) == 1 else name
                    found += [Fate(app, text) for text in _of_id(record, event_id)]
                    for its_id, node, text in _lies(directory, record):
                        if its_id == event_id:
                            found.append(Fate(app, f"at node {node!r} it is {text}"))
                    for event in waiting(directory, record):
                        if event.event_id == event_id:
                            found.append(Fate(app, f"it waits in the log ({event.spot.id})"))
        return found


def spans_of(directory: Directory, record: AppRecord) -> Iterator[Span]:
    """All that are kept of an app.

    Raises:
        Corrupt: what is stored is not what was written.
    """
    number = record.logs.get(SPANS_LOG)
    if number is None:
        return
    for n in range(record.partitions):
        log = PartitionId(record.id, number, n)
        at = 0
        while found := directory.reader.read(log, at, _READ):
            for stored in found:
                header = codec.check(stored.batch)
                for run in codec.runs_of(codec.body_of(stored.batch, header)):
                    yield from decode_spans(run.data)
            at = found[-1].position + 1


def tree(trace: str, spans: Iterable[tuple[str, Span]], wanted: str = "") -> Told:
    """The spans of one trace as what caused what. Of whom nobody tells who caused them stand at the top."""
    ordered = sorted(spans, key=lambda each: (each[1].start, each[1].attempt, each[1].end))
    steps: dict[tuple[str, ...], Step] = {}
    by_span: dict[str, Step] = {}
    for app, span in ordered:
        if span.span in by_span:
            continue  # it was told twice
        place = (app, span.event, span.node, span.id or span.span, span.parent)
        step = steps.get(place)
        if step is None:
            step = Step(app, span.event, span.node, span.id, span.key, [], [], "", bool(wanted) and span.id == wanted)
            steps[place] = step
        step.attempts.append(span)
        by_span[span.span] = step
    top: list[Step] = []
    for step in steps.values():
        cause = by_span.get(step.attempts[0].parent)
        if cause is None or cause is step:
            top.append(step)
        else:
            cause.causes.append(step)
    reached = {id(step) for step in walk(top)}
    top += [step for step in steps.values() if id(step) not in reached]  # a ring, of spans that are none of ours
    return Told(trace, top or list(steps.values()), len(by_span))


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """All of a tree, each before what it caused; each once."""
    todo = list(steps)[::-1]
    seen: set[int] = set()
    while todo:
        step = todo.pop()
        if id(step) not in seen:
            seen.add(id(step))
            yield step
            todo += step.causes[::-1]


def _lies(directory: Directory, record: AppRecord) -> Iterator[tuple[str, str, str]]:
    """(event id, node, what it is) of dead letters and held events."""
    for letter in (*directory.letters(record), *directory.held(record)):
        row, place = letter.row, letter.place
        if letter.status == "dead":
            text = f"a dead letter, {place.id}: grape dead show {place.id}"
        else:
            text = f"{letter.status}, {place.id}: grape held show {place.id}"
        yield row.id, row.node, text


def _of_id(record: AppRecord, event_id: str) -> list[str]:
    """What an id that the engine has given says."""
    found = _OWN.fullmatch(event_id)
    if found is None or int(found[1], 16) != record.incarnation:
        return []
    logs = {number: log for log, number in record.logs.items()}
    log = logs.get(int(found[2]))
    if log is None:
        return []
    where = f"partition {found[3]}"
    if log.startswith(SOURCE):
        text = f"it came in {_source(log)}"
    else:
        who = "an operation on" if log.startswith(OUTPUT) else "a handler of, or a client at,"
        text = f"{who} pool {log!r}, {where}, made it"
    if found[4] is not None:
        text += f", in step {found[6]} for pool {logs.get(int(found[4]), '?')!r}, partition {found[5]}"
        text += f", place {found[7]}"
    return [text + (f"; it was chained: {found[8]} is its way from there" if found[8] else "")]


def _source(log: str) -> str:
    name = log.removeprefix(SOURCE)
    if name.startswith(AT):
        return f"from app {name.removeprefix(AT).partition('=')[0].rstrip('?')!r}, by the bridge"
    if name.startswith(_HTTP_STREAM):
        return f"over HTTP, by the stream of gateway {name.removeprefix(_HTTP_STREAM)}"
    if name.startswith(_DRIVER):
        return f"by driver {name.removeprefix(_DRIVER)!r}"
    return f"by source {name!r}"


def paths_of(apps: Path, only: str = "") -> dict[str, Path]:
    """The directories of the apps of a server; ``only``: this one has to be among them.

    Raises:
        UsageError: there is none.
    """
    found = {path.name: path / "data" for path in sorted(apps.iterdir())} if apps.is_dir() else {}
    if only and only not in found:
        raise UsageError(f"no app {only!r} is installed in {apps.parent}; there are {', '.join(found) or 'none'}")
    if not found:
        raise UsageError(f"no app is installed in {apps.parent}")
    return found
