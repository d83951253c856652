"""The door of one engine, as the bridge uses it: who opens streams and readers hears what is said of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import msgspec

from grape.client.connection import error_of
from grape.errors import EngineError, GrapeError, NoAnswer, ProtocolError
from grape.model.topology import Limits
from grape.protocol.door import (
    VERSION,
    Accepted,
    Answer,
    Append,
    Ask,
    Batches,
    Begun,
    Described,
    Ended,
    Failed,
    FromClient,
    FromEngine,
    Greeting,
    Halt,
    Opened,
    OpenReader,
    OpenStream,
    ReaderOpened,
    Refused,
    StreamOpened,
)
from grape.protocol.framing import SEND_BUFFER, FrameBuffer, Piece, append_frame, door_frames, frame
from grape.protocol.place import door_of

_PATIENCE: Final = 30.0

Hear = Callable[[FromEngine], None]


class Door(asyncio.BufferedProtocol):
    """A connection. Made by `knock`.

    Attributes:
        events, partitions, incarnation, limits: of its app, once it is open.
        gone: done when nothing more comes.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.events: frozenset[str] = frozenset()
        self.partitions = 0
        self.incarnation = 0
        self.limits = Limits()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._frames: FrameBuffer[FromEngine] = door_frames()
        self._transport: asyncio.Transport | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, Hear] = {}
        self._readers: dict[int, Hear] = {}
        self._number = 0

    @property
    def is_open(self) -> bool:
        return not self.gone.done()

    # ------------------------------------------------------------------ what is said

    def ask(self, verb: str, argument: Any) -> asyncio.Future[Any]:
        """The packed answer; its errors are those of the engine, or NoAnswer."""
        asked: asyncio.Future[Any] = self._loop.create_future()
        if not self.is_open:
            asked.set_exception(_gone())
            return asked
        number = self._next()
        self._asked[number] = asked
        self.send(Ask(number, verb, msgspec.Raw(msgspec.msgpack.encode(argument))))
        return asked

    def open_stream(self, name: str, hear: Hear) -> int:
        """``hear`` gets what is said of it, first `StreamOpened`, or `Failed`."""
        number = self._next()
        self._streams[number] = hear
        self.send(OpenStream(number, name))
        return number

    def open_reader(self, output: str, name: str, hear: Hear) -> int:
        """As `open_stream`, first `ReaderOpened`."""
        number = self._next()
        self._readers[number] = hear
        self.send(OpenReader(number, output, name))
        return number

    def forget_stream(self, number: int) -> None:
        self._streams.pop(number, None)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def send(self, message: FromClient) -> None:
        self._write([frame(message)])

    def send_append(self, append: Append) -> None:
        self._write(append_frame(append))

    def _write(self, pieces: Sequence[Piece]) -> None:
        if self._transport is not None:
            self._transport.writelines(pieces)

    # ------------------------------------------------------------------ what is heard

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.send(Greeting(VERSION))

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
            case Batches():
                self._tell(self._readers, message.reader, message)
            case StreamOpened() | Accepted():
                self._tell(self._streams, message.stream, message)
            case ReaderOpened():
                self._tell(self._readers, message.reader, message)
            case Answer():
                self._answered(message.number, message.value)
            case Refused():
                self._answered(message.number, None, error_of(message.code, message.text))
            case Described():
                self.events = frozenset(message.topology.events)
            case Opened():
                self.partitions, self.incarnation = message.partitions, message.incarnation
                self.limits = message.limits
            case Begun():
                if not self._begun.done():
                    self._begun.set_result(None)
            case Halt():
                pass  # what is not accepted is handed in again, at the next engine
            case Ended() | Failed():
                self._over(EngineError("the engine has ended"))

    @staticmethod
    def _tell(listeners: dict[int, Hear], number: int, message: FromEngine) -> None:
        hear = listeners.get(number)
        if hear is not None:
            hear(message)

    def _answered(self, number: int, value: Any, error: GrapeError | None = None) -> None:
        asked = self._asked.pop(number, None)
        if asked is None or asked.done():
            return
        if error is not None:
            asked.set_exception(error)
        else:
            asked.set_result(value)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._over(EngineError("the engine has gone without a word"))

    def _over(self, error: GrapeError) -> None:
        if not self._begun.done():
            self._begun.set_exception(error)
            self._begun.exception()  # it may be that nobody waits for it
        for number in tuple(self._asked):
            self._answered(number, None, _gone())
        if not self.gone.done():
            self.gone.set_result(None)
        self.close()

    async def begun(self) -> None:
        """
        Raises:
            GrapeError: it does not serve.
            TimeoutError: not yet.
        """
        async with asyncio.timeout(_PATIENCE):
            await asyncio.shield(self._begun)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _gone() -> NoAnswer:
    return NoAnswer("the engine has gone")


async def knock(directory: str) -> Door:
    """A connection to the engine that serves ``directory``.

    Raises:
        OSError: none runs there.
        GrapeError, TimeoutError: it does not serve.
    """
    with door_of(directory) as path:
        transport, door = await asyncio.get_running_loop().create_unix_connection(Door, path)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    try:
        await door.begun()
    except BaseException:
        door.close()
        raise
    return door
