"""Elliptics as a storage: which way objects are kept, and what can be set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import Meta

from grape.abc.storage import ALWAYS, About, If, Page, Place, Put, Reading, Storage, StorageConfig
from grape.errors import StorageFailed, Unsupported, UsageError
from grape.storage.elliptics import wire
from grape.storage.elliptics.about import Tidied, WithHeads
from grape.storage.elliptics.client import Client, Settings
from grape.storage.elliptics.core import Core, Limits
from grape.storage.elliptics.groups import Groups, Success
from grape.storage.elliptics.plain import Plain
from grape.storage.elliptics.wire import Mode

_PORT: Final = 1025
_VERSIONS: Final[dict[str, wire.Version]] = {"3.0": wire.VERSION, "2.26": (2, 26, 0, 0)}
_CACHE: Final = {"off": 0, "on": int(Mode.CACHE), "only": int(Mode.CACHE | Mode.CACHE_ONLY)}


class EllipticsConfig(StorageConfig, frozen=True, kw_only=True, rename="kebab"):
    """
    seeds: "host:port" of nodes, with commas between; one that answers is enough
    groups: numbers of the groups that each object is in, with commas between; reads go by their order
    success: in how many groups a write has to be done: any (one), quorum (more than half), all
    about: whether content type, tags, metadata and keys are kept, so that there are lists; what is written in one way
        is not seen in the other
    decides: the group that decides on conditions, one of groups; no write is done without it (with about)
    bare: the namespace whose keys have none in Elliptics
    cache: whether writes go to the servers' cache: off, on (to the disk later), only (never)
    lifetime: seconds that they stay in the cache, 0: for ever
    repairs: what reads repair: off, seen (groups that were asked), all (they ask all groups, later)
    whole: bytes of an object up to which it is one message; a larger one waits in a file before it is sent
    inline: bytes of an object up to which it lies beside what is known of it
    largest: bytes of an object
    connections: to each node
    refresh: seconds between two looks at which nodes there are
    forget: seconds after which the part of a node that is gone is its neighbour's
    forward: whether only the seeds are connected to, which pass on what is not theirs
    cookie: that the servers ask for
    version: of their protocol, 3.0 or 2.26
    folder: where large objects wait; else where temporary files are
    """

    seeds: str
    groups: str | tuple[int, ...]
    success: Success = "quorum"
    about: bool = False
    decides: int | None = None
    bare: str = ""
    cache: Literal["off", "on", "only"] = "off"
    lifetime: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    repairs: Literal["off", "seen", "all"] = "seen"
    whole: Annotated[int, Meta(ge=4096, le=64 << 20)] = 8 << 20
    inline: Annotated[int, Meta(ge=0, le=16384)] = 4096
    largest: Annotated[int, Meta(gt=0, le=1 << 50)] = 1 << 40
    connections: Annotated[int, Meta(ge=1, le=64)] = 1
    refresh: Annotated[float, Meta(gt=0)] = 30.0
    forget: Annotated[float, Meta(gt=0)] = 600.0
    forward: bool = False
    cookie: str = ""
    version: Literal["3.0", "2.26"] = "3.0"
    folder: str = ""


class EllipticsStorage(Storage):
    """
    Attributes:
        client: what it talks through, once it is open.
    """

    name: ClassVar[str] = "elliptics"
    Config: ClassVar[type[StorageConfig]] = EllipticsConfig

    def __init__(self, config: EllipticsConfig) -> None:
        self._config = config
        groups = _groups(config)
        self._groups = Groups(groups, config.success, config.decides)
        self.client = Client(
            Settings(
                seeds=_seeds(config.seeds),
                timeout=config.timeout,
                connections=config.connections,
                refresh=config.refresh,
                forget=config.forget,
                forward=config.forward,
                cookie=config.cookie,
                version=_VERSIONS[config.version],
            )
        )
        self._core = Core(
            self.client,
            self._groups,
            Limits(
                largest=config.largest,
                whole=config.whole,
                inline=config.inline,
                folder=config.folder,
                mode=_CACHE[config.cache],
                start=config.lifetime,
                repairs=config.repairs,
                timeout=config.timeout,
            ),
        )
        self._objects: Plain | WithHeads = WithHeads(self._core) if config.about else Plain(self._core, self._id_of)
        self.features = self._objects.features

    @classmethod
    def settings_of(cls, place: str) -> dict[str, Any]:
        seeds = place.removesuffix("/")
        _seeds(seeds)
        return {"seeds": seeds}

    def _id_of(self, place: Place) -> bytes:
        return wire.id_of("" if place.namespace == self._config.bare else place.namespace, place.key)

    async def open(self) -> None:
        try:
            await self.client.open()
        except StorageFailed as e:
            raise UsageError(str(e)) from None
        served = self.client.ring.groups
        there = [group for group in self._groups.all if group in served]
        if not self._config.forward and len(there) < self._groups.needed:
            await self.client.close()
            asked, nodes = (", ".join(map(str, some)) or "none" for some in (self._groups.all, served))
            raise UsageError(
                f"groups= names {asked}, the nodes have {nodes}: of those that are named {self._groups.needed} have to "
                f"be there (success={self._config.success})"
            )

    async def close(self) -> None:
        await self._core.close()
        await self.client.close()

    async def stat(self, place: Place) -> About | None:
        return await self._objects.stat(place)

    def read(self, place: Place, start: int = 0, end: int | None = None) -> AbstractAsyncContextManager[Reading | None]:
        return self._objects.read(place, start, end)

    async def read_many(self, places: Sequence[Place]) -> Sequence[tuple[About, bytes] | None]:
        return await self._objects.read_many(places)

    async def write(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        return await self._objects.write(place, chunks, put)

    async def append(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        return await self._objects.append(place, chunks, put)

    async def remove(self, place: Place, when: If = ALWAYS) -> bool:
        return await self._objects.remove(place, when)

    async def page(self, namespace: str, prefix: str = "", position: str = "", limit: int = 1000) -> Page:
        if isinstance(self._objects, Plain):
            raise Unsupported(
                "Elliptics does not know the keys it has: open the storage with about=true, which keeps them"
            )
        return await self._objects.page(namespace, prefix, position, limit)

    async def settled(self) -> None:
        """Wait for what goes on after answers: in groups that are late, repairs, bytes that go."""
        await self._groups.settled()
        await self._core.repairs.settled()
        await self._core.removals.settled()

    async def tidy(self, older: float = 86_400.0, removed: float = 30 * 86_400.0) -> Tidied:
        """Remove what writers that died have left, with about=true: bytes of over ``older`` seconds that belong to
        nothing, and marks of objects that were removed ``removed`` seconds ago.

        Raises:
            StorageFailed: a group does not answer; it can be done again.
        """
        if isinstance(self._objects, Plain):
            raise Unsupported("without about=true nothing is left over that could be told from objects")
        return await self._objects.tidy(older, removed)


def _groups(config: EllipticsConfig) -> tuple[int, ...]:
    """Those of the settings, the one that decides first.

    Raises:
        UsageError: they cannot be.
    """
    told = config.groups
    try:
        found = tuple(int(each) for each in told.split(",")) if isinstance(told, str) else told
    except ValueError:
        raise UsageError(f"groups= is numbers with commas between, such as 1,2, not {told!r:.60}") from None
    if not found or len(set(found)) != len(found) or not all(0 < each < 1 << 31 for each in found):
        raise UsageError(f"groups= is different numbers from 1 on, such as 1,2, not {told!r:.60}")
    if config.decides is not None and config.decides not in found:
        raise UsageError(f"decides= is one of groups=, not {config.decides}")
    if config.decides is not None and not config.about:
        raise UsageError("decides= needs about=true: bytes alone do not say which of two is the later one")
    if config.cache != "off" and config.about:
        raise UsageError("cache= goes without about=true: what is known of an object has to outlive it")
    return tuple(sorted(found, key=lambda group: group != config.decides))


def _seeds(text: str) -> tuple[tuple[str, int], ...]:
    """
    Raises:
        UsageError: they are no addresses.
    """
    found = []
    for each in text.split(","):
        host, _, port = each.rpartition(":") if each.count(":") == 1 or "]:" in each else (each, "", str(_PORT))
        host = host.strip("[]")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16 or "/" in host:
            raise UsageError(
                f"elliptics:// is followed by addresses, as in elliptics://10.0.0.1:1025,10.0.0.2:1025/?groups=1,2, "
                f"not by {text!r:.100}"
            )
        found.append((host, int(port)))
    return tuple(found)
