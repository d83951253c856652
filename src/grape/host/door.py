"""The sockets at which clients come to an engine: one that its owner has the other end of, and one in the directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Final, cast

from grape.errors import GrapeError, ProtocolError
from grape.host.house import House, Visitor
from grape.processes.output import Line
from grape.protocol.door import About, Batches, Failed, FromClient, FromEngine, Said
from grape.protocol.framing import SEND_BUFFER, FrameBuffer, Piece, batches_frame, client_frames, frame, joined
from grape.protocol.place import DOOR, door_of

MAX_UNREAD: Final = 128 << 20
"""Bytes that a client may have unread: then it is let go."""
_MAX_LINES: Final = 8 << 20
"""Bytes unread with which no more lines for people are sent."""
_BACKLOG: Final = 64
_READ: Final = 1 << 16
_FAREWELL: Final = 5.0


class Connection(asyncio.BufferedProtocol):
    """One client's. Bytes in, frames out."""

    def __init__(self, house: House, *, is_owner: bool) -> None:
        self._house = house
        self._is_owner = is_owner
        self._frames: FrameBuffer[FromClient] = client_frames()
        self._transport: asyncio.Transport | None = None
        self._cut_lines = 0
        self._is_cut = False
        self._unsent: list[Piece] = []
        self._unsent_bytes = 0
        self.visitor: Visitor

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=MAX_UNREAD)
        self.visitor = Visitor(self._house, self.say, is_owner=self._is_owner, unread=lambda: self._unread)

    def say(self, message: FromEngine) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._unread > MAX_UNREAD:
            transport.abort()
            return
        try:
            packed = batches_frame(message) if isinstance(message, Batches) else [frame(message)]
        except ProtocolError as e:
            self._cut(e)
            return
        if not self._unsent:
            # First the engine does what is to be done: whoever is woken may take the processor from it.
            asyncio.get_running_loop().call_soon(self._send)
        self._unsent += packed
        self._unsent_bytes += sum(map(len, packed))

    def _send(self) -> None:
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if self._transport is not None:
            for piece in joined(unsent):
                self._transport.write(piece)

    @property
    def _unread(self) -> int:
        transport = self._transport
        return 0 if transport is None else self._unsent_bytes + transport.get_write_buffer_size()

    def _cut(self, error: GrapeError) -> None:
        """Nothing more is taken of it. It hears why, and has some time to go: what it still sends would else, unread,
        destroy that last word on its way."""
        transport = self._transport
        if transport is not None and not self._is_cut:
            self._is_cut = True
            self.visitor.gone()
            self._send()
            transport.write(frame(Failed(error.code, str(error))))
            asyncio.get_running_loop().call_later(_FAREWELL, transport.abort)

    def show(self, worker: str, line: Line) -> None:
        """A line for people. One who does not read them gets a count instead."""
        transport = self._transport
        if transport is None or self._unread > _MAX_LINES:
            self._cut_lines += 1
            return
        lines = [(worker, line.level, line.slot, line.text)]
        if self._cut_lines:
            lines.insert(0, ("engine", "stderr", "", f"({self._cut_lines:,} lines were cut: nobody read them in time)"))
            self._cut_lines = 0
        about = About(line.event, line.trace, line.fields)
        self.say(Said(lines, {len(lines) - 1: about} if line.event or line.fields else {}))

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(bytearray(_READ)) if self._is_deaf else self._frames.buffer()

    @property
    def _is_deaf(self) -> bool:
        return self._is_cut or self._house.is_over

    def buffer_updated(self, count: int) -> None:
        if self._is_deaf:
            return
        try:
            for message in self._frames.filled(count):
                self.visitor.received(message)
            self._frames.check()
        except GrapeError as e:
            self._cut(e)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.visitor.gone()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_open(self) -> bool:
        return self._transport is not None


class Door:
    """All that one engine has."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._connections: list[Connection] = []
        self._owner: Connection | None = None
        self._server: asyncio.Server | None = None
        self._path = ""

    async def let_owner_in(self, owner: socket.socket) -> None:
        owner.setblocking(False)
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        connection = self._owner = Connection(self._house, is_owner=True)
        self._connections.append(connection)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, owner)

    async def open(self, directory: str) -> None:
        """Let others in, by the directory, which is this engine's."""
        self._path = os.path.join(directory, DOOR)
        self._server = await asyncio.get_running_loop().create_unix_server(self._come, sock=listening(directory))

    def _come(self) -> Connection:
        connection = Connection(self._house, is_owner=False)
        self._connections = [each for each in self._connections if each.is_open or each is self._owner]
        self._connections.append(connection)
        return connection

    def show(self, worker: str, line: Line) -> None:
        """A line for people, to the owner."""
        if self._owner is not None:
            self._owner.show(worker, line)

    async def close(self, patience: float) -> None:
        """Everybody has heard the last word and gone, or ``patience`` seconds are over."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while any(each.is_open for each in self._connections) and loop.time() < deadline:
            await asyncio.sleep(0.001)
        for connection in self._connections:
            connection.abort()


def listening(directory: str, name: str = DOOR) -> socket.socket:
    """A socket in ``directory`` for its owner alone, in place of what one that was killed has left. By a descriptor, as
    the path of a socket has to be short."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # those that it accepts have the same
    with door_of(directory, name) as path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        made.bind(path)
        os.chmod(path, 0o600)  # nobody can come before it listens
    made.listen(_BACKLOG)
    made.setblocking(False)
    return made
