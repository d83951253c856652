"""Bodies of requests, as they come: bounded, each and together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import Request

from grape.gateway.problems import Problem
from grape.model.section import show_size

MAX_BODY: Final = 64 << 20
MAX_BODIES: Final = 512 << 20
"""Bytes of all bodies that have not come as a whole."""
_SLOW: Final = 30.0
"""Seconds between two pieces of a body."""

_held = 0
"""Bytes of bodies that have not come as a whole."""


async def read_body(request: Request, most: int = MAX_BODY) -> bytes:
    """Of ``most`` bytes at most.

    Raises:
        Problem: it is too large, or comes too slowly.
    """
    global _held
    size = 0
    try:
        pieces: list[bytes] = []
        async for piece in pieces_of(request):
            size += len(piece)
            _held += len(piece)
            if size > most:
                text = f"a body of over {show_size(most)}; send several"
                raise Problem(413, "too-large", text, None, {"connection": "close"})
            if _held > MAX_BODIES:
                text = f"bodies of over {MAX_BODIES >> 20} MiB are on their way; ask again"
                raise Problem(429, "full", text, {"retriable": True}, {"connection": "close", "retry-after": "1"})
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        _held -= size


def address_of(request: Request) -> str:
    """From where it came, as far as that is known here."""
    return "" if request.client is None else f"{request.client.host}:{request.client.port}"


async def pieces_of(request: Request) -> AsyncIterator[bytes]:
    """A body, as it comes.

    Raises:
        Problem: it comes too slowly.
    """
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(_SLOW):
                piece = await anext(stream, None)
        except TimeoutError:
            text = f"nothing of the body came for {_SLOW:g} s"
            raise Problem(408, "slow", text, None, {"connection": "close"}) from None
        if piece is None:
            return
        yield piece
