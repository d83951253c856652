"""What becomes of a dead letter, or of a held event, that somebody wants to be tried again. Pure: for a directory at
rest and for one in use."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from grape.errors import Corrupt
from grape.model import batch as codec
from grape.model.batch import Context
from grape.model.spots import near
from grape.model.stored import AppRecord, DeadLetter, HoldEntry
from grape.model.tracing import once_more

NO_LETTER: Final = "there is no such letter (any more)"


class Again(NamedTuple):
    """An event for ``log``, in the partition of the same number: the body of its batch."""

    log: str
    body: bytes
    contexts: list[Context]


def refusal(record: AppRecord, log: str, row: DeadLetter | HoldEntry) -> str:
    """Why what lies in ``log`` cannot be tried again; "": it can."""
    if not row.node:
        where = f" ({row.origin})" if isinstance(row, DeadLetter) and row.origin else ""
        return f"it never became an event: correct the input{where} and feed it again, then drop the letter"
    present = {spec.name for spec in record.topology.nodes}
    node = record.nodes.get(row.node) if row.node in present else None
    if node is None:
        return f"node {row.node!r} is gone from app {record.name!r}{near(row.node, present)}"
    if not any(slot.event == row.event and slot.node == row.node for slot in record.topology.slots):
        return f"node {row.node!r} has no slot for event {row.event!r} any more"
    if isinstance(row, HoldEntry) and node.pool != log:
        return f"node {row.node!r} has moved to pool {node.pool!r}"
    return ""


def again(record: AppRecord, row: DeadLetter | HoldEntry, name: str) -> Again:
    """The event for its node alone, under its old id. ``name``: of it, in errors.

    Raises:
        Corrupt: it cannot be read.
    """
    run = run_of(row.body, name)
    hops = run.meta.hops
    meta = codec.RunMeta(
        [row.event],
        hops=hops if isinstance(hops, int) else hops[0],
        only=[row.node],
        ids={0: row.id} if row.id else None,
        contexts=None if row.context is None else [0],
    )
    body = codec.encode_run(meta, 1, codec.keys_of(run), codec.raw_data_of(run))
    return Again(record.nodes[row.node].pool, body, [] if row.context is None else [_anew(row.context)])


def due_now(entry: HoldEntry) -> HoldEntry:
    """It is tried at once; one that was stopped has all its attempts anew. Changes ``entry``."""
    if entry.stopped:
        entry.attempts = 0
        entry.context = None if entry.context is None else _anew(entry.context)
    entry.stopped, entry.due = False, 0
    return entry


def _anew(context: Context) -> Context:
    """Of an event whose attempts begin anew: else their spans would be taken for those before."""
    return msgspec.structs.replace(context, trace=once_more(context.trace)) if context.trace else context


def run_of(body: bytes, name: str) -> codec.Run:
    """The run of one event that is the body of a letter.

    Raises:
        Corrupt: it holds no event.
    """
    try:
        codec.check_body(body, 1, stored=True)
        return next(codec.runs_of(body))
    except Exception as e:
        raise Corrupt(f"the event of {name} cannot be read: {e}") from None
