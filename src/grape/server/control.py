"""The socket by which a server is told what to do: verbs, asked as at the door of an engine (`grape.protocol.door`).

Who may connect has the rights of the server's user: the socket is that user's alone.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import msgspec

from grape.errors import EngineError, GrapeError, ProtocolError, Unsupported
from grape.protocol.door import VERSION, Answer, Ask, Failed, FromClient, FromEngine, Greeting, Refused
from grape.protocol.framing import FrameBuffer, client_frames, frame
from grape.server.audit import Asker, OnBehalf

Verb = Callable[[msgspec.Raw], Awaitable[Any]]
Heard = Callable[[Asker, str, msgspec.Raw, Any, GrapeError | None], Awaitable[None]]
"""Hears who asked what, and what came of it, before whoever asked does."""

ON_BEHALF: Final = "for"
"""The verb that has another one in it, which a gateway asks for somebody."""
_CREDENTIALS: Final = struct.Struct("3i")
MAX_ASKED: Final = 1_000
"""Questions of one client that have no answer yet."""


class ControlConnection(asyncio.BufferedProtocol):
    """One client's.

    Args:
        heard: called for those verbs whose names are in ``audited``.
    """

    def __init__(self, verbs: dict[str, Verb], audited: frozenset[str], heard: Heard) -> None:
        self._verbs = verbs
        self._audited = audited
        self._heard = heard
        self._asker = Asker("nobody", "socket")
        self._frames: FrameBuffer[FromClient] = client_frames()
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_greeted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        pid, uid, _ = _CREDENTIALS.unpack(
            transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        self._asker = Asker(f"uid {uid}", "socket", "", pid)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._frames.buffer()

    def buffer_updated(self, count: int) -> None:
        try:
            for message in self._frames.filled(count):
                self._received(message)
            self._frames.check()
        except ProtocolError as e:
            self._say(Failed(e.code, str(e)))
            self.close()

    def _received(self, message: FromClient) -> None:
        match message:
            case Greeting():
                if message.version != VERSION:
                    raise ProtocolError(f"a client of version {message.version}; this server speaks version {VERSION}")
                self._is_greeted = True
            case Ask() if self._is_greeted:
                if len(self._tasks) >= MAX_ASKED:
                    self._say(Refused(message.number, "full", f"over {MAX_ASKED} questions at once"))
                    return
                task = asyncio.ensure_future(self._answer(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case _:
                raise ProtocolError("a server is greeted, then asked")

    async def _answer(self, ask: Ask) -> None:
        try:
            value = await self._done(ask)
            self._say(Answer(ask.number, msgspec.Raw(msgspec.msgpack.encode(value))))
        except GrapeError as e:
            self._say(Refused(ask.number, e.code, str(e)))
        except OSError as e:  # of the home: a disk that is full, say
            self._say(Refused(ask.number, EngineError.code, f"{e.filename or ask.verb}: {e.strerror or e}"))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            self._say(Refused(ask.number, "bad-argument", f"{ask.verb}: {e}"))

    async def _done(self, ask: Ask) -> Any:
        """
        Raises:
            GrapeError, OSError, MsgspecError: it cannot be.
        """
        asker, name, argument = self._asker, ask.verb, ask.argument
        if name == ON_BEHALF:
            other = msgspec.msgpack.decode(argument, type=OnBehalf)
            asker, name, argument = Asker(other.who, "http", other.address), other.verb, other.argument
        verb = self._verbs.get(name)
        if verb is None:
            raise Unsupported(f"no verb {name!r:.100}")
        if name not in self._audited:
            return await verb(argument)
        try:
            value = await verb(argument)
        except GrapeError as e:
            await self._heard(asker, name, argument, None, e)
            raise
        except OSError as e:
            await self._heard(asker, name, argument, None, EngineError(f"{e.filename or name}: {e.strerror or e}"))
            raise
        await self._heard(asker, name, argument, value, None)
        return value

    def _say(self, message: FromEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
