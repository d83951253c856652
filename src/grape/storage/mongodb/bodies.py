"""The bytes of objects: few lie in the document itself, more in one of their own, many in GridFS.

COLLECTION.bodies            _id: the version, data
COLLECTION.files, .chunks    GridFS, which other programs read; _id of a file: the version, of a chunk: it and n
COLLECTION.coming            _id: the version, place, at: what is being written. It is there before any bytes, and
                             goes when all is done; so what a writer that died has left is found.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import Struct
from pymongo import ASCENDING, DeleteOne
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase

from grape.abc.storage import CHUNK
from grape.errors import GrapeError, StorageFailed
from grape.storage.mongodb.calls import Calls
from grape.storage.mongodb.settings import Document
from grape.storage.streams import WHOLE

INLINE: Final = 16 << 10
"""Bytes that lie in the document itself, which lists go over."""
AHEAD: Final = 3
"""Chunks that are under way at the same time."""
_DELETED: Final = 500
_RENEWED: Final = 60.0
"""Seconds after which a write that takes long says that it goes on."""

ONE: Final = "body"
FILE: Final = "file"


class Body(Struct, frozen=True):
    """``lies``: "": here, in ``data``; `ONE`, `FILE`. ``chunk``: bytes of one, in a file."""

    lies: str = ""
    data: bytes = b""
    chunk: int = 0


HERE: Final = Body()


class Gone(Exception):
    """Bytes are not there."""


class Bodies:
    def __init__(self, calls: Calls, database: AsyncDatabase[Document], name: str) -> None:
        self._calls = calls
        self._bodies: AsyncCollection[Document] = database[f"{name}.bodies"]
        self._files: AsyncCollection[Document] = database[f"{name}.files"]
        self._chunks: AsyncCollection[Document] = database[f"{name}.chunks"]
        self._coming: AsyncCollection[Document] = database[f"{name}.coming"]

    async def prepare(self) -> None:
        """What GridFS has of indexes."""
        await self._chunks.create_index([("files_id", ASCENDING), ("n", ASCENDING)], unique=True)
        await self._files.create_index([("filename", ASCENDING), ("uploadDate", ASCENDING)])

    # ------------------------------------------------------------------ write

    async def bring(
        self, version: str, place: str, chunks: AsyncIterator[bytes], check: Callable[[], Awaitable[None]]
    ) -> Coming:
        """They are there, but nobody sees them.

        Args:
            check: raises if they are not wanted; asked if there are many.
        """
        coming = Coming(version, place, check)
        held: list[bytes] = []
        try:
            async for chunk in chunks:
                coming.size += len(chunk)
                if coming.file is None:
                    held.append(chunk)
                    if coming.size > WHOLE:
                        await self._announce(coming)
                        coming.file = _File(lambda n, data: self._send(coming, n, data))
                        for each in held:
                            await coming.file.add(each)
                        held = []
                else:
                    await self.renew(coming)
                    await coming.file.add(chunk)
            if coming.file is not None:
                await self._finish(coming, coming.file)
            else:
                await self._keep(coming, b"".join(held))
        except StorageFailed:
            self._calls.go_on(self._given_up(coming))  # who waits has waited long enough
            raise
        except BaseException:
            await self.give_up(coming)
            raise
        return coming

    async def _announce(self, coming: Coming) -> None:
        await coming.check()
        coming.renewed = time.time()
        document = {"_id": coming.version, "place": coming.place, "at": datetime.now(UTC)}
        coming.is_announced = True
        await self._calls.insert(self._coming, document, f"write {coming.place}")

    async def renew(self, coming: Coming) -> None:
        """Say that it goes on.

        Raises:
            StorageFailed: it was taken for abandoned.
        """
        if not coming.is_announced or time.time() - coming.renewed < _RENEWED:
            return
        doing = self._coming.update_one({"_id": coming.version}, {"$set": {"at": datetime.now(UTC)}})
        done = await self._calls.ask(f"write {coming.place}", doing)
        if not done.matched_count:
            raise StorageFailed(f"write {coming.place}: it took so long that its bytes were removed: write it again")
        coming.renewed = time.time()

    async def _keep(self, coming: Coming, data: bytes) -> None:
        if len(data) <= INLINE:
            coming.body = Body("", data)
            return
        await self._announce(coming)
        coming.body = Body(ONE)
        await self._calls.insert(self._bodies, {"_id": coming.version, "data": data}, f"write {coming.place}")

    async def _send(self, coming: Coming, n: int, data: bytes) -> None:
        document = {"_id": _chunk_id(coming.version, n), "files_id": coming.version, "n": n, "data": data}
        await self._calls.insert(self._chunks, document, f"write {coming.place}")

    async def _finish(self, coming: Coming, file: _File) -> None:
        await file.finish()
        coming.body = Body(FILE, b"", CHUNK)
        document = {
            "_id": coming.version,
            "length": coming.size,
            "chunkSize": CHUNK,
            "uploadDate": datetime.now(UTC),
            "filename": coming.place,
        }
        await self._calls.insert(self._files, document, f"write {coming.place}")

    async def give_up(self, coming: Coming) -> None:
        """Nothing of it stays; what cannot be removed now is swept later. Done also if who waits is cancelled."""
        if coming.is_announced:
            await asyncio.shield(self._calls.go_on(self._given_up(coming)))

    async def _given_up(self, coming: Coming) -> None:
        count = 0
        if coming.file is not None:
            await coming.file.end()
            count = coming.file.count
        try:
            await self.drop_unfinished(coming.version, count)
        except GrapeError:
            pass

    async def settled(self, coming: Coming) -> None:
        """It belongs to an object now."""
        if coming.is_announced:
            try:
                await self.forget_coming(coming.version)
            except GrapeError:
                pass  # whoever sweeps sees that it belongs to one

    # ------------------------------------------------------------------ remove

    async def drop(self, version: str, body: Body, size: int) -> None:
        if body.lies == ONE:
            await self._remove(self._bodies, version)
        elif body.lies == FILE:
            await self._remove(self._files, version)
            await self._drop_chunks(version, -(-size // body.chunk))

    async def _remove(self, collection: AsyncCollection[Document], version: str) -> None:
        await self._calls.ask("remove bytes", collection.delete_one({"_id": version}))

    async def _drop_chunks(self, version: str, count: int) -> None:
        """By name, which takes no look at any other."""
        for start in range(0, count, _DELETED):
            some = range(start, min(count, start + _DELETED))
            names = [DeleteOne({"_id": _chunk_id(version, n)}) for n in some]
            await self._calls.ask("remove bytes", self._chunks.bulk_write(names, ordered=False))

    async def drop_unfinished(self, version: str, count: int | None) -> None:
        """Whatever there is of it. ``count``: of chunks, at most; None: it is not known."""
        await self._remove(self._bodies, version)
        await self._remove(self._files, version)
        if count is None:
            await self._calls.ask("remove bytes", self._chunks.delete_many({"files_id": version}))
        else:
            await self._drop_chunks(version, count)
        await self._remove(self._coming, version)

    async def abandoned(self, before: datetime, most: int) -> list[tuple[str, str]]:
        """Versions and places of writes that nobody goes on with."""
        found = await self._calls.ask("sweep", self._coming.find({"at": {"$lt": before}}).limit(most).to_list())
        return [(document["_id"], document["place"]) for document in found]

    async def forget_coming(self, version: str) -> None:
        await self._remove(self._coming, version)

    # ------------------------------------------------------------------ read

    async def pieces(self, version: str, body: Body, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """
        Raises:
            Gone: some are not there.
        """
        if not body.lies:
            yield body.data[start:end]
        elif body.lies == ONE:
            yield (await self._data(self._bodies, version))[start:end]
        else:
            first, last = start // body.chunk, (end - 1) // body.chunk
            ahead: deque[asyncio.Task[bytes]] = deque()
            following = first
            try:
                for n in range(first, last + 1):
                    while len(ahead) < AHEAD and following <= last:
                        asked = self._data(self._chunks, _chunk_id(version, following))
                        ahead.append(asyncio.ensure_future(asked))
                        following += 1
                    data = await ahead[0]
                    ahead.popleft()
                    yield data[max(0, start - n * body.chunk) : end - n * body.chunk]
            finally:
                for task in ahead:
                    task.cancel()
                await asyncio.gather(*ahead, return_exceptions=True)

    async def _data(self, collection: AsyncCollection[Document], name: str) -> bytes:
        found = await self._calls.ask("read bytes", collection.find_one({"_id": name}, {"data": 1}))
        if found is None:
            raise Gone
        return bytes(found["data"])


class Coming:
    """What is being written. ``renewed``: when it was last said that it goes on, seconds since 1970."""

    def __init__(self, version: str, place: str, check: Callable[[], Awaitable[None]]) -> None:
        self.check = check
        self.version = version
        self.place = place
        self.size = 0
        self.body = HERE
        self.file: _File | None = None
        self.is_announced = False
        self.renewed = 0.0


class _File:
    """Bytes are cut into chunks of one size, of which some are under way."""

    def __init__(self, send: Callable[[int, bytes], Coroutine[Any, Any, None]]) -> None:
        self.count = 0
        self._send = send
        self._rest = bytearray()
        self._sending: deque[asyncio.Future[None]] = deque()

    async def add(self, data: bytes) -> None:
        self._rest += data
        at = 0
        while len(self._rest) - at >= CHUNK:
            await self._sent(bytes(memoryview(self._rest)[at : at + CHUNK]))
            at += CHUNK
        del self._rest[:at]

    async def _sent(self, data: bytes) -> None:
        while len(self._sending) >= AHEAD:
            await asyncio.shield(self._sending[0])
            self._sending.popleft()
        self._sending.append(asyncio.ensure_future(self._send(self.count, data)))
        self.count += 1

    async def finish(self) -> None:
        if self._rest:
            await self._sent(bytes(self._rest))
            self._rest.clear()
        while self._sending:
            await asyncio.shield(self._sending[0])
            self._sending.popleft()

    async def end(self) -> None:
        """Until nothing is under way."""
        await asyncio.gather(*self._sending, return_exceptions=True)


def _chunk_id(version: str, n: int) -> str:
    return f"{version}/{n:08}"
