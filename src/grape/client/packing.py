"""What a source has read becomes batches, in the process that read it: sorted by partition and encoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

from msgspec import Struct

from grape.abc.source import Bad, Chunk, Columns, Pairs, Source, Values
from grape.errors import Conflict, UsageError
from grape.hot import Sorter, slice_values
from grape.model import batch as codec
from grape.model.address import Partitions
from grape.model.ids import content_of
from grape.model.stored import encode
from grape.model.topology import Limits
from grape.protocol.door import BadInput, Named, Opened, Part, StreamOpened, Verdict, size_beside

T = TypeVar("T")


class Packed(Struct, frozen=True):
    """A chunk as it is appended. ``size``: bytes of input; ``bytes``: of all that is sent of it."""

    position: bytes
    parts: list[Part]
    bad: list[BadInput]
    size: int
    bytes: int
    ids: Sequence[Named] = ()


_AT_ONCE: Final = 50_000
"""Events that are packed while no other thread may run."""


class _Draft:
    """Parts that are being made. ``spread``: how many groups before and with them, which keyless events go by."""

    def __init__(self, spread: int) -> None:
        self.spread = spread
        self.events = 0
        self.parts: list[Part] = []

    def take(self, other: _Draft) -> None:
        """What was added to ``other``, which went on from here."""
        self.spread = other.spread
        self.events += other.events
        self.parts += other.parts


class Packer:
    """Of one source. On the source's thread.

    Args:
        long_events: keyless ones of these are spread one by one.
    """

    def __init__(self, source: Source, opened: Opened, stream: StreamOpened, long_events: frozenset[str]) -> None:
        self._source = source
        self._limits: Limits = opened.limits
        self._count = opened.partitions
        self._long_events = long_events
        self._line = stream.partition
        """The partition that gets all of it."""
        self._calls = stream.calls
        self._prefix = f"{opened.incarnation:08x}-{source.name}:"
        self._partitions = Partitions(self._count)
        self._sorter = Sorter(self._count)
        self._spread = stream.spread
        self._fed = stream.fed
        self.has_ended = stream.has_ended
        """The event that says so was the last that was packed."""

    def named(self, chunk: Chunk) -> list[Named]:
        """The ids in a chunk."""
        return [
            Named(own, content_of(part.name, key, encode(value)), key)
            for part in chunk.columns
            if isinstance(part, Columns) and part.ids is not None
            for own, key, value in zip(part.ids, part.keys or [None] * len(part.data), part.data, strict=True)
        ]

    def without_known(self, chunk: Chunk, verdicts: list[Verdict]) -> Chunk:
        """The chunk without the events that were fed before. ``verdicts``: on those of `named`."""
        columns: list[Columns] = []
        bad = list(chunk.bad)
        at = 0
        for part in chunk.columns:
            if not isinstance(part, Columns) or part.ids is None:
                columns.append(part)  # type: ignore[arg-type]
                continue
            here, at = verdicts[at : at + len(part.ids)], at + len(part.ids)
            bad += [self._conflict(part, i) for i, verdict in enumerate(here) if verdict == "conflict"]
            new = [i for i, verdict in enumerate(here) if verdict == "new"]
            if new:
                columns.append(_chosen(part, new))
        return Chunk(columns, chunk.position, bad, chunk.size)

    def _conflict(self, part: Columns, index: int) -> Bad:
        assert part.ids is not None
        place = getattr(self._source, "path", self._source.name)
        where = place if part.lines is None else f"{place}:{part.lines[index]}"
        text = f"the id {part.ids[index]!r:.300} was used for another event"
        raw = bytes(encode(part.data[index]))
        return Bad(where, part.name, raw, Conflict.code, text)

    def pack_end(self, position: bytes) -> Packed:
        """The event that says that the source has ended. ``position``: as it is."""
        draft = _Draft(self._spread)
        data = {"source": self._source.name, "events": self._fed}
        self._add(draft, self._slices(Columns(self._source.terms.on_end, None, [data]), draft.spread))
        draft.events = 0  # it is not one of those that were read
        self.has_ended = True
        return self._packed(draft, position, [], 0)

    def pack(self, chunk: Chunk, ids: Sequence[Named] = ()) -> Packed:
        """Make the parts of a chunk, which follows the one packed before. ``ids``: of the events in it, to be
        remembered.

        Raises:
            UsageError: all of it is to go to one partition, and something has a key.
        """
        draft = _Draft(self._spread)
        bad = [*chunk.bad]
        for part in chunk.columns:
            if isinstance(part, Columns):
                self._add(draft, self._by_partition(part, draft.spread))
                continue
            if not self._pack_whole(draft, part):
                sifted, unfit = part.sift()
                bad += unfit
                for columns in sifted:
                    self._add(draft, self._by_partition(columns, draft.spread))
        self.has_ended = False
        told = [BadInput(one.place, one.name, one.raw, one.kind, one.text) for one in bad]
        return self._packed(draft, chunk.position, told, chunk.size, ids)

    def _packed(
        self, draft: _Draft, position: bytes, bad: list[BadInput], size: int, ids: Sequence[Named] = ()
    ) -> Packed:
        self._spread = draft.spread
        self._fed += draft.events
        came = sum(len(part.body) for part in draft.parts) + size_beside(position, bad, ids)
        return Packed(position, draft.parts, bad, size, came, ids)

    def _add(self, draft: _Draft, groups: Iterable[tuple[int, Columns]]) -> None:
        for number, columns in groups:
            draft.spread += 1
            draft.events += len(columns.data)
            self._make(columns, number, draft.parts)

    def _pack_whole(self, draft: _Draft, part: Values) -> bool:
        """Without a look at single events; False: something in it needs one."""
        meta = codec.encode(codec.RunMeta([part.name]))
        whole = _Draft(draft.spread)
        for at in range(0, len(part.items), _AT_ONCE):
            items = part.items[at : at + _AT_ONCE] if len(part.items) > _AT_ONCE else part.items
            found = self._packed_columns(part, items, whole.spread, codec.run_beside(meta))
            if found is None:
                return False
            for number, count, keys, data in found:
                body = memoryview(codec.packed_run(meta, count, keys, data))
                whole.parts.append(Part(part.name, number, count, body))
                whole.spread += 1
                whole.events += count
        draft.take(whole)
        return True

    def _packed_columns(
        self, part: Values, items: list[Any], spread: int, beside: int
    ) -> list[tuple[int, int, bytes, bytes]] | None:
        """(partition, how many, keys, values), or None. ``beside``: bytes of a body beside them."""
        limits = self._limits
        if isinstance(part, Pairs):
            if self._line is not None:  # keys are refused
                return None
            return self._sorter.sort(items, part.largest, limits.batch_max - beside)
        events = 1 if part.name in self._long_events else limits.dispatch_events
        sliced = slice_values(items, part.largest, limits.batch_target - beside, events)
        if sliced is None:
            return None
        return [(self._partition_at(spread + i), count, b"", data) for i, (count, data) in enumerate(sliced)]

    def _partition_at(self, spread: int) -> int:
        """Of keyless events."""
        return spread % self._count if self._line is None else self._line

    def _by_partition(self, columns: Columns, spread: int) -> list[tuple[int, Columns]]:
        """Keyed events go where their key lives, keyless ones anywhere, a batch at a time."""
        name, keys, data = columns.name, columns.keys, columns.data
        count = self._count
        if keys is not None and self._line is not None:
            keyed = next((key for key in keys if key is not None), None)
            if keyed is not None:
                raise UsageError(
                    f"source {self._source.name!r}: order=source is for events without keys, and one has the key "
                    f"{keyed!r:.60}, which says to which partition it goes. Leave order=source out: events of a key "
                    "are in the source's order as it is"
                )
            keys = None
            columns = Columns(name, None, data, columns.lines, columns.ids)
        if keys is None:
            return self._slices(columns, spread)
        partitions = self._partitions
        if None in keys:
            numbers = [(spread + (i >> 10)) % count if key is None else partitions[key] for i, key in enumerate(keys)]
        else:
            numbers = list(map(partitions.__getitem__, keys))  # type: ignore[arg-type]
        rows: dict[int, tuple[list[str | None], list[object]]] = {number: ([], []) for number in set(numbers)}
        put = {number: (row[0].append, row[1].append) for number, row in rows.items()}
        for number, key, value in zip(numbers, keys, data, strict=True):
            put_key, put_value = put[number]
            put_key(key)
            put_value(value)
        places = _sorted_by(numbers, columns.lines) if self._calls and columns.lines is not None else {}
        ids = _sorted_by(numbers, columns.ids) if columns.ids is not None else {}
        return [(number, Columns(name, k, d, places.get(number), ids.get(number))) for number, (k, d) in rows.items()]

    def _slices(self, columns: Columns, spread: int) -> list[tuple[int, Columns]]:
        limits = self._limits
        name, data, lines, ids = columns.name, columns.data, columns.lines, columns.ids
        size = len(codec.encode(data))
        step = max(1, len(data) * limits.batch_target // max(size, 1)) if name not in self._long_events else 1
        step = min(step, limits.dispatch_events)
        return [
            (
                self._partition_at(spread + i),
                Columns(name, None, data[at : at + step], lines and lines[at : at + step], ids and ids[at : at + step]),
            )
            for i, at in enumerate(range(0, len(data), step))
        ]

    def _make(self, columns: Columns, number: int, parts: list[Part]) -> None:
        limits = self._limits
        keys, data = columns.keys, columns.data
        # A call is answered under its event's id: one that says where its event stood.
        lines = columns.lines if self._calls else None
        own, prefix = columns.ids, self._prefix

        def encode_part(start: int, end: int) -> bytes:
            ids = None if lines is None else {i: f"{prefix}{line}" for i, line in enumerate(lines[start:end])}
            if own is not None:
                ids = dict(enumerate(own[start:end]))
            meta = codec.RunMeta([columns.name], ids=ids)
            if end - start == len(data):  # as a rule: a slice would touch every object once more
                return codec.encode_run(meta, len(data), keys, data)
            return codec.encode_run(meta, end - start, None if keys is None else keys[start:end], data[start:end])

        for body, events in codec.split(encode_part, 0, len(data), limits.batch_target, limits.batch_max):
            parts.append(Part(columns.name, number, events, memoryview(body)))


def _chosen(part: Columns, rows: list[int]) -> Columns:
    """These events of it."""
    if len(rows) == len(part.data):
        return part
    return Columns(
        part.name,
        part.keys and [part.keys[i] for i in rows],
        [part.data[i] for i in rows],
        part.lines and [part.lines[i] for i in rows],
        part.ids and [part.ids[i] for i in rows],
    )


def _sorted_by(numbers: list[int], values: Sequence[T]) -> dict[int, list[T]]:
    found: dict[int, list[T]] = {}
    for number, value in zip(numbers, values, strict=True):
        found.setdefault(number, []).append(value)
    return found
