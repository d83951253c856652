"""Many events of one request as one step of a stream: packed here, routed by the engine without a look at each.

A gateway has one stream for each app, under its own number, so that a step is accepted once whatever dies on the other
side: what an engine has not accepted is sent to the next one under the same number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from msgspec import Raw, Struct

from grape.client.events import ClientEvent
from grape.errors import Full, GrapeError, NoAnswer, UnknownEvent
from grape.gateway.door import Door, knock
from grape.model import batch as codec
from grape.model.address import Partitions
from grape.model.near import did_you_mean
from grape.model.topology import Limits
from grape.protocol.door import WINDOW, Accepted, Append, FromEngine, OpenStream, Part, StreamOpened

_STEP: Final = 4 << 20
"""Bytes of one step, about; a larger request is several."""
_MOST: Final = 64 << 20
"""Bytes of steps that are not accepted."""
_PATIENCE: Final = 30.0
_STALL: Final = 5.0
"""Seconds after which what is not accepted is taken back."""
_FULL_FOR: Final = 1.0
"""Seconds in which others are then refused at once, before it is tried again."""
_FULL: Final = "the app takes nothing in now: its backlog is at its limit, or the disk is full"
_TOGETHER: Final = 1_000
"""Requests that do not wait for the step before them."""
_NUMBER: Final = 1


class _Step(Struct):
    """``number``: 0 until it has one. ``waiting``: those whose last events are in it."""

    parts: list[Part]
    size: int
    waiting: list[asyncio.Future[None]] = []
    number: int = 0
    is_sent: bool = False


class BatchStream:
    """Of one app.

    Args:
        name: of the stream. directory: of the app.
        door: gives one that takes events, once there is one.
    """

    def __init__(self, name: str, directory: str, door: Callable[[], Awaitable[Door]]) -> None:
        self._name = name
        self._directory = directory
        self._is_there = door
        self._door: Door | None = None
        self._opened: asyncio.Future[StreamOpened] | None = None
        self._fresh: list[tuple[list[ClientEvent], asyncio.Future[None]]] = []
        self._door_of_app: Door | None = None
        self._steps: list[_Step] = []
        self._stall: asyncio.TimerHandle | None = None
        self._full_until = 0.0
        self._is_stalled = False
        self._bytes = 0
        self._next = 0
        self._spread = 0
        self._coming: asyncio.Task[None] | None = None

    async def hand_in(self, events: list[ClientEvent], door: Door) -> None:
        """All of them; returns when they are durable. ``door``: of the app, which says what there is.

        Raises:
            Full: too much waits already, or the app takes nothing in now; none of them was accepted.
            Problem: the app is not there.
        """
        if self._bytes > _MOST:
            raise Full("too many batches wait for the engine")
        if asyncio.get_running_loop().time() < self._full_until:
            raise Full(_FULL)
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._fresh:
            asyncio.get_running_loop().call_soon(self._pack, door)
        self._fresh.append((events, accepted))
        await accepted

    def _pack_rest(self) -> None:
        if self._door_of_app is not None:
            self._pack(self._door_of_app)

    def _pack(self, door: Door) -> None:
        """What has come in one turn of the loop goes together, and with what comes while a step is under way."""
        if not self._fresh or (self._steps and len(self._fresh) < _TOGETHER):
            return
        fresh, self._fresh = self._fresh, []
        self._door_of_app = door
        events = [event for some, _ in fresh for event in some]
        waiting = [accepted for _, accepted in fresh]
        try:
            packed = list(packed_steps(events, door.partitions, door.limits, self._spread))
        except Exception as e:  # whoever waits would never hear of it
            _tell(waiting, e)
            return
        steps = [_Step(parts, size) for parts, size in packed]
        steps[-1].waiting = waiting
        self._spread += sum(len(step.parts) for step in steps)
        self._steps += steps
        self._bytes += sum(step.size for step in steps)
        self._go_on()

    # ------------------------------------------------------------------ the stream

    def _go_on(self) -> None:
        if self._opened is not None and self._opened.done() and self._door is not None and self._door.is_open:
            self._send()
        elif self._coming is None:
            self._coming = asyncio.ensure_future(self._come())
            self._coming.add_done_callback(self._came)

    def _came(self, task: asyncio.Task[None]) -> None:
        self._coming = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Nothing of what waits was accepted."""
        steps, self._steps, self._bytes = self._steps, [], 0
        fresh, self._fresh = self._fresh, []
        _tell([waiting for step in steps for waiting in step.waiting] + [waiting for _, waiting in fresh], error)

    async def _come(self) -> None:
        """Open the stream at the engine that is there, or comes.

        Raises:
            Problem: none does.
        """
        while self._steps:
            await self._is_there()
            self._opened = asyncio.get_running_loop().create_future()
            try:
                door = self._door = await knock(self._directory, _nothing, self._gone, self._heard)
                door.send(OpenStream(_NUMBER, self._name))
                async with asyncio.timeout(_PATIENCE):
                    opened = await asyncio.shield(self._opened)
            except (OSError, GrapeError, TimeoutError):  # it has just ended, or the stream is not free yet
                if self._door is not None:
                    self._door.close()
                await asyncio.sleep(0.05)
                continue
            self._begin(opened.number)
            return

    def _begin(self, last: int) -> None:
        """``last``: the number of the last step that was accepted."""
        for step in [step for step in self._steps if step.number and step.number <= last]:
            self._accept(step)
        self._next = last
        if self._is_stalled:  # what it had not accepted by then it never will
            self._is_stalled = False
            self._full_until = asyncio.get_running_loop().time() + _FULL_FOR
            self._fail(Full(_FULL))
        for step in self._steps:
            step.number = 0
            step.is_sent = False
        self._watch()
        self._send()
        self._pack_rest()

    def _heard(self, message: FromEngine) -> None:
        match message:
            case StreamOpened() if self._opened is not None and not self._opened.done():
                self._opened.set_result(message)
            case Accepted():
                for step in [step for step in self._steps if 0 < step.number <= message.number]:
                    self._accept(step)
                self._watch()
                self._send()
                self._pack_rest()

    def _accept(self, step: _Step) -> None:
        self._steps.remove(step)
        self._bytes -= step.size
        for waiting in step.waiting:
            if not waiting.done():
                waiting.set_result(None)

    def _send(self) -> None:
        """As much as may be under way."""
        door = self._door
        if door is None or not door.is_open:
            return
        under_way = sum(step.size for step in self._steps if step.is_sent)
        for step in self._steps:
            if step.is_sent:
                continue
            if under_way and under_way + step.size > WINDOW:
                return
            self._next += 1
            step.number, step.is_sent = self._next, True
            under_way += step.size
            door.send_append(Append(_NUMBER, step.number, b"", step.parts, size=step.size))
            if self._stall is None:
                self._watch()

    def _watch(self) -> None:
        """The oldest step is to be accepted in time."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if any(step.is_sent for step in self._steps):
            self._stall = asyncio.get_running_loop().call_later(_STALL, self._stalled)

    def _stalled(self) -> None:
        """It is not. The stream is closed, which has the engine drop what it has not accepted, and opened again, which
        says what that was."""
        self._stall = None
        self._is_stalled = True
        if self._door is not None:
            self._door.close()

    def _gone(self) -> None:
        if self._door is not None and self._door.is_open:
            return  # it was one before
        self._door = None
        if self._stall is not None:  # the engine that comes next has as long again
            self._stall.cancel()
            self._stall = None
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(NoAnswer("the engine has gone"))
            self._opened.exception()
        if self._steps:
            self._go_on()

    def close(self) -> None:
        for task in (self._coming, self._stall):
            if task is not None:
                task.cancel()
        if self._door is not None:
            self._door.close()


def _tell(waiting: list[asyncio.Future[None]], error: BaseException) -> None:
    for each in waiting:
        if not each.done():
            each.set_exception(error)


def check_names(events: list[ClientEvent], door: Door) -> None:
    """
    Raises:
        UnknownEvent: nothing listens to one of them.
    """
    for at, name in enumerate(event.name for event in events):
        if name not in door.events:
            known = (*door.topology.events, *door.topology.outputs)
            hint = did_you_mean(name, known, f"it has {', '.join(map(repr, known))}")
            which = f"item {at}: " if len(events) > 1 else ""
            raise UnknownEvent(f"{which}app {door.topology.name!r} has no slot or output {name!r:.300}; {hint}")


def packed_steps(
    events: list[ClientEvent], partitions: int, limits: Limits, spread: int
) -> Iterator[tuple[list[Part], int]]:
    """Steps of about `_STEP` bytes: their parts, and how large they are."""
    where = Partitions(partitions)
    start = 0
    while start < len(events):
        end, size = start, 0
        while end < len(events) and (end == start or size + len(events[end].data) <= _STEP):
            size += len(events[end].data)
            end += 1
        parts: list[Part] = []
        groups: dict[tuple[str, int], list[ClientEvent]] = {}
        for event in events[start:end]:
            number = spread % partitions if event.key is None else where[event.key]
            groups.setdefault((event.name, number), []).append(event)
        for (name, number), group in groups.items():
            parts += _parts(name, number, group, limits)
        spread += len(parts)
        yield parts, sum(len(part.body) for part in parts)
        start = end


def _parts(name: str, number: int, events: list[ClientEvent], limits: Limits) -> list[Part]:
    meta = codec.RunMeta([name])
    keys = None if all(event.key is None for event in events) else [event.key for event in events]
    data = [Raw(event.data) for event in events]

    def encoded(start: int, end: int) -> bytes:
        return codec.encode_run(meta, end - start, None if keys is None else keys[start:end], data[start:end])

    pieces = codec.split(encoded, 0, len(events), limits.batch_target, limits.batch_max)
    return [Part(name, number, count, memoryview(body)) for body, count in pieces]


def _nothing(batches: list[bytes]) -> None:
    pass
