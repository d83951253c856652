"""What has changed, by the server's change stream, which replica sets and sharded clusters have. Each write inserts a
document (`grape.storage.mongodb.heads`), so that the stream tells them all, in their order, removals too.

A position is the stream's token. One that begins with "+" is a walk through what is there, with the token to go on from
after it: that is what "0" becomes, since no stream goes back to the beginning.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from bson import json_util
from pymongo.errors import OperationFailure

from grape.abc.storage import Change, Changes, Page
from grape.errors import UsageError
from grape.storage.mongodb.calls import Calls
from grape.storage.mongodb.heads import Heads, head_of, range_of
from grape.storage.mongodb.settings import Document

_WAIT: Final = 100
"""Milliseconds that the server may wait for something to tell."""
_ADVANCED: Final = 60.0
"""Seconds after which a position moves on although nothing has changed: what it points at is forgotten some day."""
_LOST: Final = frozenset({136, 222, 260, 280, 286})
_BEGINNING: Final = "0"


class Changing:
    """
    Args:
        page: as `Storage.page`.
    """

    def __init__(self, calls: Calls, heads: Heads, page: Callable[[str, str, str, int], Awaitable[Page]]) -> None:
        self._calls = calls
        self._heads = heads
        self._page = page
        self._advanced: dict[tuple[str, str], float] = {}

    async def is_there(self) -> bool:
        """Whether this server has it, for this user."""
        try:
            return await self._token() is not None
        except OperationFailure:
            return False

    async def _token(self) -> Any:
        async with await self._heads.collection.watch(max_await_time_ms=1) as stream:
            return stream.resume_token

    async def now(self) -> str:
        return json_util.dumps(await self._calls.ask("look what changes", self._token()))

    async def since(self, namespace: str, prefix: str, position: str, limit: int) -> Changes:
        """
        Raises:
            UsageError: it is none, or too old.
        """
        if position == _BEGINNING:
            return Changes([], _walk(await self.now(), ""))
        try:
            token, key = json.loads(position[1:]) if position.startswith("+") else (position, None)
            resume: Any = json_util.loads(token)
        except (TypeError, ValueError):
            raise UsageError(f"{position!r:.60} is no position in what has changed") from None
        if key is not None:
            page = await self._page(namespace, prefix, key, limit)
            items = [Change(about.key, about) for about in page.items]
            return Changes(items, _walk(token, page.position) if page.position else token)
        return await self._told(namespace, prefix, position, resume, limit)

    async def _told(self, namespace: str, prefix: str, position: str, resume: Any, limit: int) -> Changes:
        doing = self._read(range_of(namespace, prefix), resume, limit)
        items, token = await self._calls.ask(f"look what changes in {namespace}/{prefix}", doing)
        of, now = (namespace, prefix), time.monotonic()
        if items or now - self._advanced.setdefault(of, now) > _ADVANCED:
            self._advanced[of] = now
            return Changes(items, json_util.dumps(token))
        return Changes([], position)

    async def _read(self, places: Document, resume: Any, limit: int) -> tuple[list[Change], Any]:
        which = {"operationType": "insert", "fullDocument.place": places}
        items: list[Change] = []
        try:
            async with await self._heads.collection.watch(
                [{"$match": which}, {"$project": {"fullDocument.data": 0}}],
                resume_after=resume,
                max_await_time_ms=_WAIT,
                batch_size=limit,
            ) as stream:
                while len(items) < limit and (change := await stream.try_next()) is not None:
                    head = head_of(change["fullDocument"])
                    items.append(Change(head.about.key, None if head.is_gone else head.about))
                return items, stream.resume_token
        except StopAsyncIteration:
            raise UsageError("the collection was dropped or renamed: from where to go on is not known") from None
        except OperationFailure as e:
            if e.code in _LOST:
                raise UsageError("this position is too old: the server does not know any more what came then") from None
            raise


def _walk(token: str, key: str) -> str:
    return "+" + json.dumps([token, key])
