"""Stored outputs as events: some thousand at a time, and whatever cannot be read is named instead.

What stands in an output was written by a worker, perhaps by one of an older version: nothing in it is taken on trust.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from grape.authoring.raised import line_of
from grape.errors import ProtocolError
from grape.model import batch as codec
from grape.model.event import Event

AT_ONCE: Final = 4_096
"""Events that are looked at together."""
FREE: Final = 1 << 16
"""So many events may stand in a body whatever its size: without keys and data they took no space in older versions."""
_RAW: Final = 1_024

_decode: Final = msgspec.msgpack.Decoder().decode
_decode_key: Final = msgspec.msgpack.Decoder(str | None).decode
_raw_column: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class TakenEvent(Event):
    """An event that left the engine; its ``id`` is fixed."""

    taken_id: str = ""

    @property
    def id(self) -> str:
        return self.taken_id


class Unreadable(NamedTuple):
    """``events`` of a batch from number ``at`` on that cannot be read."""

    at: int
    events: int
    name: str
    key: str | None
    raw: bytes
    text: str


class Part(NamedTuple):
    """The events of a batch up to ``end``, behind those of the part before: the readable ones as columns, with their
    numbers in the batch, and the others."""

    end: int
    indexes: Sequence[int]
    names: Sequence[str]
    keys: Sequence[str | None]
    data: Sequence[Any]
    ids: Sequence[str]
    unreadable: list[Unreadable]

    def events(self) -> list[Event]:
        rows = zip(self.names, self.keys, self.data, self.ids, strict=True)
        return [TakenEvent(name, key, value, None, 0, own) for name, key, value, own in rows]


def parts_of(batch: bytes | memoryview, first: int = 0) -> Iterator[Part]:
    """The events of a sealed batch from number ``first`` on.

    Raises:
        Corrupt: it is no batch.
    """
    header = codec.header_of(batch)
    body = codec.body_of(batch, header)
    at = 0
    try:
        if header.events > max(len(body), FREE):
            raise ProtocolError(f"a batch of {len(body):,} bytes says that it holds {header.events:,} events")
        for run in codec.runs_of(body):
            if not 0 < run.count <= header.events - at:
                raise ProtocolError(f"a run says that it holds {run.count:,} events of {header.events:,}")
            if at + run.count > first:
                yield from _parts(run, header.id_prefix, at, max(0, first - at))
            at += run.count
        if at != header.events:
            raise ProtocolError(f"a batch said to hold {header.events:,} events holds {at:,}")
    except ProtocolError as e:
        at = max(at, first)
        if at < header.events:
            yield _none(Unreadable(at, header.events - at, "", None, bytes(body[:_RAW]), str(e)))


def _parts(run: codec.Run, prefix: str, at: int, first: int) -> Iterator[Part]:
    """Of a run that begins with event ``at`` of its batch, from its event ``first`` on."""
    count = run.count
    wrong: dict[int, str] = {}
    try:
        names = codec.names_of(run)
        keys = _keys(run, wrong)
        data = _data(run)
        given = run.meta.ids or {}
        sizes = {len(column) for column in (names, keys, data) if column is not None}
        if sizes != {count}:
            raise ProtocolError(f"a run of {count:,} events has columns of other lengths")
    except Exception as e:  # the bytes of others, read by several decoders
        name = run.meta.names[0] if run.meta.names else ""
        raw = (run.keys + run.data)[:_RAW]
        yield _none(Unreadable(at + first, count - first, name, None, raw, f"an output cannot be read: {line_of(e)}"))
        return
    for start in range(first, count, AT_ONCE):
        end = min(start + AT_ONCE, count)
        rows: Sequence[int] = range(start, end)
        bad: list[Unreadable] = []
        if wrong:
            there = [i for i in range(start, end) if i in wrong]
            bad = [Unreadable(at + i, 1, names[i], None, _raw_of(run, i), wrong[i]) for i in there]
            rows = [i for i in range(start, end) if i not in wrong]
        ids = [f"{prefix}{at + i}" for i in rows]
        if given:
            ids = [given.get(i) or own for i, own in zip(rows, ids, strict=True)]
        yield Part(
            at + end,
            [at + i for i in rows],
            [names[i] for i in rows],
            [None] * len(rows) if keys is None else [keys[i] for i in rows],
            [None] * len(rows) if data is None else [data[i] for i in rows],
            ids,
            bad,
        )


def _none(unreadable: Unreadable) -> Part:
    return Part(unreadable.at + unreadable.events, (), (), (), (), (), [unreadable])


def _keys(run: codec.Run, wrong: dict[int, str]) -> list[str | None] | None:
    """``wrong`` gets what is wrong with those that are no keys."""
    try:
        return codec.keys_of(run)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    keys: list[str | None] = []
    for i, raw in enumerate(_raw_column(run.keys)):
        try:
            keys.append(_decode_key(raw))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            keys.append(None)
            wrong[i] = f"its key is no text: {line_of(e)}"
    return keys


_UNREADABLE: Final = (msgspec.DecodeError, TypeError, UnicodeDecodeError)


def _data(run: codec.Run) -> list[Any] | None:
    try:
        return codec.data_of(run)
    except _UNREADABLE:  # such as a map with a map as a key
        return [_readable(bytes(raw)) for raw in _raw_column(run.data)]


def _readable(packed: bytes) -> Any:
    try:
        return _decode(packed)
    except _UNREADABLE:
        return packed


def _raw_of(run: codec.Run, index: int) -> bytes:
    """What there is of an event: its data."""
    try:
        return bytes(_raw_column(run.data)[index])[:_RAW] if run.data else b""
    except Exception:
        return run.data[:_RAW]
