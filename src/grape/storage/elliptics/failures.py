"""What can go wrong with a server, as errors: all are a `StorageFailed`, for who does not want to know more."""

from __future__ import annotations

import os
from enum import IntEnum
from typing import Final

from grape.errors import StorageFailed


class Status(IntEnum):
    """What servers answer, and this package looks at."""

    DONE = 0
    NOT_THERE = -2
    PAST_END = -7
    INVALID = -22
    REFUSED = -77
    """What a swap or the guard of times asks for is not so."""
    ROTTEN = -84
    NOT_MINE = -95


_MEANS: Final = {
    -1: "the cookie is wrong: set that of the server's configuration (cookie=)",
    -22: "the request is malformed for it",
    -27: "it is larger than the server can reserve",
    -28: "its disk is full: make room, or give the group another backend",
    -30: "the backend is read-only: make it writable, or write to other groups",
    -77: "what was asked to be there is not",
    -84: "the stored bytes are not those that were written: restore them from another group",
    -95: "no backend of that node has this group and part of the ring: is it switched off, or the group another one?",
}


class Refusal(StorageFailed):
    """A server's own answer: no."""

    def __init__(self, status: int, what: str, where: str) -> None:
        means = _MEANS.get(status) or os.strerror(-status).lower()
        super().__init__(f"{what}: the server {where} answers {status}, {means}")
        self.status = status


class Away(StorageFailed):
    """It was not sent: there is nobody who could have it."""


class Unknown(StorageFailed):
    """It was sent, and nobody knows what has become of it: no answer in time, or the connection was lost."""


class Nonsense(Unknown):
    """What a server said cannot be."""
