"""Feeding: a source is an origin whose committed state is its position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from grape.abc.source import Chunk, Columns, Source
from grape.abc.transport import Rows, Send, Table, Transport
from grape.engine.app import App
from grape.engine.committer import Committer
from grape.model import batch as codec
from grape.model.address import Partitions
from grape.model.stored import SOURCE, DeadLetter, SourceHead, decode_source, encode, row_key


class Feed:
    """One source. ``prepare`` runs on the source's thread, all else on the engine's."""

    def __init__(self, app: App, source: Source, transport: Transport, calls: bool) -> None:
        self.source = source
        self.id = app.log(SOURCE + source.name, 0)
        self._app = app
        self._calls = calls
        self._committer = Committer(transport, self.id, f"source {source.name!r}")
        self.done = self._committer.done
        found = self._committer.claimed_head
        self.head = decode_source(found) if found else SourceHead()
        self._planned = self.head
        self._partitions = Partitions(app.partitions)
        self.size = 0

    def prepare(self, chunk: Chunk, now: int) -> tuple[list[Send], SourceHead, list[tuple[bytes, bytes]], Counter[str]]:
        """Make the batches of a chunk, which follows the one prepared before: the work, without the commit."""
        head = self._planned
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
        return sends, new, dead, counts

    def _by_partition(self, columns: Columns, spread: int) -> list[tuple[int, Columns]]:
        """Keyed events go where their key lives, keyless ones anywhere, a batch at a time."""
        name, keys, data = columns.name, columns.keys, columns.data
        count = self._app.partitions
        if keys is None:
            return self._slices(name, data, spread)
        rows: dict[int, tuple[list[str | None], list[object]]] = {}
        partitions = self._partitions
        for i, (key, value) in enumerate(zip(keys, data, strict=True)):
            number = (spread + (i >> 10)) % count if key is None else partitions[key]
            row = rows.get(number)
            if row is None:
                row = rows[number] = ([], [])
            row[0].append(key)
            row[1].append(value)
        return [(number, Columns(name, k, d)) for number, (k, d) in rows.items()]

    def _slices(self, name: str, data: list[object], spread: int) -> list[tuple[int, Columns]]:
        limits = self._app.limits
        size = len(codec.encode(data))
        step = max(1, len(data) * limits.batch_target // max(size, 1))
        count = self._app.partitions
        return [
            ((spread + i) % count, Columns(name, None, data[at : at + step]))
            for i, at in enumerate(range(0, len(data), step))
        ]

    def _make(self, columns: Columns, number: int, sent: dict[bytes, int], sends: list[Send], now: int) -> None:
        limits = self._app.limits
        keys, data = columns.keys, columns.data
        meta = codec.RunMeta([columns.name])

        def encode_part(start: int, end: int) -> bytes:
            return codec.encode_run(meta, end - start, None if keys is None else keys[start:end], data[start:end])

        pieces = codec.split(encode_part, 0, len(data), limits.batch_target, limits.batch_max)
        flags = codec.SELF_REPLY if self._calls else 0
        for listener in self._app.routing.listeners[columns.name]:
            target = self._app.log(listener.pool, number)
            packed = target.packed()
            for body, events in pieces:
                sequence = sent.get(packed, 0)
                sent[packed] = sequence + 1
                sealed = codec.seal(body, events, self.id, self._app.record.incarnation, sequence, now, (), flags)
                sends.append(Send(target, sealed, events))

    def commit(
        self,
        prepared: tuple[list[Send], SourceHead, list[tuple[bytes, bytes]], Counter[str]],
        size: int,
        then: Callable[[], None],
    ) -> None:
        """Hand in a prepared chunk of ``size`` bytes of input; ``then`` is called when it is durable."""
        sends, head, dead, counts = prepared
        rows: list[tuple[Table, Rows]] = [("dead", [*dead])] if dead else []

        def committed() -> None:
            self.head = head
            self.size += size
            self._app.stats.fed.update(counts)
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
