"""Objects as a source of events: one for each that is there, by the pages of its storage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

import msgspec
from msgspec import Struct, structs

from grape.abc.source import Chunk, Columns, Source
from grape.abc.storage import Place
from grape.client.events import ClientEvent, client_event
from grape.errors import UsageError
from grape.model.objects import About
from grape.model.urls import without_secrets
from grape.storage.connect import storage_of
from grape.storage.objects import Objects

_PAGE: Final = 1_000
_AT_ONCE: Final = 16_384
"""Objects of a chunk, which are few for each partition: the more, the fewer batches."""
_LONGEST: Final = 0.2
"""Seconds for which pages are gathered."""
_BYTES: Final = 4 << 20
_MAX_EVENT: Final = 1 << 20


class Over(Struct, frozen=True):
    """Which objects. ``storage``: its URL. ``tags``: they have all of these. ``named``: what the app calls the
    namespace, if it is another name."""

    storage: str
    namespace: str
    prefix: str = ""
    tags: tuple[str, ...] = ()
    named: str = ""

    def __str__(self) -> str:
        tags = "".join(f"#{tag}" for tag in self.tags)
        return f"{self.named or self.namespace}/{self.prefix}{tags}"

    @property
    def identity(self) -> str:
        """The same for the same objects, however their storage is spoken to."""
        place = without_secrets(self.storage).partition("?")[0]
        tags = "".join(f"#{quote(tag, safe='')}" for tag in sorted(set(self.tags)))
        return f"{place}/{self.namespace}/{quote(self.prefix)}{tags}"


class Position(Struct, frozen=True, array_like=True):
    """``page``: from where to go on; ``is_over``: there is nothing more. ``count``, ``size``: what was given. ``over``:
    the `Over.identity` of what."""

    page: str = ""
    is_over: bool = False
    count: int = 0
    size: int = 0
    over: str = ""


def position_of(packed: bytes) -> Position:
    """
    Raises:
        UsageError: it is another source's.
    """
    try:
        return msgspec.msgpack.decode(packed, type=Position) if packed else Position()
    except msgspec.MsgspecError:
        raise UsageError("this position is not one in the objects of a storage; take another --name") from None


class ObjectEvent(Struct, frozen=True, gc=False):
    """What an event says of an object."""

    namespace: str
    key: str
    size: int
    version: str
    checksum: str
    content_type: str
    tags: tuple[str, ...]
    user: dict[str, str]
    time: int


def event_of(namespace: str, a: About) -> ObjectEvent:
    return ObjectEvent(namespace, a.key, a.size, a.version, a.checksum, a.content_type, a.tags, a.user, a.time)


def told_of(event: str, place: Place, about: About) -> ClientEvent:
    """An event that tells of an object, with its key.

    Raises:
        BadArgument: the name cannot be one.
    """
    data = structs.asdict(event_of(place.namespace, about))
    return client_event(event, data, place.key, None, None, _MAX_EVENT)


def _bytes(about: About) -> int:
    """Of its event, about."""
    more = sum([len(name) + len(value) for name, value in about.user.items()]) if about.user else 0
    return 200 + len(about.key) + sum(map(len, about.tags)) + more


class ObjectsSource(Source):
    """
    Args:
        event: that each becomes, with the object's key as its own.
        name: of the stream, for ever.
        rate: events a second, at most; 0: any number.
        most: events of a chunk.
        may_go_on: waits until more may come; False: nothing more is wanted.
    """

    is_final = True

    def __init__(
        self,
        event: str,
        over: Over,
        name: str,
        rate: float = 0.0,
        most: int = _AT_ONCE,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name = name
        self.seen = Position()
        self._event = event
        self._over = over
        self._rate = rate
        self._most = max(1, min(most, int(min(rate, _PAGE)) if rate else _AT_ONCE))
        self._may_go_on = may_go_on
        self._next = 0.0
        self._runner: asyncio.Runner | None = None
        self._storage = storage_of(over.storage)

    def open(self, position: bytes) -> None:
        """
        Raises:
            UsageError: also if the position is in other objects.
        """
        self.seen = position_of(position)
        if self.seen.over not in ("", self._over.identity):
            raise UsageError(
                f"by this --name {self.seen.over} was gone through, not {self._over.identity}: take another one"
            )
        self._runner = asyncio.Runner()
        self._runner.run(self._storage.open())
        self._objects = Objects(self._storage, self._over.namespace)

    def read(self, position: bytes) -> Chunk | None:
        at = position_of(position)
        if at.is_over or self.is_stopped or not self._waited() or not self._may_go_on():
            return None
        assert self._runner is not None, "open comes first"
        items, page = self._runner.run(self._gathered(at.page))
        if self._rate:
            self._next = max(self._next, time.monotonic()) + len(items) / self._rate
        size = sum([about.size for about in items])
        over = self._over.identity
        self.seen = Position(page, not page, at.count + len(items), at.size + size, over)
        named = self._over.named or self._over.namespace
        columns = Columns(self._event, [a.key for a in items], [event_of(named, a) for a in items])
        return Chunk([columns] if items else [], msgspec.msgpack.encode(self.seen), [], size)

    async def _gathered(self, position: str) -> tuple[list[About], str]:
        """Those of some pages, and from where to go on."""
        over, room = self._over, _BYTES
        items: list[About] = []
        until = time.monotonic() + _LONGEST
        while True:
            limit = min(_PAGE, self._most - len(items))
            page = await self._objects.page(over.prefix, position, limit, tags=over.tags)
            items += page.items
            position = page.position
            room -= sum([_bytes(about) for about in page.items])
            if not position or len(items) >= self._most or room <= 0 or time.monotonic() > until or self.is_stopped:
                return items, position

    def _waited(self) -> bool:
        """Until more may come, as the rate says; False: it is stopped."""
        while (left := self._next - time.monotonic()) > 0:
            if self.is_stopped:
                return False
            time.sleep(min(left, 0.1))
        return True

    def close(self) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            runner.run(self._storage.close())
            runner.close()
