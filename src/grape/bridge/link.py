"""One way from an app to another: a reader at the door of the first, a stream at that of the second.

The position of the stream says which batches of the first app the second one has: it is committed there with what came
of them. So a batch that is read again, whoever has died, goes in once. The reader's own position follows behind; up to
there the first app lets go of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final

import msgspec

from grape.bridge.door import Door
from grape.bridge.packing import Packer, Position, Target
from grape.errors import ProtocolError
from grape.model import batch as codec
from grape.model.foreign import AT
from grape.model.stored import REPLIES
from grape.protocol.door import (
    WINDOW,
    Accepted,
    Append,
    Batch,
    Batches,
    CloseStream,
    FromEngine,
    ReaderOpened,
    StartReader,
    StreamOpened,
    Took,
    Unread,
    size_beside,
)

_STEP: Final = 1 << 20
"""Bytes of what is read that are one step of the stream."""
_STEP_EVENTS: Final = 1 << 15
"""Events of a step of several batches: small ones get much larger, as dead letters or as parts of their own."""

Find = Callable[[str], Awaitable[Door | None]]


class Link:
    """From the app ``source``, whose ``door`` it is, as long as that is there.

    Args:
        output: where it lies: see `grape.model.foreign`.
        find: returns the door of the other app when it serves; None: it is not installed.
    """

    def __init__(self, source: str, door: Door, output: str, find: Find) -> None:
        self._source = source
        self._door = door
        self._output = output
        self._app = output.removeprefix(AT).removesuffix(REPLIES)
        self._find = find
        self._given: asyncio.Queue[Batches] = asyncio.Queue()
        self._reader = 0
        self._inlet: _Inlet | None = None

    async def run(self) -> None:
        """Until the door is gone."""
        self._reader = self._door.open_reader(self._output, self._output, self._read)
        try:
            while True:
                batches = await self._given.get()
                done, unread = await self._deliver(batches)
                self._door.send(Took(self._reader, batches.number, done, 0, b"", unread))
        finally:
            self._leave()

    def _read(self, message: FromEngine) -> None:
        match message:
            case ReaderOpened():
                self._door.send(StartReader(message.reader, 0, b""))
            case Batches():
                self._given.put_nowait(message)

    async def _deliver(self, batches: Batches) -> tuple[int, list[Unread]]:
        """Returns how many events are done with when they are durable there, and which of them never can be."""
        while True:
            target = await self._find(self._app)
            if target is None:
                self._leave()
                return _unread(batches.items, self._app, _STEP_EVENTS)
            if self._inlet is None or self._inlet.door is not target:
                self._leave()
                self._inlet = await _Inlet.open(self._source, self._door.incarnation, self._output, self._app, target)
            if self._inlet is not None and await self._inlet.take(batches.items):
                return sum(item.events - item.first for item in batches.items), []
            self._leave()

    def _leave(self) -> None:
        inlet, self._inlet = self._inlet, None
        if inlet is not None:
            inlet.close()


class _Inlet:
    """The stream at the other door."""

    def __init__(self, source: str, app: str, door: Door, name: str) -> None:
        self.door = door
        self._packer = Packer(source, Target(app, door.events, door.partitions, door.limits))
        self._number = 0
        self._accepted = 0
        self._under_way: deque[tuple[int, int]] = deque()
        """Numbers of the steps that are not accepted, with their bytes as the engine counts them."""
        self._position = Position()
        self._is_open = False
        self._heard = asyncio.Event()
        self._stream = door.open_stream(name, self._hear)
        door.gone.add_done_callback(self._wake)

    @classmethod
    async def open(cls, source: str, incarnation: int, output: str, app: str, door: Door) -> _Inlet | None:
        """None: the door has gone meanwhile."""
        replies = REPLIES if output.endswith(REPLIES) else ""
        inlet = cls(source, app, door, f"{AT}{source}{replies}={incarnation:08x}")
        return inlet if await inlet._until(lambda: inlet._is_open) else None

    def _wake(self, _: object) -> None:
        self._heard.set()

    def _hear(self, message: FromEngine) -> None:
        match message:
            case StreamOpened():
                self._number = self._accepted = message.number
                self._position = Position.read(message.position)
                self._is_open = True
            case Accepted():
                self._accepted = message.number
                while self._under_way and self._under_way[0][0] <= message.number:
                    self._under_way.popleft()
        self._heard.set()

    async def take(self, items: list[Batch]) -> bool:
        """Whether all is durable there; else the door has gone."""
        for step in _steps([item for item in items if not self._position.has(item)]):
            packed = self._packer.pack(step)
            self._position = self._position.behind(step)
            position = self._position.packed()
            size = sum(len(part.body) for part in packed.parts) + size_beside(position, packed.bad, ())
            if not await self._until(partial(self._has_room, size)):
                return False
            self._number += 1
            self._under_way.append((self._number, size))
            self.door.send_append(Append(self._stream, self._number, position, packed.parts, packed.bad))
        return await self._until(lambda: self._accepted >= self._number)

    def _has_room(self, size: int) -> bool:
        return not self._under_way or sum(each for _, each in self._under_way) + size <= WINDOW

    async def _until(self, is_so: Callable[[], bool]) -> bool:
        while not is_so():
            if not self.door.is_open:
                return False
            self._heard.clear()
            await self._heard.wait()
        return True

    def close(self) -> None:
        if self.door.is_open:
            self.door.send(CloseStream(self._stream, False))
        self.door.forget_stream(self._stream)
        self.door.gone.remove_done_callback(self._wake)


def _steps(items: list[Batch]) -> Iterator[list[Batch]]:
    step: list[Batch] = []
    size = events = 0
    for item in items:
        if step and (size + len(item.batch) > _STEP or events + item.events > _STEP_EVENTS):
            yield step
            step, size, events = [], 0, 0
        step.append(item)
        size += len(item.batch)
        events += item.events
    if step:
        yield step


def _unread(items: list[Batch], app: str, most: int) -> tuple[int, list[Unread]]:
    """Event by event, dead letters of the app that has emitted them: of so many events from the first one on, at most
    ``most``. What is behind them is given once more."""
    found: list[Unread] = []
    text = f"no app {app!r} is installed any more"
    done = 0
    for i, item in enumerate(items):
        batch = bytes(item.batch)
        header = codec.header_of(batch)
        offset = 0
        try:
            for run in codec.runs_of(codec.body_of(batch, header)):
                names, keys, data = codec.names_of(run), codec.keys_of(run), codec.raw_data_of(run)
                for at in range(max(0, item.first - offset), run.count):
                    if done == most:
                        return done, found
                    done += 1
                    if not names[at].startswith(REPLIES):
                        key = None if keys is None else keys[at]
                        raw = b"\xc0" if data is None else bytes(data[at])
                        found.append(Unread(i, offset + at, 1, names[at], key, raw, text))
                offset += run.count
        except (ProtocolError, msgspec.MsgspecError) as e:
            begin = max(offset, item.first)
            found.append(Unread(i, begin, item.events - begin, "", None, b"", str(e)))
            done += item.events - begin
    return done, found
