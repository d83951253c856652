"""gzip and zstd: what comes packed is unpacked within bounds, and answers go packed to whoever takes that."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from zlib_ng import zlib_ng

from grape.gateway.problems import Problem
from grape.model.section import show_size

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_AT_ONCE: Final = 1 << 20
"""Bytes that are packed or unpacked without leaving the loop: some milliseconds."""
_SMALLEST: Final = 1_000
"""Bytes of an answer below which nobody gains by it."""
_GZIP: Final = 31  # as zlib calls it
_WINDOW: Final = 23
"""What a sender of zstd may have a receiver keep, as a power of two: RFC 9659."""
_MEDIA: Final = ("application/json", "application/problem+json", "application/msgpack", "text/", "image/svg")
_BROKEN: Final[tuple[type[Exception], ...]] = (cast(Any, zlib_ng).error, zstd.ZstdError)
_thread: Final = ThreadPoolExecutor(1, thread_name_prefix="packing")
"""One for all: so many bodies that swell are not in memory together."""


class _Gzip:
    """One body, of one member or several."""

    def __init__(self) -> None:
        self._member = zlib_ng.decompressobj(_GZIP)

    def feed(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        """At most so many bytes of what it holds, and what is left of it."""
        if self._member.eof:
            self._member = zlib_ng.decompressobj(_GZIP)
        found = self._member.decompress(data, most)
        return found, self._member.unused_data if self._member.eof else self._member.unconsumed_tail

    @property
    def eof(self) -> bool:
        return bool(self._member.eof)


class _Zstd:
    """One body, of one frame or several."""

    def __init__(self) -> None:
        self._frame = self._begun()

    @staticmethod
    def _begun() -> Any:
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW})

    def feed(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        if self._frame.eof:
            self._frame = self._begun()
        found = self._frame.decompress(data, most)
        return found, self._frame.unused_data if self._frame.eof else b""

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)


class _Unpacking:
    """One body.

    Args:
        most: bytes that it may have.
    """

    def __init__(self, packed: bytes, reader: _Gzip | _Zstd, most: int) -> None:
        self._left = packed
        self._reader = reader
        self._most = most
        self._pieces: list[bytes] = []
        self._size = 0

    def up_to(self, size: int) -> bool:
        """Unpack, until there are so many bytes; returns whether that was all.

        Raises:
            Problem: it is no such thing, ends too early, or is too large.
        """
        while self._left or not self._reader.eof:
            if self._size >= size:
                return False
            try:
                piece, left = self._reader.feed(self._left, _AT_ONCE)
            except _BROKEN as e:
                raise _unreadable(str(e)) from None
            if not piece and len(left) == len(self._left) and not self._reader.eof:
                raise _unreadable("it ends too early")
            self._left = left
            self._pieces.append(piece)
            self._size += len(piece)
            if self._size > self._most:
                raise Problem(413, "too-large", f"a body of over {show_size(self._most)}, unpacked; send several")
        return True

    def all(self) -> bytes:
        self.up_to(sys.maxsize)
        return self.whole

    @property
    def whole(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


_READERS: Final[dict[str, type[_Gzip] | type[_Zstd]]] = {"gzip": _Gzip, "x-gzip": _Gzip, "zstd": _Zstd}


async def unpacked(body: bytes, encoding: bytes, most: int) -> bytes:
    """``encoding``: what Content-Encoding says.

    Raises:
        Problem: nothing here reads that, it is no such thing, or of more than ``most`` bytes.
    """
    name = encoding.decode("latin-1").strip().lower()
    if name in ("", "identity"):
        return body
    reader = _READERS.get(name)
    if reader is None:
        text = f"Content-Encoding: {name[:100]!r} is not read here; known are gzip and zstd"
        raise Problem(415, "media-type", text, None, {"accept-encoding": "gzip, zstd"})
    unpacking = _Unpacking(body, reader(), most)
    if unpacking.up_to(_AT_ONCE):
        return unpacking.whole
    return await asyncio.get_running_loop().run_in_executor(_thread, unpacking.all)


def _unreadable(why: str) -> Problem:
    return Problem(400, "bad-argument", f"the body is not packed as Content-Encoding says: {why}")


# ---------------------------------------------------------------------- answers


def _gzip(body: bytes) -> bytes:
    packing = zlib_ng.compressobj(1, zlib_ng.DEFLATED, _GZIP)
    return bytes(packing.compress(body) + packing.flush())


def _zstd(body: bytes) -> bytes:
    return bytes(zstd.compress(body, 3))


_PACKERS: Final[dict[str, Callable[[bytes], bytes]]] = {"zstd": _zstd, "gzip": _gzip}  # the better one first


def taken(accepts: bytes) -> str:
    """What of ours Accept-Encoding takes; "": nothing."""
    wanted: set[str] = set()
    for one in accepts.decode("latin-1").lower().split(","):
        name, *more = (part.strip() for part in one.split(";"))
        if not any(part.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for part in more):
            wanted.add(name)
    return next((name for name in _PACKERS if name in wanted), "")


class Packing:
    """An ASGI application whose answers go packed, if that is worth it. What comes piece by piece goes as it is, so
    that nothing of it is held back.

    Args:
        app: whose answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name == b"accept-encoding":
                    if how := taken(value):
                        send = _Packed(how, send)
                    break
        await self._app(scope, receive, send)


class _Packed:
    """Sends one answer. How it begins is held back until its body is there."""

    def __init__(self, how: str, send: Send) -> None:
        self._how = how
        self._send = send
        self._start: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        start, self._start = self._start, None
        if start is not None:
            body: bytes = message.get("body", b"")
            if not message.get("more_body", False) and _is_worth_it(start, body):
                body = await self._packed(body)
                message = {**message, "body": body}
                start = {**start, "headers": [*_without_length(start), *self._headers(body)]}
            await self._send(start)
        await self._send(message)

    async def _packed(self, body: bytes) -> bytes:
        pack = _PACKERS[self._how]
        if len(body) <= _AT_ONCE:
            return pack(body)
        return await asyncio.get_running_loop().run_in_executor(_thread, pack, body)

    def _headers(self, body: bytes) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-encoding", self._how.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"vary", b"accept-encoding"),
        ]


def _is_worth_it(start: Message, body: bytes) -> bool:
    headers = dict(start["headers"])
    media = headers.get(b"content-type", b"").decode("latin-1")
    return len(body) >= _SMALLEST and b"content-encoding" not in headers and media.startswith(_MEDIA)


def _without_length(start: Message) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in start["headers"] if name != b"content-length"]
