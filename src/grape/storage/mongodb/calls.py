"""What is common to all that is asked of the server: its errors as ours, and inserts that are made again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

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

    @contextmanager
    def failing(self, what: str) -> Iterator[None]:
        """
        Raises:
            StorageFailed, UsageError: what was asked for in this block was not done.
        """
        try:
            yield
        except (PyMongoError, BSONError) as e:
            raise self.where.error(e, what) from None

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
        unsure = False
        with self.failing(what):
            for attempt in range(1, TRIES + 1):
                try:
                    await collection.insert_one(document)
                    return True
                except DuplicateKeyError:
                    if not unsure:
                        return False
                    if is_mine is not None:
                        return await is_mine()
                    return await collection.find_one({"_id": document["_id"]}, {"_id": 1}) is not None
                except AutoReconnect as e:
                    # Nobody was there, or did not answer, for as long as one may wait.
                    if attempt == TRIES or isinstance(e, ServerSelectionTimeoutError | NetworkTimeout):
                        raise
                unsure = True
                await asyncio.sleep(random.uniform(0, _PAUSE * 2**attempt))
        raise AssertionError("unreachable")
