"""Keeps what is installed and what a repository says of it the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import structs

from grape.errors import Conflict, GrapeError
from grape.server.home import Home, Installed
from grape.server.hosted import Hosted
from grape.server.log import Say
from grape.server.repository import Listed, Repository, adopted, entry_of

_AGAIN: Final = (1.0, 60.0)
"""Seconds until it is asked again that did not answer: doubled from the first, up to the second."""


class Syncing:
    """Everything belongs to the server's loop.

    Args:
        apps: of the server, by name. host: begins with one more. say: a line for people.

    Attributes:
        lock: held while packages come or go.
    """

    def __init__(
        self,
        repository: Repository,
        home: Home,
        apps: Mapping[str, Hosted],
        host: Callable[[Installed], None],
        say: Say,
        lock: asyncio.Lock,
    ) -> None:
        self.repository = repository
        self._home = home
        self._apps = apps
        self._host = host
        self._say = say
        self._lock = lock
        self._dirty: set[str] = set()
        self._looks = True
        """What the repository says has to be looked at."""
        self._happened = asyncio.Event()
        self._waiting: list[asyncio.Future[list[str]]] = []
        self._has_failed = False

    def noted(self, before: Installed, after: Installed) -> None:
        """Something is otherwise here."""
        if entry_of(before) != entry_of(after):
            self.changed(after.name)

    def changed(self, name: str) -> None:
        """It is, or it is no more."""
        self._dirty.add(name)
        self._happened.set()

    async def now(self) -> list[str]:
        """Look what the repository says; the apps that have changed by it.

        Raises:
            GrapeError: it cannot be looked at.
        """
        waiting: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._looks = True
        self._happened.set()
        return await waiting

    async def run(self) -> None:
        """For ever."""
        pause = _AGAIN[0]
        while True:
            self._happened.clear()
            waiting, self._waiting = self._waiting, []
            try:
                changed = await self._once()
            except GrapeError as e:
                self._failed(e, waiting)
                try:
                    await asyncio.wait_for(self._happened.wait(), pause)
                except TimeoutError:
                    pass
                pause = min(2 * pause, _AGAIN[1])
                continue
            pause = _AGAIN[0]
            if self._has_failed:
                self._has_failed = False
                self._say("the repository answers again")
            for each in waiting:
                if not each.done():
                    each.set_result(changed)
            if not self._looks and not self._dirty:
                await self._happened.wait()

    def _failed(self, error: GrapeError, waiting: list[asyncio.Future[list[str]]]) -> None:
        if not self._has_failed:
            self._say(f"{error}; what is installed here runs, and it is tried again", "warning")
        self._has_failed = True
        for each in waiting:
            if not each.done():
                each.set_exception(error)

    async def _once(self) -> list[str]:
        changed: list[str] = []
        if self._looks:
            listed = await self.repository.listed()
            for name, one in listed.items():
                changed += [name] if await self._adopt(one) else []
            self._dirty |= {
                name for name, app in self._apps.items() if name not in listed and not app.installed.repository
            }
            self._looks = False
        for name in sorted(self._dirty):
            self._dirty.discard(name)  # what changes while it is on its way is told once more
            try:
                await self._push(name)
            except BaseException:
                self._dirty.add(name)
                raise
        return changed

    # ------------------------------------------------------------------ from there

    async def _adopt(self, listed: Listed) -> bool:
        """Whether something is otherwise by it."""
        entry = listed.entry
        app = self._apps.get(entry.name)
        if app is not None and listed.version == app.installed.repository:
            return False
        if app is not None and entry_of(app.installed) == entry:
            app.note(structs.replace(app.installed, repository=listed.version))
            return False
        try:
            async with self._lock:
                await self.repository.fetch_app(entry)
                if app is None:
                    installed = adopted(entry, listed.version, None)
                    self._home.note(installed)
            if app is None:
                self._say(f"{entry.name} is installed from the repository")
                self._host(installed)
            else:
                await self._change(app, listed)
        except GrapeError as e:
            self._say(f"{entry.name}: what the repository says of it cannot be done: {e}", "error")
            return False
        return True

    async def _change(self, app: Hosted, listed: Listed) -> None:
        entry, before = listed.entry, app.installed
        both = adopted(entry, listed.version, before)
        app.note(structs.replace(before, versions=both.versions))
        if entry.wanted == "running" and before.wanted == "running" and before.current != entry.current:
            await app.change_to(entry.current)
        elif before.current != entry.current:
            await app.want(runs=False)
            app.note(structs.replace(app.installed, current=entry.current, previous=before.current))
        if (entry.wanted == "running") != (app.installed.wanted == "running"):
            await app.want(runs=entry.wanted == "running")
        if entry.is_paused != app.installed.is_paused:
            await app.pause(paused=entry.is_paused)
        app.note(structs.replace(app.installed, repository=listed.version))
        self._dirty.discard(entry.name)
        self._say(f"{entry.name} is as the repository says")

    # ------------------------------------------------------------------ to there

    async def _push(self, name: str) -> None:
        app = self._apps.get(name)
        if app is None:
            await self.repository.forget(name)
            return
        if not app.installed.current:
            return
        try:
            async with self._lock:
                version = await self.repository.note(app.installed)
        except Conflict:
            if app.installed.repository:
                listed = await self.repository.listed()
                if name not in listed:  # somebody has taken it out, and it is wanted again
                    app.note(structs.replace(app.installed, repository=""))
                    self._dirty.add(name)
            self._say(f"{name} was changed in the repository, too: that counts", "warning")
            self._looks = True
            return
        app.note(structs.replace(app.installed, repository=version))
