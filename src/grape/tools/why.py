"""What led to an event, and what came of it: the spans of its trace, in the directories of all apps through which it
went; and what is known of an event that was not traced."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from grape.errors import UsageError
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.foreign import AT
from grape.model.stored import OUTPUT, SOURCE, AppRecord
from grape.model.tracing import SPANS_LOG, Span, decode_spans, read_context
from grape.tools.backlog import waiting
from grape.tools.directory import Directory

_READ: Final = 1 << 20
_TRACE: Final = re.compile(r"[0-9a-f]{32}")
_OWN: Final = re.compile(r"([0-9a-f]{8})-(\d+)\.(\d+)-(?:(\d+)\.(\d+)-)?(\d+)(?:-(\d+))?((?:\.[\d.-]+)?)")
"""incarnation-origin-target-sequence-index, and the way of what was chained."""
_HTTP_STREAM: Final = "http="
_DRIVER: Final = "driver="
OUT: Final = "out"
"""Outcome of what stands for an event that went to an output, where no node has it."""
MORE: Final = "there is more than could be looked through in time: ask grape why"


class Step(Struct):
    """An event at a node, with all attempts; or (``node`` "") how it came in, or that it went out. ``app``: where.
    ``fate``: what lies in the directory of it now, ``letter``: under which id. ``is_asked``: it is the one that was
    asked for."""

    app: str
    event: str
    node: str
    id: str
    key: str | None
    attempts: list[Span]
    causes: list[Step] = []
    fate: str = ""
    is_asked: bool = False
    letter: str = ""

    @property
    def start(self) -> int:
        return self.attempts[0].start


class Told(Struct):
    """``steps``: those that began it. ``spans``: how many there are."""

    trace: str
    steps: list[Step]
    spans: int


class Fate(Struct):
    """Where an event is found that nobody traced, or how it has ended. ``letter``: id of what lies there."""

    app: str
    text: str
    letter: str = ""


class _Lying(NamedTuple):
    """A dead letter, or a held event. ``text``: what it is, for people."""

    event_id: str
    node: str
    text: str
    letter: str


class Apps:
    """The directories of apps, opened one by one.

    Args:
        paths: by name; "": it has the name that its directory says. opened: opens one, to read.
    """

    def __init__(
        self, paths: Mapping[str, Path], opened: Callable[[Path], AbstractContextManager[Directory]] = Directory.open
    ) -> None:
        self._paths = dict(paths)
        self._opened = opened

    def _records(self) -> Iterator[tuple[str, Directory, AppRecord]]:
        """What was run in them.

        Raises:
            GrapeError: a directory cannot be read.
        """
        for name, path in self._paths.items():
            if not (path / "format").exists():
                continue  # it has never run
            with self._opened(path) as directory:
                for record in directory.catalog.apps.values():
                    yield name or record.name, directory, record

    def spans(self) -> Iterator[tuple[str, Span]]:
        """All that are kept, with their app.

        Raises:
            GrapeError: a directory cannot be read.
        """
        for app, directory, record in self._records():
            for span in spans_of(directory, record):
                yield app, span

    def told(self, wanted: str) -> list[Told]:
        """The traces of an event, or the one with that id; [] if nothing is known of it."""
        out: list[tuple[str, Span]] = []
        if _TRACE.fullmatch(wanted):
            meant = {wanted}
        else:
            meant = {span.trace for _, span in self.spans() if span.id == wanted}
            if not meant:
                out = list(self._went_out(wanted))
                meant = {span.trace for _, span in out}
        if not meant:
            return []
        of_traces: dict[str, list[tuple[str, Span]]] = {}
        for app, span in self.spans():
            if span.trace in meant:
                of_traces.setdefault(span.trace, []).append((app, span))
        for app, span in out:
            if span.trace in of_traces:
                of_traces[span.trace].append((app, span))
        found = [tree(trace, spans, wanted) for trace, spans in of_traces.items()]
        for told in found:
            self._tell_fates(told)
        return sorted(found, key=lambda told: told.steps[0].start)

    def _went_out(self, event_id: str) -> Iterator[tuple[str, Span]]:
        """What stands for a traced event that lies in an output, with its app. No node has run with it."""
        for app, directory, record in self._records():
            span = _output_span(directory, record, event_id)
            if span is not None:
                yield app, span

    def _tell_fates(self, told: Told) -> None:
        steps = {
            (step.app, step.id, step.node): step
            for step in walk(told.steps)
            if step.node and step.attempts[-1].outcome != "ok"
        }
        if not steps:
            return
        apps = {app for app, _, _ in steps}
        for app, directory, record in self._records():
            if app not in apps:
                continue
            for lying in _lies(directory, record):
                step = steps.get((app, lying.event_id, lying.node))
                if step is not None:
                    step.fate, step.letter = lying.text, lying.letter

    def fates(self, event_id: str, patience: float | None = None) -> list[Fate]:
        """What can be said of an event that was not traced: from its id, and from what lies in the directories.

        Args:
            patience: seconds after which no more is looked through, which the last of them says then.
        """
        found: list[Fate] = []
        deadline = None if patience is None else time.monotonic() + patience
        for app, directory, record in self._records():
            found += [Fate(app, text) for text in _of_id(record, event_id)]
            for lying in _lies(directory, record):
                if lying.event_id == event_id:
                    found.append(Fate(app, f"at node {lying.node!r} it is {lying.text}", lying.letter))
                if deadline is not None and time.monotonic() > deadline:
                    return [*found, Fate(app, MORE)]
            for event in waiting(directory, record):
                if event.event_id == event_id:
                    found.append(Fate(app, f"it waits in the log ({event.spot.id})"))
                if deadline is not None and time.monotonic() > deadline:
                    return [*found, Fate(app, MORE)]
        return found


def spans_of(directory: Directory, record: AppRecord, newest: int = 0) -> Iterator[Span]:
    """All that are kept of an app, partition by partition; or, of each, those in the ``newest`` batches.

    Raises:
        Corrupt: what is stored is not what was written.
    """
    number = record.logs.get(SPANS_LOG)
    if number is None:
        return
    for n in range(record.partitions):
        log = PartitionId(record.id, number, n)
        at = max(0, directory.reader.ends(log)[1] - newest) if newest else 0
        while found := directory.reader.read(log, at, _READ):
            for stored in found:
                header = codec.check(stored.batch)
                for run in codec.runs_of(codec.body_of(stored.batch, header)):
                    yield from decode_spans(run.data)
            at = found[-1].position + 1


def _output_span(directory: Directory, record: AppRecord, event_id: str) -> Span | None:
    """None: it lies in no output, or is not traced.

    Raises:
        Corrupt: what is stored is not what was written.
    """
    found = _OWN.fullmatch(event_id)
    if found is None or found[4] is None or found[7] is None or int(found[1], 16) != record.incarnation:
        return None
    number, partition = int(found[4]), int(found[5])
    outputs = {number for log, number in record.logs.items() if log.startswith(OUTPUT) and log != SPANS_LOG}
    if number not in outputs or partition >= record.partitions:
        return None
    log = PartitionId(record.id, number, partition)
    at = 0
    while batches := directory.reader.read(log, at, _READ):
        for stored in batches:
            if event_id.startswith(codec.header_of(stored.batch).id_prefix):
                return _span_in(stored.batch, event_id)
        at = batches[-1].position + 1
    return None


def _span_in(batch: bytes, event_id: str) -> Span | None:
    header = codec.check(batch)
    contexts = codec.contexts_of(batch, header)
    at = 0
    for run in codec.runs_of(codec.body_of(batch, header)):
        for i in range(run.count):
            if f"{header.id_prefix}{at + i}" == event_id:
                number = -1 if run.meta.contexts is None else run.meta.contexts[i]
                trace = read_context(contexts[number].trace) if number >= 0 else None
                if trace is None:
                    return None
                event, key = codec.names_of(run)[i], (codec.keys_of(run) or [None] * run.count)[i]
                made = header.created * 1_000
                return Span(trace.trace, event_id, trace.parent, event_id, event, "", key, 1, made, made, OUT)
        at += run.count
    return None


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


def document(told: Told, most: int | None = None) -> dict[str, Any]:
    """A trace as JSON says it: its steps in a row, each with the number of the one that caused it.

    Args:
        most: steps that are told of, about: what led to the one that was asked for always is.
    """
    steps = list(walk(told.steps))
    by_effect = {id(effect): step for step in steps for effect in step.causes}
    shown = steps if most is None else _shown(steps, by_effect, most)
    numbers = {id(step): number for number, step in enumerate(shown)}
    rows = [_row(number, step, numbers.get(id(by_effect.get(id(step))))) for number, step in enumerate(shown)]
    found: dict[str, Any] = {"trace": told.trace, "traced": True, "spans": told.spans, "steps": rows}
    return found if most is None else {**found, "left_out": len(steps) - len(shown)}


def _shown(steps: list[Step], causes: Mapping[int, Step], most: int) -> list[Step]:
    """The first of them, and what led to those that were asked for: with each step the one that caused it."""
    wanted = {id(step) for step in steps[:most]}
    for step in [step for step in steps if step.is_asked][:most]:
        cause: Step | None = step
        while cause is not None and id(cause) not in wanted:
            wanted.add(id(cause))
            cause = causes.get(id(cause))
    return [step for step in steps if id(step) in wanted]


def _row(number: int, step: Step, cause: int | None) -> dict[str, Any]:
    return {
        "number": number,
        "cause": cause,
        "app": step.app,
        "event": step.event,
        "node": step.node,
        "id": step.id,
        "key": step.key,
        "asked": step.is_asked,
        "fate": step.fate,
        "letter": step.letter,
        "attempts": [_attempt(span) for span in step.attempts],
    }


def _attempt(span: Span) -> dict[str, Any]:
    found = msgspec.to_builtins(msgspec.structs.asdict(span))
    return {name: found[name] for name in found if name not in ("trace", "id", "event", "node", "key")}


def _lies(directory: Directory, record: AppRecord) -> Iterator[_Lying]:
    """All dead letters and held events."""
    for letter in chain(directory.letters(record), directory.held(record)):
        row, place = letter.row, letter.place
        if letter.status == "dead":
            text = f"a dead letter, {place.id}: grape dead show {place.id}"
        else:
            text = f"{letter.status}, {place.id}: grape held show {place.id}"
        yield _Lying(row.id, row.node, text, place.id)


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
