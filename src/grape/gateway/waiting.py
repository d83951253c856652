"""Who waits for which replies of one app. It outlives the connection: an engine that comes back goes on answering."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from grape.client.calls import replies_in
from grape.errors import Full

MAX_WAITING: Final = 20_000
MAX_PARTS: Final = 16 << 20
"""Bytes of parts that one caller has not read."""


class Waiter:
    """One caller. ``replies``: (packed data, final)."""

    def __init__(self, waiting: Waiting, request: str, *, takes_parts: bool) -> None:
        self.request = request
        self.replies: deque[tuple[bytes, bool]] = deque()
        self._waiting = waiting
        self._takes_parts = takes_parts
        self._fresh = asyncio.Event()
        self._size = 0
        self._given = 0
        self._is_over = False

    def give(self, packed: bytes, final: bool) -> None:
        self._given += 1
        if self._is_over or not (final or self._takes_parts):
            return
        self._size += len(packed)
        self._is_over = final
        if final or self._size <= MAX_PARTS:
            self.replies.append((packed, final))
            self._fresh.set()

    async def next(self, timeout: float | None) -> tuple[bytes, bool]:
        """
        Raises:
            TimeoutError: none came in time.
            Full: parts came faster than they were read.
        """
        if not self.replies:
            async with asyncio.timeout(timeout):
                while not self.replies:
                    self._fresh.clear()
                    await self._fresh.wait()
        packed, final = self.replies.popleft()
        if self._size > MAX_PARTS:
            raise Full(f"over {MAX_PARTS:,} bytes of parts were not read; read them faster")
        self._size -= len(packed)
        return packed, final

    def clear(self, count: int) -> None:
        """What came up to now, ``count`` replies, is had from where it is kept."""
        self.replies.clear()
        self._size = 0
        self._given = count

    def catch_up(self, kept: list[tuple[bytes, bool]]) -> None:
        """All replies that there were up to now, of which some may have gone to somebody else."""
        for packed, final in kept[self._given :]:
            self.give(packed, final)

    def close(self) -> None:
        """Nobody waits any more."""
        self._waiting.leave(self)

    def __enter__(self) -> Waiter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Waiting:
    """All callers of one app."""

    def __init__(self) -> None:
        self._waiters: dict[str, list[Waiter]] = {}
        self._count = 0

    def open(self, request: str, *, takes_parts: bool = False) -> Waiter:
        """
        Raises:
            Full: too many wait.
        """
        if self._count >= MAX_WAITING:
            raise Full(f"{MAX_WAITING:,} calls wait for their answers already")
        waiter = Waiter(self, request, takes_parts=takes_parts)
        self._waiters.setdefault(request, []).append(waiter)
        self._count += 1
        return waiter

    def __len__(self) -> int:
        return self._count

    def leave(self, waiter: Waiter) -> None:
        waiters = self._waiters.get(waiter.request, [])
        if waiter in waiters:
            waiters.remove(waiter)
            self._count -= 1
            if not waiters:
                del self._waiters[waiter.request]

    def all(self) -> list[Waiter]:
        return [waiter for waiters in self._waiters.values() for waiter in waiters]

    def replied(self, batches: list[bytes]) -> None:
        """Batches of replies, some of which may be for somebody here."""
        if not self._waiters:
            return
        for batch in batches:
            for request, packed, final in replies_in(batch):
                for waiter in self._waiters.get(request, ()):
                    waiter.give(packed, final)
