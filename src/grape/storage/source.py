"""Objects as a source of events: one for each that is there, by the pages of its storage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from grape.abc.source import Chunk, Columns, Source
from grape.abc.storage import Place
from grape.client.events import ClientEvent, client_event
from grape.errors import UsageError
from grape.model.objects import About
from grape.storage.connect import storage_of
from grape.storage.objects import Objects

_PAGE: Final = 1_000
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


class Position(Struct, frozen=True, array_like=True):
    """``page``: from where to go on; ``is_over``: there is nothing more. ``count``, ``size``: what was given."""

    page: str = ""
    is_over: bool = False
    count: int = 0
    size: int = 0


def position_of(packed: bytes) -> Position:
    """
    Raises:
        UsageError: it is another source's.
    """
    try:
        return msgspec.msgpack.decode(packed, type=Position) if packed else Position()
    except msgspec.MsgspecError:
        raise UsageError("this position is not one in the objects of a storage; take another --name") from None


def event_of(namespace: str, about: About) -> dict[str, Any]:
    """What an event says of an object."""
    return {
        "namespace": namespace,
        "key": about.key,
        "size": about.size,
        "version": about.version,
        "checksum": about.checksum,
        "content_type": about.content_type,
        "tags": list(about.tags),
        "user": about.user,
        "time": about.time,
    }


def told_of(event: str, place: Place, about: About) -> ClientEvent:
    """An event that tells of an object, with its key.

    Raises:
        BadArgument: the name cannot be one.
    """
    return client_event(event, event_of(place.namespace, about), place.key, None, None, _MAX_EVENT)


class ObjectsSource(Source):
    """
    Args:
        event: that each becomes, with the object's key as its own.
        name: of the stream, for ever.
        rate: events a second, at most; 0: any number.
        may_go_on: waits until more may come; False: nothing more is wanted.
    """

    is_final = True

    def __init__(
        self, event: str, over: Over, name: str, rate: float = 0.0, may_go_on: Callable[[], bool] = lambda: True
    ) -> None:
        self.name = name
        self.seen = Position()
        self._event = event
        self._over = over
        self._page = max(1, min(_PAGE, int(rate))) if rate else _PAGE
        self._rate = rate
        self._may_go_on = may_go_on
        self._next = 0.0
        self._runner: asyncio.Runner | None = None
        self._storage = storage_of(over.storage)

    def open(self, position: bytes) -> None:
        self.seen = position_of(position)
        self._runner = asyncio.Runner()
        self._runner.run(self._storage.open())
        self._objects = Objects(self._storage, self._over.namespace)

    def read(self, position: bytes) -> Chunk | None:
        at = position_of(position)
        if at.is_over or self.is_stopped or not self._waited() or not self._may_go_on():
            return None
        assert self._runner is not None, "open comes first"
        over = self._over
        page = self._runner.run(self._objects.page(over.prefix, at.page, self._page, tags=over.tags))
        items: Sequence[About] = page.items
        size = sum(about.size for about in items)
        self.seen = Position(page.position, not page.position, at.count + len(items), at.size + size)
        columns = Columns(
            self._event, [a.key for a in items], [event_of(over.named or over.namespace, a) for a in items]
        )
        return Chunk([columns] if items else [], msgspec.msgpack.encode(self.seen), [], size)

    def _waited(self) -> bool:
        """For the next page, as the rate says; False: it is stopped."""
        if self._rate:
            while (left := self._next - time.monotonic()) > 0:
                if self.is_stopped:
                    return False
                time.sleep(min(left, 0.1))
            self._next = max(self._next, time.monotonic()) + self._page / self._rate
        return True

    def close(self) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            runner.run(self._storage.close())
            runner.close()
