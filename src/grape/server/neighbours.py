"""The apps of a server, as they and the bridge between them hear of one another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from grape.model.foreign import Peers
from grape.server.beside import SideProcess
from grape.server.hosted import Hosted

_BETWEEN: Final = 2
"""Apps from which on there is something between them."""


class Running(Struct, frozen=True):
    """``apps``: those with an engine that serves. ``installed``: all. ``number``: another one whenever they are
    others."""

    number: int = -1
    apps: tuple[str, ...] = ()
    installed: tuple[str, ...] = ()


class Neighbours:
    """
    Args:
        apps: all of the server, as they come and go.
        bridge: carries events between them; runs while there are several.
    """

    def __init__(self, apps: Mapping[str, Hosted], bridge: SideProcess) -> None:
        self._apps = apps
        self._bridge = bridge
        self._number = 0
        self._hushed_until = 0.0
        self._happened = asyncio.Event()
        self._telling: set[asyncio.Task[None]] = set()

    def of(self, name: str) -> Peers:
        """All apps but this one, with the events that they listen to."""
        return {
            other: None if app.installed.events is None else list(app.installed.events)
            for other, app in self._apps.items()
            if other != name
        }

    def changed(self) -> None:
        """An app came or went, began or ended, or listens to something else."""
        self._number += 1
        self._happened.set()
        self._happened = asyncio.Event()
        for app in self._apps.values():
            task = asyncio.ensure_future(app.tell_peers())
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def running(self, known: int) -> Running:
        """Once it is something else than what had that number."""
        while known == self._number:
            await self._happened.wait()
        running = tuple(name for name, app in self._apps.items() if app.keeper.state == "running")
        return Running(self._number, running, tuple(self._apps))

    # ------------------------------------------------------------------ the bridge, as a process beside the engines

    def step(self) -> None:
        """Do what is to be done now."""
        self._bridge.want(runs=len(self._apps) >= _BETWEEN and not self.is_hushed)
        self._bridge.step()

    @property
    def is_hushed(self) -> bool:
        """Nothing goes from app to app."""
        return time.monotonic() < self._hushed_until

    async def hush(self, seconds: float) -> bool:
        """Nothing goes from app to app for so long, as if the bridge had died; 0: it goes on. Returns whether nothing
        has gone up to now."""
        was_hushed = self.is_hushed
        self._hushed_until = time.monotonic() + seconds
        self.step()
        if seconds:
            await self._bridge.gone()
        return was_hushed

    def dues(self) -> list[float]:
        found = [self._bridge.due(), self._hushed_until if self.is_hushed else None]
        return [due for due in found if due is not None]

    async def close(self) -> None:
        await self._bridge.close()
