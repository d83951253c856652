"""What a server has installed, in a storage: packages, profiles, and which apps are to run. Its own disk is a cache of
it.

    grape/packages/DIGEST.tar.gz          as it was uploaded; DIGEST.sig: its signature, if it has one
    grape/lists/LIST/NAME.json            `Entry`: an app of the servers with this run-list
    grape/lists/LIST/NAME.toml            how its operator keeps it (`grape profile`)

An entry is written by compare-and-swap: a server knows which version of it was its own. Another one was written by
somebody else, and counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct, structs

from grape.abc.storage import About
from grape.apps import package
from grape.apps.manifest import manifest_of
from grape.apps.signature import Key, check_signature
from grape.errors import Corrupt, GrapeError, StorageFailed, UsageError
from grape.server.home import Home, Installed, Version, Wanted
from grape.storage.connect import opened
from grape.storage.objects import Objects
from grape.store.files import make_directory, write_durably

T = TypeVar("T")

NAMESPACE: Final = "grape"
_SMALL: Final = 1 << 20
"""Bytes of an entry, a profile, a signature: whatever is more was not written by a server."""


class Entry(Struct, frozen=True):
    """An app, as `Installed`."""

    name: str
    current: str
    versions: tuple[Version, ...] = ()
    previous: str = ""
    wanted: Wanted = "stopped"
    is_paused: bool = False


class Listed(Struct, frozen=True):
    """``version``: of the object."""

    entry: Entry
    version: str


def entry_of(installed: Installed) -> Entry:
    kept = {installed.current, installed.previous}
    versions = tuple(version for version in installed.versions if version.digest in kept)
    return Entry(installed.name, installed.current, versions, installed.previous, installed.wanted, installed.is_paused)


def adopted(entry: Entry, version: str, known: Installed | None) -> Installed:
    """What is known of an app, once ``entry`` counts."""
    before = Installed(entry.name) if known is None else known
    own = {each.digest for each in before.versions}
    return structs.replace(
        before,
        versions=(*before.versions, *(each for each in entry.versions if each.digest not in own)),
        current=entry.current,
        previous=entry.previous or before.current,
        wanted=entry.wanted,
        is_paused=entry.is_paused,
        repository=version,
    )


class Repository:
    """
    Args:
        url: of the storage.
        run_list: which apps of it are this server's.
        keys: by one of which a package has to be signed; none: by nobody.
    """

    def __init__(self, url: str, run_list: str, home: Home, keys: tuple[Key, ...] = ()) -> None:
        self.url = url
        self._list = f"lists/{run_list}"
        self._home = home
        self._keys = keys

    async def _do(self, what: Callable[[Objects], Awaitable[T]]) -> T:
        """On a thread: a package is large, and files block.

        Raises:
            StorageFailed: the storage does not answer, or cannot be used.
        """

        async def do() -> T:
            async with opened(self.url) as storage:
                return await what(Objects(storage, NAMESPACE))

        try:
            return await asyncio.to_thread(lambda: asyncio.run(do()))
        except UsageError as e:
            raise StorageFailed(f"the repository cannot be used: {e}") from None
        except OSError as e:
            raise StorageFailed(f"the repository cannot be used: {e.strerror or e}") from None

    # ------------------------------------------------------------------ packages

    async def keep(self, digest: str, file: Path, signature: bytes) -> None:
        """A package is there from now on."""

        async def write(objects: Objects) -> None:
            if signature:
                await objects.put(f"packages/{digest}.sig", signature)
            if await objects.stat(f"packages/{digest}.tar.gz") is None or signature:
                await objects.put(f"packages/{digest}.tar.gz", file, content_type="application/gzip")

        await self._do(write)

    async def fetch(self, digest: str, app: str) -> None:
        """A package is in the home from now on.

        Raises:
            Corrupt: it is not there, or another one, or of another app. Forbidden: nobody who may has signed it.
        """
        if self._home.package(digest).is_dir():
            await asyncio.to_thread(self._check_of, digest, app)
            return
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=self._home.incoming) as folder:
            file = Path(folder) / f"{digest}.tar.gz"

            async def read(objects: Objects) -> bytes:
                async with objects.open(f"packages/{digest}.tar.gz") as found:
                    if found is None:
                        raise Corrupt(f"the repository has no package {digest[:12]}")
                    if found.about.size > package.MAX_BYTES:
                        raise Corrupt(f"the repository's package {digest[:12]} has {found.about.size:,} bytes")
                    with open(file, "wb") as target:
                        async for chunk in found.chunks:
                            target.write(chunk)
                return await _small(objects, f"packages/{digest}.sig") or b""

            signature = await self._do(read)
            await asyncio.to_thread(self._take_in, digest, file, signature)
            await asyncio.to_thread(self._check_of, digest, app)

    def _take_in(self, digest: str, file: Path, signature: bytes) -> None:
        if self._keys:
            check_signature(file, signature, self._keys)
        found, _ = self._home.take_in(file)
        if found != digest:
            raise Corrupt(f"the repository's package {digest[:12]} is {found[:12]}: something else lies there")

    def _check_of(self, digest: str, app: str) -> None:
        name = manifest_of(self._home.package(digest)).name
        if name != app:
            raise Corrupt(f"the repository's entry of {app} names a package of {name}, {digest[:12]}")

    async def _push(self, digest: str) -> None:
        """One that is in the home alone: installed before there was a repository."""
        with tempfile.TemporaryDirectory(prefix="push-", dir=self._home.incoming) as folder:
            file = Path(folder) / f"{digest}.tar.gz"

            async def write(objects: Objects) -> None:
                if await objects.stat(f"packages/{digest}.tar.gz") is None:
                    await asyncio.to_thread(package.pack, self._home.package(digest), file)
                    await objects.put(f"packages/{digest}.tar.gz", file, content_type="application/gzip")

            await self._do(write)

    # ------------------------------------------------------------------ the run-list

    async def listed(self) -> tuple[dict[str, Listed], list[str]]:
        """All apps of the run-list, by name; and what is wrong with entries that are none."""

        async def read(objects: Objects) -> tuple[dict[str, Listed], list[str]]:
            found: dict[str, Listed] = {}
            wrong = []
            async for about in objects.list(f"{self._list}/"):
                if not about.key.endswith(".json"):
                    continue
                try:
                    one = await self._entry(objects, about)
                except Corrupt as e:
                    wrong.append(str(e))
                    continue
                if one is not None:
                    found[one.entry.name] = one
            return found, wrong

        return await self._do(read)

    async def _entry(self, objects: Objects, about: About) -> Listed | None:
        """
        Raises:
            Corrupt: it is none.
        """
        which = f"the repository's {about.key}"
        if about.size > _SMALL:
            raise Corrupt(f"{which} has {about.size:,} bytes")
        one = await objects.get(about.key)
        if one is None:
            return None
        try:
            entry = msgspec.json.decode(one.data, type=Entry)
        except msgspec.MsgspecError as e:
            raise Corrupt(f"{which} cannot be read: {e}") from None
        if about.key != f"{self._list}/{entry.name}.json" or not self._home.may_be_installed(entry.name):
            raise Corrupt(f"{which} is of an app {entry.name!r:.100}")
        named = [entry.current, *(version.digest for version in entry.versions)]
        named += [entry.previous] if entry.previous else []
        for digest in named:
            if not self._home.may_be_package(digest):
                raise Corrupt(f"{which} names a package {digest!r:.100}, which is no digest")
        return Listed(entry, one.about.version)

    async def note(self, installed: Installed) -> str:
        """It is so from now on; the version of its entry.

        Raises:
            Conflict: somebody else has written it.
        """
        for digest in dict.fromkeys((installed.current, installed.previous)):
            if digest:
                await self._push(digest)
        data = msgspec.json.format(msgspec.json.encode(entry_of(installed)))
        profile = self._home.profile(installed.name)

        async def write(objects: Objects) -> str:
            place = f"{self._list}/{installed.name}"
            if profile is not None:
                await objects.put(f"{place}.toml", Path(profile), content_type="application/toml")
            else:
                await objects.remove(f"{place}.toml")
            if not objects.storage.features.swaps:
                return (await objects.put(f"{place}.json", data, content_type="application/json")).version
            about = await objects.put(
                f"{place}.json",
                data,
                content_type="application/json",
                if_version=installed.repository or None,
                if_absent=not installed.repository,
            )
            return about.version

        return await self._do(write)

    async def forget(self, name: str) -> None:
        """The app is no more."""

        async def remove(objects: Objects) -> None:
            for ending in (".json", ".toml"):
                await objects.remove(f"{self._list}/{name}{ending}")

        await self._do(remove)

    async def fetch_app(self, entry: Entry) -> None:
        """Its packages and its profile are in the home from now on.

        Raises:
            GrapeError: they cannot be had.
        """
        await self.fetch(entry.current, entry.name)
        if entry.previous:
            with contextlib.suppress(GrapeError):  # one that ran once
                await self.fetch(entry.previous, entry.name)
        key = f"{self._list}/{entry.name}.toml"
        profile = await self._do(lambda objects: _small(objects, key))
        place = self._home.profiles / f"{entry.name}.toml"
        if profile is not None:
            try:
                text = profile.decode()
            except UnicodeDecodeError:
                raise Corrupt(f"the repository's {key} is no text") from None
            make_directory(place.parent)
            write_durably(place, text)


async def _small(objects: Objects, key: str) -> bytes | None:
    """
    Raises:
        Corrupt: it is not as small as such a thing is.
    """
    about = await objects.stat(key)
    if about is None:
        return None
    if about.size > _SMALL:
        raise Corrupt(f"the repository's {key} has {about.size:,} bytes")
    found = await objects.get(key)
    return None if found is None else found.data
