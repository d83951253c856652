"""Feeding: a source is an origin whose committed state is its position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from msgspec import Struct

from grape.abc.source import Bad, Chunk, Columns, Pairs, Source
from grape.abc.transport import Rows, Send, Table, Transport
from grape.engine.app import App
from grape.engine.clock import Clock
from grape.engine.committer import Committer
from grape.errors import HandlerError
from grape.model import batch as codec
from grape.model.address import Partitions, check_key, partition_of
from grape.model.stored import SOURCE, DeadLetter, SourceHead, decode_source, encode, row_key

_SLICE: Final = 2_048
_CACHED_KEYS: Final = 65_536


class Prepared(Struct, frozen=True):
    """A chunk as it will be committed. ``head`` is what holds when it and all before it are. ``size``: bytes of input;
    ``bytes``: of its batches."""

    sends: list[Send]
    head: SourceHead
    dead: list[tuple[bytes, bytes]]
    counts: Counter[str]
    size: int
    bytes: int


class _Sorter(dict[str, tuple[Callable[[str | None], None], Callable[[Any], None]]]):
    """Pairs by the partition of their keys: ``rows[n]`` holds keys and values of partition n. The dictionary has what
    appends to them for every key (of the last 65,536): one look-up an event."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.rows: list[tuple[list[str | None], list[Any]]] = [([], []) for _ in range(count)]
        self._put = [(keys.append, values.append) for keys, values in self.rows]

    def __missing__(self, key: str) -> tuple[Callable[[str | None], None], Callable[[Any], None]]:
        number = partition_of(check_key(key), len(self.rows))
        if len(self) >= _CACHED_KEYS:
            self.clear()
        put = self[key] = self._put[number]
        return put

    def add(self, pairs: list[tuple[str, Any]]) -> None:
        """In slices, so that the second look finds in the cache what the first one has fetched.

        Raises:
            TypeError, ValueError: one is no pair, or has something as its key that cannot be one.
        """
        for at in range(0, len(pairs), _SLICE):
            part = pairs[at : at + _SLICE]
            if set(map(type, part)) != {tuple}:
                raise TypeError("not all are pairs")
            for key, value in part:
                put_key, put_value = self[key]
                put_key(key)
                put_value(value)

    def forget(self) -> None:
        """Of the pairs nothing is left."""
        for keys, values in self.rows:
            keys.clear()
            values.clear()


class _Draft:
    """Batches that are being made. ``sent``, ``spread``: as of `SourceHead`."""

    def __init__(self, sent: dict[bytes, int], spread: int) -> None:
        self.sent = sent
        self.spread = spread
        self.sends: list[Send] = []
        self.counts: Counter[str] = Counter()

    def take(self, other: _Draft) -> None:
        """What was added to ``other``, which went on from here."""
        self.sent, self.spread = other.sent, other.spread
        self.sends += other.sends
        self.counts += other.counts


class Feed:
    """One source. ``prepare`` runs on the source's thread, all else on the engine's."""

    def __init__(self, app: App, source: Source, transport: Transport, calls: bool, clock: Clock) -> None:
        self.source = source
        self.id = app.log(SOURCE + source.name, 0)
        self._app = app
        self._calls = calls
        self._clock = clock
        self._committer = Committer(transport, self.id, f"source {source.name!r}")
        self.done = self._committer.done
        found = self._committer.claimed_head
        self.head = decode_source(found) if found else SourceHead()
        self._planned = self.head
        self._partitions = Partitions(app.partitions)
        self._sorter = _Sorter(app.partitions)

    @property
    def is_busy(self) -> bool:
        """A commit is under way."""
        return self._committer.is_busy

    def prepare(self, chunk: Chunk) -> Prepared:
        """Make the batches of a chunk, which follows the one prepared before: the work, without the commit."""
        head = self._planned
        now = self._clock.now()
        draft = _Draft(dict(head.sent), head.spread)
        bad = [*chunk.bad]
        for part in chunk.columns:
            if isinstance(part, Columns):
                self._add(draft, self._by_partition(part, draft.spread), now)
                continue
            trial = _Draft(dict(draft.sent), draft.spread)
            try:
                self._add(trial, self._sorted(part), now)
            except (HandlerError, TypeError, ValueError):
                sifted, unfit = part.sift()
                bad += unfit
                for columns in sifted:
                    self._add(draft, self._by_partition(columns, draft.spread), now)
            else:
                draft.take(trial)
        dead = [(row_key(head.next_dead + i), encode(letter)) for i, letter in enumerate(_letters(bad, now))]
        self._planned = new = SourceHead(
            chunk.position,
            draft.sent,
            head.fed + sum(draft.counts.values()),
            draft.spread,
            head.next_dead + len(bad),
        )
        size = sum(len(send.batch) for send in draft.sends)
        return Prepared(draft.sends, new, dead, draft.counts, chunk.size, size)

    def _add(self, draft: _Draft, groups: Iterable[tuple[int, Columns]], now: int) -> None:
        for number, columns in groups:
            draft.spread += 1
            draft.counts[columns.name] += len(columns.data)
            self._make(columns, number, draft.sent, draft.sends, now)

    def _sorted(self, pairs: Pairs) -> Iterator[tuple[int, Columns]]:
        """By the partition of their keys. The columns are valid until the next one is asked for.

        Raises:
            HandlerError, TypeError, ValueError: one of them is no pair, or its key or value cannot travel.
        """
        try:
            self._sorter.add(pairs.items)
            for number, (keys, data) in enumerate(self._sorter.rows):
                if keys:
                    yield number, Columns(pairs.name, keys, pairs.values(data))
        finally:
            self._sorter.forget()

    def _by_partition(self, columns: Columns, spread: int) -> list[tuple[int, Columns]]:
        """Keyed events go where their key lives, keyless ones anywhere, a batch at a time."""
        name, keys, data = columns.name, columns.keys, columns.data
        count = self._app.partitions
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
        places: dict[int, list[int]] = {}
        if self._calls and columns.lines is not None:
            for number, line in zip(numbers, columns.lines, strict=True):
                places.setdefault(number, []).append(line)
        return [(number, Columns(name, k, d, places.get(number))) for number, (k, d) in rows.items()]

    def _slices(self, columns: Columns, spread: int) -> list[tuple[int, Columns]]:
        limits = self._app.limits
        name, data, lines = columns.name, columns.data, columns.lines
        size = len(codec.encode(data))
        step = max(1, len(data) * limits.batch_target // max(size, 1)) if name not in self._app.long_events else 1
        count = self._app.partitions
        return [
            ((spread + i) % count, Columns(name, None, data[at : at + step], lines and lines[at : at + step]))
            for i, at in enumerate(range(0, len(data), step))
        ]

    def _make(self, columns: Columns, number: int, sent: dict[bytes, int], sends: list[Send], now: int) -> None:
        limits = self._app.limits
        keys, data = columns.keys, columns.data
        # A call is answered under its event's id: one that says where its event stood.
        lines = columns.lines if self._calls else None
        prefix = f"{self._app.record.incarnation:08x}-{self.source.name}:"

        def encode_part(start: int, end: int) -> bytes:
            ids = None if lines is None else {i: f"{prefix}{line}" for i, line in enumerate(lines[start:end])}
            meta = codec.RunMeta([columns.name], ids=ids)
            if end - start == len(data):  # as a rule: a slice would touch every object once more
                return codec.encode_run(meta, len(data), keys, data)
            return codec.encode_run(meta, end - start, None if keys is None else keys[start:end], data[start:end])

        pieces = codec.split(encode_part, 0, len(data), limits.batch_target, limits.batch_max)
        flags = codec.SELF_REPLY if self._calls else 0
        for listener in self._app.routing.listeners[columns.name]:
            target = self._app.log(listener.pool, number)
            packed = target.packed()
            for body, events in pieces:
                sequence = sent.get(packed, 0)
                sent[packed] = sequence + 1
                sealed = codec.seal(
                    body, events, self.id, target, self._app.record.incarnation, sequence, now, (), flags
                )
                sends.append(Send(target, sealed, events))

    def commit(self, chunks: list[Prepared], then: Callable[[], None]) -> None:
        """Commit prepared chunks as one step; ``then`` is called when they are durable."""
        sends = [send for chunk in chunks for send in chunk.sends]
        dead = [row for chunk in chunks for row in chunk.dead]
        rows: list[tuple[Table, Rows]] = [("dead", [*dead])] if dead else []
        head = chunks[-1].head

        def committed() -> None:
            self.head = head
            for chunk in chunks:
                self._app.stats.fed.update(chunk.counts)
            self._app.stats.dead += len(dead)
            then()

        self._committer.submit(encode(head), sends, rows, then=committed)


def _letters(bad: list[Bad], now: int) -> list[DeadLetter]:
    return [
        DeadLetter(
            "",
            one.name,
            "",
            None,
            now,
            codec.one(one.name, None, one.raw),
            0,
            now,
            one.kind,
            one.text,
            origin=one.place,
        )
        for one in bad
    ]
