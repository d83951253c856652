"""The record batch: how events travel, are stored and are processed.

    batch = header (fixed, little-endian) | contexts (msgpack) | body
    body  = run | run | ...
    run   = <count, size of meta, size of keys, size of data> (4 x u32) | meta | keys | data

``meta`` is a `RunMeta`, ``keys`` a msgpack array of text or nil (absent: no event has a key), ``data`` a msgpack array
of values (absent: all nil). The engine reads headers, metas and the length marks of the two arrays, never what is in
them. The checksum covers everything behind itself, so a flipped bit anywhere is found.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import starmap
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct
from zlib_ng.zlib_ng import crc32  # twenty times as fast as zlib's on what a batch holds

from grape.errors import Corrupt, ProtocolError
from grape.model.address import MAX_KEY_BYTES, PartitionId
from grape.model.depth import LET_IN, MAX_DEPTH, is_too_deep

VERSION: Final = 1
MAX_EVENTS: Final = (1 << 31) - 1
SELF_REPLY: Final = 1
"""Header flag: every event of this batch is a call of its own, answered under its own id."""

# crc, version, flags, target pool, events, origin (app, pool, number), target number, incarnation, sequence,
# created us, contexts size. The target's app is the origin's.
_HEADER = struct.Struct("<IBBHIHHHHIQQI")
_RUN = struct.Struct("<IIII")
_CRC = struct.Struct("<I")
HEADER_SIZE: Final = _HEADER.size

B = TypeVar("B", bytes, memoryview, bytes | memoryview)


class Header(NamedTuple):
    """``sequence``: dense per (origin, incarnation, target log). ``created``: microseconds of wall time."""

    origin: PartitionId
    target: PartitionId
    incarnation: int
    sequence: int
    created: int
    events: int
    flags: int
    contexts_size: int

    @property
    def id_prefix(self) -> str:
        """What all event ids of the batch begin with; the index follows. The target is part of it because the sequence
        numbers are counted per target."""
        o, t = self.origin, self.target
        return f"{self.incarnation:08x}-{o.pool}.{o.number}-{t.pool}.{t.number}-{self.sequence}-"


class Context(Struct, frozen=True, omit_defaults=True, array_like=True):
    """What an event inherits from the one that caused it. Workers see only its number.

    ``request``: the id under which the first caller waits ("" = nobody does). ``home``: the partition of the reply
    home that keeps the answer; of ``pool``, if a handler there waits for it. ``deadline``: microseconds of wall time
    after which no handler starts with it; 0: never.
    """

    request: str = ""
    home: int = 0
    trace: str = ""
    deadline: int = 0
    pool: str = ""


class RunMeta(Struct, omit_defaults=True):
    """``names``: distinct event names of the run, all with the same listeners; ``index``: one byte an event, the number
    of its name (None: all have the first). ``hops``: one number for all, or one an event. ``only``: these nodes alone
    are meant. ``ids``: event ids that differ from origin and position. ``contexts``: one number an event into the
    batch's table of contexts, -1 for none."""

    names: list[str]
    index: bytes | None = None
    hops: int | list[int] = 0
    only: list[str] | None = None
    ids: dict[int, str] | None = None
    contexts: list[int] | None = None


class Run(Struct, frozen=True):
    """A run as read: ``keys`` and ``data`` are still msgpack ("" = all nil)."""

    count: int
    meta: RunMeta
    keys: bytes
    data: bytes


_encoder = msgspec.msgpack.Encoder()
encode: Final = _encoder.encode
_decode_meta = msgspec.msgpack.Decoder(RunMeta).decode
_decode_keys = msgspec.msgpack.Decoder(list[str | None]).decode
_decode_checked_keys = msgspec.msgpack.Decoder(
    list[Annotated[str, Meta(min_length=1, max_length=MAX_KEY_BYTES)] | None]
).decode
_decode_short_keys = msgspec.msgpack.Decoder(
    list[Annotated[str, Meta(min_length=1, max_length=MAX_KEY_BYTES // 4)] | None]  # no character has more bytes
).decode
_skip = msgspec.msgpack.Decoder(msgspec.Raw).decode
"""Reads all of a value without making anything of it."""
_decode_raw = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_contexts = msgspec.msgpack.Decoder(list[Context]).decode
_decode_data = msgspec.msgpack.Decoder(list[Any]).decode


# ------------------------------------------------------------------ whole batches


def seal(
    body: bytes | memoryview,
    events: int,
    origin: PartitionId,
    target: PartitionId,
    incarnation: int,
    sequence: int,
    created: int,
    contexts: Sequence[Context] = (),
    flags: int = 0,
) -> bytes:
    """Put the header before ``body``: what the engine does to everything that enters a log."""
    table = encode(contexts) if contexts else b""
    header = _HEADER.pack(
        0, VERSION, flags, target.pool, events, *origin, target.number, incarnation, sequence, created, len(table)
    )
    tail = crc32(header[4:])
    if table:
        tail = crc32(table, tail)
    return b"".join((_CRC.pack(crc32(body, tail)), header[4:], table, body))


def header_of(batch: bytes | memoryview) -> Header:
    """Read the header without checking the checksum (see `check`).

    Raises:
        Corrupt: too short, or of another version.
    """
    if len(batch) < HEADER_SIZE:
        raise Corrupt(f"a batch of {len(batch)} bytes is shorter than its header")
    _, version, flags, to_pool, events, app, pool, number, to_number, incarnation, sequence, created, size = (
        _HEADER.unpack_from(batch)
    )
    if version != VERSION:
        raise Corrupt(f"a batch of format version {version}; this Grape reads version {VERSION}")
    origin, target = PartitionId(app, pool, number), PartitionId(app, to_pool, to_number)
    return Header(origin, target, incarnation, sequence, created, events, flags, size)


def check(batch: bytes) -> Header:
    """Verify the checksum and return the header.

    Raises:
        Corrupt: the bytes are not what was written.
    """
    header = header_of(batch)
    if _CRC.unpack_from(batch)[0] != crc32(memoryview(batch)[4:]):
        raise Corrupt(f"batch {header.id_prefix}* fails its checksum")
    return header


def contexts_of(batch: bytes, header: Header) -> list[Context]:
    if not header.contexts_size:
        return []
    return _decode_contexts(memoryview(batch)[HEADER_SIZE : HEADER_SIZE + header.contexts_size])


def ids_of(header: Header, body: bytes) -> list[str]:
    """The ids of all events of a batch."""
    ids: list[str] = []
    prefix = header.id_prefix
    for run in runs_of(body):
        given, at = run.meta.ids or {}, len(ids)
        ids += [given.get(i) or f"{prefix}{at + i}" for i in range(run.count)]
    return ids


def body_of(batch: B, header: Header) -> B:
    return batch[HEADER_SIZE + header.contexts_size :]


# ------------------------------------------------------------------ runs


def encode_run(meta: RunMeta, count: int, keys: Sequence[str | None] | None, data: Sequence[Any] | None) -> bytes:
    """One run as bytes. ``keys`` None: all keyless; ``data`` None: all nil. Values may be `msgspec.Raw`. No event is
    without a byte, so that nothing can hold more of them than it has bytes.

    Raises:
        UnicodeEncodeError, OverflowError, TypeError: a value cannot travel.
    """
    if data is None and keys is None and count > 1:
        data = [None] * count  # a body has as many bytes as events: see `check_body`
    packed_keys = encode(keys) if keys is not None else b""
    return packed_run(encode(meta), count, packed_keys, encode(data) if data is not None else b"")


def packed_run(meta: bytes, count: int, keys: bytes, data: bytes) -> bytes:
    """One run of what is packed already."""
    return b"".join((_RUN.pack(count, len(meta), len(keys), len(data)), meta, keys, data))


def run_beside(meta: bytes) -> int:
    """Bytes of a run beside its columns."""
    return _RUN.size + len(meta)


def one(name: str, key: str | None, data: Any, **meta: Any) -> bytes:
    """The body of a single event."""
    return encode_run(RunMeta([name], **meta), 1, None if key is None else [key], None if data is None else [data])


def split(
    encode: Callable[[int, int], bytes], start: int, end: int, target: int, limit: int
) -> list[tuple[bytes, int]]:
    """Encode events ``start`` to ``end`` as pieces near ``target`` bytes, none over ``limit`` (but one event)."""
    body = encode(start, end)
    if len(body) <= limit or end - start == 1:
        return [(body, end - start)]
    pieces = min(end - start, -(-len(body) // target))
    step = -(-(end - start) // pieces)
    out: list[tuple[bytes, int]] = []
    for at in range(start, end, step):
        out.extend(split(encode, at, min(at + step, end), target, limit))
    return out


def runs_of(body: bytes | memoryview) -> Iterator[Run]:
    """The runs of a body, in order.

    Raises:
        ProtocolError: the lengths do not fit.
    """
    return starmap(_read, _packed_runs(body))


def _packed_runs(body: bytes | memoryview) -> Iterator[tuple[int, memoryview, memoryview, memoryview]]:
    view = memoryview(body)
    at, end = 0, len(view)
    while at < end:
        if end - at < _RUN.size:
            raise ProtocolError("a run is cut off in its header")
        count, m, k, d = _RUN.unpack_from(view, at)
        at += _RUN.size
        if at + m + k + d > end:
            raise ProtocolError("a run is longer than its batch")
        keys = at + m
        data = keys + k
        yield count, view[at:keys], view[keys:data], view[data : data + d]
        at = data + d


def _read(count: int, packed: memoryview, keys: memoryview, data: memoryview) -> Run:
    try:
        meta = _decode_meta(packed)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolError(f"a run's meta cannot be read: {e}") from None
    return Run(count, meta, bytes(keys), bytes(data))


def split_run(run: Run, leads_to: Callable[[str], object]) -> list[Run]:
    """``run`` as runs whose names all lead to the same, events in order. Older code may have stored it, in which its
    names had the same listeners."""
    names, index = run.meta.names, run.meta.index
    if index is None:
        return [run]
    targets = [leads_to(name) for name in names]
    if all(target == targets[0] for target in targets):
        return [run]
    ends = [i for i in range(1, run.count) if targets[index[i]] != targets[index[i - 1]]]
    keys, data = _decode_raw(run.keys) if run.keys else None, raw_data_of(run)
    out: list[Run] = []
    for start, end in zip([0, *ends], [*ends, run.count], strict=True):
        packed_keys = b"" if keys is None else encode(keys[start:end])
        packed_data = b"" if data is None else encode(data[start:end])
        out.append(Run(end - start, _part_of(run.meta, start, end), packed_keys, packed_data))
    return out


def _part_of(meta: RunMeta, start: int, end: int) -> RunMeta:
    """That of events ``start`` to ``end`` alone."""
    assert meta.index is not None
    used = sorted(set(meta.index[start:end]))
    return RunMeta(
        [meta.names[i] for i in used],
        bytes(used.index(i) for i in meta.index[start:end]) if len(used) > 1 else None,
        meta.hops if isinstance(meta.hops, int) else meta.hops[start:end],
        meta.only,
        None if meta.ids is None else {i - start: own for i, own in meta.ids.items() if start <= i < end},
        None if meta.contexts is None else meta.contexts[start:end],
    )


def keys_of(run: Run) -> list[str | None] | None:
    return _decode_keys(run.keys) if run.keys else None


def data_of(run: Run) -> list[Any] | None:
    return _decode_data(run.data) if run.data else None


def raw_data_of(run: Run) -> list[msgspec.Raw] | None:
    return _decode_raw(run.data) if run.data else None


def names_of(run: Run) -> list[str]:
    """The name of every event of the run."""
    names, index = run.meta.names, run.meta.index
    return [names[0]] * run.count if index is None else [names[i] for i in index]


def name_of(body: bytes) -> str:
    """The name of the first event of a body."""
    return next(runs_of(body)).meta.names[0]


def hops_of(meta: RunMeta, index: int) -> int:
    return meta.hops if isinstance(meta.hops, int) else meta.hops[index]


def _array_length(packed: bytes) -> int:
    """What a msgpack array's mark says about its length; -1 if it is not an array."""
    mark = packed[0]
    if 0x90 <= mark <= 0x9F:
        return mark & 0x0F
    if mark == 0xDC and len(packed) >= 3:
        return int.from_bytes(packed[1:3], "big")
    if mark == 0xDD and len(packed) >= 5:
        return int.from_bytes(packed[1:5], "big")
    return -1


def check_columns(run: Run, is_deeper: Callable[[bytes, int], bool] = is_too_deep) -> None:
    """
    Raises:
        ProtocolError: a key cannot be one, or the data is no column of values.
    """
    try:
        if run.keys:
            _check_keys(run.keys)
        if run.data:
            _skip(run.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolError(f"a column of keys or values that cannot be read: {e}") from None
    if is_deeper(run.data, LET_IN):
        raise ProtocolError(f"a column of values that cannot be read: it has over {LET_IN} levels")


def _check_keys(packed: bytes) -> None:
    try:
        _decode_short_keys(packed)  # nothing is done key by key in the engine, unless one is long
    except msgspec.ValidationError:
        keys = _decode_checked_keys(packed)
        if max((len(key.encode()) for key in keys if key), default=0) > MAX_KEY_BYTES:
            raise ProtocolError(f"a key of over {MAX_KEY_BYTES} bytes") from None


_MOST_NILS: Final = 1 << 20
"""Events without keys and data that older code put into a body, which took hardly a byte."""


def check_body(
    body: bytes | memoryview,
    events: int,
    contexts: int = 0,
    *,
    stored: bool = False,
    is_deeper: Callable[[bytes, int], bool] = is_too_deep,
) -> list[RunMeta]:
    """Check a body that came from a worker; returns the metas of its runs. Keys have to be keys and values values, as
    whoever reads them later cannot refuse them any more; what the values are is not looked at.

    ``contexts``: how many its table has. ``stored``: it lies in a log already, and older code may have let in what is
    not any more: only its structure is looked at. ``is_deeper``: `grape.hot.is_deeper`, for who may import it.

    Raises:
        ProtocolError: lengths, counts or columns do not fit together, a key or value cannot be one, or it says more
            events than it has bytes.
    """
    metas: list[RunMeta] = []
    total = 0
    if events > max(
        len(body), _MOST_NILS if stored else 0
    ):  # else some bytes would cost whoever decodes them any amount of memory
        raise ProtocolError(f"a batch said to hold {events} events in {len(body)} bytes")
    for packed in _packed_runs(body):
        run = _read(*packed)
        count, meta = run.count, run.meta
        if not count or not meta.names:
            raise ProtocolError("a run without events or names")
        if run.keys and _array_length(run.keys) != count:
            raise ProtocolError(f"a run of {count} events with another number of keys")
        if run.data and _array_length(run.data) != count:
            raise ProtocolError(f"a run of {count} events with another number of values")
        if not stored:
            check_columns(run, is_deeper)
            if is_deeper(bytes(packed[1]), MAX_DEPTH):
                raise ProtocolError(f"a run's meta cannot be read: it has over {MAX_DEPTH} levels")
        if isinstance(meta.hops, list) and len(meta.hops) != count:
            raise ProtocolError(f"a run of {count} events with another number of hops")
        if meta.contexts is not None:
            if len(meta.contexts) != count:
                raise ProtocolError(f"a run of {count} events with another number of contexts")
            if not -1 <= min(meta.contexts) <= max(meta.contexts) < contexts:
                raise ProtocolError(f"a run with a context outside of its table of {contexts}")
        if meta.index is None:
            if len(meta.names) != 1:
                raise ProtocolError("a run of several names without an index")
        elif len(meta.index) != count or max(meta.index) >= len(meta.names):
            raise ProtocolError("a run's index does not fit its names")
        metas.append(meta)
        total += count
    if total != events or not 1 <= total <= MAX_EVENTS:
        raise ProtocolError(f"a batch said to hold {events} events holds {total}")
    return metas
