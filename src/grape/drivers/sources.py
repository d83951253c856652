"""What a driver waits for, and the events that it makes of it: between the pure machines and the stream."""

from __future__ import annotations

import asyncio
import glob
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Protocol

from msgspec import UNSET, Struct

from grape.client.events import ClientEvent, client_event
from grape.drivers.cron import text_of
from grape.drivers.spec import CronDriver, TimerDriver, WatchDriver
from grape.drivers.watching import MOST, File
from grape.errors import UsageError

_LOOK: Final = 5.0
"""Seconds after which a clock that was set is noticed."""
_STEP: Final = 1 << 20
"""Bytes of one step, about."""
_MAX_EVENT: Final = 64 << 20


class Step(Struct, frozen=True):
    """``number``: of the source, by which it knows it again."""

    events: Sequence[ClientEvent]
    position: bytes
    what: Any


class Source(Protocol):
    """What one driver waits for."""

    @property
    def last(self) -> float | None:
        """When something was fired last, seconds of wall time."""

    @property
    def next(self) -> float | None:
        """When it will be, if that is known."""

    def begin(self, position: bytes) -> None:
        """Go on behind a position that is stored."""

    @property
    def error(self) -> str:
        """What keeps it from seeing whether there is something; "": nothing."""

    async def step(self) -> Step:
        """Wait until there is something to hand in."""

    def took(self, step: Step) -> None:
        """It is stored."""


class MomentSource:
    """Of a cron or timer driver."""

    error = ""

    def __init__(self, name: str, driver: CronDriver | TimerDriver) -> None:
        self._name = name
        self._driver = driver
        self._moments = driver.moments()
        self._fixed = None if driver.data is UNSET else self._event(0)
        self._most = 1_000 if self._fixed is None else max(1, min(1_000, _STEP // (len(self._fixed.data) + 1)))

    @property
    def last(self) -> float | None:
        return self._moments.fired / 1000 or None

    @property
    def next(self) -> float | None:
        found = self._moments.next(_now())
        return None if found is None else found / 1000

    def begin(self, position: bytes) -> None:
        self._moments.begin(position, _now())

    async def step(self) -> Step:
        while True:
            now = _now()
            moments = self._moments.due(now)[: self._most]
            if self._moments.is_new:  # where it begins is known from now on, whatever dies
                return Step((), self._moments.position(), None)
            if moments:
                events = [self._fixed or self._event(moment) for moment in moments]
                return Step(events, self._moments.position(moments[-1]), moments[-1])
            coming = self._moments.next(now)
            await asyncio.sleep(_LOOK if coming is None else min(_LOOK, max(0.001, (coming - now) / 1000)))

    def took(self, step: Step) -> None:
        self._moments.took(step.what)

    def _event(self, moment: int) -> ClientEvent:
        driver = self._driver
        data = driver.data
        if data is UNSET:
            data = {"driver": self._name, "due": text_of(moment, self._moments.schedule.zone)}
        return client_event(driver.event, data, driver.key, None, None, _MAX_EVENT)


class WatchSource:
    """Of a driver that watches files. They are looked at by a thread, as a disk may be slow.

    Args:
        told: called when its error has changed.
    """

    def __init__(self, driver: WatchDriver, told: Callable[[], None]) -> None:
        self.error = ""
        self._told = told
        self._driver = driver
        self._watching = driver.watching()
        self._found: Mapping[str, tuple[int, int]] = {}

    @property
    def last(self) -> float | None:
        return self._watching.fired / 1000 or None

    @property
    def next(self) -> float | None:
        return None

    def begin(self, position: bytes) -> None:
        self._watching.begin(position)

    async def step(self) -> Step:
        while True:
            files = await self._look()
            if files:
                position = self._watching.position(files, self._found, _now())
                return Step([self._event(file) for file in files], position, files)
            await asyncio.sleep(self._driver.interval)

    async def _look(self) -> list[File]:
        error = ""
        try:
            self._found = await asyncio.to_thread(_files, self._driver)
        except UsageError as e:
            error = str(e)
        if error != self.error:  # set at once: whoever tells of it may look while the thread does
            self.error = error
            self._told()
        return [] if self.error else self._watching.look(self._found, time.monotonic())

    def took(self, step: Step) -> None:
        self._watching.took(step.what, step.position)

    def _event(self, file: File) -> ClientEvent:
        place = os.path.join(self._driver.path, file.path) if file.path else self._driver.path
        path = os.fsencode(place).decode(errors="replace")  # a name may be any bytes
        data = {"path": path, "size": file.size, "mtime": file.mtime / 1e9, "change": file.change}
        key = self._driver.key or (path if len(path.encode()) <= 4096 else None)
        return client_event(self._driver.event, data, key, None, None, _MAX_EVENT)


def _files(driver: WatchDriver) -> dict[str, tuple[int, int]]:
    """Size and time of each, by its path below the driver's; "" for a driver of one file. Blocking.

    Raises:
        UsageError: they cannot be looked at.
    """
    try:
        if not os.path.isdir(driver.path):
            about = os.stat(driver.path)
            return {"": (about.st_size, about.st_mtime_ns)}
        os.scandir(driver.path).close()
    except OSError as e:
        raise UsageError(f"{driver.path}: {e.strerror or e}; it is looked at again") from None
    names = list(islice(_named(driver), 4 * MOST))
    found: dict[str, tuple[int, int]] = {}
    root = os.path.realpath(driver.path)
    folders: dict[str, bool] = {}
    for name in names:
        path = os.path.join(root, name)
        folder = os.path.dirname(path)
        if folder not in folders:  # one that is reached by a link is another one, or elsewhere
            folders[folder] = os.path.realpath(folder) == folder
        try:
            about = os.stat(path)
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        except OSError:  # it has just gone
            continue
        if not folders[folder] or not stat.S_ISREG(about.st_mode):
            continue
        if not is_link or os.path.commonpath((root, os.path.realpath(path))) == root:
            found[name] = (about.st_size, about.st_mtime_ns)
    if len(found) > MOST or len(names) == 4 * MOST:
        raise UsageError(
            f"{driver.path}: over {MOST:,} files are {driver.pattern!r}; move away those that are done with, or split "
            f"them among drivers"
        )
    return found


def _named(driver: WatchDriver) -> Iterator[str]:
    """What the pattern names, below the path. "**" goes into no directory by a link, which may lead back up."""
    pattern = f"{driver.pattern}/*" if driver.pattern.endswith("**") else driver.pattern
    before, is_deep, after = pattern.partition("**/")
    if not is_deep or "**" in after or (before and not before.endswith("/")):
        yield from glob.iglob(pattern, root_dir=driver.path, recursive=True)
        return
    for start in glob.iglob(before, root_dir=driver.path) if before else ("",):
        top = os.path.join(driver.path, start.rstrip("/"))
        if start and os.path.islink(top):
            continue
        for folder, below, _ in os.walk(top):
            below[:] = [each for each in below if not each.startswith(".")]
            for name in glob.iglob(after, root_dir=folder):
                yield os.path.relpath(os.path.join(folder, name), driver.path)


def _now() -> int:
    return time.time_ns() // 1_000_000
