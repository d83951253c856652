"""All apps of a server, and what goes between them. It holds nothing: whatever dies, it begins again where the
positions are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from grape.bridge.apps import RunningApps
from grape.bridge.door import Door, knock
from grape.bridge.link import Link
from grape.errors import GrapeError
from grape.server.home import Home
from grape.server.neighbours import Running

_BACK: Final = 0.5
"""Seconds until it is tried again what did not go."""


class Bridge:
    """
    Args:
        running: asks the server which apps run, once that is something else than what the argument says.
        wake: has an app started that is wanted and does not run.
    """

    def __init__(
        self, home: Home, running: Callable[[Running], Awaitable[Running]], wake: Callable[[str], Awaitable[object]]
    ) -> None:
        self._home = home
        self._wake = wake
        self._apps = RunningApps(running, self._serve, self._tell)
        self._changed = asyncio.Event()
        self._doors: dict[str, Door] = {}

    async def run(self) -> None:
        """For ever.

        Raises:
            GrapeError: the server is gone.
        """
        await self._apps.follow()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, name: str) -> None:
        """One app, as long as it runs: what it has for others."""
        while name in self._apps.now.apps:
            try:
                door = await knock(str(self._home.data(name)))
            except (OSError, GrapeError):
                await asyncio.sleep(_BACK)
                continue
            self._doors[name] = door
            self._tell()
            links: dict[str, asyncio.Task[None]] = {}
            asking = asyncio.ensure_future(self._link(name, door, links))
            try:
                await door.gone
            finally:
                self._doors.pop(name, None)
                self._tell()
                for task in (asking, *links.values()):
                    task.cancel()
                door.close()

    async def _link(self, name: str, door: Door, links: dict[str, asyncio.Task[None]]) -> None:
        with contextlib.suppress(GrapeError):
            while True:
                packed = await door.ask("outgoing", list(links))
                for output in msgspec.msgpack.decode(packed, type=list[str]):
                    link = links[output] = asyncio.ensure_future(Link(name, door, output, self._find).run())
                    link.add_done_callback(_ended)

    async def _find(self, name: str) -> Door | None:
        """The door of an app, when it serves; None: it is not installed."""
        while True:
            door = self._doors.get(name)
            if door is not None and door.is_open:
                return door
            if name not in self._apps.now.installed:
                return None
            changed = self._changed
            if name not in self._apps.now.apps:
                await self._wake(name)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), _BACK)


def _ended(task: asyncio.Task[None]) -> None:
    """By a mistake in here: the process ends as well, and the next one tries again."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logging.error("what goes between apps has failed", exc_info=error)
        os._exit(70)
