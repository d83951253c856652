"""What is known of objects, as documents.

    _id       the version: chance
    place     NAMESPACE/KEY
    number    of the write, among those of this place, from 1
    removed   when; of a document that says that the object is gone
    past      versions before it, the last first

Nothing is ever changed. A write is a document with the next number, which only one can have: place and number are a
unique index, and that is what decides between writers. (To find and update as one step is not used: FerretDB above
SQLite lets several through.) The document before it goes after that. Numbers get free in their order, and the last
document never goes: so ours is the first of its number if the one before it is still there when we remove it. If it is
not, or there was none, our number may have been another one's, which has gone since we looked. Then there is a later
document that nobody has built on ours, and ours is taken back.

So the object is what the last document of a place says; some before it may be there for a moment, or longer if whoever
wrote died. Whoever reads goes from the first to the last, so that there is always one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from msgspec import Struct
from pymongo import ASCENDING
from pymongo.asynchronous.collection import AsyncCollection

from grape.abc.storage import About, Place
from grape.errors import Corrupt, GrapeError, StorageFailed
from grape.storage.mongodb.bodies import HERE, Bodies, Body
from grape.storage.mongodb.calls import Calls
from grape.storage.mongodb.settings import Document

PAST: Final = 16
"""Versions before it that a document knows."""
SURE: Final = 60.0
"""Seconds within which a write notices that what it was built on had been forgotten."""
LEFT: Final = 3600.0
"""Seconds after which a document that a later one has replaced is removed by whoever sees it."""
_ORDER: Final = [("place", ASCENDING), ("number", ASCENDING)]
_NO_DATA: Final = {"data": 0}


class Head(Struct, frozen=True):
    """``written``: seconds since 1970."""

    place: str
    version: str
    number: int
    about: About
    body: Body = HERE
    is_gone: bool = False
    past: tuple[str, ...] = ()
    written: float = 0.0


def place_of(place: Place) -> str:
    return f"{place.namespace}/{place.key}"


def range_of(namespace: str, prefix: str, after: str = "") -> Document:
    """Of places. They are in the order of Unicode, which is that of their UTF-8."""
    begin = f"{namespace}/{prefix}"
    found: Document = {"$gte": begin, "$lt": _behind(begin)}
    if after and f"{namespace}/{after}" >= begin:
        found = {"$gt": f"{namespace}/{after}", "$lt": found["$lt"]}
    return found


def _behind(prefix: str) -> str:
    """The first text behind all that begin so."""
    kept = prefix.rstrip("\U0010ffff")
    code = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if code == 0xD800 else code)


def document_of(head: Head) -> Document:
    document: Document = {
        "_id": head.version,
        "place": head.place,
        "number": head.number,
        "past": list(head.past),
        "written": datetime.now(UTC),
    }
    if head.is_gone:
        return document | {"removed": document["written"]}
    about = head.about
    document |= {
        "size": about.size,
        "checksum": about.checksum,
        "time": about.time,
        "content_type": about.content_type,
        "tags": list(about.tags),
        "user": [{"name": name, "value": value} for name, value in about.user.items()],
        "expires": about.expires,
        "lies": head.body.lies,
    }
    return document | ({"data": head.body.data} if head.body == HERE or head.body.data else {"chunk": head.body.chunk})


def head_of(document: Document) -> Head:
    """
    Raises:
        Corrupt: it is none of ours.
    """
    try:
        place, version = document["place"], document["_id"]
        key = place.partition("/")[2]
        is_gone = "removed" in document
        about = About(key, 0, version)
        body = HERE
        if not is_gone:
            about = About(
                key,
                int(document["size"]),
                version,
                document["checksum"],
                int(document["time"]),
                document["content_type"],
                tuple(document["tags"]),
                {each["name"]: each["value"] for each in document["user"]},
                int(document["expires"]),
            )
            data = bytes(document.get("data", b""))
            body = Body(document["lies"], data, int(document.get("chunk", 0)))
        written: datetime = document["written"]
        return Head(
            place, version, int(document["number"]), about, body, is_gone, tuple(document["past"]), written.timestamp()
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Corrupt(f"the document {document.get('_id')!r:.100} is none that Grape has written") from None


class Heads:
    def __init__(self, calls: Calls, collection: AsyncCollection[Document], bodies: Bodies) -> None:
        self._calls = calls
        self.collection = collection
        self._bodies = bodies

    # ------------------------------------------------------------------ read

    async def chain(self, place: str, with_data: bool = False) -> list[Head]:
        """All documents of a place; the last one counts."""
        cursor = self.collection.find({"place": place}, None if with_data else _NO_DATA).sort("number", ASCENDING)
        return [head_of(document) for document in await self._calls.ask(f"look at {place}", cursor.to_list())]

    async def last(self, place: str, with_data: bool = False) -> Head | None:
        """What is there; None: nothing."""
        chain = await self.chain(place, with_data)
        return chain[-1] if chain and not chain[-1].is_gone else None

    async def several(self, places: Sequence[str]) -> dict[str, Head]:
        """Those that are there, with their data, by one request."""
        cursor = self.collection.find({"place": {"$in": list(places)}}).sort(_ORDER)
        found = await self._calls.ask(f"look at {len(places)} objects", cursor.to_list())
        last = {head.place: head for head in map(head_of, found)}
        return {place: head for place, head in last.items() if not head.is_gone}

    async def page(self, places: Document, limit: int) -> tuple[list[list[Head]], bool]:
        """Some documents, those of one place together, and whether they are all."""
        cursor = self.collection.find({"place": places}, _NO_DATA).sort(_ORDER).limit(limit).batch_size(limit + 1)
        found = [head_of(document) for document in await self._calls.ask("list", cursor.to_list())]
        groups: list[list[Head]] = []
        for head in found:
            if groups and groups[-1][0].place == head.place:
                groups[-1].append(head)
            else:
                groups.append([head])
        return groups, len(found) < limit

    # ------------------------------------------------------------------ write

    async def insert(self, head: Head) -> bool:
        """Whether it has its number; False: another one has it."""

        async def is_mine() -> bool:
            chain = await self.chain(head.place)
            if any(head.version == each.version or head.version in each.past for each in chain):
                return True
            if chain and chain[-1].number >= head.number + PAST:
                raise StorageFailed(f"write {head.place}: whether it was done before others wrote is not known")
            return False

        return await self._calls.insert(self.collection, document_of(head), f"write {head.place}", is_mine)

    async def replace(self, seen: Sequence[Head], head: Head, since: float) -> bool:
        """Remove what ``head`` was built on; whether it stays. ``since``: when that was seen."""
        if not seen:
            return await self._is_its_own(head, False)
        last = seen[-1]
        was_there: bool | None = None
        try:
            for each in seen:  # from the first on: a number is free again only after the one before it is
                if each.version in (last.version, *last.past):
                    was_there = await self._remove(each)
        except GrapeError:
            was_there = None  # it is not known; whoever writes next removes it
        return bool(was_there) or await self._is_its_own(head, was_there is False and time.time() - since < SURE)

    async def _is_its_own(self, head: Head, is_gone: bool) -> bool:
        """Whether its number is its own, and not one that is free again since another one had it and has gone. Else it
        is taken back. ``is_gone``: nobody has it from us, but what it was built on is not there."""
        while True:
            chain = await self.chain(head.place)
            if any(head.version in each.past for each in chain) or all(head.version != each.version for each in chain):
                return True
            is_last = chain[-1].version == head.version
            if is_last and not is_gone:
                return True
            done = await self._calls.ask(f"write {head.place}", self.collection.delete_one({"_id": head.version}))
            if done.deleted_count or not is_last:
                return False

    async def _remove(self, head: Head) -> bool:
        """It and its bytes, those first: without the document nobody would find them."""
        await self._bodies.drop(head.version, head.body, head.about.size)
        done = await self._calls.ask(f"remove {head.place}", self.collection.delete_one({"_id": head.version}))
        return done.deleted_count > 0

    # ------------------------------------------------------------------ what is left

    async def tidy(self, groups: Iterable[Sequence[Head]]) -> None:
        """Remove what was replaced long ago by who died then."""
        long_ago = time.time() - LEFT
        for group in groups:
            if len(group) > 1 and group[-1].written < long_ago:
                for each in group[:-1]:
                    await self._remove(each)

    async def forget(self, before: datetime, most: int) -> None:
        """Remove what says of objects that they have gone before that."""
        cursor = self.collection.find({"removed": {"$lt": before}}, _NO_DATA).limit(most)
        found = [head_of(document) for document in await self._calls.ask("sweep", cursor.to_list())]
        for head in found:
            chain = await self.chain(head.place)
            if chain and chain[-1].version == head.version:
                for each in chain:  # itself at last: what is before it would be there again
                    await self._remove(each)
