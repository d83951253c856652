"""The events of a stored batch, for whoever looks at what waits: each with who is to get it, and why nobody can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from grape.errors import GrapeError
from grape.model import batch as codec
from grape.model.address import PartitionId, check_key
from grape.model.batch import Context, Header, Run, RunMeta
from grape.model.cursor import Progress
from grape.model.spots import Spot
from grape.model.stored import AppRecord, DeadLetter, encode

BURIED: Final = "buried"
NOT_WAITING: Final = "no such event waits (any more)"
PARKED: Final = "its batch waits for one that is missing: grape repair mends that"
_NIL: Final = msgspec.Raw(b"\xc0")
UNREADABLE: Final = (msgspec.MsgspecError, ValueError, TypeError, KeyError, IndexError, RecursionError, AttributeError)
"""What bytes that nobody wrote may raise when they are decoded."""


def events_of(run: Run) -> list[tuple[int, str]]:
    """Every event of a run: its index, and what is wrong with it, "" if nothing is. Counts have been checked."""
    columns = _Columns(run)
    return [(i, columns.problem(i)) for i in range(run.count)]


class _Columns:
    """Of a run. ``keys``, ``raws``: None: there are none, or they cannot be told apart."""

    def __init__(self, run: Run) -> None:
        self.keys: list[str | None] | None = None
        self.raws: list[msgspec.Raw] | None = None
        self._all = ""
        self._checked: dict[object, str] = {None: ""}
        try:
            self.keys = codec.keys_of(run)
        except UNREADABLE as e:
            self._all = f"the keys of its run cannot be read: {e}"
        try:
            self.raws = codec.raw_data_of(run) or [_NIL] * run.count
        except UNREADABLE as e:
            self._all = self._all or f"the data of its run cannot be read: {e}"

    def problem(self, index: int) -> str:
        """What is wrong with an event, "" if nothing is."""
        if self._all or self.keys is None:
            return self._all
        key = self.keys[index]
        if key not in self._checked:
            self._checked[key] = _key_problem(key)
        return self._checked[key]


def _key_problem(key: object) -> str:
    try:
        check_key(key)
    except (TypeError, ValueError) as e:
        return str(e)
    return ""


class Logged(Struct, frozen=True):
    """An event that waits in a log. ``nodes``: who is to get it. ``problem``: why no worker can take it."""

    spot: Spot
    event: str
    key: str | None
    event_id: str
    created: int
    nodes: tuple[str, ...]
    problem: str
    run: Run | None = None
    context: Context | None = None
    offset: int = 0
    """Index of the first event of its run in the batch."""
    raws: list[msgspec.Raw] | None = None
    """Of its run; None: they cannot be told apart."""

    @property
    def node(self) -> str:
        return self.nodes[0] if len(self.nodes) == 1 else ""

    @property
    def kind(self) -> str:
        return "damaged" if self.problem else ""

    def raw(self) -> msgspec.Raw:
        """Its data; all of its run as bytes if they cannot be told apart."""
        if self.run is None:
            return _NIL
        if self.raws is None:
            return msgspec.Raw(encode(self.run.data))
        return self.raws[self.spot.index - self.offset]

    def data(self) -> Any:
        """As `raw`, decoded; bytes if that cannot be."""
        raw = bytes(self.raw())
        try:
            return msgspec.msgpack.decode(raw)
        except UNREADABLE:
            return raw


def logged(
    record: AppRecord,
    log: str,
    partition: PartitionId,
    position: int,
    batch: bytes,
    progress: Progress,
    only: Sequence[int] | None = None,
) -> Iterator[Logged]:
    """Those that are not finished, of them ``only`` these, in their order. A batch that cannot be read stands for
    itself."""
    whole = Spot(log, partition, position, -1)
    try:
        header = codec.check(batch)
        contexts = codec.contexts_of(batch, header)
        body = codec.body_of(batch, header)
        codec.check_body(body, header.events, len(contexts), stored=True)
        prefix = header.id_prefix
    except (GrapeError, *UNREADABLE) as e:
        yield Logged(whole, "", None, "", 0, (), f"the batch cannot be read: {e}")
        return
    offset = 0
    listeners = _listeners(record, log)
    for run in codec.runs_of(body):
        names, columns, own = codec.names_of(run), _Columns(run), run.meta.ids or {}
        meant = run.meta.only
        nodes = {
            name: tuple(node for node in listeners.get(name, ()) if meant is None or node in meant)
            for name in set(names)
        }
        for i in range(run.count) if only is None else [i - offset for i in only if 0 <= i - offset < run.count]:
            if not progress.is_done(offset + i):
                event_id = own.get(i) or f"{prefix}{offset + i}"
                yield Logged(
                    Spot(log, partition, position, offset + i),
                    names[i],
                    None if columns.keys is None else columns.keys[i],
                    event_id,
                    header.created,
                    nodes[names[i]],
                    columns.problem(i),
                    run,
                    _context(header, run.meta, i, event_id, contexts, partition),
                    offset,
                    columns.raws,
                )
        offset += run.count


def _listeners(record: AppRecord, log: str) -> dict[str, list[str]]:
    """Nodes of the pool that have a slot for an event, by its name."""
    pools = {node.name: node.pool for node in record.topology.nodes}
    found: dict[str, list[str]] = {}
    for slot in record.topology.slots:
        if pools.get(slot.node) == log:
            found.setdefault(slot.event, []).append(slot.node)
    return found


def _context(
    header: Header, meta: RunMeta, index: int, event_id: str, contexts: list[Context], partition: PartitionId
) -> Context | None:
    if header.flags & codec.SELF_REPLY:
        return Context(event_id, partition.number)
    number = -1 if meta.contexts is None else meta.contexts[index]
    return contexts[number] if number >= 0 else None


def letters_of(event: Logged, now: int) -> list[DeadLetter]:
    """One for every node that was to get it."""
    meta = RunMeta([event.event])
    if event.run is not None:
        meta.hops = codec.hops_of(event.run.meta, event.spot.index - event.offset)
    key = None if event.problem else event.key
    body = codec.encode_run(meta, 1, None if key is None else [key], [event.raw()])
    text = event.problem or "moved here by grape log bury"
    kind = event.kind or BURIED
    return [
        DeadLetter(node, event.event, event.event_id, key, event.created, body, 0, now, kind, text, b"", event.context)
        for node in (event.nodes if event.nodes and not event.problem else ("",))
    ]
