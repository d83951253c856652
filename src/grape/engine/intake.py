"""Feeding: a source is an origin whose committed state is its position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from msgspec import Struct

from grape.abc.source import Chunk, Columns, Source
from grape.abc.transport import Rows, Send, Table, Transport
from grape.engine.app import App
from grape.engine.clock import Clock
from grape.engine.committer import Committer
from grape.model import batch as codec
from grape.model.address import Partitions
from grape.model.stored import SOURCE, DeadLetter, SourceHead, decode_source, encode, row_key


class Prepared(Struct, frozen=True):
    """A chunk as it will be committed. ``head`` is what holds when it and all before it are. ``size``: bytes of input;
    ``bytes``: of its batches."""

    sends: list[Send]
    head: SourceHead
    dead: list[tuple[bytes, bytes]]
    counts: Counter[str]
    size: int
    bytes: int


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

    @property
    def is_busy(self) -> bool:
        """A commit is under way."""
        return self._committer.is_busy

    def prepare(self, chunk: Chunk) -> Prepared:
        """Make the batches of a chunk, which follows the one prepared before: the work, without the commit."""
        head = self._planned
        now = self._clock.now()
        sent = dict(head.sent)
        sends: list[Send] = []
        counts: Counter[str] = Counter()
        spread = head.spread
        for columns in chunk.columns:
            counts[columns.name] += len(columns.data)
            for number, part in self._by_partition(columns, spread):
                spread += 1
                self._make(part, number, sent, sends, now)
        dead = [(row_key(head.next_dead + i), encode(letter)) for i, letter in enumerate(_letters(chunk, now))]
        new = SourceHead(chunk.position, sent, head.fed + sum(counts.values()), spread, head.next_dead + len(chunk.bad))
        self._planned = new
        return Prepared(sends, new, dead, counts, chunk.size, sum(len(send.batch) for send in sends))

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


def _letters(chunk: Chunk, now: int) -> list[DeadLetter]:
    return [
        DeadLetter(
            "",
            bad.name,
            "",
            None,
            now,
            codec.one(bad.name, None, bad.raw),
            0,
            now,
            bad.kind,
            bad.text,
            origin=bad.place,
        )
        for bad in chunk.bad
    ]
