"""HTTP by httpx: `Wire` and `AsyncWire` to a server."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any, Final

from grape.authoring.emitter import Reply
from grape.errors import BadArgument, ProtocolError, UsageError
from grape.remote.asked import Asked, Call, Heard
from grape.remote.http import Request, heard_of, lost, request_of, stream_request
from grape.remote.sse import Events

try:
    import httpx
except ImportError:
    HAS_HTTPX = False
else:
    HAS_HTTPX = True

_CONNECT: Final = 10.0
"""Seconds: who does not take a connection by then may do so at the next try."""
_GRACE: Final = 0.5
"""Seconds after which a server that says itself that the time is over has said so."""
_CONNECTIONS: Final = 1_000
_IDLE: Final = 30.0
"""Seconds, less than a gateway keeps one that is idle."""
_LOCAL: Final = ("localhost", "127.0.0.1", "[::1]")


class _Web:
    """What both have in common."""

    def __init__(self, url: str, token: str | None) -> None:
        if not HAS_HTTPX:
            raise UsageError("a client of a server needs httpx: pip install 'grape-engine[client]'")
        self.url = url
        self._was_reached = False
        self.options: dict[str, Any] = {
            "headers": {} if token is None else {"authorization": f"Bearer {token}"},
            "limits": httpx.Limits(
                max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=_IDLE
            ),
            "mounts": {f"all://{host}": None for host in _LOCAL},  # no proxy leads to this machine
            "timeout": None,
        }

    def arguments(self, request: Request) -> dict[str, Any]:
        """Of `httpx.Client.build_request`."""
        timeout = None if request.timeout is None else max(request.timeout, 0.001) + _GRACE
        connect = _CONNECT if timeout is None else min(timeout, _CONNECT)
        return {
            "method": request.method,
            "url": self.url + request.path,
            "headers": request.headers,
            "content": request.body,
            "timeout": httpx.Timeout(timeout, connect=connect),
        }

    def heard(self, asked: Asked, answer: httpx.Response, body: bytes) -> Heard:
        self._was_reached = True
        return heard_of(asked, self.url, answer.status_code, answer.headers, body)

    def failed(self, asked: Asked, error: Exception) -> Heard:
        """``error``: instead of an answer."""
        if isinstance(error, BadArgument):
            return Heard(error=error)
        if isinstance(error, ProtocolError):
            return Heard(error=UsageError(f"{self.url}: what answers there cannot be understood: {error}"))
        was_sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        why, again = _why(error)
        return lost(
            asked, self.url, why, was_sent=was_sent, again=again, is_stranger=not self._was_reached and not was_sent
        )

    def cut(self, call: Call) -> Heard:
        """A stream that has ended before it was over."""
        return lost(call, self.url, "the connection has ended", was_sent=True, again=True, is_stranger=False)


class Web(_Web):
    """
    Raises:
        UsageError: httpx is not installed.
    """

    def __init__(self, url: str, token: str | None) -> None:
        super().__init__(url, token)
        self._http = httpx.Client(**self.options)

    def ask(self, asked: Asked, timeout: float | None) -> Heard:
        try:
            request = request_of(asked, timeout)
            answer = self._http.send(self._http.build_request(**self.arguments(request)), stream=True)
            try:
                return self.heard(asked, answer, _read(answer, timeout))
            finally:
                answer.close()
        except (httpx.TransportError, httpx.DecodingError, BadArgument) as e:
            return self.failed(asked, e)
        except RuntimeError:
            if not self._http.is_closed:
                raise
            return Heard(error=UsageError("the client is closed"))

    def replies(self, call: Call, timeout: float | None) -> Generator[Reply | Heard | None, None, None]:
        try:
            request = self._http.build_request(**self.arguments(stream_request(call, timeout)))
            answer = self._http.send(request, stream=True)
            try:
                yield None
                if not _is_stream(answer):
                    yield _unstreamed(self.heard(call, answer, answer.read()))
                    return
                self._was_reached = True
                events = Events(call, self.url)
                for piece in answer.iter_bytes():
                    yield from events.feed(piece)
                yield self.cut(call)
            finally:
                answer.close()
        except (httpx.TransportError, httpx.DecodingError, BadArgument, ProtocolError) as e:
            yield self.failed(call, e)

    def close(self) -> None:
        self._http.close()


class AsyncWeb(_Web):
    """
    Raises:
        UsageError: httpx is not installed.
    """

    def __init__(self, url: str, token: str | None) -> None:
        super().__init__(url, token)
        self._http = httpx.AsyncClient(**self.options)

    async def ask(self, asked: Asked, timeout: float | None) -> Heard:
        try:
            request = self._http.build_request(**self.arguments(request_of(asked, timeout)))
            async with asyncio.timeout(None if timeout is None else timeout + 2 * _GRACE):
                answer = await self._http.send(request)
            return self.heard(asked, answer, answer.content)
        except TimeoutError:
            return self.failed(asked, httpx.ReadTimeout(""))
        except (httpx.TransportError, httpx.DecodingError, BadArgument) as e:
            return self.failed(asked, e)
        except RuntimeError:
            if not self._http.is_closed:
                raise
            return Heard(error=UsageError("the client is closed"))

    async def replies(self, call: Call, timeout: float | None) -> AsyncGenerator[Reply | Heard | None, None]:
        try:
            request = self._http.build_request(**self.arguments(stream_request(call, timeout)))
            answer = await self._http.send(request, stream=True)
            try:
                yield None
                if not _is_stream(answer):
                    yield _unstreamed(self.heard(call, answer, await answer.aread()))
                    return
                self._was_reached = True
                events = Events(call, self.url)
                async for piece in answer.aiter_bytes():
                    for came in events.feed(piece):
                        yield came
                yield self.cut(call)
            finally:
                await answer.aclose()
        except (httpx.TransportError, httpx.DecodingError, BadArgument, ProtocolError) as e:
            yield self.failed(call, e)

    async def close(self) -> None:
        await self._http.aclose()


def _read(answer: httpx.Response, timeout: float | None) -> bytes:
    """All of it; who sends it drop by drop takes no longer than who sends nothing.

    Raises:
        httpx.TransportError: it does not come.
    """
    if timeout is None:
        return answer.read()
    deadline = time.monotonic() + timeout + _GRACE
    pieces: list[bytes] = []
    for piece in answer.iter_bytes():
        pieces.append(piece)
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout("")
    return b"".join(pieces)


def _is_stream(answer: httpx.Response) -> bool:
    return answer.status_code == 200 and answer.headers.get("content-type", "").startswith("text/event-stream")


def _unstreamed(heard: Heard) -> Reply | Heard:
    """Of an answer that is no stream: it is the error, or the whole of it at once."""
    return heard if heard.error is not None else Reply(heard.value)


def _why(error: Exception) -> tuple[str, bool]:
    """In words, and whether it may be otherwise later."""
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol | httpx.DecodingError):
        return f"{type(error).__name__}: {error}", False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return f"its name is not known ({cause.strerror})", cause.errno == socket.EAI_AGAIN
        if isinstance(cause, ssl.SSLError):
            return f"{cause.reason or 'TLS'}: {cause}", not isinstance(cause, ssl.SSLCertVerificationError)
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there", True
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.PoolTimeout):
        return f"its {_CONNECTIONS:,} connections are all in use", True
    if isinstance(error, httpx.TimeoutException):
        return ("no connection in time" if isinstance(error, httpx.ConnectTimeout) else "no answer in time"), True
    return str(error) or type(error).__name__, True
