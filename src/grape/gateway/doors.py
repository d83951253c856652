"""The apps of a server as its gateway reaches them: by their doors, each as long as it is there.

While an engine is away, because it is started, upgraded or brought back, what is handed in waits; it is not refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from grape.client.connection import Connection, dial_server
from grape.client.events import ClientEvent
from grape.client.waiting import here
from grape.errors import EngineError, GrapeError, NoAnswer, Stopping, UsageError
from grape.gateway.batches import BatchStream
from grape.gateway.door import Door, knock
from grape.gateway.problems import Problem, no_app
from grape.gateway.waiting import Waiter, Waiting
from grape.protocol.outcomes import Kept
from grape.server.audit import Done, OnBehalf
from grape.server.control import ON_BEHALF
from grape.server.home import Home
from grape.server.hosted import AppInfo

T = TypeVar("T")

HOLD: Final = 30.0
"""Seconds that a request waits at most for an engine that is to come."""
_LOOK: Final = 0.02


class AppDoor:
    """One app."""

    def __init__(self, name: str, directory: str, wake: Callable[[str], Any], number: int) -> None:
        self.name = name
        self._batches = BatchStream(f"http={number}", directory, self.door)
        self.waiting = Waiting()
        self._directory = directory
        self._wake = wake
        self._door: Door | None = None
        self._knocking: asyncio.Task[Door] | None = None
        self._returning: asyncio.Task[None] | None = None

    @property
    def open_door(self) -> Door | None:
        """One that takes events, if it is there."""
        return self._door if self._door is not None and self._door.is_open else None

    async def door(self, patience: float = HOLD) -> Door:
        """One that takes events.

        Raises:
            Problem: there is none, nor comes one in time.
        """
        if (door := self.open_door) is not None:
            return door
        if self._knocking is None:
            self._knocking = asyncio.ensure_future(self._knock())
            self._knocking.add_done_callback(self._knocked)
        try:
            async with asyncio.timeout(patience):
                return await asyncio.shield(self._knocking)
        except TimeoutError:
            raise self._away("it is not back yet") from None

    def _knocked(self, task: asyncio.Task[Door]) -> None:
        self._knocking = None
        if not task.cancelled() and task.exception() is None:
            door = self._door = task.result()
            for waiter in self.waiting.all():
                self._catch_up(door, waiter)

    def _catch_up(self, door: Door, waiter: Waiter) -> None:
        """What was replied while the gateway was not there, and perhaps given to another one."""
        asked = self._asked_kept(door, waiter, lambda kept: waiter.catch_up(kept.replies))
        asked.add_done_callback(_seen)

    async def _knock(self) -> Door:
        deadline = time.monotonic() + HOLD
        while True:
            try:
                return await knock(self._directory, self.waiting.replied, self._gone)
            except (OSError, GrapeError):
                pass
            info: AppInfo | None = await self._wake(self.name)
            if info is None:
                raise no_app(self.name)
            is_coming = info.state == "upgrading" or (info.wanted == "running" and info.state != "broken")
            if not is_coming or time.monotonic() > deadline:
                raise self._away(
                    f"it is {info.state}{': ' if info.why else ''}{info.why.splitlines()[0] if info.why else ''}"
                )
            await asyncio.sleep(_LOOK)

    def _gone(self) -> None:
        """Whoever waits for a reply gets it from the engine that comes next."""
        if self.waiting and self._returning is None:
            self._returning = asyncio.ensure_future(self._return())

    async def _return(self) -> None:
        try:
            while self.waiting:
                with contextlib.suppress(Problem):
                    await self.door()
                    return
                await asyncio.sleep(1.0)
        finally:
            self._returning = None

    def _away(self, why: str) -> Problem:
        return Problem(503, "away", f"app {self.name!r}: {why}", {"retriable": True}, {"retry-after": "1"})

    async def hand_in(self, event: ClientEvent, request: str = "") -> None:
        """Returns when it is durable. One that has an id is handed in again if an engine dies with it; what was not
        accepted by one that ends goes to the next.

        Raises:
            Problem: the app is not there.
            GrapeError: it was refused, or it is not known what became of it.
        """
        deadline = time.monotonic() + HOLD
        while True:
            door = self.open_door or await self.door(max(0.1, deadline - time.monotonic()))
            try:
                await door.hand_in(event, request)
                return
            except (Stopping, NoAnswer) as e:
                if isinstance(e, NoAnswer) and not event.id:
                    raise
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_LOOK)

    async def hand_in_all(self, events: list[ClientEvent]) -> None:
        """Events without ids of their own, as a batch; returns when all are durable. Errors: `BatchStream.hand_in`."""
        await self._batches.hand_in(events, self.open_door or await self.door())

    async def ask(self, verb: str, argument: Any, kind: type[T]) -> T:
        """Ask the engine, or the one that comes next if this one ends.

        Raises:
            Problem: the app is not there.
            GrapeError: it refuses, or it died and it is not known what became of it.
        """
        deadline = time.monotonic() + HOLD
        while True:
            door = await self.door()
            try:
                return msgspec.msgpack.decode(await door.ask(verb, argument), type=kind)
            except Stopping:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_LOOK)

    async def kept(self, waiter: Waiter) -> Kept:
        """The replies to the waiter's call that have been kept up to now; the waiter has those that come after them.

        Raises:
            Problem: the app is not there.
            GrapeError: it does not answer.
        """
        deadline = time.monotonic() + HOLD
        while True:
            door = await self.door()
            try:
                return await self._asked_kept(door, waiter, lambda kept: waiter.clear(len(kept.replies)))
            except (Stopping, NoAnswer):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_LOOK)

    @staticmethod
    def _asked_kept(door: Door, waiter: Waiter, heard: Callable[[Kept], None]) -> asyncio.Future[Kept]:
        """``heard`` is called before anything that the engine says after it."""
        found: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
        asked: asyncio.Future[bytes]

        def answered() -> None:
            kept = msgspec.msgpack.decode(asked.result(), type=Kept)
            heard(kept)
            if not found.done():
                found.set_result(kept)

        def failed(asked: asyncio.Future[bytes]) -> None:
            error = None if asked.cancelled() else asked.exception()
            if error is not None and not found.done():
                found.set_exception(error)

        asked = door.ask("answer", waiter.request, answered)
        asked.add_done_callback(failed)
        return found

    def close(self) -> None:
        self._batches.close()
        if self._door is not None:
            self._door.close()
        for task in (self._knocking, self._returning):
            if task is not None:
                task.cancel()


def _seen(asked: asyncio.Future[Kept]) -> None:
    """If it fails the engine has gone: the next one is asked."""
    if not asked.cancelled():
        asked.exception()


class Who(NamedTuple):
    """Who asks over HTTP: by which token, from where."""

    name: str
    address: str


class Doors:
    """All apps, each once somebody asks for it.

    Args:
        number: of the gateway, among those of its server.

    Attributes:
        ending: set when the gateway is to end: nobody is made to wait, or looks on, any longer.
    """

    def __init__(self, home: Home, number: int = 0) -> None:
        self.home = home
        self._number = number
        self.ending = asyncio.Event()
        self._apps: dict[str, AppDoor] = {}
        self._server: Connection | None = None

    def app(self, name: str) -> AppDoor:
        """
        Raises:
            Problem: there is none of this name.
        """
        found = self._apps.get(name)
        if found is None:
            if not self.home.is_installed(name):
                raise no_app(name)
            found = self._apps[name] = AppDoor(name, str(self.home.data(name)), self.wake, self._number)
        return found

    async def look(self, name: str) -> AppInfo | None:
        """What the server knows of an app; None: there is none.

        Raises:
            Problem: the server does not answer.
        """
        return await self._known("look", name)

    async def wake(self, name: str) -> AppInfo | None:
        """As `look`, by somebody who wants something of it: it is parked no longer."""
        return await self._known("wake", name)

    async def _known(self, verb: str, name: str) -> AppInfo | None:
        if not self.home.is_installed(name):
            self._apps.pop(name, None)
            return None
        return await self.ask(verb, {"name": name}, AppInfo)

    async def ask(self, verb: str, argument: Any, kind: type[T]) -> T:
        """Ask the server.

        Raises:
            Problem: it does not answer.
            GrapeError: it refuses.
        """
        try:
            if self._server is None or self._server.is_over:
                self._server = await asyncio.to_thread(lambda: dial_server(str(self.home.path)).start())
            return msgspec.msgpack.decode(await here(self._server.ask_verb(verb, argument)), type=kind)
        except (UsageError, EngineError) as e:
            if self._server is not None and not self._server.is_over:
                raise
            raise Problem(503, "no-server", f"the server does not answer: {e}", None, {"retry-after": "1"}) from None

    async def ask_for(self, who: Who, verb: str, argument: Any, kind: type[T]) -> T:
        """As `ask`, for somebody: the server writes down who it was."""
        packed = msgspec.Raw(msgspec.msgpack.encode(argument))
        return await self.ask(ON_BEHALF, OnBehalf(who.name, who.address, verb, packed), kind)

    async def write_down(self, who: Who, verb: str, app: str, detail: str, error: GrapeError | None) -> None:
        """What an engine has done for somebody."""
        result, why = ("ok", "") if error is None else (error.code, str(error))
        await self.ask("audit", Done(who.name, who.address, verb, app, result, detail, why), type(None))

    def close(self) -> None:
        for app in self._apps.values():
            app.close()
        if self._server is not None:
            self._server.close()
