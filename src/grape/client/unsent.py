"""What is on its way into a socket. A signal (Ctrl-C) may raise in the middle of a send: what a frame still lacks goes
out before the next one."""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

from grape.protocol.framing import Piece

_AT_ONCE: Final = 512
"""Pieces of one write; the system takes 1,024."""


class _Left(NamedTuple):
    """``pieces``, of which so many bytes as ``sent`` has beyond its first ``seen`` numbers have gone."""

    pieces: list[Piece]
    sent: list[int]
    seen: int


class Unsent:
    """One thread at a time. Every change is one assignment, and how much has gone is noted by the call that sends, so
    nothing that raises in between leaves anything half done."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._left = _Left([], [], 0)

    def send(self, pieces: list[Piece]) -> None:
        """Add whole frames, and send all there is."""
        pieces = [*self._left.pieces, *pieces]
        self._left = self._left._replace(pieces=pieces)
        try:
            while True:
                self._left = left = _advanced(self._left)
                if not left.pieces:
                    return
                left.sent.extend(map(self._socket.sendmsg, [left.pieces[:_AT_ONCE]]))
        except OSError:  # nobody is there: whoever waits hears of that
            self._left = _Left([], [], 0)


def _advanced(left: _Left) -> _Left:
    """Without what has gone."""
    gone = sum(left.sent[left.seen :])
    for i, piece in enumerate(left.pieces):
        if gone < len(piece):
            rest = [memoryview(piece)[gone:], *left.pieces[i + 1 :]] if gone else left.pieces[i:]
            return _Left(rest, left.sent, len(left.sent))
        gone -= len(piece)
    return _Left([], [], 0)
