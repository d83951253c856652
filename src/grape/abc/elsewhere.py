"""Storages beside that of the app, as an engine asks them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

from grape.abc.transport import Post
from grape.errors import GrapeError
from grape.model.bound import Bound
from grape.model.objects import Stored


class Elsewhere(ABC):
    """The namespaces of an app that are in other storages.

    All methods are called on the engine's thread, and never block; what they are given to call is called there, later
    or at once. What went wrong comes in the place of an answer: `StorageFailed` if it may be otherwise in a while.
    """

    @abstractmethod
    def stat(self, namespace: str, key: str, then: Callable[[Stored | GrapeError | None], None]) -> None:
        """What is known of an object; None: there is none."""

    @abstractmethod
    def read(
        self,
        namespace: str,
        key: str,
        start: int,
        size: int,
        then: Callable[[tuple[Stored, bytes] | GrapeError | None], None],
    ) -> None:
        """At most ``size`` bytes of it from ``start`` on; None: there is none."""

    @abstractmethod
    def page(
        self,
        namespace: str,
        prefix: str,
        position: str,
        limit: int,
        then: Callable[[tuple[list[tuple[str, Stored]], str] | GrapeError], None],
    ) -> None:
        """Some of what is there, and from where to go on; "": that was all."""

    @abstractmethod
    def ship(self, namespace: str, key: str, stored: Stored, then: Callable[[GrapeError | None], None]) -> None:
        """Make it so there, whatever was there before; done again, it is the same. None: it is durable."""

    @abstractmethod
    def close(self) -> None:
        """Nothing is called any more."""


class OtherStorages(Elsewhere):
    """They by their URLs."""

    @abstractmethod
    def __init__(self, bound: Mapping[str, Bound], directory: Path, post: Post, *, at_once: bool = False) -> None:
        """
        Args:
            bound: by namespace.
            directory: of the data, in which the bytes of large objects lie.
            post: runs a function on the engine's thread, from any.
            at_once: a question has its answer when the call returns: handlers on that thread wait for it.

        Raises:
            UsageError: a URL leads nowhere.
        """

    @abstractmethod
    async def open(self) -> None:
        """Get ready, on the engine's thread. What is not there now may come later.

        Raises:
            UsageError: one of them cannot be used as it was set up.
        """
