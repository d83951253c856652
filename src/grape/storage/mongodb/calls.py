"""What is common to all that is asked of the server: its errors as ours, and inserts that are made again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from bson.errors import BSONError
from msgspec import Struct
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WTimeoutError,
)

from grape.errors import GrapeError, StorageFailed, UsageError
from grape.storage.mongodb.settings import Document

T = TypeVar("T")

TRIES: Final = 4
_PAUSE: Final = 0.1
"""Seconds before an insert is made again, doubled every time, with full jitter."""
_WRONG_KEYS: Final = frozenset({11, 18, 334, 8000})
_FORBIDDEN: Final = frozenset({13, 8000})
_TOO_LARGE: Final = frozenset({10334, 17280, 17420})


class Where(Struct, frozen=True):
    """What the texts name."""

    hosts: str
    database: str
    variables: str
    timeout: float

    def error(self, error: BaseException, what: str) -> GrapeError:
        """``what``: was to be done, and with which object. Of what came nothing is told but the server's own words."""
        there = f"mongodb://{self.hosts}/{self.database}"
        if isinstance(error, ServerSelectionTimeoutError):
            return StorageFailed(f"{what}: {_unreachable(str(error), there)}")
        if isinstance(error, NetworkTimeout | ExecutionTimeout):
            return StorageFailed(
                f"{what}: {there} has not answered for {self.timeout:g} s: look how it is, or set timeout"
            )
        if isinstance(error, WTimeoutError):
            return StorageFailed(
                f"{what}: not enough servers of {there} have written it for {self.timeout:g} s: it may be done all the "
                f"same; look whether most of them run"
            )
        if isinstance(error, AutoReconnect):
            return StorageFailed(f"{what}: the connection to {there} broke: try again, look how it is")
        if isinstance(error, ConfigurationError):
            return UsageError(f"{what}: {there} cannot be used with these settings ({type(error).__name__})")
        if isinstance(error, DocumentTooLarge):
            return StorageFailed(f"{what}: {there} does not take a document of this size")
        if isinstance(error, OperationFailure):
            return self._refused(error, what, there)
        return StorageFailed(f"{what}: {there}: {type(error).__name__}")

    def _refused(self, error: OperationFailure, what: str, there: str) -> GrapeError:
        details = error.details or {}
        told = str(details.get("errmsg", ""))[:300]
        said = f" ({error.code}: {told})" if told else f" ({error.code})"
        if error.code in _WRONG_KEYS:
            return UsageError(
                f"{what}: {there} does not take user and password: look at {self.variables}_USERNAME, "
                f"{self.variables}_PASSWORD and authSource{said}"
            )
        if error.code in _FORBIDDEN:
            return StorageFailed(f"{what}: the user may not do that in {there}: allow it, or use another one{said}")
        if error.code in _TOO_LARGE:
            return StorageFailed(f"{what}: {there} does not take a document of this size{said}")
        return StorageFailed(f"{what}: {there} refuses{said}")


def _unreachable(text: str, there: str) -> str:
    if "SSL" in text or "TLS" in text or "certificate" in text:
        return f"no TLS with {there}: look at tls and tlsCAFile"
    if "primary" in text.lower() or "writable" in text.lower():
        return f"no server of {there} takes writes now: look whether most of them run, and at replicaSet"
    return f"nobody answers at {there}: look whether it runs and can be reached from here"


class Calls:
    def __init__(self, where: Where) -> None:
        self.where = where
        self._under_way: set[asyncio.Future[Any]] = set()

    async def ask(self, what: str, doing: Coroutine[Any, Any, T]) -> T:
        """What it gives. If who waits for it is cancelled it goes on to its end: the library may hang for ever after a
        call was cancelled, since a lock of its own is lost.

        Args:
            what: for the text of an error.

        Raises:
            StorageFailed, UsageError: it was not done.
        """
        try:
            return await asyncio.shield(self.go_on(doing))
        except (PyMongoError, BSONError) as e:
            raise self.where.error(e, what) from None

    def go_on(self, doing: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Do it, whether somebody waits for it or not."""
        task = asyncio.ensure_future(doing)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def end(self, seconds: float) -> None:
        """Wait for what is under way, but not for long."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=seconds)

    async def insert(
        self,
        collection: AsyncCollection[Document],
        document: Document,
        what: str,
        is_mine: Callable[[], Awaitable[bool]] | None = None,
    ) -> bool:
        """Whether it is there now; False: another document has its place in a unique index.

        Args:
            is_mine: whether a former try was done, although it was not answered; else whether there is one of its _id.
        """

        async def is_there() -> bool:
            doing = collection.find_one({"_id": document["_id"]}, {"_id": 1})
            return await self.ask(what, doing) is not None

        unsure = False
        for attempt in range(1, TRIES + 1):
            if unsure:
                await asyncio.sleep(random.uniform(0, _PAUSE * 2**attempt))
                if await (is_mine or is_there)():
                    return True
            try:
                await asyncio.shield(self.go_on(collection.insert_one(document)))
                return True
            except DuplicateKeyError:
                return unsure and await (is_mine or is_there)()
            except PyMongoError as e:
                # Nobody was there, or did not answer, for as long as one may wait.
                is_over = isinstance(e, ServerSelectionTimeoutError | NetworkTimeout)
                if attempt == TRIES or is_over or not isinstance(e, AutoReconnect):
                    raise self.where.error(e, what) from None
            unsure = True
        raise AssertionError("unreachable")
