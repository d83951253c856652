"""A node whose handler another program runs: a stage goes there as columns, and comes back as what it did."""

from __future__ import annotations

from bisect import bisect_right
from itertools import repeat
from typing import Any, Final

from msgspec import Raw

from grape.authoring.emitter import INHERIT
from grape.errors import ProtocolError, UnknownEvent
from grape.model.address import check_timer_name
from grape.protocol.base import Asked, Emits, Ran, Run
from grape.protocol.messages import Named
from grape.worker.adapter.objects import RunObjects
from grape.worker.adapter.speaker import Speaker
from grape.worker.calls import Suspended
from grape.worker.emits import Cancelled, Delayed, Replied, TooMuch
from grape.worker.objects import OBJECT_COSTS
from grape.worker.stage import Stage
from grape.worker.state import MISSING
from grape.worker.units.unit import Emissions, Unit

_NIL: Final = Raw(b"\xc0")
_LATEST: Final = 1 << 62


class ForeignUnit(Unit):
    """See the module. What events emit is collected over all of a stage."""

    def __init__(self, speaker: Speaker, *args: Any) -> None:
        super().__init__(*args)
        self._speaker = speaker
        self._waits_for: list[int] = []
        self._done = 0

    def position(self) -> int:
        return self._waits_for[min(self._done, len(self._waits_for) - 1)] if self._waits_for else 0

    def run(self, stage: Stage) -> Emissions | None:
        """As `Unit.run`.

        Raises:
            Gone, ProtocolError: the program has ended, or has to.
            TooMuch: see there.
        """
        self.stage = stage
        self._emits: list[tuple[list[int], str | list[Any], list[Any] | None, list[Any]]] = []
        self._size = 0
        todo = list(range(stage.count))
        try:
            while todo:
                if self._host.locked(self.node):
                    todo = self._without_waiting(stage, todo)
                    if not todo:
                        break
                todo = todo[self._run(stage, todo) :]
            return self._gathered(stage)
        finally:
            self.stage = None
            self._waits_for = []

    def _without_waiting(self, stage: Stage, todo: list[int]) -> list[int]:
        """Those that need not wait behind a failed one of their key."""
        free = []
        for i in todo:
            if self._must_wait(stage, i):
                self._host.behind(self, stage, i)
            else:
                free.append(i)
        return free

    def _run(self, stage: Stage, todo: list[int]) -> int:
        """Let the program run these events; returns how many of them are finished."""
        self._waits_for, self._done = todo, 0
        self.is_exact = self._speaker.is_exact or len(todo) == 1
        run = self._ask(stage, todo)
        done = 0
        objects = RunObjects(self._host.objects, self.node, lambda: self._host.part)
        try:
            for ran in self._speaker.run(run, self._progressed, objects):
                done += ran.events
                if ran.failed is not None:
                    objects.failed(ran.failed.index)
                self._take(stage, todo, ran)
                self._wrote(todo, objects, done)
        finally:
            objects.end()
        return done

    def _wrote(self, todo: list[int], objects: RunObjects, done: int) -> None:
        """What the first ``done`` events have written."""
        for index, written in objects.take(done):
            self._size += OBJECT_COSTS + written.write.weight
            self._put([todo[index]], [written], None, [_NIL])

    def _progressed(self, done: int) -> None:
        self._done = done
        if self.stage is not None:
            self.stage.progress()

    def _ask(self, stage: Stage, todo: list[int]) -> Run:
        picked = None if len(todo) == stage.count else todo

        def of(column: list[Any]) -> list[Any]:
            return column if picked is None else [column[i] for i in picked]

        keys = None if stage.keys is None else of(stage.keys)
        data = stage.travelled()
        ids = stage.ids() if picked is None else None
        prefix, first = ids or ("", 0)
        states = self._host.table(self.node).records(keys or (), self._host.now_us()) if self.has_state else None
        return Run(
            self.node,
            len(todo),
            [stage.names] if isinstance(stage.names, str) else of(stage.names),
            keys,
            None if data is None else of(data),
            prefix,
            first,
            None if ids is not None else [stage.id_of(i) for i in todo],
            stage.created(),
            stage.attempt_of(todo[0]),
            states,
            list(self._host.answers(self, stage, todo[0])) if len(todo) == 1 else [],
            self._host.trace_of(stage, todo[0]) if len(todo) == 1 else "",
        )

    def _take(self, stage: Stage, todo: list[int], ran: Ran) -> None:
        self._store(ran)
        self._emitted(todo, ran)
        if ran.failed is not None:
            said = ran.failed
            if said.call is not None:
                self._host.fail(self, stage, todo[said.index], self._suspended(said.call))
                return
            named = Named("", self.node, said.kind or "error", said.text, False, said.trace)
            self._host.fail(self, stage, todo[said.index], None, named)

    def _suspended(self, call: Asked) -> Suspended:
        """The event waits for an answer."""
        if call.event not in self._names.known:
            self._check_name(call.event)
        if call.event in self._names.outputs:
            raise ProtocolError(f"a call of {call.event!r:.300}, which nothing listens to")
        if not (0 < call.timeout <= _LATEST // 2 and 1 <= len(call.digest) <= 64):
            raise ProtocolError(f"a call with a time-out of {call.timeout} us, or a digest of {len(call.digest)} bytes")
        keys = self._keys([call.key], 1)
        assert keys is not None
        return Suspended(call.event, self._value(call.data), keys[0], call.timeout, call.digest)

    def _store(self, ran: Ran) -> None:
        if not ran.states:
            return
        if not self.has_state:
            raise ProtocolError(f"state of {self.node!r}, which has none")
        table, now = self._host.table(self.node), self._host.now_us()
        for change in ran.states:
            if change.key not in table.values:
                raise ProtocolError(f"state of the key {change.key!r:.100}, which none of the events has")
            changed: dict[str, Any] = dict.fromkeys(change.deleted, MISSING)
            for name, value in change.values.items():
                changed[name] = self._value(value)
                table.note_written(len(value) if type(value) is Raw else 8)
            if not changed.keys() <= table.types.keys():
                raise ProtocolError(f"states {sorted(changed)} of {self.node!r}, which has {sorted(table.types)}")
            if changed:
                table.store(change.key, changed, now)

    def _value(self, value: Raw) -> Raw:
        if len(value) > self._limits.max_event:
            raise ProtocolError(f"a value over max-event ({self._limits.max_event} bytes)")
        return value.copy()

    def _emitted(self, todo: list[int], ran: Ran) -> None:
        emits = ran.emits
        count = len(emits.data)
        uniform = len(emits.names) == 1
        if len(emits.origins) != count or (count and not uniform and len(emits.names) != count):
            raise ProtocolError("columns of emits that are not equally long")
        if count:
            for name in set(emits.names):
                if name not in self._names.known and (name or emits.timers is None):
                    self._check_name(name)
            if emits.origins != sorted(emits.origins) or not 0 <= emits.origins[0] <= emits.origins[-1] < len(todo):
                raise ProtocolError("emits of events that are not in the run, or not in their order")
            names: str | list[Any] = emits.names[0] if uniform else list(emits.names)
            if emits.delays is not None or emits.timers is not None:
                names = self._delayed(names, emits, [todo[i] for i in emits.origins])
            self._put([todo[i] for i in emits.origins], names, self._keys(emits.keys, count), emits.data)
        for reply in ran.replies:
            if not 0 <= reply.index < len(todo):
                raise ProtocolError("a reply of an event that is not in the run")
            self._put([todo[reply.index]], [Replied(reply.final)], None, [reply.data])

    def _check_name(self, name: str) -> None:
        try:
            self._names.check(name, self.node)
        except UnknownEvent as e:
            raise ProtocolError(str(e)) from None

    def _put(self, origins: list[int], names: str | list[Any], keys: list[Any] | None, data: list[Raw]) -> None:
        largest = max(map(len, data))
        if largest > self._limits.max_event:
            raise ProtocolError(f"a value of {largest} bytes is over max-event ({self._limits.max_event})")
        self._size += sum(map(len, data))
        if self._size > self._limits.max_result:
            raise TooMuch
        self._emits.append((origins, names, keys, data))

    def _delayed(self, names: str | list[Any], emits: Emits, origins: list[int]) -> list[Any]:
        count = len(origins)
        delays = emits.delays or [-1] * count
        timers = emits.timers or [None] * count
        if len(delays) != count or max(delays) > _LATEST or len(timers) != count:
            raise ProtocolError("delays that cannot be")
        each = repeat(names, count) if isinstance(names, str) else names
        return [self._later(*one) for one in zip(each, delays, timers, origins, strict=True)]

    def _later(self, name: str, delay: int, timer: str | None, origin: int) -> Any:
        """What stands in the column of names."""
        if timer is None and name:
            return name if delay < 0 else Delayed(name, delay)
        assert self.stage is not None
        try:
            check_timer_name(timer)
        except (TypeError, ValueError) as e:
            raise ProtocolError(str(e)) from None
        if self.stage.key_of(origin) is None or (delay < 0) is bool(name):
            raise ProtocolError("a timer's name in an event without a key, or without what it names")
        return Delayed(name, delay, timer or "") if name else Cancelled(timer or "")

    def _keys(self, keys: list[str | bool | None] | None, count: int) -> list[Any] | None:
        if keys is None:
            return None
        if len(keys) != count:
            raise ProtocolError("columns of emits that are not equally long")
        try:
            for key in set(keys):
                if isinstance(key, str):
                    self._partitions[key]
        except (ValueError, TypeError) as e:
            raise ProtocolError(str(e)) from None
        return [INHERIT if key is None else None if isinstance(key, bool) else key for key in keys]

    def _gathered(self, stage: Stage) -> Emissions | None:
        """All that was emitted, as one."""
        parts = self._emits
        if not parts:
            return None
        if len(parts) == 1:
            origins, names, keys, data = parts[0]
        else:
            origins, names, keys, data = _joined(parts)
        if origins != sorted(origins):  # replies stand behind the emits of their run
            order = sorted(range(len(origins)), key=origins.__getitem__)
            origins = [origins[i] for i in order]
            names = names if isinstance(names, str) else [names[i] for i in order]
            keys = None if keys is None else [keys[i] for i in order]
            data = [data[i] for i in order]
        if isinstance(names, str) and keys is None and origins == list(range(stage.count)):
            return Emissions(names, None, data, None, None, self._size)
        marks = [bisect_right(origins, i) for i in range(stage.count)]
        return Emissions(names, keys, data, marks, None, self._size)

    # What `Unit.run` would call; here the program does it.

    def _begin(self, stage: Stage, data: list[Any] | None) -> None: ...

    def _fast(self) -> None: ...

    def _one(self, index: int) -> None: ...


def _joined(
    parts: list[tuple[list[int], str | list[Any], list[Any] | None, list[Any]]],
) -> tuple[list[int], str | list[Any], list[Any] | None, list[Any]]:
    first = parts[0][1]
    names: str | list[Any] = first
    if not isinstance(first, str) or any(part[1] != first for part in parts):
        names = [n for _, some, _, data in parts for n in (repeat(some, len(data)) if isinstance(some, str) else some)]
    keys = None
    if any(part[2] is not None for part in parts):
        keys = [key for _, _, some, data in parts for key in (repeat(INHERIT, len(data)) if some is None else some)]
    return [i for part in parts for i in part[0]], names, keys, [value for part in parts for value in part[3]]
