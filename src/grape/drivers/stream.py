"""The stream of a driver at the door of an app: a step is its events and the position behind them, in one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from grape.client.events import ClientEvent
from grape.errors import NoAnswer
from grape.gateway.batches import packed_steps
from grape.gateway.door import Door, knock
from grape.protocol.door import Accepted, Append, FromEngine, OpenStream, StreamOpened

_NUMBER: Final = 1
_PATIENCE: Final = 30.0


class DriverStream:
    """Made by `open_stream`.

    Attributes:
        position: of the last step that was accepted, ever; empty: there was none.
    """

    def __init__(self) -> None:
        self.position = b""
        self._last = 0
        self._spread = 0
        self._door: Door | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._accepted: asyncio.Future[None] | None = None

    async def _open(self, directory: str, name: str) -> None:
        self._door = await knock(directory, _nothing, self._gone, self._heard)
        self._door.send(OpenStream(_NUMBER, name))
        async with asyncio.timeout(_PATIENCE):
            await self._opened

    @property
    def is_open(self) -> bool:
        return self._door is not None and self._door.is_open

    @property
    def door(self) -> Door:
        assert self._door is not None
        return self._door

    async def append(self, events: Sequence[ClientEvent], position: bytes) -> None:
        """All of them with the position, or nothing; returns when they are durable.

        Raises:
            NoAnswer: the engine has gone: the stream, opened anew, tells what it has accepted.
        """
        door = self.door
        if not door.is_open:
            raise _GONE
        steps = list(packed_steps(list(events), door.partitions, door.limits, self._spread)) or [([], 0)]
        self._accepted = asyncio.get_running_loop().create_future()
        for at, (parts, size) in enumerate(steps, 1):
            self._last += 1
            self._spread += len(parts)
            more = at < len(steps)
            door.send_append(Append(_NUMBER, self._last, b"" if more else position, parts, size=size, more=more))
        await self._accepted

    def _heard(self, message: FromEngine) -> None:
        match message:
            case StreamOpened():
                self.position = bytes(message.position)
                self._last = message.number
                self._spread = message.spread
                if not self._opened.done():
                    self._opened.set_result(None)
            case Accepted() if self._accepted is not None and message.number >= self._last:
                if not self._accepted.done():
                    self._accepted.set_result(None)

    def _gone(self) -> None:
        for waiting in (self._opened, self._accepted):
            if waiting is not None and not waiting.done():
                waiting.set_exception(_GONE)
                waiting.exception()  # it may be that nobody waits for it

    def close(self) -> None:
        """What was not accepted is given up."""
        if self._door is not None:
            self._door.close()


_GONE: Final = NoAnswer("the engine has gone")


async def open_stream(directory: str, name: str) -> DriverStream:
    """
    Raises:
        OSError, TimeoutError: no engine runs there.
        GrapeError: it does not take events, or somebody else has the stream.
    """
    stream = DriverStream()
    try:
        await stream._open(directory, name)
    except BaseException:
        stream.close()
        raise
    return stream


def _nothing(batches: list[bytes]) -> None:
    pass
