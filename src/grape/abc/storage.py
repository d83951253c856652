"""Where objects lie: bytes under keys, in namespaces. Few methods; whatever can be made of them stands once in
`grape.storage.objects`.

Everything is asynchronous, and may be called from many tasks of one event loop at the same time. What a method has
returned from is durable, and seen by whoever asks after that; before that a write is seen as a whole or not at all,
whatever dies. A write that failed, or was given up, may have happened: it is done again with the same condition, or
looked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, ClassVar, Final, Protocol

from msgspec import Meta, Struct

from grape.errors import Unsupported, UsageError
from grape.model.objects import OCTETS, About

__all__ = [
    "ALWAYS",
    "CHUNK",
    "OCTETS",
    "About",
    "Change",
    "Changes",
    "Features",
    "HandedIn",
    "If",
    "Page",
    "Place",
    "Put",
    "Reading",
    "Storage",
    "StorageConfig",
]

CHUNK: Final = 1 << 20
"""Bytes of a chunk, about: what a stream holds in memory at one time is a few of them."""


class Place(Struct, frozen=True, order=True):
    """Where an object lies. Both are as `grape.model.names` says."""

    namespace: str
    key: str


class If(Struct, frozen=True):
    """What has to be so for a write or a removal to happen; nothing is asked if nothing is said. Looked at and done as
    one step.

    Args:
        version: this one is there. checksum: one with this checksum is.
        absent: none is there.
        not_newer_than: none is there whose time is after this (microseconds since 1970).
    """

    version: str | None = None
    checksum: str | None = None
    absent: bool = False
    not_newer_than: int | None = None

    @property
    def asks(self) -> bool:
        return self != ALWAYS

    def holds(self, there: About | None) -> bool:
        """For what is there now; None: nothing is."""
        if there is None:
            return self.version is None and self.checksum is None
        return (
            not self.absent
            and self.version in (None, there.version)
            and self.checksum in (None, there.checksum)
            and (self.not_newer_than is None or there.time <= self.not_newer_than)
        )


ALWAYS: Final = If()


class Put(Struct, frozen=True):
    """How an object is written. ``time``: None: the storage says. ``size``: of its bytes, if that is known before.
    ``checksum``: of its bytes; what comes and is something else is refused."""

    content_type: str = OCTETS
    tags: tuple[str, ...] = ()
    user: dict[str, str] = {}
    time: int | None = None
    expires: int = 0
    when: If = ALWAYS
    size: int | None = None
    checksum: str = ""


class Page(Struct, frozen=True):
    """Some of what there is. ``position``: from where to go on, "": that was all."""

    items: Sequence[About]
    position: str = ""


class Change(Struct, frozen=True):
    """An object was written, or (``about`` None) removed."""

    key: str
    about: About | None


class Changes(Struct, frozen=True):
    """Some of what has changed, in an order in which changes of one key come one after the other; what was changed
    several times meanwhile may come once, as it is now. ``position``: from where to go on."""

    items: Sequence[Change]
    position: str


class Features(Struct, frozen=True):
    """What a storage can.

    Args:
        largest: bytes of an object.
        swaps: it looks at `If` and writes as one step, whoever else writes; else a condition is refused, but for
            those in ``conditions``.
        conditions: names of fields of `If` that it looks at although it does not ``swap``.
        removes: it looks at conditions when it removes, too; else a removal takes none.
        lists: it knows what it has. in_order: a `Page` is in the order of keys (as UTF-8).
        tells_all: what a page says of an object is all that is known of it; else its key and size, when it was written,
            and a version that is good for `If`, but need not be that which ``stat`` tells.
        tells_changes: it can say what has changed; by whomever, if ``of_others``, else by this process alone.
        mixes: keys such as "a" and "a/b" can be there at the same time; else the second of them is refused (Conflict).
        keeps_about: it keeps content type, tags and user's metadata; else they are refused.
        checksum: how the checksums begin that it knows of each object; "": of none.
    """

    largest: int
    swaps: bool = True
    conditions: frozenset[str] = frozenset()
    removes: bool = True
    lists: bool = True
    in_order: bool = True
    tells_all: bool = True
    tells_changes: bool = False
    of_others: bool = False
    mixes: bool = True
    keeps_about: bool = True
    checksum: str = "sha256"

    def looks_at(self, when: If) -> bool:
        """Whether it can keep such a condition."""
        asked = {name for name in If.__struct_fields__ if getattr(when, name) != getattr(ALWAYS, name)}
        return self.swaps or asked <= self.conditions


class Reading(Struct, frozen=True):
    """An object that is being read. ``chunks`` may be gone through once. The bytes are those of ``about``'s version, or
    reading fails. ``check``: "crc32:..." of the whole object, if it is known: it finds what is damaged as well as the
    checksum of ``about`` does, with a tenth of the work."""

    about: About
    chunks: AsyncIterator[bytes]
    check: str = ""


class HandedIn(Protocol):
    """An event for an app. ``data``: msgpack. ``id``: "": it has none."""

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str | None: ...

    @property
    def data(self) -> bytes: ...

    @property
    def id(self) -> str: ...


class StorageConfig(Struct, frozen=True, kw_only=True, rename="kebab"):
    """Every storage has settings of its own; these all have.

    timeout: seconds for one request to whoever stores it, not counting what is streamed
    """

    timeout: Annotated[float, Meta(gt=0, le=86_400)] = 30.0


class Storage(ABC):
    """
    Attributes:
        name: in URLs ("s3://...") and settings. Config: what can be set.
        features: what it can, known once it is open.
        variables: how the names of variables of the environment begin that it reads.

    What any method raises beside what it says:
        StorageFailed: whoever stores it refuses, or is not there. Corrupt: what is stored is not what was written.
        BadArgument: a name that cannot be.
    """

    name: ClassVar[str]
    Config: ClassVar[type[StorageConfig]] = StorageConfig
    features: Features
    variables: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """``config``: a ``Config``, checked. Nothing is opened yet."""

    @classmethod
    def settings_of(cls, place: str) -> dict[str, Any]:
        """What ``place`` says in a URL, NAME://PLACE?SETTING=VALUE, as settings of ``Config``.

        Raises:
            UsageError: it says nothing that can be.
        """
        if place:
            raise UsageError(f"{cls.name}:// is followed by nothing, not {place!r:.100}")
        return {}

    @abstractmethod
    async def open(self) -> None:
        """Get ready; look whether it can be used.

        Raises:
            UsageError: it cannot be, as it was set up.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release everything. May be called twice."""

    @abstractmethod
    async def stat(self, place: Place) -> About | None:
        """All that is known of an object; None: there is none."""

    @abstractmethod
    def read(self, place: Place, start: int = 0, end: int | None = None) -> AbstractAsyncContextManager[Reading | None]:
        """The bytes from ``start`` up to ``end`` (not included; None: to its end), as far as there are; None: there is
        no object."""

    @abstractmethod
    async def write(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        """The object is what ``chunks`` have from now on. If they raise, nothing has happened.

        Raises:
            Conflict: what ``put.when`` asks for is not so. Nothing has happened.
            Unsupported: ``put`` asks for what ``features`` lacks.
            TooLarge: there is more of it than ``features.largest``.
            BadArgument: they are not what ``put.checksum`` or ``put.size`` say.
        """

    @abstractmethod
    async def remove(self, place: Place, when: If = ALWAYS) -> bool:
        """There is no object any more; whether there was one.

        Raises:
            Conflict, Unsupported: as ``write``.
        """

    @abstractmethod
    async def page(self, namespace: str, prefix: str = "", position: str = "", limit: int = 1000) -> Page:
        """Some objects whose keys begin with ``prefix``, at most ``limit``. What is there all the time while one goes
        through the pages comes once; what comes or goes meanwhile, perhaps. A position is good for ever, also after
        what it was made from has gone.

        Raises:
            Unsupported: it does not know.
        """

    async def count(self, namespace: str, prefix: str, now: int) -> tuple[int, int]:
        """How many objects there are whose keys begin with ``prefix``, and their bytes together, with less work than
        ``page`` takes; without what has expired at ``now``.

        Raises:
            Unsupported: it goes through the pages as everybody can, which `Objects.count` does.
        """
        raise Unsupported(f"storage {self.name!r} counts page by page")

    async def append(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        """Write behind what is there, as one step; if nothing is, that is the object. What ``put`` says beside its
        condition is for an object that is new.

        Raises:
            as ``write``. Unsupported: it cannot in one step; `Objects.append` can where it ``swaps``.
        """
        raise Unsupported(f"storage {self.name!r} does not append in one step")

    async def write_and_emit(
        self, place: Place, chunks: AsyncIterator[bytes], put: Put, event: Callable[[About], HandedIn]
    ) -> About:
        """Write an object, and hand in an event that comes of it to the app whose storage this is, as one step. What is
        known of the object before that, which is no version, is what ``event`` gets and this returns.

        Raises:
            as ``write``. Unsupported: it is no app's, or ``put`` has a condition. UsageError: the app does not run.
            Refused: it has no such slot, or takes nothing now.
        """
        raise Unsupported(f"storage {self.name!r} is not that of an app, which could take an event")

    async def read_many(self, places: Sequence[Place]) -> Sequence[tuple[About, bytes] | None]:
        """Several objects, whole, in fewer requests than one each; None: there is none.

        Raises:
            Unsupported: it cannot; `Objects.get_many` reads them one by one.
        """
        raise Unsupported(f"storage {self.name!r} reads one object at a time")

    async def changes(self, namespace: str, prefix: str, position: str | None, limit: int = 1000) -> Changes:
        """What has changed since ``position``, which `Changes` gave; None: from now on, with nothing in it.

        Raises:
            Unsupported: it does not know. UsageError: the position is too old, so that something may have been missed.
        """
        raise Unsupported(f"storage {self.name!r} does not tell what changes")
