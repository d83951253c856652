"""Bodies of requests, as they come: bounded, each and together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from grape.gateway.packing import unpacked
from grape.gateway.problems import Problem
from grape.model.section import show_size

MAX_BODY: Final = 64 << 20
MAX_BODIES: Final = 512 << 20
"""Bytes of all bodies that have not come as a whole."""

_DIGITS: Final = 18
_NONE: Final[Mapping[bytes, bytes]] = {}

_held = 0
"""Bytes of bodies that have not come as a whole."""


async def body_of(request: Request, most: int = MAX_BODY) -> bytes:
    """`read_body` of a request that the router has made."""
    return await read_body(request.receive, dict(request.scope["headers"]), most)


async def read_body(receive: Receive, headers: Mapping[bytes, bytes] = _NONE, most: int = MAX_BODY) -> bytes:
    """Of ``most`` bytes at most, also when it is unpacked. That its pieces come in time the connection sees to
    (`limits`). Content-Length and Content-Encoding of ``headers`` count.

    Raises:
        Problem: it is too large, or cannot be unpacked.
        ClientDisconnect: whoever sent it has gone.
    """
    length = headers.get(b"content-length", b"")
    if len(length) > _DIGITS or (length.isdigit() and int(length) > most):  # before any of it is there
        raise _too_large(most)
    encoding = headers.get(b"content-encoding", b"")
    body = await _read(receive, most)
    return await unpacked(body, encoding, most) if encoding else body


async def _read(receive: Receive, most: int) -> bytes:
    global _held
    message = await receive()
    if not message.get("more_body", False):  # most come as a whole
        return _piece(message, 0, most)
    pieces: list[bytes] = []
    size = 0
    try:
        while True:
            piece = _piece(message, size, most)
            pieces.append(piece)
            size += len(piece)
            _held += len(piece)
            if _held > MAX_BODIES:
                text = f"bodies of over {MAX_BODIES >> 20} MiB are on their way; ask again"
                raise Problem(429, "full", text, {"retriable": True}, {"connection": "close", "retry-after": "1"})
            if not message.get("more_body", False):
                return b"".join(pieces)
            message = await receive()
    finally:
        _held -= size


def _piece(message: Message, size: int, most: int) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    piece: bytes = message.get("body", b"")
    if size + len(piece) > most:
        raise _too_large(most)
    return piece


def _too_large(most: int) -> Problem:
    return Problem(413, "too-large", f"a body of over {show_size(most)}; send several", None, {"connection": "close"})
