"""What both ways to keep objects share: records of any size, their copies in several groups."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from msgspec import Struct

from grape.abc.storage import CHUNK, About, Place, Reading
from grape.errors import StorageFailed
from grape.storage.elliptics.bodies import Body
from grape.storage.elliptics.client import Client
from grape.storage.elliptics.failures import Refusal, Status
from grape.storage.elliptics.groups import Groups, Later
from grape.storage.elliptics.marks import Moments
from grape.storage.elliptics.wire import Mode, Record, Writing

AHEAD: Final = 3
"""Chunks of one object that are on their way at the same time."""
REPAIRS: Final = 64
"""Records to be repaired; more are not."""
REMOVALS: Final = 256
"""Bytes to be removed that no head names any more; beyond that a writer does it itself."""
_AT_ONCE: Final = 32
_BULK: Final = 100
"""Keys of one bulk read."""
_NOT_THERE: Final = frozenset((Status.NOT_THERE,))
_BEHIND: Final = frozenset((Status.PAST_END, Status.INVALID))
"""What is answered to a read behind the end; the second if the record is in the cache."""


class Limits(Struct, frozen=True, kw_only=True):
    """
    Args:
        whole: bytes of an object up to which it is sent in one message, so that it is there as a whole or not at all.
        inline: bytes of an object up to which they are in its head.
        folder: where larger ones wait, "": where temporary files are.
        mode, start: how everything is written: to the cache, for so many seconds.
        repairs: "off"; "seen": what a read has met; "all": a read looks at all groups, later.
    """

    largest: int
    whole: int = 8 << 20
    inline: int = 4096
    folder: str = ""
    mode: int = 0
    start: int = 0
    repairs: str = "seen"
    timeout: float = 30.0


class Core:
    """
    Attributes:
        repairs: records that are copied to groups that lack them. removals: of bytes that no head names any more.
    """

    def __init__(self, client: Client, groups: Groups, limits: Limits) -> None:
        self.client = client
        self.groups = groups
        self.limits = limits
        self.moments = Moments()
        self.repairs = Later(4, REPAIRS)
        self.removals = Later(16, REMOVALS)

    async def close(self) -> None:
        await self.removals.close(min(2.0, self.limits.timeout))
        await self.repairs.close(0)
        await self.groups.close()

    # ------------------------------------------------------------------ read

    async def there(self, group: int, id: bytes, offset: int, size: int) -> Record | None:
        """A record, or some of it, and its checksum; None: there is none."""
        try:
            return await self.client.read(group, id, offset, size, int(Mode.CHECKSUM))
        except Refusal as e:
            if e.status in _NOT_THERE:
                return None
            raise

    async def pieces(
        self, start: int, stop: int, piece: Callable[[int, int], Awaitable[bytes]]
    ) -> AsyncGenerator[bytes, None]:
        """Bytes from ``start`` to ``stop``; some are on their way while others are looked at."""
        under_way: deque[asyncio.Task[bytes]] = deque()
        asked = start
        try:
            while asked < stop or under_way:
                while asked < stop and len(under_way) < AHEAD:
                    size = min(CHUNK, stop - asked)
                    under_way.append(asyncio.ensure_future(piece(asked, size)))
                    asked += size
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def bulk(self, ids: Sequence[bytes], most: int) -> dict[bytes, Record]:
        """Of some records those that the first group has; what is not in it is to be read by itself."""
        group = self.groups.all[0]
        by_owner: dict[tuple[object, int], list[bytes]] = {}
        for id in ids:
            try:
                owner = self.client.owner(group, id)
            except StorageFailed:
                continue
            by_owner.setdefault((owner.address, owner.backend), []).append(id)
        parts = [some[i : i + _BULK] for some in by_owner.values() for i in range(0, len(some), _BULK)]
        limit = asyncio.Semaphore(4)
        found: dict[bytes, Record] = {}

        async def one(part: list[bytes]) -> None:
            async with limit:
                try:
                    for record in await self.client.bulk_read(group, part, most):
                        if isinstance(record, Record):
                            found[record.id] = record
                except StorageFailed:
                    pass  # they are read one by one, and what is wrong is said there

        await asyncio.gather(*map(one, parts))
        return found

    async def read_each(
        self,
        places: Sequence[Place],
        read: Callable[[Place], AbstractAsyncContextManager[Reading | None]],
        into: dict[Place, tuple[About, bytes] | None],
    ) -> None:
        """Some objects, one by one, some of them at the same time."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(place: Place) -> None:
            async with limit, read(place) as found:
                into[place] = (
                    None if found is None else (found.about, b"".join([chunk async for chunk in found.chunks]))
                )

        await asyncio.gather(*map(one, places))

    # ------------------------------------------------------------------ write

    async def upload(self, group: int, id: bytes, body: Body, how: Writing, first: bytes = b"") -> None:
        """Write a record: as one message if it is small, else room is reserved, filled and committed; until then there
        is none. ``first``: some bytes before the body."""
        total = len(first) + body.size
        if body.data is not None:
            await self.client.write(group, id, first + body.data, how)
            return

        async def send(start: int, stop: int, mode: int, num: int) -> None:
            data = first[start:stop] + await body.read(max(0, start - len(first)), stop - max(start, len(first)))
            await self.client.write(group, id, data, how._replace(mode=how.mode | mode, offset=start, num=num))

        size = min(CHUNK, -(-total // 3))  # at least two: the first reserves, the last commits
        last = (total - 1) // size * size
        await send(0, size, Mode.PREPARE | Mode.PLAIN, total)
        limit = asyncio.Semaphore(AHEAD)

        async def plain(start: int) -> None:
            try:
                await send(start, start + size, Mode.PLAIN, start + size)
            finally:
                limit.release()

        try:
            async with asyncio.TaskGroup() as tasks:
                for start in range(size, last, size):
                    await limit.acquire()
                    tasks.create_task(plain(start))
        except BaseExceptionGroup as e:
            raise e.exceptions[0] from None
        await send(last, total, Mode.COMMIT | Mode.PLAIN, total)

    def writing(self, how: Writing) -> Writing:
        """With what is said of all that is written."""
        return how._replace(mode=how.mode | self.limits.mode, start=self.limits.start)


class Keyed:
    """One at a time for each key."""

    def __init__(self) -> None:
        self._locks: dict[bytes, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, key: bytes) -> AsyncIterator[None]:
        lock, count = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = lock, count + 1
        try:
            async with lock:
                yield
        finally:
            lock, count = self._locks.pop(key)
            if count > 1:
                self._locks[key] = lock, count - 1


def is_behind(e: Refusal) -> bool:
    """Whether it is only that a record ends before."""
    return e.status in _BEHIND


def sum_of(data: bytes) -> str:
    return f"sha512:{hashlib.sha512(data).hexdigest()}"
