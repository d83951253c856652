"""Objects as records under the ids that everybody gives them: others read what is written here, and the other way
round. There is a place for bytes and a time, and for nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final

from msgspec import Struct

from grape.abc.storage import ALWAYS, CHUNK, OCTETS, About, Features, If, Place, Put, Reading
from grape.errors import Conflict, Corrupt, StorageFailed, TooLarge, Unsupported
from grape.storage.conditions import conflict
from grape.storage.elliptics import marks
from grape.storage.elliptics.bodies import Body, gathered
from grape.storage.elliptics.core import Core, Keyed, is_behind, sum_of
from grape.storage.elliptics.failures import Refusal, Status, Unknown
from grape.storage.elliptics.groups import Found, is_rotten
from grape.storage.elliptics.marks import BEGINS, GONE, MARK, Kind
from grape.storage.elliptics.wire import APPENDED, NOTHING, Mode, Record, Stamp, Writing, stamp

_PEEK: Final = 4096
"""Bytes that are read of a record to know what it is; all of it, if it is small."""
_AGAIN: Final = 10
_TRIES: Final = 100
_SKEW: Final = 60_000_000
"""Microseconds that clocks of writers may differ."""
_LAST_NANOS: Final = 999
"""A guard looks at nanoseconds; here times are microseconds, and the same one is not after itself."""


class View(Struct, frozen=True):
    """What a group has under an id: the beginning of it."""

    record: Record

    @property
    def shift(self) -> int:
        """Bytes before those of the object."""
        return MARK if marks.is_marked(self.record.data) else 0

    @property
    def is_gone(self) -> bool:
        return marks.is_gone(self.record.data, self.record.total)

    @property
    def is_all(self) -> bool:
        return len(self.record.data) == self.record.total

    @property
    def size(self) -> int:
        return self.record.total - self.shift

    @property
    def order(self) -> tuple[int, Stamp, int]:
        return marks.order_of(self.record.user_flags, self.record.stamp)

    @property
    def version(self) -> str:
        return _version(self.record.stamp, self.record.user_flags, self.record.total)


class _Changed(StorageFailed):
    """Somebody has written between two looks."""


class Plain:
    """
    Args:
        id_of: of a place.
    """

    def __init__(self, core: Core, id_of: Callable[[Place], bytes]) -> None:
        self._core = core
        self._client = core.client
        self._groups = core.groups
        self._id_of = id_of
        self._is_one = len(core.groups.all) == 1
        self._large = Keyed()
        self.features = Features(
            largest=core.limits.largest,
            swaps=self._is_one,
            lists=False,
            in_order=False,
            tells_all=False,
            keeps_about=False,
            checksum="sha512",
        )

    # ------------------------------------------------------------------ read

    async def stat(self, place: Place) -> About | None:
        found = await self._begin(place, _PEEK)
        return None if found is None else found[1]

    @asynccontextmanager
    async def read(self, place: Place, start: int = 0, end: int | None = None) -> AsyncIterator[Reading | None]:
        size = CHUNK if end is None else min(CHUNK, max(_PEEK, end + MARK))
        found = await self._begin(place, _PEEK if start else size, start == 0 and end is None)
        if found is None:
            yield None
            return
        group, about, view = found
        async with aclosing(self._chunks(group, place, view, start, about.size if end is None else end)) as chunks:
            yield Reading(about, chunks)

    async def _begin(self, place: Place, size: int, is_whole: bool = True) -> tuple[int, About, View] | None:
        """The newest there is, its first ``size`` bytes, and what is known of it; its checksum if it is looked at whole
        and not large, or if that costs nothing."""
        id = self._id_of(place)
        for _ in range(_AGAIN):
            try:
                found = await self._newest(place, id, size)
                if found is None:
                    return None
                view = found.value
                checksum = ""
                if view.is_all or (is_whole and view.size <= self._core.limits.whole):
                    checksum = await self._checksum(found.group, id, view)
                return found.group, _about(place, view, checksum), view
            except _Changed:
                continue
            except StorageFailed as e:
                raise _honest(place, e) from None
        raise StorageFailed(f"{_name(place)}: somebody writes it again and again while it is looked at")

    async def _newest(self, place: Place, id: bytes, size: int) -> Found[View] | None:
        first = self._groups.all[0]
        if self._is_one:
            view = await self._view(first, id, size)
            return None if view is None or view.is_gone else Found(first, view)
        found = await self._groups.newest(
            _name(place), lambda group: self._view(group, id, size if group == first else MARK), lambda view: view.order
        )
        if found is None:
            return None
        self._repair(place, id, found)
        if found.value.is_gone:
            return None
        if found.group != first and not found.value.is_all and size > MARK:
            view = await self._view(found.group, id, size)
            if view is None or view.version != found.value.version:
                raise _Changed(f"{_name(place)}: it was written while it was looked at")
            return Found(found.group, view)
        return found

    async def _view(self, group: int, id: bytes, size: int) -> View | None:
        record = await self._core.there(group, id, 0, size)
        return None if record is None else View(record)

    async def _checksum(self, group: int, id: bytes, view: View) -> str:
        """Of the object."""
        if view.is_all and not view.shift:
            return f"sha512:{view.record.checksum.hex()}"
        if view.shift:
            return sum_of((await self._all(group, id, view))[MARK:])
        return f"sha512:{(await self._digest(group, id, view)).hex()}"

    async def _digest(self, group: int, id: bytes, view: View) -> bytes:
        """Of the record, as the server has it."""
        if view.is_all:
            return view.record.checksum
        if view.record.flags == 0:  # in the cache, which lookups do not see
            return hashlib.sha512(await self._all(group, id, view)).digest()
        info = await self._client.lookup(group, id, True, view.record.total)
        is_same = info.size == view.record.total or view.record.flags & APPENDED
        if info.stamp != view.record.stamp or not is_same:
            raise _Changed("a record was written while it was looked at")
        return info.checksum

    async def _all(self, group: int, id: bytes, view: View) -> bytes:
        """The whole record."""
        if view.is_all:
            return view.record.data
        found = await self._view(group, id, view.record.total)
        if found is None or found.version != view.version:
            raise _Changed("a record was written while it was looked at")
        return found.record.data

    async def _chunks(self, group: int, place: Place, view: View, start: int, end: int) -> AsyncGenerator[bytes, None]:
        stop = min(end, view.size)
        held = view.record.data[view.shift :]
        if start < min(len(held), stop):
            yield held[start:stop]
            start = min(len(held), stop)
        if start >= stop:
            return
        id = self._id_of(place)

        async def piece(at: int, size: int) -> bytes:
            return await self._piece(place, id, group, view, at, size)

        async with aclosing(self._core.pieces(start, stop, piece)) as pieces:
            async for data in pieces:
                yield data

    async def _piece(self, place: Place, id: bytes, group: int, view: View, at: int, size: int) -> bytes:
        """From another group, if that one has gone, as long as it is the same version."""
        why: StorageFailed | None = None
        for each in (group, *(other for other in self._groups.all if other != group)):
            try:
                record = await self._client.read(each, id, at + view.shift, size, int(Mode.CHECKSUM))
            except Refusal as e:
                if not is_behind(e) and e.status != Status.NOT_THERE:
                    why = e
                continue
            except StorageFailed as e:
                why = e
                continue
            if View(record).version == view.version and len(record.data) == size:
                return record.data
        if why is not None:
            raise _honest(place, why)
        raise StorageFailed(f"{_name(place)}: it was written or removed while it was read: read it again")

    async def read_many(self, places: Sequence[Place]) -> list[tuple[About, bytes] | None]:
        """Bulk reads of one group, if one is enough; what it lacks is read as always."""
        ids = {place: self._id_of(place) for place in places}
        held = await self._core.bulk(list(ids.values()), CHUNK) if self._groups.asked == 1 else {}
        found: dict[Place, tuple[About, bytes] | None] = {}
        for place, id in ids.items():
            record = held.get(id)
            if record is not None:
                view = View(record)
                data = record.data[view.shift :]
                found[place] = None if view.is_gone else (_about(place, view, sum_of(data)), data)
        await self._core.read_each([place for place in ids if place not in found], self.read, found)
        return [found[place] for place in places]

    # ------------------------------------------------------------------ write

    async def write(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        self._check(put)
        limits = self._core.limits
        body = await gathered(chunks, put, limits.whole, limits.largest, limits.folder)
        try:
            if body.data is None:
                return await self._write_large(place, body, put)
            data = marks.marked(body.data)
            if put.when.asks:
                how = await self._write_if(place, data, put)
            else:
                how = await self._write_all(place, data, put)
            return _written(place, how, len(data), body)
        finally:
            body.close()

    def _check(self, put: Put) -> None:
        """
        Raises:
            Unsupported: there is no place for what it says, or a condition cannot be kept.
        """
        if put.content_type != OCTETS or put.tags or put.user or put.expires:
            raise Unsupported(
                "Elliptics keeps bytes and a time, no content type, tags, metadata or ttl: open the storage with "
                "about=true, which keeps them beside"
            )
        if not self.features.looks_at(put.when):
            raise Unsupported(
                "a condition holds for one group, and each has its own: use one group, or about=true with a group that "
                "decides (decides=)"
            )

    def _how(self, put: Put, after: int = 0, mode: int = 0, num: int = 0, parent: bytes = NOTHING) -> Writing:
        moment = self._core.moments.next(after)
        # Below the microseconds is chance: of two at the same time each group has to keep the same one.
        at = stamp(moment, random.randrange(_LAST_NANOS)) if put.time is None else stamp(put.time)
        return self._core.writing(Writing(at, marks.flags_of(moment, Kind.OBJECT), mode, 0, num, 0, parent))

    async def _write_all(self, place: Place, data: bytes, put: Put) -> Writing:
        """With several groups, and others who write at the same time, the later of them is what all groups have in the
        end: the one that comes too late to one group writes again, later."""
        id = self._id_of(place)
        if self._is_one:
            how = self._how(put)
            await self._client.write(self._groups.all[0], id, data, how)
            return how
        after, is_guarded = 0, put.time is None
        for attempt in range(_AGAIN):
            how = self._how(put, after, Mode.NOT_OLDER if is_guarded else 0)
            newer = await self._write_once(place, id, data, how)
            if not newer:
                break
            if newer - self._core.moments.next() > _SKEW or attempt == _AGAIN - 2:
                is_guarded = False  # that is no other writer's clock, but a time that somebody has given it
            else:
                after = newer
        return how

    async def _write_once(self, place: Place, id: bytes, data: bytes, how: Writing) -> int:
        """The time of what is newer in one of the groups; 0: nothing is."""
        newer = [0]

        async def one(group: int) -> None:
            try:
                await self._client.write(group, id, data, how)
            except Refusal as e:
                if e.status != Status.REFUSED:
                    raise
                view = await self._view(group, id, MARK)
                newer.append(how.stamp.micros if view is None else view.record.stamp.micros)

        await self._groups.write(_name(place), one)
        return max(newer)

    async def _write_if(self, place: Place, data: bytes, put: Put) -> Writing:
        """In the one group there is."""
        id, group, when = self._id_of(place), self._groups.all[0], put.when
        expected: bytes | None = NOTHING if when == If(absent=True) else None
        if when == If(not_newer_than=when.not_newer_than) and put.time in (None, when.not_newer_than):
            at = stamp(when.not_newer_than or 0, _LAST_NANOS)
            how = self._how(put, 0, Mode.NOT_OLDER)._replace(stamp=at)
            if await self._try(group, id, data, how):
                return how
        for _ in range(_TRIES):
            if expected is None:
                there, expected = await self._there(place, id)
                if not when.holds(there):
                    raise Conflict(conflict(place, when, there))
            how = self._how(put, 0, Mode.SWAP, len(data), expected)
            if await self._try(group, id, data, how):
                return how
            expected = None
        raise StorageFailed(f"{_name(place)}: somebody else was faster {_TRIES} times")

    async def _try(self, group: int, id: bytes, data: bytes, how: Writing) -> bool:
        """Whether it was so as ``how`` asks for, and is written."""
        try:
            await self._client.write(group, id, data, how)
        except Refusal as e:
            if e.status != Status.REFUSED:
                raise
            return False
        except Unknown:
            view = await self._view(group, id, MARK)
            if view is None or (view.record.stamp, view.record.user_flags) != (how.stamp, how.user_flags):
                raise
        return True

    async def _there(self, place: Place, id: bytes) -> tuple[About | None, bytes]:
        """What there is, and what a swap has to expect."""
        group = self._groups.all[0]
        for _ in range(_AGAIN):
            try:
                view = await self._view(group, id, _PEEK)
                if view is None:
                    return None, NOTHING
                if view.is_gone:
                    return None, view.record.checksum
                is_small = view.size <= self._core.limits.whole
                about = _about(place, view, await self._checksum(group, id, view) if is_small else "")
                return about, await self._digest(group, id, view)
            except _Changed:
                continue
            except StorageFailed as e:
                raise _honest(place, e) from None
        raise StorageFailed(f"{_name(place)}: somebody writes it again and again while it is looked at")

    async def _write_large(self, place: Place, body: Body, put: Put) -> About:
        """In several messages, in place: the object is not there meanwhile. Two who do so at the same time mix; who has
        written last sees it, and writes again."""
        if put.when.asks:
            raise Unsupported(
                f"a condition for an object of over {self._core.limits.whole:,} bytes, which is written in several "
                f"messages: open the storage with about=true"
            )
        id = self._id_of(place)
        start = await body.read(0, MARK)
        first = BEGINS if marks.is_marked(start) else b""
        async with self._large.of(id):
            for _ in range(_AGAIN):
                how = self._how(put)

                async def one(group: int, how: Writing = how) -> bool:
                    try:
                        await self._core.upload(group, id, body, how, first)
                    except Refusal as e:
                        if e.status != Status.NOT_THERE and not is_behind(e):
                            raise
                        return False  # somebody else has begun, or committed, in between
                    info = await self._client.lookup(group, id, True, len(first) + body.size)
                    view = await self._view(group, id, MARK)
                    is_ours = view is not None and view.record.user_flags == how.user_flags
                    return not is_ours or bool(first) or info.checksum == body.digest

                if all(await self._groups.write(_name(place), one, leaves=False)):
                    return _written(place, how, len(first) + body.size, body)
        raise StorageFailed(f"{_name(place)}: somebody else writes it at the same time, again and again")

    async def append(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        self._check(put)
        limits = self._core.limits
        if not self._is_one or put.when.asks or limits.mode:
            raise Unsupported("Elliptics appends in one step in one group, without a condition, and not in the cache")
        body = await gathered(chunks, put, limits.whole, limits.largest, limits.folder)
        try:
            if body.data is None:
                raise TooLarge(f"{body.size:,} bytes to append; in one step it can be {limits.whole:,}")
            return await self._append(place, body.data, put)
        finally:
            body.close()

    async def _append(self, place: Place, data: bytes, put: Put) -> About:
        id, group = self._id_of(place), self._groups.all[0]
        if data:
            await self._client.write(group, id, data, self._how(put, 0, Mode.APPEND))
        else:
            await self._try(group, id, BEGINS, self._how(put, 0, Mode.SWAP, MARK))
        about = await self.stat(place)
        if about is None:
            raise StorageFailed(f"{_name(place)}: somebody has removed what was appended")
        return about

    # ------------------------------------------------------------------ remove

    async def remove(self, place: Place, when: If = ALWAYS) -> bool:
        """Elliptics removes without a condition alone. With one the record becomes a mark that says so."""
        self._check(Put(when=when))
        if when.asks:
            there = await self.stat(place)
            if there is None:
                if not when.holds(None):
                    raise Conflict(conflict(place, when, None))
                return False
            await self._write_if(place, GONE, Put(when=when))
            return True
        id = self._id_of(place)

        async def one(group: int) -> bool:
            view, was_there = await asyncio.gather(  # one after the other, at the server
                self._view(group, id, MARK), self._client.remove(group, id), return_exceptions=True
            )
            if isinstance(was_there, BaseException):
                raise was_there
            return was_there and not (isinstance(view, View) and view.is_gone)

        was_there = False
        for _ in range(_AGAIN):
            found = await self._groups.everywhere(_name(place), one)
            was_there = was_there or any(found)
            if len(set(found)) == 1:  # else somebody may be about to copy it to where it is not
                return was_there
        return was_there

    # ------------------------------------------------------------------ repair

    def _repair(self, place: Place, id: bytes, found: Found[View]) -> None:
        limits = self._core.limits
        if limits.repairs == "off" or limits.mode:
            return
        if found.is_all or limits.repairs == "seen":
            if found.behind:
                self._core.repairs.want(id, lambda: self._copy(place, id, found))
        else:
            self._core.repairs.want(id, lambda: self._compare(place, id))

    async def _compare(self, place: Place, id: bytes) -> None:
        """All groups, whatever it takes to answer."""
        found = await self._groups.newest(
            _name(place), lambda group: self._view(group, id, MARK), lambda view: view.order, everyone=True
        )
        if found is not None:
            await self._copy(place, id, found)

    async def _copy(self, place: Place, id: bytes, found: Found[View]) -> None:
        """To groups that have none, or an older one: if what they had is still what they have. A large one is not: it
        would not be there meanwhile."""
        view = found.value
        if not found.behind or view.size > self._core.limits.whole:
            return
        data = await self._all(found.group, id, view)
        for group in found.behind:
            if not await self._copied(group, id, data, view):
                continue
            still = await self._view(found.group, id, MARK)
            if still is not None:
                continue
            # It was removed meanwhile: what has just been copied must not come back.
            ours = await self._view(group, id, MARK)
            if ours is not None and ours.version == view.version:
                await self._client.remove(group, id)

    async def _copied(self, group: int, id: bytes, data: bytes, view: View) -> bool:
        how = Writing(view.record.stamp, view.record.user_flags, Mode.SWAP, 0, len(data))
        try:
            there = await self._view(group, id, _PEEK)
            if there is not None:
                if there.order >= view.order:
                    return False
                how = how._replace(parent=await self._digest(group, id, there))
        except Refusal as e:
            if e.status != Status.ROTTEN:
                raise
            how = how._replace(mode=Mode.NOT_OLDER, num=0)
        return await self._try(group, id, data, how)


def _honest(place: Place, e: StorageFailed) -> StorageFailed | Corrupt:
    """The same, for who has asked: rotten is corrupt."""
    return Corrupt(f"{_name(place)}: {e}") if is_rotten(e) else e


def _about(place: Place, view: View, checksum: str) -> About:
    return About(place.key, view.size, view.version, checksum, view.record.stamp.micros)


def _written(place: Place, how: Writing, total: int, body: Body) -> About:
    checksum = f"sha512:{body.digest.hex()}" if body.data is not None else ""
    return About(place.key, body.size, _version(how.stamp, how.user_flags, total), checksum, how.stamp.micros)


def _version(at: Stamp, flags: int, total: int) -> str:
    return f"{at.seconds:x}.{at.nanos:x}-{flags:x}-{total:x}"


def _name(place: Place) -> str:
    return f"{place.namespace}/{place.key}"
