"""What drives the apps of a server, as a process of its own. It holds nothing: it may be killed at any time, and the
server ends it so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import uvloop
from msgspec import Struct

from grape.apps.manifest import manifest_of
from grape.drivers.driving import Driving
from grape.drivers.objects import ObjectSource
from grape.drivers.sources import MomentSource, Source, WatchSource
from grape.drivers.spec import Driver, HookDriver, ObjectsDriver, WatchDriver
from grape.drivers.told import Known, Told, Wanted
from grape.errors import GrapeError
from grape.gateway.doors import Doors
from grape.gateway.problems import Problem
from grape.model.bound import Bound
from grape.server.home import Home
from grape.server.telling import begin_logging

_TOLD: Final = 0.2
"""Seconds between two words to the server about an app."""
_AGAIN: Final = 1.0


class DriversOptions(Struct, frozen=True):
    """``home``: of the server."""

    home: str


def main() -> None:
    """What the process does: its options are its argument."""
    options = msgspec.json.decode(sys.argv[1], type=DriversOptions)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the server that is asked to stop
    begin_logging()
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_drive(options, os.getppid()))


async def _drive(options: DriversOptions, server_pid: int) -> None:
    owner = os.pidfd_open(server_pid)
    asyncio.get_running_loop().add_reader(owner, os._exit, 71)  # nobody would restart it, nor end it
    doors = Doors(Home(options.home))
    driven: dict[str, tuple[str, asyncio.Task[None]]] = {}
    known = 0
    while True:
        wanted = await doors.ask("drivers", Known(known), Wanted)
        known = wanted.revision
        for name, (digest, task) in tuple(driven.items()):
            if (name, digest) not in wanted.apps:
                task.cancel()
                await asyncio.wait([task])
                del driven[name]
        for name, digest in wanted.apps:
            if name not in driven:
                bound = wanted.storages.get(name, {})
                task = asyncio.ensure_future(_drive_app(name, digest, doors, bound))
                task.add_done_callback(_ended)
                driven[name] = digest, task


def _ended(task: asyncio.Task[None]) -> None:
    """By a mistake in here: the process ends as well, and the next one tries again."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logging.error("what drives apps has failed", exc_info=error)
        os._exit(70)


async def _drive_app(name: str, digest: str, doors: Doors, bound: Mapping[str, Bound]) -> None:
    """All drivers of one version of an app, until it is cancelled."""
    changed = asyncio.Event()
    found = await asyncio.to_thread(manifest_of, doors.home.package(digest))
    driving = [
        Driving(name, digest, own, driver.event, source, doors, changed.set)
        for own, driver in found.driver.items()
        if (source := _source_of(own, driver, name, str(doors.home.data(name)), bound, changed.set)) is not None
    ]

    async def tell() -> None:
        await doors.ask("driven", Told(name, {each.name: each.state for each in driving}), type(None))

    try:
        async with asyncio.TaskGroup() as tasks:
            for each in driving:
                tasks.create_task(each.run())
            while True:
                await changed.wait()
                changed.clear()
                try:
                    await tell()
                    await asyncio.sleep(_TOLD)
                except (GrapeError, Problem):
                    changed.set()
                    await asyncio.sleep(_AGAIN)
    finally:
        with contextlib.suppress(GrapeError, Problem):
            await tell()


def _source_of(
    name: str, driver: Driver, app: str, data: str, bound: Mapping[str, Bound], told: Callable[[], None]
) -> Source | None:
    """None: it is one that others call."""
    if isinstance(driver, HookDriver):
        return None
    if isinstance(driver, ObjectsDriver):
        return ObjectSource(driver, app, data, bound, told)
    return WatchSource(driver, told) if isinstance(driver, WatchDriver) else MomentSource(name, driver)


if __name__ == "__main__":
    main()
