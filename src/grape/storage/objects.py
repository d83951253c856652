"""What one does with objects, made of what every storage can."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final, TypeVar

from msgspec import Struct, structs

from grape.abc.storage import ALWAYS, OCTETS, About, If, Page, Place, Put, Reading, Storage
from grape.errors import BadArgument, Conflict, Unsupported
from grape.model.names import check_key, check_namespace, check_prefix, check_tags, check_type, check_user
from grape.model.values import seconds, shown
from grape.storage.streams import Data, chunks_of, collected, size_of, verified, whole

T = TypeVar("T")

AT_ONCE: Final = 32
"""Requests of one call that are under way at the same time."""
_TRIES: Final = 1_000
_PAUSE: Final = (0.001, 0.2)
"""Seconds before a swap is tried again: doubled from the first, up to the second, with full jitter."""


class Object(Struct, frozen=True):
    """An object, whole or a range of it."""

    about: About
    data: bytes


class Objects:
    """The objects of one namespace of a storage that is open. What has expired is not there.

    Args:
        now: microseconds since 1970.

    What any method raises: what the methods of `Storage` do.
    """

    def __init__(
        self, storage: Storage, namespace: str, now: Callable[[], int] = lambda: time.time_ns() // 1000
    ) -> None:
        self.storage = storage
        self.namespace = check_namespace(namespace)
        self._now = now

    # ------------------------------------------------------------------ write

    async def put(
        self,
        key: str,
        data: Data,
        *,
        content_type: str = OCTETS,
        tags: Iterable[str] = (),
        user: Mapping[str, str] | None = None,
        time: int | None = None,
        ttl: float | timedelta | None = None,
        checksum: str = "",
        if_version: str | None = None,
        if_checksum: str | None = None,
        if_absent: bool = False,
        if_newer: bool = False,
    ) -> About:
        """Write an object, whole.

        Args:
            data: bytes, text, a path (`pathlib.Path`), an open file, or chunks. Memory stays flat.
            time: microseconds since 1970, else that of now. ttl: seconds after which it is gone.
            checksum: "sha256:..": of the data; what is something else is refused.
            if_version, if_checksum: only if this is what is there. if_absent: only if nothing is.
            if_newer: only if nothing is there whose time is after ``time``.

        Raises:
            Conflict: what is asked for is not so; nothing has happened.
        """
        when = self._when(if_version, if_checksum, if_absent, time if if_newer else None, if_newer)
        about = self.described(content_type, tags, user, time=time, ttl=ttl)
        put = structs.replace(about, when=when, size=size_of(data), checksum=checksum)
        place = Place(self.namespace, check_key(key))
        try:
            if when.absent and not _can_again(data):  # what has expired is known before, or never
                put = structs.replace(put, when=await self._absent(place))
            return await self.storage.write(place, chunks_of(data), put)
        except Conflict:
            if not when.absent or put.when != when or not _can_again(data):
                raise
            put = structs.replace(put, when=await self._absent(place))
            if put.when == when:
                raise
            return await self.storage.write(place, chunks_of(data), put)

    async def _absent(self, place: Place) -> If:
        """As a storage knows it, for which what has expired is there."""
        gone = await self._expired(place)
        return If(absent=True) if gone is None else If(version=gone.version)

    def described(
        self,
        content_type: str = OCTETS,
        tags: Iterable[str] = (),
        user: Mapping[str, str] | None = None,
        *,
        time: int | None = None,
        ttl: float | timedelta | None = None,
    ) -> Put:
        """What `put` says of an object, checked.

        Raises:
            BadArgument: something of it cannot be.
        """
        kind, labels = check_type(content_type), check_tags(tags)
        return Put(kind, labels, check_user({} if user is None else user), _time(time), self._expires(ttl))

    async def append(self, key: str, data: Data, **options: object) -> About:
        """Write behind what is there, or a new object. The options are those of `put`, for one that is new."""
        put = Put(
            check_type(options.get("content_type", OCTETS)),
            check_tags(options.get("tags", ())),
            check_user(options.get("user", {})),
        )
        if unknown := options.keys() - {"content_type", "tags", "user"}:
            raise BadArgument(f"append takes content_type=, tags= and user=, not {', '.join(sorted(unknown))}=")
        place = Place(self.namespace, check_key(key))
        gone = await self._expired(place)
        if gone is not None:
            await self._removed(gone)
        try:
            return await self.storage.append(place, chunks_of(data), put)
        except Unsupported:
            if not self.storage.features.swaps:
                raise
        more = await collected(chunks_of(data))
        return await self._until_it_holds(place, lambda: self._appended(place, more, put))

    async def _appended(self, place: Place, more: bytes, put: Put) -> About:
        async with self.storage.read(place) as found:
            if found is None:
                return await self.storage.write(place, chunks_of(more), structs.replace(put, when=If(absent=True)))
            about = found.about
            put = Put(about.content_type, about.tags, about.user, None, about.expires, If(version=about.version))
            return await self.storage.write(place, _both(found.chunks, more), put)

    async def swap(self, key: str, change: Callable[[bytes | None], bytes | None]) -> About | None:
        """Write what ``change`` makes of what is there (None: nothing is), as one step, whoever else writes; as often
        as it takes. What it makes None of is removed.

        Raises:
            Unsupported: the storage does not ``swap``.
        """
        place = Place(self.namespace, check_key(key))
        if not self.storage.features.swaps:
            raise Unsupported(f"storage {self.storage.name!r} does not look and write as one step")
        return await self._until_it_holds(place, lambda: self._swapped(place, change))

    async def _swapped(self, place: Place, change: Callable[[bytes | None], bytes | None]) -> About | None:
        async with self.storage.read(place) as found:
            there = None if found is None or self._is_gone(found.about) else await collected(found.chunks)
            about = None if found is None else found.about
        when = If(absent=True) if about is None else If(version=about.version)
        new = change(there)
        if new is None:
            if about is not None:
                await self.storage.remove(place, when)
            return None
        kept = about if there is not None and about is not None else About(place.key, 0, "")
        put = Put(kept.content_type, kept.tags, kept.user, None, kept.expires, when)
        return await self.storage.write(place, chunks_of(new), put)

    async def _until_it_holds(self, place: Place, do: Callable[[], Awaitable[T]]) -> T:
        """As often as somebody else was faster."""
        longest = _PAUSE[0]
        for _ in range(_TRIES):
            try:
                return await do()
            except Conflict:
                await asyncio.sleep(random.uniform(0, longest))
                longest = min(2 * longest, _PAUSE[1])
        raise Conflict(f"{place.namespace}/{place.key}: somebody else was faster {_TRIES:,} times")

    async def remove(self, key: str, *, if_version: str | None = None, if_checksum: str | None = None) -> bool:
        """Whether it was there.

        Raises:
            Conflict: it is not what was asked for.
        """
        place = Place(self.namespace, check_key(key))
        was_gone = await self._expired(place) is not None
        return await self.storage.remove(place, If(if_version, if_checksum)) and not was_gone

    # ------------------------------------------------------------------ read

    async def stat(self, key: str) -> About | None:
        """What is known of an object; None: there is none."""
        found = await self.storage.stat(Place(self.namespace, check_key(key)))
        return None if found is None or self._is_gone(found) else found

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Object | None:
        """An object, or its bytes from ``start`` up to ``end`` (not included), as far as there are.

        Raises:
            Corrupt: it is not what was written; known only if it is read whole.
        """
        async with self.open(key, start, end) as found:
            return None if found is None else Object(found.about, await collected(found.chunks))

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[Reading | None]:
        """The same, chunk by chunk: ``async for chunk in reading.chunks``."""
        async with self._opened(key, start, end) as found:
            yield found

    @asynccontextmanager
    async def _opened(
        self, key: str, start: int = 0, end: int | None = None, *, thoroughly: bool = False
    ) -> AsyncIterator[Reading | None]:
        """``thoroughly``: by its checksum, whatever else is known."""
        if type(start) is not int or start < 0 or not (end is None or (type(end) is int and end >= start)):
            raise BadArgument(f"a range is from 0 or more to the same or more, not {shown(start)} to {shown(end)}")
        place = Place(self.namespace, check_key(key))
        async with self.storage.read(place, start, end) as found:
            if found is None or self._is_gone(found.about):
                yield None
            elif start == 0 and (end is None or end >= found.about.size):
                about, what = found.about, f"{place.namespace}/{place.key}"
                check = about.checksum if thoroughly else found.check or about.checksum
                yield Reading(about, verified(found.chunks, check, about.size, what))
            else:
                yield found

    async def get_many(self, keys: Iterable[str]) -> dict[str, Object]:
        """Those that are there, by key."""
        wanted = list(dict.fromkeys(keys))
        places = [Place(self.namespace, check_key(key)) for key in wanted]
        try:
            several = await self.storage.read_many(places)
        except Unsupported:
            return await self._get_each(wanted)
        return {
            place.key: Object(one[0], whole(one[1], one[0].checksum, one[0].size, f"{self.namespace}/{place.key}"))
            for place, one in zip(places, several, strict=True)
            if one is not None and not self._is_gone(one[0])
        }

    async def _get_each(self, wanted: Sequence[str]) -> dict[str, Object]:
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(key: str) -> Object | None:
            async with limit:
                return await self.get(key)

        async with asyncio.TaskGroup() as group:
            tasks = {key: group.create_task(one(key)) for key in wanted}
        found = {key: task.result() for key, task in tasks.items()}
        return {key: object for key, object in found.items() if object is not None}

    async def list(
        self, prefix: str = "", *, tags: Iterable[str] = (), any_tag: Iterable[str] = ()
    ) -> AsyncIterator[About]:
        """All objects whose keys begin with ``prefix``, which have all of ``tags``, and one of ``any_tag``."""
        position = ""
        while True:
            page = await self.page(prefix, position, tags=tags, any_tag=any_tag)
            for about in page.items:
                yield about
            position = page.position
            if not position:
                return

    async def count(self, prefix: str = "", *, tags: Iterable[str] = ()) -> tuple[int, int]:
        """How many objects there are whose keys begin with ``prefix``, which have all of ``tags``; and their bytes."""
        wanted = check_tags(tags)
        if not wanted:
            try:
                return await self.storage.count(self.namespace, check_prefix(prefix), self._now())
            except Unsupported:
                pass
        count, size, position = 0, 0, ""
        while True:
            page = await self.page(prefix, position, tags=wanted)
            count, size, position = count + len(page.items), size + sum([a.size for a in page.items]), page.position
            if not position:
                return count, size

    async def page(
        self,
        prefix: str = "",
        position: str = "",
        limit: int = 1000,
        *,
        tags: Iterable[str] = (),
        any_tag: Iterable[str] = (),
    ) -> Page:
        """Some of them, perhaps none, and from where to go on ("": there are no more): a position is good for ever."""
        every, some = set(check_tags(tags)), set(check_tags(any_tag))
        page = await self.storage.page(self.namespace, check_prefix(prefix), position, limit)
        items: Sequence[About] = [about for about in page.items if not about.expires or not self._is_gone(about)]
        if every or some:
            if not self.storage.features.tells_all:
                items = await self._whole(items)
            items = [a for a in items if every <= set(a.tags) and (not some or some & set(a.tags))]
        return Page(items, page.position)

    async def _whole(self, items: Sequence[About]) -> Sequence[About]:
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(about: About) -> About | None:
            async with limit:
                return await self.stat(about.key)

        found = await asyncio.gather(*map(one, items))
        return [about for about in found if about is not None]

    async def verify(self, key: str) -> About | None:
        """Read it whole, and keep nothing of it.

        Raises:
            Corrupt: it is not what was written.
        """
        async with self._opened(key, thoroughly=True) as found:
            if found is None:
                return None
            async for _ in found.chunks:
                pass
            return found.about

    # ------------------------------------------------------------------ what has to go

    async def sweep(self, prefix: str = "") -> int:
        """Remove what has expired; how many there were."""
        removed = 0
        position = ""
        while True:
            page = await self.storage.page(self.namespace, prefix, position)
            for about in page.items:
                whole = about if self.storage.features.tells_all else await self.storage.stat(self._place(about))
                if whole is not None and self._is_gone(whole) and await self._removed(whole):
                    removed += 1
            position = page.position
            if not position:
                return removed

    async def cap(self, prefix: str = "", *, objects: int | None = None, size: int | None = None) -> int:
        """Remove the oldest until there are at most so many objects, with at most so many bytes; how many went."""
        found: list[About] = []
        position = ""
        while True:
            page = await self.page(prefix, position)
            found += page.items if self.storage.features.tells_all else await self._whole(page.items)
            position = page.position
            if not position:
                break
        found.sort(key=lambda about: (about.time, about.key))
        left, total, removed = len(found), sum(about.size for about in found), 0
        for about in found:
            if (objects is None or left <= objects) and (size is None or total <= size):
                break
            removed += await self._removed(about)
            left, total = left - 1, total - about.size
        return removed

    async def _removed(self, about: About) -> bool:
        """It, and nothing that was written since."""
        features = self.storage.features
        when = If(version=about.version) if features.swaps and features.removes else ALWAYS
        try:
            return await self.storage.remove(self._place(about), when)
        except Conflict:
            return False

    # ------------------------------------------------------------------ common to all

    def _place(self, about: About) -> Place:
        return Place(self.namespace, about.key)

    def _is_gone(self, about: About) -> bool:
        return 0 < about.expires <= self._now()

    async def _expired(self, place: Place) -> About | None:
        """What is there and has expired."""
        found = await self.storage.stat(place)
        return found if found is not None and self._is_gone(found) else None

    def _expires(self, ttl: float | timedelta | None) -> int:
        if ttl is None:
            return 0
        try:
            return self._now() + max(1, int(seconds(ttl, "ttl=") * 1e6))
        except (TypeError, ValueError) as e:
            raise BadArgument(str(e)) from None

    def _when(self, version: str | None, checksum: str | None, absent: bool, time: int | None, is_newer: bool) -> If:
        for value, what in ((version, "if_version="), (checksum, "if_checksum=")):
            if value is not None and type(value) is not str:
                raise BadArgument(f"{what} is text, as `About` has it, not {shown(value)}")
        if is_newer and time is None:
            time = self._now()
        return If(version, checksum, bool(absent), _time(time) if is_newer else None)


def _time(value: object) -> int | None:
    if value is None or (type(value) is int and 0 <= value < 1 << 62):
        return value
    raise BadArgument(f"time= is microseconds since 1970, not {shown(value)}")


def _can_again(data: Data) -> bool:
    return size_of(data) is not None


async def _both(first: AsyncIterator[bytes], then: bytes) -> AsyncIterator[bytes]:
    async for chunk in first:
        yield chunk
    yield then
