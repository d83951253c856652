"""The one walk over the events of a stored batch, for whoever has to take one out of it: each as a batch of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from grape.model import batch as codec
from grape.model.batch import Context, Header, Run
from grape.model.stored import HoldEntry

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Single(NamedTuple):
    """Event ``at`` of a batch. ``only``: the nodes that are meant, None: all that listen. ``entry``: it, without a
    node."""

    at: int
    only: list[str] | None
    entry: HoldEntry

    def of(self, node: str) -> HoldEntry:
        """As an event of one of the nodes."""
        return msgspec.structs.replace(self.entry, node=node)


def walk(batch: bytes, header: Header, home: int) -> Iterator[Single]:
    """All events of a batch in order. Columns that cannot be read are no reason to stop: then the event has no key, or
    the bytes of its column as its data. ``home``: number of the partition that keeps the answers to calls."""
    calls = bool(header.flags & codec.SELF_REPLY)
    table = codec.contexts_of(batch, header)
    offset = 0
    for run in codec.runs_of(codec.body_of(batch, header)):
        keys, data = _keys(run), _data(run)
        for i, name in enumerate(codec.names_of(run)):
            event_id = (run.meta.ids or {}).get(i) or f"{header.id_prefix}{offset + i}"
            entry = HoldEntry("", name, event_id, None if keys is None else keys[i], header.created, b"")
            value = data if not isinstance(data, list) else data[i]
            entry.body = codec.one(name, entry.key, value, hops=codec.hops_of(run.meta, i))
            if calls:
                entry.context = Context(event_id, home)
            elif run.meta.contexts is not None and run.meta.contexts[i] >= 0:
                entry.context = table[run.meta.contexts[i]]
            yield Single(offset + i, run.meta.only, entry)
        offset += run.count


def _keys(run: Run) -> list[str | None] | None:
    try:
        return codec.keys_of(run)
    except _UNREADABLE:
        return None


def _data(run: Run) -> list[Any] | bytes | None:
    try:
        return codec.raw_data_of(run)
    except _UNREADABLE:
        return run.data
