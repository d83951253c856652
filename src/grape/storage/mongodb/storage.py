"""MongoDB as a storage: one collection with a document for each object (`heads`), its bytes beside it (`bodies`)."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

import pymongo
from msgspec import structs
from pymongo import ASCENDING, AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from grape.abc.storage import (
    ALWAYS,
    About,
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
from grape.errors import BadArgument, Conflict, Corrupt, GrapeError, StorageFailed, UsageError
from grape.storage.conditions import conflict
from grape.storage.mongodb.bodies import Bodies, Coming, Gone
from grape.storage.mongodb.calls import Calls, Where
from grape.storage.mongodb.changing import Changing
from grape.storage.mongodb.heads import PAST, Head, Heads, place_of, range_of
from grape.storage.mongodb.settings import Document, MongoConfig, client_of, settings_of
from grape.storage.streams import Measured

_LARGEST: Final = 1 << 50
_OPENING: Final = 5.0
"""Seconds for the first answer: who opens it wants to know."""
_CLOSING: Final = 1.0
_RACES: Final = 40
"""Writes that find each time that somebody else was faster."""
_PAUSE: Final = (0.002, 0.2)
_READ_AGAIN: Final = 5
_MORE: Final = 20
"""Documents that a page asks for beyond what it wants: some are replaced, some say that an object is gone."""
_SWEPT: Final = 500
"""Leftovers that one sweep removes."""
_SWEEPS: Final = 3600.0
_PROBE: Final = "/probe"
"""A place that no object has: without a namespace."""
_AT_ONCE: Final = 16
_UNAUTHORIZED: Final = 13


class MongoStorage(Storage):
    name: ClassVar[str] = "mongodb"
    Config: ClassVar[type[StorageConfig]] = MongoConfig
    features = Features(largest=_LARGEST)

    def __init__(self, config: MongoConfig) -> None:
        self._config = config
        self.variables = (f"{config.variables}_",)
        self._calls = Calls(Where(config.hosts, config.database, config.variables, config.timeout))
        self._client: AsyncMongoClient[Document] | None = None
        self._bodies: Bodies
        self._heads: Heads
        self._changing: Changing
        self._swept = 0.0
        self._sweeping: asyncio.Future[None] | None = None

    @classmethod
    def settings_of(cls, place: str) -> dict[str, Any]:
        return settings_of(place, False)

    # ------------------------------------------------------------------ open and close

    async def open(self) -> None:
        await self.close()
        self._client = client_of(self._config)
        try:
            await self._ready(self._client)
        except BaseException:
            await self.close()
            raise

    async def _ready(self, client: AsyncMongoClient[Document]) -> None:
        hello = await self._calls.ask("open it", self._first_answer(client))
        if not hello.get("isWritablePrimary"):
            raise UsageError(f"open it: {self._config.hosts} is no server that takes writes: name the primary, or all")
        is_replicated = "setName" in hello or hello.get("msg") == "isdbgrid"
        concern = ReadConcern("majority") if is_replicated else ReadConcern()
        database = client.get_database(self._config.database, read_concern=concern)
        self._bodies = Bodies(self._calls, database, self._config.collection)
        self._heads = Heads(self._calls, database[self._config.collection], self._bodies)
        self._changing = Changing(self._calls, self._heads, self.page)
        is_writer = await self._calls.ask("open it", self._prepared(database))
        tells = is_replicated and await self._calls.ask("open it", self._changing.is_there())
        self.features = Features(largest=_LARGEST, tells_changes=tells, of_others=tells)
        if is_writer:
            await self._sweep()

    async def _first_answer(self, client: AsyncMongoClient[Document]) -> Document:
        with pymongo.timeout(min(_OPENING, self._config.timeout)):
            return await client.admin.command("hello")

    async def _prepared(self, database: AsyncDatabase[Document]) -> bool:
        """It has what decides between writers. False: this user may only read.

        Raises:
            UsageError: it has not, or keys are in another order there.
        """
        name = self._config.collection
        async for each in await database.list_collections(filter={"name": name}):
            if each.get("options", {}).get("collation", {}).get("locale", "simple") != "simple":
                raise UsageError(f"open it: the collection {name!r} has a collation, so keys are not in order: drop it")
        heads = self._heads.collection
        try:
            await heads.create_index([("place", ASCENDING), ("number", ASCENDING)], unique=True)
            await heads.create_index([("removed", ASCENDING)], sparse=True)
            await self._bodies.prepare()
            kept = await self._probed()
        except OperationFailure as e:
            if e.code == _UNAUTHORIZED:
                return False
            raise
        if kept > 1:
            raise UsageError("open it: of several documents with one key of a unique index this server keeps more")
        return True

    async def _probed(self) -> int:
        """How many of several that come at the same time may have the same number."""

        async def one(version: str) -> bool:
            document = {"_id": version, "place": _PROBE, "number": 1, "past": [], "written": datetime.now(UTC)}
            try:
                await self._heads.collection.insert_one(document)
            except DuplicateKeyError:
                return False
            return True

        versions = [secrets.token_hex(12) for _ in range(4)]
        try:
            return sum(await asyncio.gather(*map(one, versions)))
        finally:
            await self._heads.collection.delete_many({"_id": {"$in": versions}})

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await self._calls.end(_CLOSING)
            await asyncio.shield(self._calls.go_on(client.close()))

    # ------------------------------------------------------------------ read

    async def stat(self, place: Place) -> About | None:
        head = await self._heads.last(place_of(place))
        return None if head is None else head.about

    @asynccontextmanager
    async def read(self, place: Place, start: int = 0, end: int | None = None) -> AsyncIterator[Reading | None]:
        found = await self._found(place_of(place), start, end)
        if found is None:
            yield None
            return
        head, pieces, first = found
        chunks = self._all_of(head, first, pieces)
        try:
            yield Reading(head.about, chunks)
        finally:
            await chunks.aclose()
            await pieces.aclose()

    async def _found(
        self, place: str, start: int, end: int | None
    ) -> tuple[Head, AsyncGenerator[bytes, None], bytes] | None:
        """What is there, and its first bytes: from then on it is known that it was not replaced before they came."""
        before = ""
        for _ in range(_READ_AGAIN):
            head = await self._heads.last(place, with_data=True)
            if head is None:
                return None
            last = head.about.size if end is None else min(end, head.about.size)
            pieces = _nothing() if start >= last else self._bodies.pieces(head.version, head.body, start, last)
            try:
                return head, pieces, await anext(pieces, b"")
            except Gone:
                if head.version == before:
                    raise Corrupt(f"{place}: its bytes are not in {self._config.database}") from None
                before = head.version
        raise StorageFailed(f"{place} is written all the time: read it again")

    async def _all_of(self, head: Head, first: bytes, more: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        if first:
            yield first
        try:
            async for piece in more:
                yield piece
        except Gone:
            again = await self._heads.last(head.place)
            if again is not None and again.version == head.version:
                raise Corrupt(f"{head.place}: some of its bytes are not in {self._config.database}") from None
            raise StorageFailed(f"{head.place} was written while it was read: read it again") from None

    async def read_many(self, places: Sequence[Place]) -> Sequence[tuple[About, bytes] | None]:
        heads = await self._heads.several([place_of(place) for place in places]) if places else {}
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(place: Place) -> tuple[About, bytes] | None:
            head = heads.get(place_of(place))
            if head is None or not head.body.lies:
                return None if head is None else (head.about, head.body.data)
            async with limit, self.read(place) as found:
                return None if found is None else (found.about, b"".join([each async for each in found.chunks]))

        return await asyncio.gather(*map(one, places))

    async def page(self, namespace: str, prefix: str = "", position: str = "", limit: int = 1000) -> Page:
        items: list[About] = []
        more = _MORE
        while True:
            asked = limit - len(items) + more
            groups, is_all = await self._heads.page(range_of(namespace, prefix, position), asked)
            if not is_all and len(groups) == 1:
                more *= 2  # what counts of it is still to come
                continue
            if not is_all:
                groups.pop()
            await self._tidied(groups)
            for i, group in enumerate(groups):
                head = group[-1]
                position = head.about.key
                if not head.is_gone:
                    items.append(head.about)
                if len(items) == limit:
                    return Page(items, "" if is_all and i == len(groups) - 1 else position)
            if is_all:
                return Page(items)

    async def _tidied(self, groups: Sequence[Sequence[Head]]) -> None:
        try:
            await self._heads.tidy(groups)
        except GrapeError:
            pass  # who may only read lists, too

    async def changes(self, namespace: str, prefix: str, position: str | None, limit: int = 1000) -> Changes:
        if not self.features.tells_changes:
            return await super().changes(namespace, prefix, position, limit)
        if position is None:
            return Changes([], await self._changing.now())
        return await self._changing.since(namespace, prefix, position, limit)

    # ------------------------------------------------------------------ write

    async def write(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        measured = Measured(chunks, _LARGEST, put)
        version = secrets.token_hex(12)

        async def check() -> None:
            if put.when.asks:  # before many bytes are sent for nothing
                head = await self._heads.last(place_of(place))
                if not put.when.holds(None if head is None else head.about):
                    raise Conflict(conflict(place, put.when, None if head is None else head.about))

        coming = await self._bodies.bring(version, place_of(place), aiter(measured), check)
        try:
            measured.check()
            about = About(
                place.key,
                measured.size,
                version,
                measured.checksum,
                time.time_ns() // 1000 if put.time is None else put.time,
                put.content_type,
                put.tags,
                put.user,
                put.expires,
            )
            await self._commit(place, put.when, Head(place_of(place), version, 0, about, coming.body), coming)
        except (BadArgument, Conflict):
            await self._bodies.give_up(coming)
            raise
        # Whatever else is raised, it may be done all the same: its bytes stay, until it is known.
        await self._bodies.settled(coming)
        self._sweep_soon()
        return about

    async def remove(self, place: Place, when: If = ALWAYS) -> bool:
        version = secrets.token_hex(12)
        gone = Head(place_of(place), version, 0, About(place.key, 0, version), is_gone=True)
        was_there = await self._commit(place, when, gone)
        self._sweep_soon()
        return was_there

    async def _commit(self, place: Place, when: If, new: Head, coming: Coming | None = None) -> bool:
        """It is what is there; whether something was.

        Raises:
            Conflict: what is asked for is not so.
        """
        longest = _PAUSE[0]
        for _ in range(_RACES):
            since = time.time()
            seen = await self._heads.chain(new.place)
            last = seen[-1] if seen else None
            there = None if last is None or last.is_gone else last.about
            if not when.holds(there):
                raise Conflict(conflict(place, when, there))
            if new.is_gone and there is None:
                return False
            if coming is not None:
                await self._bodies.renew(coming)
            if last is None:
                head = structs.replace(new, number=1)
            else:
                head = structs.replace(new, number=last.number + 1, past=(last.version, *last.past)[:PAST])
            if await self._heads.insert(head) and await self._heads.replace(seen, head, since):
                return there is not None
            await asyncio.sleep(random.uniform(0, longest))
            longest = min(2 * longest, _PAUSE[1])
        raise Conflict(f"{new.place}: somebody else was faster {_RACES} times")

    # ------------------------------------------------------------------ what is left

    def _sweep_soon(self) -> None:
        if time.monotonic() - self._swept > _SWEEPS and (self._sweeping is None or self._sweeping.done()):
            self._sweeping = self._calls.go_on(self._sweep())

    async def _sweep(self) -> None:
        """Remove the bytes of writes that nobody ends, and what says for long that an object is gone."""
        self._swept = time.monotonic()
        if not self._config.abandoned:
            return
        before = datetime.now(UTC) - timedelta(seconds=self._config.abandoned)
        try:
            for version, place in await self._bodies.abandoned(before, _SWEPT):
                chain = await self._heads.chain(place)
                if any(head.version == version for head in chain):
                    await self._bodies.forget_coming(version)
                else:
                    await self._bodies.drop_unfinished(version, None)
            await self._heads.forget(before, _SWEPT)
        except (GrapeError, PyMongoError):
            pass  # the next one does it


class MongoSrvStorage(MongoStorage):
    name: ClassVar[str] = "mongodb+srv"

    @classmethod
    def settings_of(cls, place: str) -> dict[str, Any]:
        return settings_of(place, True)


async def _nothing() -> AsyncGenerator[bytes, None]:
    for _ in ():
        yield b""
