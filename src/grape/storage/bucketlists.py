"""Pages of what obstore lists as a stream, from a position on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from grape.abc.storage import About, Page
from grape.storage.bucketnames import asked

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import AzureStore, GCSStore

_CHUNK: Final = 1000
_HELD: Final = 8
"""Lists that can be gone on with."""
_GOOD_FOR: Final = 10.0
"""Seconds that one is held: it has asked already for some of what it tells then."""


class Lists:
    """
    Args:
        order: an encoding: names come in the order of these bytes.
        holds: whether a list that may go on is held for a while, for a server that finds no place by its name: it tells
            all from the first on, of which most are left out.
    """

    def __init__(self, order: str, holds: bool) -> None:
        self._order = order
        self._holds = holds
        self._held: dict[tuple[str, str], tuple[float, _Running]] = {}

    def forget(self) -> None:
        self._held.clear()

    async def page(
        self,
        store: GCSStore | AzureStore,
        common: str,
        begin: str,
        position: str,
        limit: int,
        listed: Callable[[ObjectMeta], About | None],
        is_there: Callable[[About], Awaitable[bool]],
    ) -> Page:
        """What begins with ``common``, after BEGIN + ``position``. ``listed``: None: it is left out."""
        running = self._found(common, position)
        if running is None:
            running = _Running(store, *asked(common, begin + position if position else ""))
        after = self._place(begin + position) if position else b""
        while True:
            found: dict[str, About] = {}
            last = ""
            is_more = False
            async for meta in running:
                path = meta["path"]
                if not path.startswith(common):
                    if self._place(path) > self._place(common):
                        break
                    continue
                about = listed(meta) if self._place(path) > after else None
                if about is None:
                    continue
                if len(found) == limit:
                    running.back(meta)
                    is_more = True
                    break
                found.setdefault(about.key, about)
                last = path
            are_there = await asyncio.gather(*(is_there(about) for about in found.values()))
            items = [about for about, is_one in zip(found.values(), are_there, strict=True) if is_one]
            if not is_more:
                return Page(items)
            if items:
                self._hold(common, last[len(begin) :], running)
                return Page(items, last[len(begin) :])

    def _place(self, path: str) -> bytes:
        return path.encode(self._order)

    def _found(self, common: str, position: str) -> _Running | None:
        until, running = self._held.pop((common, position), (0.0, None))
        return running if time.monotonic() < until else None

    def _hold(self, common: str, position: str, running: _Running) -> None:
        if not self._holds:
            return
        now = time.monotonic()
        self._held = {place: one for place, one in self._held.items() if now < one[0]}
        while len(self._held) >= _HELD:
            del self._held[next(iter(self._held))]
        self._held[common, position] = (now + _GOOD_FOR, running)


class _Running:
    """A list, object by object."""

    def __init__(self, store: GCSStore | AzureStore, directory: str, after: str | None) -> None:
        self._stream: Any = aiter(store.list(directory, offset=after, chunk_size=_CHUNK))
        self._waiting: list[ObjectMeta] = []

    def back(self, meta: ObjectMeta) -> None:
        """It comes once more."""
        self._waiting.append(meta)

    async def __aiter__(self) -> AsyncIterator[ObjectMeta]:
        while True:
            while self._waiting:
                yield self._waiting.pop()
            try:
                self._waiting = list(reversed(await anext(self._stream)))
            except StopAsyncIteration:
                return
