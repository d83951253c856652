"""One connection to a node: any number of transactions on it, answered in any order.

Whatever comes is matched by the number of its transaction, and has to be what was asked for. What nobody waits for any
more is read over. A server that says what cannot be is not listened to any longer: the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from grape.storage.elliptics import wire
from grape.storage.elliptics.failures import Away, Nonsense, Unknown
from grape.storage.elliptics.wire import Address, Command, Frames, Header, Message, Request

WINDOW: Final = 1024
"""Transactions that are open on one connection; more wait."""
_JOINED: Final = 1 << 14
"""Bytes up to which data is sent with what is sent in the same turn."""
_BUFFER: Final = 1 << 20
"""Bytes that may wait for the socket before more has to wait."""
_NEWS: Final = 1000
"""Route updates that are kept until somebody listens."""

Each = Callable[[Header, bytes | None], None]
"""Takes one of many answers; a payload that was too large is None. What it raises ends the transaction."""


class _Open:
    """A transaction without its last answer."""

    __slots__ = ("asked", "deadline", "each", "future", "last", "request")

    def __init__(self, request: Request, each: Each | None, now: float, timeout: float, last: float) -> None:
        self.request = request
        self.each = each
        self.asked = now
        self.deadline = now + timeout
        self.last = last
        self.future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()


class Connection(asyncio.Protocol):
    """
    Args:
        where: the other end, for people. timeout: seconds for an answer, and between two of many.

    Attributes:
        dropped: answers that nobody waited for any more.
        closed: done when it has ended. ended: called at once, before anybody hears that something was lost.
    """

    def __init__(self, where: str, timeout: float) -> None:
        self.where = where
        self.dropped = 0
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._transport: asyncio.Transport | None = None
        self._frames = Frames(self._most)
        self._open: dict[int, _Open] = {}
        self._number = 0
        self._out: list[bytes] = []
        self._is_full = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._why = ""
        self._listener: Callable[[bytes], None] | None = None
        self._news: deque[bytes] = deque(maxlen=_NEWS)
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.ended: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Connection to {self.where}, {len(self._open)} open>"

    @property
    def peer(self) -> Address | None:
        """Whom it is connected to."""
        found = None if self._transport is None else self._transport.get_extra_info("peername")
        return None if found is None else Address(found[0], found[1])

    @property
    def is_ended(self) -> bool:
        return bool(self._why)

    # ------------------------------------------------------------------ transactions

    async def call(self, request: Request, each: Each | None = None, longest: float = 0.0) -> Message:
        """The answer; if there are many, ``each`` takes all but the last, for at most ``longest`` seconds.

        Raises:
            Away: it was not sent. Unknown: there is no answer. Nonsense: there is one that cannot be.
        """
        if self._is_full or len(self._open) >= WINDOW:
            await self._room()
        if self._transport is None or self._why:
            raise Away(f"{request.name}: there is no connection to {self.where}{self._because()}")
        number = self._number
        self._number = (number + 1) & 0xFFFF_FFFF_FFFF_FFFF
        now = self._loop.time()
        timeout = self._timeout + request.extra
        one = _Open(request, each, now, timeout, now + (longest or timeout))
        self._open[number] = one
        if self._timer is None:
            self._timer = self._loop.call_later(self._step, self._tick)
        self._write(request.head(number), request.data)
        try:
            return await one.future
        finally:
            self._open.pop(number, None)
            if self._waiting:
                self._wake()

    @property
    def _step(self) -> float:
        return min(1.0, self._timeout / 8)

    async def _room(self) -> None:
        while not self._why and (self._is_full or len(self._open) >= WINDOW):
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():  # its turn is somebody else's
                    self._wake()
                raise

    def _wake(self) -> None:
        while self._waiting and not self._is_full:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _tick(self) -> None:
        """Whoever has waited too long waits no longer."""
        self._timer = None
        now = self._loop.time()
        is_dead = False
        for number, one in list(self._open.items()):
            if min(one.deadline, one.last) > now:
                continue
            del self._open[number]
            if not one.future.done():
                one.future.set_exception(
                    Unknown(f"{one.request.name}: no answer from {self.where} within {now - one.asked:.3g} s")
                )
            # Nothing at all has come, or half a message: whoever is there will not go on.
            is_dead = is_dead or self._heard < one.asked or not self._frames.is_between
        if is_dead:
            self.end("it has not answered in time")
        elif self._open:
            self._timer = self._loop.call_later(self._step, self._tick)

    # ------------------------------------------------------------------ what comes

    def listen(self, listener: Callable[[bytes], None]) -> None:
        """Who hears what the server tells unasked; also what it has told before."""
        self._listener = listener
        while self._news:
            listener(self._news.popleft())

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        if self._why:
            return
        try:
            messages = self._frames.feed(data)
        except Nonsense as e:
            return self.end(str(e))
        for message in messages:
            try:
                self._take(message)
            except Nonsense as e:
                one = self._open.pop(message.header.transaction, None)
                if one is not None and not one.future.done():
                    one.future.set_exception(Nonsense(f"{one.request.name}: {self.where}: {e}"))
                return self.end(str(e))

    def _most(self, header: Header) -> int:
        """Bytes of payload that somebody wants of a message."""
        if not header.is_reply:
            return wire.ROUTES_MOST if header.command == Command.ROUTES else -1
        one = self._open.get(header.transaction)
        if one is None:
            return -1
        if one.request.command == Command.BULK_READ and one.request.most < header.size <= wire.LARGEST:
            return -1
        return one.request.most

    def _take(self, message: Message) -> None:
        header, payload = message
        if not header.is_reply:
            if header.command == Command.ROUTES and payload is not None:
                self._tell(payload)
            return
        one = self._open.get(header.transaction)
        if one is None:
            self.dropped += 1
            return
        request = one.request
        _check(request, header)
        if not header.has_more:
            del self._open[header.transaction]
            if not one.future.done():
                one.future.set_result(message)
        elif one.each is None:
            raise Nonsense(f"an answer to {request.name} says that more follow")
        else:
            one.deadline = self._heard + self._timeout
            try:
                one.each(header, payload)
            except Nonsense:
                raise
            except Exception as e:
                del self._open[header.transaction]
                if not one.future.done():
                    one.future.set_exception(e)

    def _tell(self, payload: bytes) -> None:
        if self._listener is None:
            self._news.append(payload)
        else:
            self._listener(payload)

    # ------------------------------------------------------------------ the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # those of other loops do not inherit it
        self._transport = transport
        transport.set_write_buffer_limits(_BUFFER)
        found = transport.get_extra_info("socket")
        with contextlib.suppress(TypeError, AttributeError):  # other loops do not show their sockets
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def _write(self, head: bytes, data: bytes) -> None:
        if len(data) > _JOINED:
            self._flush()
            assert self._transport is not None
            self._transport.write(head)
            self._transport.write(data)
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(head)
        if data:
            self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None and not self._why:
            self._transport.write(b"".join(out))

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        for _ in range(len(self._waiting)):
            self._wake()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(str(exc) if exc is not None else "it was closed at the other end")
        self._transport = None

    def end(self, why: str) -> None:
        """Close it; what is open will not be answered."""
        if self._transport is not None:
            self._transport.abort()
        self._end(why)

    def _end(self, why: str) -> None:
        is_first, self._why = not self._why, self._why or why
        if is_first and self.ended is not None:
            self.ended()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        is_open, self._open = self._open, {}
        for one in is_open.values():
            if not one.future.done():
                one.future.set_exception(
                    Unknown(f"{one.request.name}: the connection to {self.where} was lost{self._because()}")
                )
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
        if not self.closed.done():
            self.closed.set_result(None)

    def _because(self) -> str:
        return f" ({self._why})" if self._why else ""


def _check(request: Request, header: Header) -> None:
    """
    Raises:
        Nonsense: it does not answer this.
    """
    one_of_many = request.command == Command.BULK_READ and header.has_more
    expected = Command.READ if one_of_many else request.command
    if header.command != expected:
        raise Nonsense(f"an answer to {request.name} is one to command {header.command}")
    if request.is_same and header.id != request.id:
        raise Nonsense(f"an answer to {request.name} is for another key")
    if request.is_same and header.group != request.group:
        raise Nonsense(f"an answer to {request.name} in group {request.group} is of group {header.group}")
    if header.status > 0:
        raise Nonsense(f"an answer to {request.name} has the status {header.status}")
