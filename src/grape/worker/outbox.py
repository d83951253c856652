"""What a work emits, collected by target log and packed into bodies at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from grape.model.batch import RunMeta, encode_run, split
from grape.protocol.messages import Emitted


class Target(NamedTuple):
    """A log to be, and how its events are grouped: only names with the same ``group`` share a run."""

    log: str
    partition: int


class Columns:
    """A run that grows. ``keys`` None: all keyless so far; ``data`` None: all nil; ``index`` None: all ``names[0]``."""

    __slots__ = ("contexts", "count", "data", "group", "hops", "index", "keys", "names", "only")

    def __init__(self, group: object, name: str, hops: int, only: list[str] | None) -> None:
        self.group = group
        self.names = [name]
        self.index: bytearray | None = None
        self.keys: list[str | None] | None = None
        self.data: list[Any] | None = None
        self.hops: int | list[int] = hops
        self.contexts: list[int] | None = None
        self.only = only
        self.count = 0

    def extend(
        self,
        name: str,
        keys: Sequence[str | None] | None,
        data: Sequence[Any] | None,
        hops: int | Sequence[int],
        contexts: Sequence[int] | None,
    ) -> None:
        """Append events of one name; ``keys`` or ``data`` say how many."""
        n = len(keys if keys is not None else data or ())
        if name != self.names[-1] or self.index is not None:
            self._extend_index(name, n)
        if keys is not None:
            if self.keys is None:
                self.keys = [None] * self.count
            self.keys.extend(keys)
        elif self.keys is not None:
            self.keys.extend([None] * n)
        if data is not None:
            if self.data is None:
                self.data = [None] * self.count
            self.data.extend(data)
        elif self.data is not None:
            self.data.extend([None] * n)
        if isinstance(self.hops, list) or hops != self.hops:
            if not isinstance(self.hops, list):
                self.hops = [self.hops] * self.count
            self.hops.extend([hops] * n if isinstance(hops, int) else hops)
        if contexts is not None:
            if self.contexts is None:
                self.contexts = [-1] * self.count
            self.contexts.extend(contexts)
        elif self.contexts is not None:
            self.contexts.extend([-1] * n)
        self.count += n

    def _extend_index(self, name: str, n: int) -> None:
        if self.index is None:
            self.index = bytearray(self.count)
        try:
            number = self.names.index(name)
        except ValueError:
            number = len(self.names)
            self.names.append(name)
        self.index.extend(bytes((number,)) * n)

    def fits(self, group: object, name: str, only: list[str] | None) -> bool:
        return self.group == group and self.only == only and (len(self.names) < 255 or name in self.names)


class Outbox:
    """The emits of one work. ``contexts`` in it are numbers of the work's contexts."""

    def __init__(self, batch_target: int, batch_max: int) -> None:
        self._lanes: dict[Target, list[Columns]] = {}
        self._batch_target = batch_target
        self._batch_max = batch_max
        self.events = 0

    def columns(self, target: Target, group: object, name: str, hops: int, only: list[str] | None = None) -> Columns:
        """The run to which the next events of ``name`` for ``target`` are appended."""
        lane = self._lanes.get(target)
        if lane is None:
            lane = self._lanes[target] = []
        if lane and lane[-1].fits(group, name, only):
            return lane[-1]
        lane.append(Columns(group, name, hops, only))
        return lane[-1]

    def pack(self) -> list[Emitted]:
        """Everything as bodies of at most ``batch_max`` bytes (but for one larger event), and start anew."""
        out: list[Emitted] = []
        for target, lane in self._lanes.items():
            parts: list[bytes] = []
            events = size = 0
            contexts: list[int] = []
            for columns in lane:
                for body, count in self._runs(columns, contexts):
                    if parts and size + len(body) > self._batch_max:
                        out.append(Emitted(target.log, target.partition, events, b"".join(parts), contexts))
                        parts, events, size = [], 0, 0
                    parts.append(body)
                    events += count
                    size += len(body)
            if parts:
                out.append(Emitted(target.log, target.partition, events, b"".join(parts), contexts))
        self._lanes = {}
        self.events = 0
        return out

    def _runs(self, columns: Columns, contexts: list[int]) -> list[tuple[bytes, int]]:
        local: list[int] | None = None
        if columns.contexts is not None:
            numbers = {number: at for at, number in enumerate(contexts)}
            local = []
            for number in columns.contexts:
                if number < 0:
                    local.append(-1)
                    continue
                at = numbers.get(number)
                if at is None:
                    at = numbers[number] = len(contexts)
                    contexts.append(number)
                local.append(at)
        all_keys = columns.keys
        if all_keys is not None and all_keys.count(None) == columns.count:
            all_keys = None

        def encode(start: int, end: int) -> bytes:
            whole = end - start == columns.count
            hops = columns.hops
            meta = RunMeta(
                columns.names,
                None if columns.index is None else bytes(columns.index[start:end]),
                hops if isinstance(hops, int) else hops[start:end],
                columns.only,
                None,
                None if local is None else local[start:end],
            )
            keys = all_keys if whole or all_keys is None else all_keys[start:end]
            data = columns.data if whole or columns.data is None else columns.data[start:end]
            return encode_run(meta, end - start, keys, data)

        return split(encode, 0, columns.count, self._batch_target, self._batch_max)
