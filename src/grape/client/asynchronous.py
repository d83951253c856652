"""A door of an engine under asyncio, whoever has come to it: frames, questions and their answers, begin and end.

Everything belongs to one loop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

from grape.client.connection import error_of
from grape.errors import EngineError, GrapeError, NoAnswer, ProtocolError
from grape.protocol.door import VERSION, Answer, Append, Begun, FromClient, FromEngine, Greeting, Refused
from grape.protocol.framing import SEND_BUFFER, FrameBuffer, Piece, append_frame, door_frames, frame
from grape.protocol.place import door_of

_PATIENCE: Final = 30.0


class AsyncDoor(asyncio.BufferedProtocol):
    """A connection. Made by `knock`. What is heard beside answers, and what its end means, its subclass says."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._frames: FrameBuffer[FromEngine] = door_frames()
        self._transport: asyncio.Transport | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._number = 0

    # ------------------------------------------------------------------ what is said

    def send(self, message: FromClient) -> None:
        """What has no answer of its own."""
        self._write([frame(message)])

    def send_append(self, append: Append) -> None:
        """A step of a stream, whose bodies are not copied."""
        self._write(append_frame(append))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _write(self, pieces: Sequence[Piece]) -> None:
        if self._transport is not None:
            self._transport.writelines(pieces)

    # ------------------------------------------------------------------ what is heard

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write([frame(Greeting(VERSION))])

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._frames.buffer()

    def buffer_updated(self, count: int) -> None:
        try:
            for message in self._frames.filled(count):
                self._heard(message)
            self._frames.check()
        except ProtocolError as e:
            self._over(EngineError(f"what the engine says cannot be understood: {e}"))

    def _heard(self, message: FromEngine) -> None:
        match message:
            case Answer():
                self._answered(message.number, message.value)
            case Refused():
                self._answered(message.number, error_of(message.code, message.text))
            case Begun():
                if not self._begun.done():
                    self._begun.set_result(None)

    def _answered(self, number: int, found: Any) -> None:
        """``found``: the answer, or the error."""
        asked = self._asked.pop(number, None)
        if asked is None or asked.done():
            return
        if isinstance(found, GrapeError):
            asked.set_exception(found)
        else:
            asked.set_result(found)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._over(EngineError("the engine has gone without a word"))

    def _over(self, error: GrapeError) -> None:
        """Nothing more comes."""
        self._end(error, NoAnswer("the engine has gone"))

    def _end(self, error: GrapeError, unanswered: GrapeError) -> None:
        """``unanswered``: what those get that have no answer."""
        if not self._begun.done():
            self._begun.set_exception(error)
            self._begun.exception()  # it may be that nobody waits for it
        for number in tuple(self._asked):
            self._answered(number, unanswered)
        self.close()

    async def begun(self) -> None:
        """Wait until the engine serves.

        Raises:
            GrapeError: it does not.
        """
        try:
            async with asyncio.timeout(_PATIENCE):
                await asyncio.shield(self._begun)
        except TimeoutError:
            raise NoAnswer("the engine has not begun") from None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


D = TypeVar("D", bound=AsyncDoor)


async def knock(directory: str, make: Callable[[], D]) -> D:
    """A connection to the engine that runs on ``directory``, which serves. ``make``: its end here.

    Raises:
        OSError: none runs there.
        GrapeError: it does not serve.
    """
    with door_of(directory) as path:
        transport, door = await asyncio.get_running_loop().create_unix_connection(make, path)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    try:
        await door.begun()
    except BaseException:
        door.close()
        raise
    return door
