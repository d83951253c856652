"""What one app has emitted for another, as a stream of that one takes it. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from msgspec import Raw, Struct, structs

from grape.model import batch as codec
from grape.model.address import partition_of
from grape.model.batch import Context
from grape.model.foreign import AT, ReplyName, caller_of, pool_of_caller
from grape.model.stored import REPLIES
from grape.model.topology import Limits
from grape.protocol.door import BadInput, Batch, Part

_NIL: Final = Raw(b"\xc0")
NO_SLOT: Final = "no-such-slot"


class Target(Struct, frozen=True):
    """The app that gets it. ``events``: to which it listens."""

    app: str
    events: frozenset[str]
    partitions: int
    limits: Limits


class Packed(Struct, frozen=True):
    """A step of the stream. ``bad``: what nothing listens to there."""

    parts: list[Part]
    bad: list[BadInput]


class _Group:
    """Events of one name for one partition, which follow one another."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.keys: list[str | None] = []
        self.data: list[Raw] = []
        self.hops: list[int] = []
        self.contexts: list[Context | None] = []


class Packer:
    """From the app ``source`` to ``target``. Events of a key, and those that a partition has emitted without one, stay
    in their order."""

    def __init__(self, source: str, target: Target) -> None:
        self._source = source
        self._target = target
        self._groups: dict[tuple[int, str], list[_Group]] = {}
        self._bad: list[BadInput] = []

    def pack(self, items: Iterable[Batch]) -> Packed:
        """Batches that were read, without what was taken of them before.

        Raises:
            ProtocolError, MsgspecError: they cannot be read.
        """
        self._groups, self._bad = {}, []
        for item in items:
            self._add(item)
        parts: list[Part] = []
        for (number, log), groups in self._groups.items():
            for group in groups:
                parts += self._parts(number, log, group)
        return Packed(parts, self._bad)

    def _add(self, item: Batch) -> None:
        batch = bytes(item.batch)
        header = codec.header_of(batch)
        table = [self._seen_there(context) for context in codec.contexts_of(batch, header)]
        offset = 0
        for run in codec.runs_of(codec.body_of(batch, header)):
            names, keys, data = codec.names_of(run), codec.keys_of(run), codec.raw_data_of(run)
            for i in range(max(0, item.first - offset), run.count):
                key = None if keys is None else keys[i]
                value = _NIL if data is None else data[i]
                at = -1 if run.meta.contexts is None else run.meta.contexts[i]
                context = None if at < 0 else table[at]
                self._put(item, names[i], key, value, codec.hops_of(run.meta, i), context)
            offset += run.count

    def _put(self, item: Batch, name: str, key: str | None, value: Raw, hops: int, context: Context | None) -> None:
        reply = ReplyName.read(name)
        if reply is not None:
            if reply.home < self._target.partitions:
                self._append(reply.home, REPLIES + reply.pool, reply.word, key, value, 0, None)
            return
        event = name.partition(AT)[2]
        if event not in self._target.events:
            text = f"app {self._target.app!r} has no slot {event!r:.300}"
            self._bad.append(BadInput(f"app {self._source}", event, bytes(value), NO_SLOT, text))
            return
        number = item.number % self._target.partitions if key is None else partition_of(key, self._target.partitions)
        self._append(number, "", event, key, value, hops, context)

    def _append(
        self, number: int, log: str, name: str, key: str | None, value: Raw, hops: int, context: Context | None
    ) -> None:
        groups = self._groups.setdefault((number, log), [])
        if not groups or groups[-1].name != name:
            groups.append(_Group(name))
        group = groups[-1]
        group.keys.append(key)
        group.data.append(value)
        group.hops.append(hops)
        group.contexts.append(context)

    def _parts(self, number: int, log: str, group: _Group) -> Iterator[Part]:
        limits = self._target.limits
        has_contexts = any(group.contexts)
        keys = None if group.keys.count(None) == len(group.keys) else group.keys

        def encode(start: int, end: int) -> bytes:
            return codec.encode_run(
                codec.RunMeta(
                    [group.name],
                    hops=_short(group.hops[start:end]),
                    contexts=_numbers(group.contexts[start:end])[1] if has_contexts else None,
                ),
                end - start,
                None if keys is None else keys[start:end],
                group.data[start:end],
            )

        at = 0
        for body, events in codec.split(encode, 0, len(group.data), limits.batch_target, limits.batch_max):
            table = _numbers(group.contexts[at : at + events])[0] if has_contexts else []
            yield Part(log or group.name, number, events, memoryview(body), table)
            at += events

    def _seen_there(self, context: Context) -> Context:
        """Who waits for an answer, as the other app has to call him."""
        if not context.request:
            return context
        caller = caller_of(context.pool)
        if caller is None:
            return structs.replace(context, pool=pool_of_caller(self._source, context.pool))
        app, pool = caller
        return structs.replace(context, pool=pool) if app == self._target.app else context


def _short(hops: list[int]) -> int | list[int]:
    return hops[0] if hops.count(hops[0]) == len(hops) else hops


def _numbers(contexts: list[Context | None]) -> tuple[list[Context], list[int]]:
    """(all that are different, the number of each)."""
    table: dict[Context, int] = {}
    numbers = [-1 if one is None else table.setdefault(one, len(table)) for one in contexts]
    return list(table), numbers


class Position(Struct, array_like=True):
    """How far a stream is: of each partition of the source, the place of the last batch that it has."""

    last: dict[int, int] = {}

    @classmethod
    def read(cls, packed: bytes) -> Position:
        return msgspec.msgpack.decode(packed, type=cls) if packed else cls()

    def packed(self) -> bytes:
        return msgspec.msgpack.encode(self)

    def has(self, item: Batch) -> bool:
        return item.position <= self.last.get(item.number, -1)

    def behind(self, items: Iterable[Batch]) -> Position:
        """With these."""
        return Position({**self.last, **{item.number: item.position for item in items}})
