"""HTTP/1.1 and WebSocket by uvicorn, with bounds that it leaves to whoever stands in front of it: how long a head may
be, how long it may take to come, and how long the next piece of a body may; and how long nobody may read."""

from __future__ import annotations

import asyncio
import resource
from http import HTTPStatus
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol

from grape.gateway.answers import json_of
from grape.gateway.problems import MEDIA, Problem

MAX_HEAD: Final = 64 << 10
"""Bytes of a request before its body."""
HEAD_TIME: Final = 10.0
"""Seconds that it may take."""
BODY_TIME: Final = 30.0
"""Seconds between two pieces of a body."""
UNREAD_TIME: Final = 30.0
"""Seconds that whoever is at a WebSocket may take to read on."""
_MOST: Final = 100_000
_OTHERS: Final = 500
"""Files beside connections: doors of apps, directories that are looked into."""
_FAREWELL: Final = 2.0
_LAST_READ: Final = 5.0
"""Seconds to read what was said last over a WebSocket."""
_UNREAD: Final = f"nothing was read for {UNREAD_TIME:g} s"
_NO_HTTP: Final = Problem(400, "http", "that is no request of HTTP/1.1")
_TOO_LARGE: Final = Problem(431, "too-large", f"a head of over {MAX_HEAD >> 10} KiB")
_SLOW_HEAD: Final = Problem(408, "slow", f"the head took over {HEAD_TIME:g} s")
_SLOW_BODY: Final = Problem(408, "slow", f"nothing of the body came for {BODY_TIME:g} s")


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        most: connections at a time. One more has an idle one let go.
    """

    most = 1_000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head = 0
        """Bytes since the last request was whole, while the next one's head is not."""
        self._in_head = True
        self._is_refused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._wire = _Patient(transport)
        super().connection_made(cast(asyncio.Transport, self._wire))
        self._in_time(HEAD_TIME, _SLOW_HEAD)
        if len(self.connections) > self.most:
            idle = (one for one in self.connections if one is not self and isinstance(one, BoundedProtocol))
            next((one for one in idle if one.is_idle), self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._in_head:
            self._head += len(data)
        super().data_received(data)
        if self._is_refused or self.transport.is_closing():
            return
        if not self._in_head:
            self._stop_timer()
            self._in_time(BODY_TIME, _SLOW_BODY)
        elif not self._head:  # a request is whole, as most are at once
            self._stop_timer()
        elif self._head > MAX_HEAD:
            self._refuse(_TOO_LARGE)
        elif self._timer is None:
            self._in_time(HEAD_TIME, _SLOW_HEAD)

    @property
    def is_idle(self) -> bool:
        """Nothing is being answered; perhaps the beginning of something has come."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def on_message_begin(self) -> None:
        self._head = self._head or 1  # it may have come behind the end of the one before
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        self._head = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(_NO_HTTP)

    def _in_time(self, seconds: float, problem: Problem) -> None:
        """What is to come comes by then."""
        self._timer = self.loop.call_later(seconds, self._late, seconds, problem)

    def _late(self, seconds: float, problem: Problem) -> None:
        if self.flow.read_paused or (self._in_head and not self.is_idle):  # it is not its sender who is waited for
            self._in_time(seconds, problem)
        else:
            self._timer = None
            self._refuse(problem)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, problem: Problem) -> None:
        """It hears why, and has some time to go: what it still sends would else, unread, destroy that on its way."""
        transport = self.transport
        if self._is_refused or transport.is_closing():
            return
        self._is_refused = True
        if not self.is_idle and (self._in_head or self.pipeline or self.cycle.response_started):
            transport.close()  # an answer is on its way: nothing can be said in it
        else:
            self._wire.write_last(_said(problem))
            self.loop.call_later(_FAREWELL, transport.close)


class _Patient:
    """A transport that, as those of asyncio and unlike those of uvloop, takes no offence at what is written when it is
    closed: whoever writes may not have heard of it yet."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._is_over = False

    def write(self, data: bytes) -> None:
        if not self._is_over and not self._transport.is_closing():
            self._transport.write(data)

    def write_last(self, data: bytes) -> None:
        """Nothing is sent after it."""
        self._transport.write(data)
        self._is_over = True
        if self._transport.can_write_eof():  # not with TLS
            self._transport.write_eof()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedSocket(WSProtocol):
    """One WebSocket. Whoever does not read is let go, and hears why if he does after all."""

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except ValueError:  # of wsproto, at a host that cannot be one
            self.transport.abort()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close" and self.handshake_complete:
            self.writable.set()  # it waits for nobody
            self.loop.call_later(_LAST_READ, self.transport.abort)
        elif not self.writable.is_set():
            try:
                async with asyncio.timeout(UNREAD_TIME):
                    await self.writable.wait()
            except TimeoutError:
                await self.send({"type": "websocket.close", "code": 1008, "reason": _UNREAD})
                raise ClientDisconnected from None
        await super().send(message)

    def handle_ping(self, event: Any) -> None:
        if self.writable.is_set():  # else whoever only asks and never reads has all answers kept for him
            super().handle_ping(event)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.loop.call_later(_LAST_READ, self.transport.abort)

    def shutdown(self) -> None:
        """The application is told, and closes it when what is under way is done."""
        if not self.handshake_complete:
            super().shutdown()


def take_all_files() -> None:
    """As many connections as this process may have, but for what else it needs."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    BoundedProtocol.most = max(most - _OTHERS, most // 2)


def _said(problem: Problem) -> bytes:
    body = json_of(problem.document)
    status = HTTPStatus(problem.status)
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\ncontent-type: {MEDIA}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
