"""The worker processes of a session: confined as their pools ask, started, listened to, and their last words kept."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from grape.abc.isolate import Command, Isolate
from grape.engine.engine import Engine
from grape.engine.handshake import NEEDED
from grape.errors import GrapeError, ProtocolError, UserError
from grape.model.levels import Levels, is_shown
from grape.model.topology import DEFAULT_POOL, PoolSpec, TopologySpec, names
from grape.processes.crashes import Crash, CrashLog
from grape.processes.hints import with_hint
from grape.processes.link import ProcessLink
from grape.processes.output import Line
from grape.processes.profiles import Profiles, make_isolate
from grape.processes.runtimes import adapted, command_of
from grape.processes.supervisor import Supervisor
from grape.protocol.messages import FromWorker, Hello, Refusal, Tried, Try

_STARTS: Final = 3
_TRIAL: Final = 60.0
_PATIENCE: Final = 10.0
"""Seconds that it may take to clean up after workers that were killed."""

Printed = Callable[[str, Line], None]
"""Takes the name of a worker, and what it printed."""


class Workers:
    """Everything about worker processes that a session has to do. Used on the engine's thread.

    The first worker is started before anything is known of the app; it tells what the app is. It is one of the pool
    "main" in every respect, so it is confined as that pool is. Then each pool in another language has a first one.

    Args:
        target: the app, for errors. ``python``: runs a worker in Python.
        profiles: how each pool is kept and confined.
        printed: gets what workers print.
        changed: called whenever something has happened.

    Attributes:
        levels: what is not to be shown of records, whoever has logged it.
    """

    def __init__(
        self,
        target: str,
        python: Command,
        profiles: Profiles,
        printed: Printed,
        changed: Callable[[], None],
    ) -> None:
        self.engine: Engine | None = None
        self.crash_log: CrashLog | None = None
        self.levels: Levels = {}
        self._target = target
        self._python = python
        self._commands: dict[str, Command] = {}
        self._profiles = profiles
        self._printed = printed
        self._changed = changed
        self._supervisor = Supervisor(self)
        self._isolates: dict[str, Isolate] = {}
        self._names: dict[ProcessLink, tuple[str, int]] = {}
        self._since: dict[ProcessLink, float] = {}
        self._firsts: dict[str, _First] = {}

    # ------------------------------------------------------------------ isolates

    async def prepare(self, pools: list[str]) -> None:
        """Build what confines the workers of these pools, unless that was done already.

        Raises:
            UsageError: an isolate that there is not, or keys that it does not know.
            Unsupported: this host cannot confine a pool as its profile asks.
        """
        for pool in pools:
            if pool not in self._isolates:
                isolate = make_isolate(pool, self._profiles.of(pool))
                await self._supervisor.on_starter(pool, isolate.prepare)
                self._isolates[pool] = isolate

    # ------------------------------------------------------------------ the first workers

    async def describe(self) -> TopologySpec:
        """Start the first worker; it tells what the app is.

        Raises:
            UserError: the app cannot be loaded.
        """
        return (await self._first_word(DEFAULT_POOL)).topology

    async def describe_pools(self, pools: Iterable[PoolSpec]) -> dict[str, TopologySpec]:
        """Start the first workers of pools in other languages; they tell what their nodes and slots are.

        Raises:
            UserError: one cannot be loaded.
        """
        specs = list(pools)
        for spec in specs:
            self._commands[spec.name] = command_of(spec, self._target, self._python)
        parts = await asyncio.gather(*(self._describe_pool(spec) for spec in specs))
        return {spec.name: part for spec, part in zip(specs, parts, strict=True)}

    async def _describe_pool(self, spec: PoolSpec) -> TopologySpec:
        hello = await self._first_word(spec.name)
        if not set(hello.capabilities) >= NEEDED and "base" in hello.capabilities:
            self._commands[spec.name] = adapted(self._commands[spec.name])
            hello = await self._first_word(spec.name)
        return hello.topology

    async def _first_word(self, pool: str) -> Hello:
        await self.prepare([pool])
        startup = self._profiles.of(pool).startup_timeout
        whose = self._target if pool == DEFAULT_POOL else f"pool {pool!r}"
        if pool in self._firsts:
            self._firsts.pop(pool).link.kill()  # it told what the app is, but does not run this pool
        for _ in range(_STARTS):
            first = self._firsts[pool] = _First(self._start(pool, -1), asyncio.get_running_loop().create_future())
            try:
                return await asyncio.wait_for(first.hello, startup)
            except TimeoutError:
                raise UserError(f"{whose}: the app did not load within {startup:g} s (startup-timeout)") from None
            except _Died as e:
                last = e
        raise UserError(f"{whose}: a worker failed at its start three times in a row\n{last}")

    def _describing(self, pool: str, worker: ProcessLink, message: FromWorker) -> None:
        first = self._firsts.get(pool)
        if first is None or first.link is not worker:
            return
        if isinstance(message, Tried) and first.tried is not None and not first.tried.done():
            first.tried.set_result(message)
        if first.hello.done():
            return
        if isinstance(message, Hello):
            first.hello.set_result(message)
        elif isinstance(message, Refusal):
            first.last_words = text = with_hint(message.text, os.environ, sys.path)
            if message.kind in ("topology", "usage"):
                first.hello.set_exception(UserError(text))

    async def try_state(self, message: Try) -> list[tuple[int, str]] | None:
        """Which records of a node's state the app cannot read, as (index, why); None: its worker cannot say.

        Raises:
            UserError: it died over that, or takes too long.
        """
        first = self._firsts.get(DEFAULT_POOL)
        if first is None or not first.hello.done() or "try" not in first.hello.result().capabilities:
            return None
        first.tried = asyncio.get_running_loop().create_future()
        first.link.send(message)
        try:
            return (await asyncio.wait_for(first.tried, _TRIAL)).problems
        except TimeoutError:
            raise UserError(f"node {message.node!r} has not read a sample of its state within {_TRIAL:g} s") from None
        except _Died as e:
            raise UserError(f"node {message.node!r} dies when it reads a sample of its state: {e}") from None

    def abandon(self, why: GrapeError) -> None:
        """Nobody waits for the first workers any more."""
        for first in self._firsts.values():
            if not first.hello.done():
                first.hello.set_exception(why)

    def end_unused(self) -> None:
        """The first workers end that no pool has taken."""
        for first in self._firsts.values():
            first.link.kill()
        self._firsts.clear()

    # ------------------------------------------------------------------ Spawner

    def spawn(self, pool: str, index: int) -> ProcessLink:
        first = self._firsts.pop(pool, None)
        if first is not None and first.link in self._names and not first.link.is_over:
            self._names[first.link] = (pool, index)
            asyncio.get_running_loop().call_soon(self.received, first.link, first.hello.result())
            return first.link
        return self._start(pool, index)

    def _start(self, pool: str, index: int) -> ProcessLink:
        name = f"{pool}.{max(index, 0)}"
        spawn = partial(self._isolates[pool].spawn, name, self._commands.get(pool, self._python))
        link = self._supervisor.start(pool, spawn, self._profiles.of(pool).crashlog_limit)
        self._names[link] = (pool, index)
        self._since[link] = time.time()
        return link

    # ------------------------------------------------------------------ Listener

    def received(self, worker: ProcessLink, message: FromWorker) -> None:
        if worker not in self._names:
            return  # it has ended meanwhile
        pool, index = self._names[worker]
        strange = unprintable(message)
        if strange is not None:
            self.broken(worker, ProtocolError(f"a name that cannot be shown: {strange!a:.300}"))
            return
        if index < 0:
            self._describing(pool, worker, message)
            return
        assert self.engine is not None
        self.engine.received(pool, index, worker, message)
        self._changed()

    def broken(self, worker: ProcessLink, error: ProtocolError) -> None:
        pool, index = self._names[worker]
        if self.engine is not None and index >= 0:
            self.engine.broken(pool, index, worker, error)
        elif index < 0 and pool in self._firsts:
            self._firsts[pool].last_words = f"it broke the protocol: {error}"
        worker.kill()

    def gone(self, worker: ProcessLink, how: str) -> None:
        self._supervisor.ended(worker)
        pool, index = self._names.pop(worker)
        since = self._since.pop(worker)
        if index < 0:
            first = self._firsts.get(pool)
            if first is not None and first.link is worker and first.tried is not None and not first.tried.done():
                first.tried.set_exception(_Died(how))
            if first is not None and first.link is worker and not first.hello.done():
                whose = self._target if pool == DEFAULT_POOL else f"pool {pool!r}"
                died = UserError(f"{whose}: {how}") if worker.is_hopeless else _Died(first.last_words or how)
                first.hello.set_exception(died)
        elif worker.is_hopeless and self.engine is not None and not self.engine.pools[pool].was_ready:
            self.engine.stop_with(UserError(f"pool {pool!r}: {how}"))
        elif self.engine is not None:
            crash = self.engine.gone(pool, index, worker, how)
            if crash and self.crash_log is not None:
                lines = [(line.level, line.slot, line.text) for line in worker.last_lines]
                self.crash_log.add(Crash(time.time(), f"{pool}.{index}", worker.pid, since, crash, lines))
        self._changed()

    def printed(self, worker: ProcessLink, line: Line) -> None:
        if not is_shown(self.levels, line.slot, line.level):
            return
        pool, index = self._names.get(worker, ("", -1))
        self._printed(f"{pool}.{index}" if index >= 0 else "start", line)

    def pids(self) -> list[tuple[str, int]]:
        """(name, pid) of every worker process there is."""
        return [
            (f"{pool}.{index}" if index >= 0 else "start", link.pid)
            for link, (pool, index) in list(self._names.items())
            if link.pid
        ]

    # ------------------------------------------------------------------ the end

    async def end(self, check: Callable[[], None], is_aborted: Callable[[], bool]) -> None:
        """They were asked to end: wait until they have; ``check`` sees to those that do not."""
        while self._supervisor.links and not is_aborted():
            check()
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        """Nothing is left of them, when this returns."""
        self._supervisor.kill_all()
        deadline = time.monotonic() + _PATIENCE
        while self._supervisor.links and time.monotonic() < deadline:
            await asyncio.sleep(0.002)
        self._supervisor.close()
        for isolate in self._isolates.values():
            isolate.close()


def unprintable(message: FromWorker) -> str | None:
    """A name in what a worker tells of its app that a terminal or a log could not show as it is, if there is one."""
    if not isinstance(message, Hello):
        return None
    return next((name for name in names(message.topology) if not name.isprintable()), None)


class _First:
    """A worker that describes its pool. ``last_words``: why it cannot."""

    def __init__(self, link: ProcessLink, hello: asyncio.Future[Hello]) -> None:
        self.link = link
        self.hello = hello
        self.tried: asyncio.Future[Tried] | None = None
        self.last_words = ""


class _Died(Exception):
    """The first worker ended before it said hello."""
