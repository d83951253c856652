"""Objects with all that is known of them: a head for each key, which names the bytes.

The head is the object. It is one record, written by one message, so that an object changes as one step whatever it has;
its bytes, if they do not fit into it, lie under an id that no other version has, and are there before. A writer that
dies in between leaves bytes that nobody names: they are in nobody's way, and `About.tidy` removes them.

No two heads are the same, and none is ever removed: a removal is a head too. So a swap by checksum, which is all that
Elliptics has, holds for the version.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Final

from msgspec import Struct

from grape.abc.storage import ALWAYS, CHUNK, About, Features, If, Page, Place, Put, Reading
from grape.errors import Conflict, Corrupt, StorageFailed, Unsupported
from grape.storage.conditions import conflict
from grape.storage.elliptics import heads, marks
from grape.storage.elliptics.bodies import Body, body_of, gathered
from grape.storage.elliptics.core import Core
from grape.storage.elliptics.failures import Refusal, Status, Unknown
from grape.storage.elliptics.groups import Found, is_rotten
from grape.storage.elliptics.heads import Head, Smallest
from grape.storage.elliptics.marks import Kind
from grape.storage.elliptics.ring import Owner
from grape.storage.elliptics.wire import NOTHING, Item, Mode, Scan, Writing, stamp

_AGAIN: Final = 10
_TRIES: Final = 100
_PAUSE: Final = 0.02
"""Seconds, at most, before a swap is tried again."""
_PAGE: Final = 10_000
_AHEAD: Final = 5_000
"""Heads that a list keeps for its next pages."""
_LISTS: Final = 8
_STALE: Final = 60.0
"""Seconds for which they are kept."""
_BATCH: Final = 50_000
"""Ids that `tidy` looks at before it asks for more."""


class Seen(Struct, frozen=True):
    """A head as a group has it. ``digest``: of its record, which a swap has to expect; b"": it is rotten, and nobody
    knows."""

    head: Head
    digest: bytes


class Tidied(Struct, frozen=True):
    """What was removed: ``bytes`` that no head named (records), ``marks`` of objects removed long ago."""

    bytes: int = 0
    marks: int = 0


class _Rest(Struct, frozen=True):
    """What a list has found for its next pages. ``is_cut``: there may be more."""

    since: float
    heads: Sequence[Head] = ()
    is_cut: bool = False


class WithHeads:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._client = core.client
        self._groups = core.groups
        self._decides = core.groups.all[0] if len(core.groups.all) == 1 else core.groups.decides
        self._lists: OrderedDict[tuple[str, str, str], _Rest] = OrderedDict()
        self.features = Features(
            largest=core.limits.largest, swaps=self._decides is not None, checksum="sha512", keeps_about=True
        )

    # ------------------------------------------------------------------ heads

    async def _seen(self, group: int, place: Place, id: bytes) -> Seen | None:
        record = await self._core.there(group, id, 0, heads.MOST)
        try:
            return None if record is None else Seen(heads.decode(record.data, place), record.checksum)
        except Corrupt as e:  # as one whose bytes are not what was written: other groups may have it
            raise Refusal(Status.ROTTEN, str(e), f"of group {group}") from None

    async def _newest(self, place: Place, everyone: bool = False) -> Found[Seen] | None:
        id = heads.head_id(place)
        found = await self._groups.newest(
            _name(place), lambda group: self._seen(group, place, id), lambda seen: seen.head.order, everyone
        )
        repairs = self._core.limits.repairs
        if found is None or everyone or repairs == "off":
            return found
        if found.is_all or repairs == "seen":
            if found.behind:
                self._core.repairs.want(id, lambda: self._copy(place, found))
        else:
            self._core.repairs.want(id, lambda: self._compare(place))
        return found

    async def _head(self, place: Place) -> Found[Seen] | None:
        """The head of an object that is there."""
        found = await self._newest(place)
        return None if found is None or found.value.head.is_gone else found

    def _writing(self, head: Head, mode: int, parent: bytes = NOTHING, num: int = 0) -> Writing:
        kind = Kind.GONE if head.is_gone else Kind.HEAD
        return Writing(head.stamp, marks.flags_of(head.moment, kind), mode, 0, num, 0, parent)

    def _data_writing(self) -> Writing:
        moment = self._core.moments.next()
        return Writing(stamp(moment), marks.flags_of(moment, Kind.DATA))

    # ------------------------------------------------------------------ read

    async def stat(self, place: Place) -> About | None:
        found = await self._head(place)
        return None if found is None else found.value.head.about

    @asynccontextmanager
    async def read(self, place: Place, start: int = 0, end: int | None = None) -> AsyncIterator[Reading | None]:
        begun = await self._begin(place, start, end)
        if begun is None:
            yield None
            return
        about, group, head, first = begun
        async with aclosing(self._chunks(place, group, head, start, end, first)) as chunks:
            yield Reading(about, chunks)

    async def _begin(self, place: Place, start: int, end: int | None) -> tuple[About, int, Head, bytes] | None:
        """The head, and the first of its bytes; another one, if it has been written over before they were read."""
        last = ""
        for _ in range(_AGAIN):
            found = await self._head(place)
            if found is None:
                return None
            head, about = found.value.head, found.value.head.about
            assert about is not None
            stop = head.size if end is None else min(end, head.size)
            if head.inline:
                return about, found.group, head, head.data[start:stop]
            if start >= stop:
                return about, found.group, head, b""
            first = await self._piece(place, found.group, head, start, min(CHUNK, stop - start))
            if first is not None:
                return about, found.group, head, first
            if last == head.version:
                raise Corrupt(f"{_name(place)}: its bytes are in none of the groups, of version {last}")
            last = head.version
        raise StorageFailed(f"{_name(place)}: somebody writes it again and again while it is looked at")

    async def _chunks(
        self, place: Place, group: int, head: Head, start: int, end: int | None, first: bytes
    ) -> AsyncGenerator[bytes, None]:
        stop = head.size if end is None else min(end, head.size)
        if first:
            yield first

        async def piece(at: int, size: int) -> bytes:
            found = await self._piece(place, group, head, at, size)
            if found is None:
                raise StorageFailed(f"{_name(place)}: it was written or removed while it was read: read it again")
            return found

        if start + len(first) < stop:
            async with aclosing(self._core.pieces(start + len(first), stop, piece)) as pieces:
                async for data in pieces:
                    yield data

    async def _piece(self, place: Place, group: int, head: Head, at: int, size: int) -> bytes | None:
        """Bytes of this version; None: no group has it any more."""
        id = heads.data_id(place, head.nonce)
        why: StorageFailed | None = None
        for each in (group, *(other for other in self._groups.all if other != group)):
            try:
                record = await self._core.there(each, id, at, size)
            except StorageFailed as e:
                why = e
                continue
            if record is not None and len(record.data) == size:
                if each != group and self._core.limits.repairs != "off":
                    self._core.repairs.want(id, lambda: self._copy_data(place, each, group, head))  # noqa: B023
                return record.data
        if why is None:
            return None
        if is_rotten(why):
            raise Corrupt(f"{_name(place)}: {why}") from None
        raise why

    async def read_many(self, places: Sequence[Place]) -> list[tuple[About, bytes] | None]:
        """Bulk reads of the heads, if one group is enough; what it lacks is read as always."""
        ids = {place: heads.head_id(place) for place in places}
        is_one = self._groups.asked == 1 or self._decides is not None
        held = await self._core.bulk(list(ids.values()), heads.MOST) if is_one else {}
        found: dict[Place, tuple[About, bytes] | None] = {}
        for place, id in ids.items():
            record = held.get(id)
            if record is None:
                continue
            with suppress(Corrupt):  # it is read once more, and other groups may have it
                head = heads.decode(record.data, place)
                about = head.about
                if about is None:
                    found[place] = None
                elif head.inline:
                    found[place] = about, head.data
        await self._core.read_each([place for place in ids if place not in found], self.read, found)
        return [found[place] for place in places]

    # ------------------------------------------------------------------ write

    async def write(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        self._check(put.when)
        limits = self._core.limits
        body = await gathered(chunks, put, limits.whole, limits.largest, limits.folder)
        nonce, now = random.getrandbits(64), self._core.moments.next()
        inline = body.data if body.data is not None and body.size <= limits.inline else None
        try:
            seen = await self._looked(place, put.when)
            if inline is None:
                await self._upload(place, nonce, body)

            def make(moment: int) -> Head:
                return Head(
                    place.namespace,
                    place.key,
                    moment,
                    nonce,
                    body.size,
                    body.digest,
                    now if put.time is None else put.time,
                    put.content_type,
                    put.tags,
                    put.user,
                    put.expires,
                    inline is not None,
                    inline or b"",
                )

            head = await self._commit(place, seen, put.when, make)
        except Conflict:  # after any other failure it may have happened, and its bytes have to stay
            if inline is None:
                await self._discard(place, nonce)
            raise
        finally:
            body.close()
        about = head.about
        assert about is not None
        return about

    def _check(self, when: If) -> None:
        """
        Raises:
            Unsupported: a condition cannot be kept.
        """
        if not self.features.looks_at(when):
            raise Unsupported(
                "a condition holds for one group, and each has its own: name the group that decides (decides=)"
            )

    async def append(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        raise Unsupported("a head says what the bytes are: what is appended is written anew")

    async def _upload(self, place: Place, nonce: int, body: Body) -> None:
        id = heads.data_id(place, nonce)
        how, leaves = self._data_writing(), body.data is not None
        try:
            await self._groups.write(_name(place), lambda group: self._core.upload(group, id, body, how), leaves=leaves)
        except BaseException:
            await self._discard(place, nonce)
            raise

    async def _looked(self, place: Place, when: If) -> Seen | None:
        """What the group that decides has, or the newest; it is so as is asked for now.

        Raises:
            Conflict: it is not.
        """
        seen: Seen | None
        try:
            if self._decides is None:
                found = await self._newest(place)
                seen = None if found is None else found.value
            else:
                seen = await self._decided(place, self._decides)
        except Corrupt:
            if when.asks:
                raise
            seen = Seen(Head(place.namespace, place.key, 0, 0), b"")  # it is written over, whatever it was
        there = None if seen is None else seen.head.about
        if not when.holds(there):
            raise Conflict(conflict(place, when, there))
        return seen

    async def _decided(self, place: Place, group: int) -> Seen | None:
        id = heads.head_id(place)
        rotten: Refusal | None = None
        try:
            seen = await self._seen(group, place, id)
            if seen is not None:
                return seen
        except Refusal as e:
            if not is_rotten(e):
                raise
            rotten = e
        found = await self._newest(place) if len(self._groups.all) > 1 else None
        if found is not None:  # it has lost what others still have: it gets it back first
            await self._copy(place, Found(found.group, found.value, (group,)))
            return await self._seen(group, place, id)
        if rotten is not None:
            raise Corrupt(f"{_name(place)}: {rotten}")
        return None

    async def _commit(self, place: Place, seen: Seen | None, when: If, make: Callable[[int], Head]) -> Head:
        """From now on the object is what this head says. What the one before has named goes."""
        id = heads.head_id(place)
        for attempt in range(_TRIES):
            head = make(self._core.moments.next(0 if seen is None else seen.head.moment))
            if self._decides is None:
                await self._groups.write(_name(place), lambda group: self._guarded(group, id, head))  # noqa: B023
                break
            if await self._swapped(place, id, head, seen):
                if len(self._groups.all) > 1:
                    await self._groups.write(
                        _name(place),
                        lambda group: self._guarded(group, id, head),  # noqa: B023
                        done=[self._decides],
                    )
                break
            await asyncio.sleep(random.uniform(0, min(_PAUSE, attempt * 0.001)))
            seen = await self._looked(place, when)
        else:
            raise StorageFailed(f"{_name(place)}: somebody else was faster {_TRIES} times")
        if seen is not None and not seen.head.inline:
            await self._discard(place, seen.head.nonce)
        return head

    async def _swapped(self, place: Place, id: bytes, head: Head, seen: Seen | None) -> bool:
        """Whether the group that decides had what was seen, and has this head now."""
        assert self._decides is not None
        data = heads.encode(head)
        if seen is not None and not seen.digest:
            how = self._writing(head, Mode.NOT_OLDER)
        else:
            how = self._writing(head, Mode.SWAP, NOTHING if seen is None else seen.digest, len(data))
        try:
            await self._client.write(self._decides, id, data, how)
        except Refusal as e:
            if e.status != Status.REFUSED:
                raise
            return False
        except Unknown:
            there = await self._seen(self._decides, place, id)
            if there is None or there.head.order != head.order:
                raise
        return True

    async def _guarded(self, group: int, id: bytes, head: Head) -> None:
        """If a group has a newer one, this was there before it, and for nobody."""
        try:
            await self._client.write(group, id, heads.encode(head), self._writing(head, Mode.NOT_OLDER))
        except Refusal as e:
            if e.status != Status.REFUSED:
                raise

    async def remove(self, place: Place, when: If = ALWAYS) -> bool:
        self._check(when)
        seen = await self._looked(place, when)
        while seen is not None and not (seen.head.is_gone and seen.digest):
            nonce = random.getrandbits(64)
            try:
                await self._commit(
                    place,
                    seen,
                    If(version=seen.head.version) if self._decides is not None else ALWAYS,
                    lambda moment: Head(place.namespace, place.key, moment, nonce),  # noqa: B023
                )
                return True
            except Conflict:
                seen = await self._looked(place, when)
        return False

    async def _discard(self, place: Place, nonce: int) -> None:
        """Bytes that no head names go, in some time; if not, they are `tidy`'s."""
        id = heads.data_id(place, nonce)

        async def gone() -> None:
            await asyncio.gather(
                *(self._client.remove(group, id) for group in self._groups.all), return_exceptions=True
            )

        if not self._core.removals.want(id, gone):
            await gone()

    # ------------------------------------------------------------------ repair

    async def _compare(self, place: Place) -> None:
        """All groups, whatever it takes to answer."""
        found = await self._newest(place, everyone=True)
        if found is not None:
            await self._copy(place, found)

    async def _copy(self, place: Place, found: Found[Seen]) -> None:
        """To groups that have an older head, or none: its bytes first."""
        id, head = heads.head_id(place), found.value.head
        for group in found.behind:
            if not (head.is_gone or head.inline):
                await self._copy_data(place, found.group, group, head)
            await self._guarded(group, id, head)

    async def _copy_data(self, place: Place, source: int, group: int, head: Head) -> None:
        id = heads.data_id(place, head.nonce)
        try:
            if (await self._client.lookup(group, id, True, head.size)).checksum == head.digest:
                return
        except Refusal as e:
            if e.status not in (Status.NOT_THERE, Status.ROTTEN):
                raise
        body: Body = _Copied(self, place, source, head)
        if head.size <= self._core.limits.whole:
            body = body_of(await body.read(0, head.size))
            if body.digest != head.digest:
                raise Corrupt(f"{_name(place)}: its bytes are not what was written")
        await self._core.upload(group, id, body, self._data_writing())

    # ------------------------------------------------------------------ list

    async def page(self, namespace: str, prefix: str = "", position: str = "", limit: int = 1000) -> Page:
        now, limit = time.monotonic(), min(limit, _PAGE)
        for name in [name for name, rest in self._lists.items() if now - rest.since > _STALE]:
            del self._lists[name]
        found = self._lists.pop((namespace, prefix, position), None)
        if found is None:
            found = _Rest(now, *await self._scan(namespace, prefix, position, limit + _AHEAD))
        some, rest = found.heads[:limit], found.heads[limit:]
        if not rest and not found.is_cut:
            return Page(_abouts(some))
        last = some[-1].key
        if rest:
            self._lists[namespace, prefix, last] = _Rest(found.since, rest, found.is_cut)
            while len(self._lists) > _LISTS:
                self._lists.popitem(last=False)
        return Page(_abouts(some), last)

    async def _scan(self, namespace: str, prefix: str, after: str, most: int) -> tuple[list[Head], bool]:
        """The first heads after a key, and whether there may be more."""
        ranges = heads.ranges(namespace, prefix, after)
        if not ranges:
            return [], False
        smallest: Smallest[Head] = Smallest(most)
        rotten: list[bytes] = []
        begin, behind = prefix.encode(), after.encode()

        def each(item: Item) -> None:
            if item.status:
                rotten.append(item.id)
                return
            head = heads.decode(item.data)
            key = head.key.encode()
            if head.namespace == namespace and key.startswith(begin) and key > behind:
                smallest.add(key, head.order, head)

        await self._scan_groups(f"{namespace}/{prefix}*", ranges, each)
        if rotten:
            raise Corrupt(f"{namespace}: {len(rotten)} heads are not what was written, so the list would lack some")
        found = smallest.items()
        return found, smallest.is_cut

    async def _scan_groups(self, what: str, ranges: list[tuple[bytes, bytes]], each: Callable[[Item], None]) -> None:
        """As many groups as it takes to meet all that was written."""
        reasons = []
        told = 0
        is_enough = False
        for group in self._groups.all:
            try:
                await self._scan_group(group, ranges, each)
            except StorageFailed as e:
                reasons.append(str(e))
                continue
            told += 1
            is_enough = told >= self._groups.asked or group == self._groups.decides
            if is_enough:
                return
        if not (told and self._groups.is_weak):
            raise StorageFailed(f"{what}: it cannot be listed: {'; '.join(reasons)}")

    async def _scan_group(self, group: int, ranges: list[tuple[bytes, bytes]], each: Callable[[Item], None]) -> None:
        by_owner: dict[object, list[tuple[bytes, bytes]]] = {}
        for each_range in ranges:
            owner = each_range[0] if self._client.settings.forward else self._client.owner(group, each_range[0])
            by_owner.setdefault(owner, []).append(each_range)
        await asyncio.gather(
            *(
                self._client.iterate(group, own[0][0], Scan(tuple(own), has_data=True), heads.MOST, each)
                for own in by_owner.values()
            )
        )

    # ------------------------------------------------------------------ tidy

    async def tidy(self, older: float, removed: float) -> Tidied:
        """Remove what writers that died have left: bytes of over ``older`` seconds that no head names; and heads of
        objects that were removed ``removed`` seconds ago.

        Raises:
            StorageFailed: a group is not there: then nothing is known for sure.
        """
        now = self._core.moments.next()
        found = Tidied()
        for group in self._groups.all:
            for owner in self._client.ring.backends(group):
                after: bytes | None = NOTHING
                while after is not None:
                    data, gone, after = await self._old(group, owner, after, now, (older, removed))
                    left = [id for id in data if await self._tidied(id)]
                    marks_left = [id for id in gone if await self._tidied_head(id, now - int(removed * 1e6))]
                    found = Tidied(found.bytes + len(left), found.marks + len(marks_left))
        return found

    async def _old(
        self, group: int, owner: Owner, after: bytes, now: int, ages: tuple[float, float]
    ) -> tuple[list[bytes], list[bytes], bytes | None]:
        """Some ids of bytes and of heads of what was removed, older than ``ages``; and after which more may follow."""
        smallest: Smallest[tuple[bytes, Kind]] = Smallest(_BATCH)
        limits = {Kind.DATA: ages[0], Kind.GONE: ages[1]}

        def each(item: Item) -> None:
            kind = marks.kind_of(item.user_flags)
            if kind in limits and now - marks.moment_of(item.user_flags, item.stamp) > limits[kind] * 1e6:
                smallest.add(item.id, (0, 0), (item.id, kind))

        first = self._client.ring.first(group, owner)
        await self._client.iterate(group, first, Scan(((after, b"\xff" * len(after)),)), 0, each)
        found = smallest.items()
        data = [id for id, kind in found if kind is Kind.DATA]
        gone = [id for id, kind in found if kind is Kind.GONE]
        return data, gone, found[-1][0] if smallest.is_cut else None

    async def _heads_of(self, id: bytes) -> list[Head]:
        """In all groups; fails if one does not answer."""
        found = []
        for group in self._groups.all:
            record = await self._core.there(group, id, 0, heads.MOST)
            if record is not None:
                found.append(heads.decode(record.data))
        return found

    async def _tidied(self, id: bytes) -> bool:
        nonce = heads.nonce_of_data(id)
        if any(head.nonce == nonce and not head.is_gone for head in await self._heads_of(heads.head_of_data(id))):
            return False
        return any(await self._groups.everywhere("tidy", lambda group: self._client.remove(group, id)))

    async def _tidied_head(self, id: bytes, before: int) -> bool:
        found = await self._heads_of(id)
        if not found or not all(head.is_gone and head.moment < before for head in found):
            return False
        return any(await self._groups.everywhere("tidy", lambda group: self._client.remove(group, id)))


class _Copied(Body):
    """The bytes of a version, as another group has them."""

    def __init__(self, objects: WithHeads, place: Place, source: int, head: Head) -> None:
        super().__init__(None, None, head.size, head.digest)
        self._from = objects, place, source, head

    async def read(self, start: int, size: int) -> bytes:
        objects, place, source, head = self._from
        found = await objects._piece(place, source, head, start, size)
        if found is None:
            raise StorageFailed(f"{_name(place)}: it was removed while it was copied")
        return found


def _abouts(found: Sequence[Head]) -> list[About]:
    return [about for head in found if (about := head.about) is not None]


def _name(place: Place) -> str:
    return f"{place.namespace}/{place.key}"
