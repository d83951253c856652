"""The process that drives the apps of a server: which apps it is to drive, and what it says of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
from msgspec import Struct, structs

from grape.apps.manifest import hook_secrets, manifest_of
from grape.drivers.spec import Driver, HookDriver, kind_of
from grape.drivers.told import AskHook, DriverInfo, DriverState, Hook, Known, Told, Wanted
from grape.errors import UsageError
from grape.server.beside import SideProcess
from grape.server.config import ServerConfig, bound_for, variables_for
from grape.server.control import Verb
from grape.server.home import Home
from grape.server.hosted import Hosted
from grape.server.log import Say

T = TypeVar("T", bound=Struct)


class Drivers:
    """It runs while an app that is to run has drivers. Everything belongs to the server's loop.

    Args:
        apps: of the server, by name. say: a line for people. changed: called when there may be something to do.

    Attributes:
        verbs: of the control socket.
    """

    def __init__(
        self, home: Home, config: ServerConfig, apps: Mapping[str, Hosted], say: Say, changed: Callable[[], None]
    ) -> None:
        self._config = config
        self._home = home
        self._apps = apps
        options, env = {"home": str(home.path)}, variables_for(config, os.environ)
        self._process = SideProcess("what drives apps", "drivers.process", options, say, changed, env=env)
        self._manifests: dict[str, dict[str, Driver]] = {}
        self._states: dict[str, dict[str, DriverState]] = {}
        self._wanted = Wanted(1, ())
        self._is_other = asyncio.Event()
        self.verbs: dict[str, Verb] = {"drivers": self._drivers, "driven": self._driven, "hook": self._hook}

    def step(self) -> None:
        """Do what is to be done now."""
        found = []
        for app in self._apps.values():
            digest = app.installed.current
            if app.installed.wanted == "running" and any(
                not isinstance(driver, HookDriver) for driver in self._of(digest).values()
            ):
                found.append((app.name, digest))
        if tuple(found) != self._wanted.apps:
            storages = {name: bound_for(self._config, name) for name, _ in found}
            self._wanted = Wanted(self._wanted.revision + 1, tuple(found), storages)
            self._is_other.set()
            self._is_other = asyncio.Event()
            self._forget()
        self._process.want(runs=bool(found))
        self._process.step()

    def dues(self) -> list[float]:
        """When there will be something to do though nothing has happened."""
        due = self._process.due()
        return [] if due is None else [due]

    def look(self, app: Hosted) -> tuple[DriverInfo, ...]:
        """How those of an app are."""
        states = self._states.get(app.name, {})
        found = []
        for name, driver in self._of(app.installed.current).items():
            state = states.get(name, DriverState())
            coming = state.next if app.installed.wanted == "running" else None
            found.append(DriverInfo(name, kind_of(driver), driver.event, state.last, coming, state.error))
        return tuple(found)

    async def close(self) -> None:
        """It ends; whatever it was doing, the next one goes on there."""
        await self._process.close()

    def _of(self, digest: str) -> dict[str, Driver]:
        """What a package has; it never changes."""
        if digest and digest not in self._manifests:
            try:
                self._manifests[digest] = manifest_of(self._home.package(digest)).driver
            except UsageError:  # whoever starts it hears of that
                return {}
        return self._manifests.get(digest, {})

    def _forget(self) -> None:
        """What is no more."""
        used = {version.digest for app in self._apps.values() for version in app.installed.versions}
        for digest in self._manifests.keys() - used:
            del self._manifests[digest]
        for name in self._states.keys() - self._apps.keys():
            del self._states[name]

    # ------------------------------------------------------------------ verbs

    async def _drivers(self, packed: msgspec.Raw) -> Wanted:
        """What is to be driven, as soon as it is another than what is known."""
        known = _read(packed, Known)
        while known.revision == self._wanted.revision:
            await self._is_other.wait()
        return self._wanted

    async def _driven(self, packed: msgspec.Raw) -> None:
        told = _read(packed, Told)
        if told.name not in self._apps:
            return
        states = self._states.setdefault(told.name, {})
        for name, state in told.drivers.items():
            before = states.get(name)
            if state.last is None and before is not None:
                state = structs.replace(state, last=before.last)
            states[name] = state

    async def _hook(self, packed: msgspec.Raw) -> Hook | None:
        """None: there is none of this name."""
        asked = _read(packed, AskHook)
        app = self._apps.get(asked.name)
        if app is None:
            return None
        digest = app.installed.current
        driver = self._of(digest).get(asked.hook)
        if not isinstance(driver, HookDriver):
            return None
        place = self._home.package(digest)
        return Hook(digest, tuple(await asyncio.to_thread(hook_secrets, driver, asked.hook, place, os.environ)))


def _read(packed: msgspec.Raw, kind: type[T]) -> T:
    """
    Raises:
        MsgspecError: that is not what the verb is asked with.
    """
    return msgspec.msgpack.decode(packed, type=kind)
