"""How much of an output is kept: what is older, or more, is let go of, whoever has not had it."""

from __future__ import annotations

from collections import deque
from typing import Final

from msgspec import Struct

from grape.abc.transport import Transport
from grape.engine.app import App
from grape.engine.letting import LetGo
from grape.model.batch import header_of
from grape.model.retention import Keeping
from grape.model.stored import OUTPUT

_AT_ONCE: Final = 1 << 20
_COARSE_BYTES: Final = 64 << 10
_COARSE_TIMES: Final = 1_000
"""What comes close to one another is looked at as one piece: of so many bytes, or this part of the age."""


class _Piece(Struct):
    """Batches of partition ``number`` below ``end``, down to the piece before."""

    number: int
    end: int
    created: int
    size: int


class Retention:
    """Of one output. Engine's thread only; times are microseconds."""

    def __init__(self, app: App, output: str, transport: Transport, keeping: Keeping) -> None:
        self.floor = dict.fromkeys(range(app.partitions), 0)
        """Of each partition, where what is kept begins."""
        self.expired = 0
        """Bytes that were let go of so."""
        self._logs = {number: app.log(OUTPUT + output, number) for number in range(app.partitions)}
        self._transport = transport
        self._age = int(keeping.age * 1e6)
        self._most = int(keeping.size)
        self._let_go = {number: LetGo(transport, log) for number, log in self._logs.items()}
        self._read_to = dict(self.floor)
        self._fresh = set(self.floor)
        self._pieces: deque[_Piece] = deque()
        self._last: dict[int, _Piece] = {}
        self._bytes = 0

    @property
    def ends(self) -> list[int]:
        """Of each partition, behind what came up to the last look."""
        return list(self._read_to.values())

    @property
    def size(self) -> int:
        """Bytes that came and are neither too old nor too much; takers may have let go of some."""
        return self._bytes

    def arrived(self, number: int) -> None:
        """Something came into a partition."""
        self._fresh.add(number)

    def look(self, now: int) -> set[int]:
        """Take note of what came, some at a time, and of what is too old or too much; returns the partitions whose
        floor has risen."""
        for number in sorted(self._fresh):
            found = self._transport.read(self._logs[number], self._read_to[number], _AT_ONCE)
            if not found:
                self._fresh.discard(number)
            for stored in found:
                self._read_to[number] = stored.position + 1
                self._note(number, stored.position + 1, header_of(stored.batch).created, len(stored.batch))
        return self._drop(now)

    @property
    def is_behind(self) -> bool:
        """There is more to take note of."""
        return bool(self._fresh)

    def _note(self, number: int, end: int, created: int, size: int) -> None:
        self._bytes += size
        last = self._last.get(number)
        near = self._age // _COARSE_TIMES
        if last is not None and (last.size < _COARSE_BYTES and created - last.created <= near):
            last.end = end
            last.size += size
            return
        piece = self._last[number] = _Piece(number, end, created, size)
        self._pieces.append(piece)

    def _drop(self, now: int) -> set[int]:
        risen: set[int] = set()
        while self._pieces and (self._bytes > self._most or self._pieces[0].created < now - self._age):
            piece = self._pieces.popleft()
            if self._last.get(piece.number) is piece:
                del self._last[piece.number]
            self._bytes -= piece.size
            self.expired += piece.size
            self.floor[piece.number] = piece.end
            risen.add(piece.number)
        return risen

    def let_go(self, numbers: set[int], takers: dict[int, int]) -> None:
        """Of what nobody keeps. ``takers``: up to where all takers have a partition; without any it is the floor."""
        for number in numbers:
            self._let_go[number](max(self.floor[number], takers.get(number, 0)))
