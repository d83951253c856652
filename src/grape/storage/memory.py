"""Objects in memory, gone with the process: for tests, and to say what every storage does."""

from __future__ import annotations

import asyncio
import hashlib
import time
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar, Final

from msgspec import structs

from grape.abc.storage import (
    ALWAYS,
    CHUNK,
    About,
    Change,
    Changes,
    Features,
    If,
    Page,
    Place,
    Put,
    Reading,
    Storage,
    StorageConfig,
)
from grape.errors import Conflict, TooLarge, UsageError
from grape.storage.conditions import conflict
from grape.storage.streams import Measured, collected

_LARGEST: Final = 1 << 31


class MemoryConfig(StorageConfig, frozen=True, kw_only=True, rename="kebab"):
    """
    largest: bytes of an object
    """

    largest: int = _LARGEST


class MemoryStorage(Storage):
    name: ClassVar[str] = "memory"
    Config: ClassVar[type[StorageConfig]] = MemoryConfig

    def __init__(self, config: MemoryConfig) -> None:
        self.features = Features(largest=config.largest, tells_changes=True)
        self._objects: dict[Place, tuple[About, bytes]] = {}
        self._changed: list[Place] = []
        self._versions = 0

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def stat(self, place: Place) -> About | None:
        found = self._objects.get(place)
        return None if found is None else found[0]

    @asynccontextmanager
    async def read(self, place: Place, start: int = 0, end: int | None = None) -> AsyncIterator[Reading | None]:
        found = self._objects.get(place)
        if found is None:
            yield None
        else:
            yield Reading(found[0], _chunks(found[1][start:end]))

    async def write(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        measured = Measured(chunks, self.features.largest, put)
        data = await collected(aiter(measured))
        measured.check()
        self._check(place, put.when)
        return self._keep(place, data, measured.checksum, put)

    async def append(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        more = await collected(chunks)
        self._check(place, put.when)
        there = self._objects.get(place)
        if there is not None:
            about, data = there
            put = structs.replace(
                put, content_type=about.content_type, tags=about.tags, user=about.user, expires=about.expires
            )
            more = data + more
        if len(more) > self.features.largest:
            raise TooLarge(f"an object of {len(more):,} bytes; the limit is {self.features.largest:,}")
        return self._keep(place, more, f"sha256:{hashlib.sha256(more).hexdigest()}", put)

    async def remove(self, place: Place, when: If = ALWAYS) -> bool:
        self._check(place, when)
        if self._objects.pop(place, None) is None:
            return False
        self._changed.append(place)
        return True

    def _check(self, place: Place, when: If) -> None:
        there = self._objects.get(place)
        about = None if there is None else there[0]
        if not when.holds(about):
            raise Conflict(conflict(place, when, about))

    def _keep(self, place: Place, data: bytes, checksum: str, put: Put) -> About:
        self._versions += 1
        about = About(
            place.key,
            len(data),
            str(self._versions),
            checksum,
            time.time_ns() // 1000 if put.time is None else put.time,
            put.content_type,
            put.tags,
            put.user,
            put.expires,
        )
        self._objects[place] = about, data
        self._changed.append(place)
        return about

    async def page(self, namespace: str, prefix: str = "", position: str = "", limit: int = 1000) -> Page:
        keys = sorted(
            (p.key for p in self._objects if p.namespace == namespace and p.key.startswith(prefix)), key=str.encode
        )
        start = bisect_right([key.encode() for key in keys], position.encode()) if position else 0
        some = keys[start : start + limit]
        items = [self._objects[Place(namespace, key)][0] for key in some]
        return Page(items, some[-1] if start + limit < len(keys) else "")

    async def changes(self, namespace: str, prefix: str, position: str | None, limit: int = 1000) -> Changes:
        if position is None:
            return Changes([], str(len(self._changed)))
        if not position.isdecimal() or int(position) > len(self._changed):
            raise UsageError(f"{position!r:.60} is no position in the changes of this storage")
        items: dict[str, Change] = {}
        at = int(position)
        while at < len(self._changed) and len(items) < limit:
            place = self._changed[at]
            at += 1
            if place.namespace == namespace and place.key.startswith(prefix):
                items[place.key] = Change(place.key, await self.stat(place))
        return Changes(list(items.values()), str(at))


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK):
        await asyncio.sleep(0)
        yield data[start : start + CHUNK]
