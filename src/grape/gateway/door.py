"""The door of one engine, under asyncio: what is handed in, and the replies to it.

Everything belongs to one loop. What is said within one turn of it goes out with one system call.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import msgspec

from grape.client.connection import error_of
from grape.client.events import ClientEvent
from grape.errors import EngineError, Full, GrapeError, NoAnswer, ProtocolError, Stopping
from grape.model.routing import eager_events
from grape.model.topology import Limits, TopologySpec
from grape.protocol.door import (
    VERSION,
    Accepted,
    Answer,
    Append,
    Ask,
    Begun,
    Described,
    Emit,
    Emitted,
    Ended,
    Failed,
    FromClient,
    FromEngine,
    Greeting,
    Opened,
    Refused,
    Replies,
    StreamOpened,
    TakeReplies,
)
from grape.protocol.framing import SEND_BUFFER, FrameBuffer, Piece, append_frame, door_frames, frame
from grape.protocol.place import door_of

MAX_ASKED: Final = 20_000
"""Events and questions of one gateway that an engine has not answered."""
MAX_BYTES: Final = 64 << 20
_PATIENCE: Final = 30.0
_UNKNOWN: Final = NoAnswer("the engine died before it answered: it is not known whether the event was accepted")


class Door(asyncio.BufferedProtocol):
    """A connection. Made by `knock`.

    Args:
        replied: gets batches of replies. gone: called when nothing more comes. heard: gets what is said of streams.

    Attributes:
        topology, limits: once it is open. events: that it takes.
    """

    def __init__(
        self,
        replied: Callable[[list[bytes]], None],
        gone: Callable[[], None],
        heard: Callable[[FromEngine], None] | None = None,
    ) -> None:
        self._heard_of_stream = heard
        self.partitions = 0
        self._replied = replied
        self._gone = gone
        self.topology: TopologySpec
        self.events: frozenset[str]
        self.eager: frozenset[str]
        self.limits: Limits
        self.traced = 0.0
        self.is_open = False
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._frames: FrameBuffer[FromEngine] = door_frames()
        self._transport: asyncio.Transport | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._heard_answer: dict[int, Callable[[], None]] = {}
        self._number = 0
        self._unsent: list[Piece] = []
        self._unsent_bytes = 0

    # ------------------------------------------------------------------ what is asked

    def hand_in(self, event: ClientEvent, request: str = "") -> asyncio.Future[None]:
        """Hand in an event: done when it is durable. ``request``: under which its caller waits for replies.

        Its errors:
            Stopping: it was not accepted, as the engine ends.
            NoAnswer: the engine is gone, and it is not known whether it was accepted.
            GrapeError: it was refused.
        """
        what = event.name, event.key, event.data, event.id, event.wait, request, event.trace, event.via
        return self._ask(Emit(self._next(), *what))

    def ask(self, verb: str, argument: Any = None, heard: Callable[[], None] | None = None) -> asyncio.Future[Any]:
        """The packed answer. ``heard``: called as it comes, before anything that the engine said after it."""
        message = Ask(self._next(), verb, msgspec.Raw(msgspec.msgpack.encode(argument)))
        if heard is not None:
            self._heard_answer[message.number] = heard
        return self._ask(message)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _ask(self, message: Emit | Ask) -> asyncio.Future[Any]:
        asked: asyncio.Future[Any] = self._loop.create_future()
        if not self.is_open:
            asked.set_exception(Stopping("the engine has ended"))
        elif len(self._asked) >= MAX_ASKED or self._unsent_bytes + self._waiting_bytes > MAX_BYTES:
            asked.set_exception(Full("too many events of this gateway wait for the engine"))
        else:
            self._asked[message.number] = asked
            self._send(message)
        return asked

    @property
    def _waiting_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, message: FromClient) -> None:
        """What has no answer of its own."""
        if self.is_open:
            self._send(message)

    def send_append(self, append: Append) -> None:
        """A step of a stream, whose bodies are not copied."""
        if self.is_open:
            self._add(append_frame(append))

    def _send(self, message: FromClient) -> None:
        self._add([frame(message)])

    def _add(self, pieces: Sequence[Piece]) -> None:
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += pieces
        self._unsent_bytes += sum(map(len, pieces))

    def _flush(self) -> None:
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if self._transport is not None:
            self._transport.write(b"".join(unsent) if len(unsent) > 1 else unsent[0])

    # ------------------------------------------------------------------ what is heard

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send(Greeting(VERSION))

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
            case Emitted():
                self._answer(message.number, None)
            case Replies():
                self._replied(message.batches)
            case Answer():
                self._answer(message.number, message.value)
            case Refused():
                self._refused(message.number, error_of(message.code, message.text))
            case Described():
                self.topology = message.topology
                self.events = frozenset((*message.topology.events, *message.topology.outputs))
                self.eager = eager_events(message.topology)
            case Opened():
                self.limits = message.limits
                self.traced = message.traced
                self.partitions = message.partitions
            case Begun():
                self.is_open = True
                if self._heard_of_stream is None:
                    self._send(TakeReplies())
                if not self._begun.done():
                    self._begun.set_result(None)
            case StreamOpened() | Accepted() if self._heard_of_stream is not None:
                self._heard_of_stream(message)
            case Ended():
                self._over(Stopping("the engine has ended"), Stopping("the engine has ended: it was not accepted"))
            case Failed():
                self._over(error_of(message.code, message.text))

    def _answer(self, number: int, value: msgspec.Raw | None) -> None:
        asked = self._asked.pop(number, None)
        heard = self._heard_answer.pop(number, None)
        if asked is not None and not asked.done():
            asked.set_result(value)
            if heard is not None:
                heard()

    def _refused(self, number: int, error: GrapeError) -> None:
        asked = self._asked.pop(number, None)
        self._heard_answer.pop(number, None)
        if asked is not None and not asked.done():
            asked.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._over(EngineError("the engine has gone without a word"))

    def _over(self, error: GrapeError, unanswered: GrapeError = _UNKNOWN) -> None:
        """``unanswered``: what those get that have no answer."""
        if self.is_open:
            asyncio.get_running_loop().call_soon(self._gone)
        self.is_open = False
        if not self._begun.done():
            self._begun.set_exception(error)
            self._begun.exception()  # it may be that nobody waits for it
        for number in tuple(self._asked):
            self._refused(number, unanswered)
        self.close()

    async def begun(self) -> None:
        """Wait until events are taken.

        Raises:
            GrapeError: they are not.
        """
        async with asyncio.timeout(_PATIENCE):
            await asyncio.shield(self._begun)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def knock(
    directory: str,
    replied: Callable[[list[bytes]], None],
    gone: Callable[[], None],
    heard: Callable[[FromEngine], None] | None = None,
) -> Door:
    """A connection to the engine that runs on ``directory``, which takes events; see `Door`.

    Raises:
        OSError: none runs there.
        GrapeError: it does not take events.
    """
    with door_of(directory) as path:
        transport, door = await asyncio.get_running_loop().create_unix_connection(
            lambda: Door(replied, gone, heard), path
        )
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    try:
        await door.begun()
    except TimeoutError:
        door.close()
        raise NoAnswer("the engine has not begun") from None
    return door
