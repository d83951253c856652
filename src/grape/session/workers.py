"""The worker processes of a session: confined as their pools ask, started, listened to, and their last words kept."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from grape import builtins
from grape.abc.isolate import Command, Isolate
from grape.engine.engine import Engine
from grape.engine.supervisor import Line, ProcessLink, Supervisor
from grape.errors import GrapeError, ProtocolError, UsageError, UserError
from grape.isolates.process import python_worker
from grape.model.profile import Profile
from grape.model.section import read_section
from grape.model.topology import DEFAULT_POOL, TopologySpec
from grape.protocol.messages import FromWorker, Hello, Refusal
from grape.tools.crashes import Crash, CrashLog

_STARTS: Final = 3
_PATIENCE: Final = 10.0
"""Seconds that it may take to clean up after workers that were killed."""
DEFAULT_ISOLATE: Final = "process"

Printed = Callable[[str, Line], None]
"""Takes the name of a worker, and what it printed."""


class Workers:
    """Everything about worker processes that a session has to do. Used on the engine's thread.

    The first worker is started before anything is known of the app; it tells what the app is. It is one of the pool
    "main" in every respect, so it is confined as that pool is.

    Args:
        target: the app, for errors. ``command``: runs a worker.
        profiles: of the pools that have one.
        printed: gets what workers print.
        changed: called whenever something has happened.
    """

    def __init__(
        self,
        target: str,
        command: Command,
        profiles: dict[str, Profile],
        printed: Printed,
        changed: Callable[[], None],
    ) -> None:
        self.engine: Engine | None = None
        self.crash_log: CrashLog | None = None
        self._target = target
        self._command = command
        self._profiles = profiles
        self._printed = printed
        self._changed = changed
        self._supervisor = Supervisor(self)
        self._isolates: dict[str, Isolate] = {}
        self._names: dict[ProcessLink, tuple[str, int]] = {}
        self._since: dict[ProcessLink, float] = {}
        self._first: ProcessLink | None = None
        self._hello: asyncio.Future[Hello] | None = None
        self._last_words = ""

    # ------------------------------------------------------------------ isolates

    async def prepare(self, pools: list[str]) -> None:
        """Build what confines the workers of these pools, unless that was done already.

        Raises:
            UsageError: an isolate that there is not, or keys that it does not know.
            Unsupported: this host cannot confine a pool as its profile asks.
        """
        for pool in pools:
            if pool not in self._isolates:
                isolate = make_isolate(pool, self._profiles.get(pool, Profile()))
                await self._supervisor.on_starter(pool, isolate.prepare)
                self._isolates[pool] = isolate

    # ------------------------------------------------------------------ the first worker

    async def describe(self) -> TopologySpec:
        """Start the first worker; it tells what the app is.

        Raises:
            UserError: the app cannot be loaded.
        """
        await self.prepare([DEFAULT_POOL])
        startup = self._profiles.get(DEFAULT_POOL, Profile()).startup_timeout
        for _ in range(_STARTS):
            self._hello = asyncio.get_running_loop().create_future()
            self._first = self._start(DEFAULT_POOL, -1)
            try:
                return (await asyncio.wait_for(self._hello, startup)).topology
            except TimeoutError:
                raise UserError(
                    f"{self._target}: the app did not load within {startup:g} s (startup-timeout)"
                ) from None
            except _Died as e:
                last = e
        raise UserError(f"{self._target}: a worker failed at its start three times in a row\n{last}")

    def _describing(self, message: FromWorker) -> None:
        assert self._hello is not None
        if self._hello.done():
            return
        if isinstance(message, Hello):
            self._hello.set_result(message)
        elif isinstance(message, Refusal):
            self._last_words = message.text
            if message.kind in ("topology", "usage"):
                self._hello.set_exception(UserError(message.text))

    def abandon(self, why: GrapeError) -> None:
        """Nobody waits for the first worker any more."""
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(why)

    def end_unused(self) -> None:
        """The first worker ends, if no pool has taken it."""
        if self._first is not None:
            self._first.kill()
            self._first = None

    # ------------------------------------------------------------------ Spawner

    def spawn(self, pool: str, index: int) -> ProcessLink:
        first = self._first
        if pool == DEFAULT_POOL and first is not None and first in self._names and not first.is_over:
            assert self._hello is not None
            self._first = None
            self._names[first] = (pool, index)
            hello = self._hello.result()
            asyncio.get_running_loop().call_soon(self.received, first, hello)
            return first
        return self._start(pool, index)

    def _start(self, pool: str, index: int) -> ProcessLink:
        name = f"{pool}.{max(index, 0)}"
        spawn = partial(self._isolates[pool].spawn, name, self._command)
        link = self._supervisor.start(pool, spawn, self._profiles.get(pool, Profile()).crashlog_limit)
        self._names[link] = (pool, index)
        self._since[link] = time.time()
        return link

    # ------------------------------------------------------------------ Listener

    def received(self, worker: ProcessLink, message: FromWorker) -> None:
        if worker not in self._names:
            return  # it has ended meanwhile
        pool, index = self._names[worker]
        if index < 0:
            self._describing(message)
            return
        assert self.engine is not None
        self.engine.received(pool, index, worker, message)
        self._changed()

    def broken(self, worker: ProcessLink, error: ProtocolError) -> None:
        pool, index = self._names[worker]
        if self.engine is not None and index >= 0:
            self.engine.broken(pool, index, worker, error)
        worker.kill()

    def gone(self, worker: ProcessLink, how: str) -> None:
        self._supervisor.ended(worker)
        pool, index = self._names.pop(worker)
        since = self._since.pop(worker)
        if index < 0:
            if self._hello is not None and not self._hello.done():
                died = UserError(f"{self._target}: {how}") if worker.is_hopeless else _Died(self._last_words or how)
                self._hello.set_exception(died)
        elif worker.is_hopeless and self.engine is not None and not self.engine.pools[pool].was_ready:
            self.engine.stop_with(UserError(f"pool {pool!r}: {how}"))
        elif self.engine is not None:
            crash = self.engine.gone(pool, index, worker, how)
            if crash and self.crash_log is not None:
                lines = [(line.level, line.slot, line.text) for line in worker.last_lines]
                self.crash_log.add(Crash(time.time(), f"{pool}.{index}", worker.pid, since, crash, lines))
        self._changed()

    def printed(self, worker: ProcessLink, line: Line) -> None:
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


class _Died(Exception):
    """The first worker ended before it said hello."""


def python_command(target: str, config: str, directory: str, env: dict[str, str]) -> Command:
    """What runs a Python worker. It may read where it imports from."""
    paths = [os.path.abspath(path) for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    return Command(
        argv=python_worker(target, config),
        directory=os.path.abspath(directory),
        env=env,
        readable=tuple(path for path in dict.fromkeys(paths) if os.path.exists(path)),
    )


def make_isolate(pool: str, profile: Profile) -> Isolate:
    """What confines the workers of ``pool``.

    Raises:
        UsageError: there is no such isolate, or it does not know a key, or a value does not fit.
    """
    values: dict[str, Any] = dict(profile.isolate)
    kind = values.pop("type", DEFAULT_ISOLATE)
    where = f"[pool.{pool}.isolate]"
    if not isinstance(kind, str):
        raise UsageError(f"{where}: type is the name of an isolate, not {kind!r}")
    try:
        found = builtins.isolate(kind)
        return found(pool, read_section(found.Config, values, where))
    except ValueError as e:
        raise UsageError(str(e)) from None
    except GrapeError as e:
        raise UsageError(f"{where}: {e}") from None
