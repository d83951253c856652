"""Feeding: a source is an origin whose committed state is its position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from msgspec import Struct, structs

from grape.abc.source import Bad, Chunk, Columns, Pairs, Source
from grape.abc.transport import Rows, Send, Table, Transport
from grape.engine.app import App
from grape.engine.clock import Clock
from grape.engine.committer import Committer
from grape.engine.ids import Ids, Named, Verdict, content_of
from grape.errors import Conflict, HandlerError, UsageError
from grape.model import batch as codec
from grape.model.address import Partitions, check_key, partition_of
from grape.model.stored import SOURCE, DeadLetter, SourceHead, decode_source, encode, row_key

T = TypeVar("T")

_SLICE: Final = 2_048
_CACHED_KEYS: Final = 65_536


class Prepared(Struct, frozen=True):
    """A chunk as it will be committed. ``head`` is what holds when it and all before it are. ``size``: bytes of input;
    ``bytes``: of its batches. ``ids``: what is to be remembered."""

    sends: list[Send]
    head: SourceHead
    dead: list[tuple[bytes, bytes]]
    counts: Counter[str]
    size: int
    bytes: int
    ids: Sequence[Named] = ()


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
    """One source. ``prepare`` and what it needs run on the source's thread, all else on the engine's."""

    def __init__(
        self,
        app: App,
        source: Source,
        transport: Transport,
        committer: Committer,
        calls: bool,
        clock: Clock,
        ids: Ids | None = None,
    ) -> None:
        self.source = source
        self.ids = Ids(app, transport, clock) if ids is None else ids
        self.id = app.log(SOURCE + source.name, 0)
        self._app = app
        self._calls = calls
        self._clock = clock
        self._committer = committer
        self._most = transport.features.largest_commit // 2
        found = self._committer.claimed_head
        self.head = decode_source(found) if found else SourceHead()
        self._planned = self.head
        self._line = partition_of(source.name, app.partitions) if source.terms.in_order else None
        """The partition that gets all of it."""
        self._partitions = Partitions(app.partitions)
        self._sorter = _Sorter(app.partitions)

    @property
    def is_busy(self) -> bool:
        """A commit is under way."""
        return self._committer.is_busy

    @property
    def has_ended(self) -> bool:
        """The event that says so was the last that was prepared."""
        return self._planned.ended

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
        place = getattr(self.source, "path", self.source.name)
        where = place if part.lines is None else f"{place}:{part.lines[index]}"
        text = f"the id {part.ids[index]!r:.300} was used for another event"
        raw = bytes(encode(part.data[index]))
        return Bad(where, part.name, raw, Conflict.code, text)

    def prepare_end(self) -> Prepared:
        """The event that says that the source has ended."""
        head = self._planned
        data = {"source": self.source.name, "events": head.fed}
        draft = _Draft(dict(head.sent), head.spread)
        self._add(draft, self._slices(Columns(self.source.terms.on_end, None, [data]), head.spread), self._clock.now())
        self._planned = new = structs.replace(head, sent=draft.sent, spread=draft.spread, ended=True)
        return Prepared(draft.sends, new, [], draft.counts, 0, sum(len(send.batch) for send in draft.sends))

    def prepare(self, chunk: Chunk, ids: Sequence[Named] = ()) -> Prepared:
        """Make the batches of a chunk, which follows the one prepared before: the work, without the commit. ``ids``:
        of the events in it, to be remembered."""
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
                if self._line is not None:
                    raise HandlerError  # their keys have to be looked at
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
            False,
            head.next_id + len(ids),
        )
        size = sum(len(send.batch) for send in draft.sends)
        return Prepared(draft.sends, new, dead, draft.counts, chunk.size, size, ids)

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
        if keys is not None and self._line is not None:
            keyed = next((key for key in keys if key is not None), None)
            if keyed is not None:
                raise UsageError(
                    f"source {self.source.name!r}: order=source is for events without keys, and one has the key "
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
        limits = self._app.limits
        name, data, lines, ids = columns.name, columns.data, columns.lines, columns.ids
        size = len(codec.encode(data))
        step = max(1, len(data) * limits.batch_target // max(size, 1)) if name not in self._app.long_events else 1
        step = min(step, limits.dispatch_events)
        count = self._app.partitions
        return [
            (
                (spread + i) % count if self._line is None else self._line,
                Columns(name, None, data[at : at + step], lines and lines[at : at + step], ids and ids[at : at + step]),
            )
            for i, at in enumerate(range(0, len(data), step))
        ]

    def _make(self, columns: Columns, number: int, sent: dict[bytes, int], sends: list[Send], now: int) -> None:
        limits = self._app.limits
        keys, data = columns.keys, columns.data
        # A call is answered under its event's id: one that says where its event stood.
        lines = columns.lines if self._calls else None
        own = columns.ids
        prefix = f"{self._app.record.incarnation:08x}-{self.source.name}:"

        def encode_part(start: int, end: int) -> bytes:
            ids = None if lines is None else {i: f"{prefix}{line}" for i, line in enumerate(lines[start:end])}
            if own is not None:
                ids = dict(enumerate(own[start:end]))
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

    def first(self, chunks: list[Prepared]) -> list[Prepared]:
        """As many as one commit holds, at least one."""
        size = 0
        for i, chunk in enumerate(chunks):
            size += chunk.bytes
            if i and size > self._most:
                return chunks[:i]
        return chunks

    def commit(self, chunks: list[Prepared], then: Callable[[], None]) -> None:
        """Commit prepared chunks as one step; ``then`` is called when they are durable."""
        sends = [send for chunk in chunks for send in chunk.sends]
        dead = [row for chunk in chunks for row in chunk.dead]
        rows: list[tuple[Table, Rows]] = [("dead", [*dead])] if dead else []
        head = chunks[-1].head
        named = [named for chunk in chunks for named in chunk.ids]
        if named:
            rows += self.ids.rows(self.id, named, self.head.next_id)

        def committed() -> None:
            self.head = head
            for chunk in chunks:
                self._app.stats.fed.update(chunk.counts)
            self._app.stats.dead += len(dead)
            self.ids.durable(named)
            then()

        self._committer.submit(encode(head), sends, rows, then=committed)


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
