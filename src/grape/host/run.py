"""A run from its beginning to its end: one app, its sources and takers, on one engine under asyncio.

describe (first workers) -> open the directory -> assemble -> serve -> end the workers -> outcomes
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct, structs

from grape.abc.source import Source
from grape.abc.transport import Transport
from grape.builtins import DIRECTORY, transport
from grape.engine.app import App, Stats
from grape.engine.clock import SystemClock
from grape.engine.engine import Engine
from grape.engine.surroundings import Sizes, Surroundings
from grape.engine.telemetry import AppNumbers
from grape.errors import GrapeError
from grape.host.assembly import Assembled, Assembler, Plan
from grape.host.describe import Described, OwnCode, describe, profiles_of
from grape.host.directory import DataDirectory, count_dead
from grape.host.host import Host
from grape.host.names import check_events, check_pools
from grape.host.opening import Removals
from grape.host.options import Options
from grape.host.serving import Serving
from grape.host.sources import Sources
from grape.host.spawning import Spawning
from grape.host.takers import Takers, close_sinks, taken_by
from grape.host.taking import Taker, Told
from grape.host.telling import Teller
from grape.model.topology import TopologySpec
from grape.processes.crashes import CrashLog
from grape.processes.profiles import Profiles
from grape.processes.runtimes import python_command
from grape.processes.workers import Printed, Workers

_MIN_RESERVE: Final = 256 << 20


class Outcomes(Struct, kw_only=True, frozen=True):
    """How a run ended. ``stopped``: by a signal or `Run.stop`, with work left. ``feeding_stopped``: before the end of
    the input, as there were too many dead letters."""

    stats: Stats
    app: str
    data: str
    kept: bool
    seconds: float
    stopped: bool
    backlog: int
    due: float | None
    dead_stored: int
    stopped_events: int
    feeding_stopped: bool
    numbers: AppNumbers | None = None


class Run:
    """One run. Everything but ``stop`` and ``call`` happens on the thread that awaits ``run``.

    Args:
        options: what to run.
        sources, takers: see `grape.connectors`.
        printed: called with what handlers print.

    Attributes:
        more_takers: what is also taken, once the topology is known.
        ready: set when it takes events, or has ended before.
        engine, app: once it is ready.
    """

    def __init__(self, options: Options, sources: list[Source], takers: list[Taker], printed: Printed) -> None:
        self.options = options
        self.sources = sources
        self.takers = takers
        self.more_takers: Callable[[TopologySpec], list[Taker]] = lambda topology: []
        self.ready = threading.Event()
        self.engine: Engine | None = None
        self.app: App | None = None
        self.clock = SystemClock()
        self._started = time.monotonic()
        self._kept = Profiles(options.profiles)
        self._code = OwnCode(options)
        config = msgspec.json.encode(options.config).decode()
        command = python_command(options.target, config, options.directory, options.env)
        self._host = Host(self._abandon)
        self._workers = Workers(options.target, command, self._kept, printed, self._host.wake)
        self._spawning = Spawning(self._workers, self._code, self.clock, self._host.wake)
        self._teller = Teller(printed, self.clock)
        self._transport: Transport | None = None
        self._feeding: Sources | None = None

    def _abandon(self, why: GrapeError) -> None:
        self._workers.abandon(why)

    # ------------------------------------------------------------------ from other threads

    def stop(self) -> None:
        """Sources stop, what runs is committed, the rest stays. Called again: stop at once."""
        self._host.stop()

    def call(self, function: Callable[[], None]) -> None:
        """Run on the engine's thread.

        Raises:
            RuntimeError: its loop is closed.
        """
        self._host.call(function)

    # ------------------------------------------------------------------ what there is to see of it

    def workers(self) -> list[tuple[str, int]]:
        """(name, pid) of every worker process there is."""
        return self._workers.pids()

    @property
    def sources_open(self) -> int:
        """How many sources are not at their end."""
        return len(self.sources) if self._feeding is None else self._feeding.open

    @property
    def fed_bytes(self) -> int:
        """Bytes of input that are durable."""
        return 0 if self._feeding is None else self._feeding.fed_bytes

    # ------------------------------------------------------------------ from its beginning to its end

    async def run(self) -> Outcomes:
        """
        Raises:
            UserError: wrong use or topology, or workers that cannot start.
            EngineError: the engine had to stop.
        """
        directory = DataDirectory(self.options.data)
        kept = not directory.is_temporary
        try:
            self._host.begin()
            described = await self._describe()
            directory.note_missing()
            try:
                assembled = await self._assemble(directory, described)
                serving = self._connect(assembled, described, directory)
            except BaseException:
                self._close_transport()
                directory.undo()
                raise
            self.ready.set()
            outcomes = await self._serve(assembled, serving, directory)
            kept = outcomes.kept
            return outcomes
        finally:
            self.ready.set()
            await self._close()
            if not kept:
                self._remove(directory)

    async def _describe(self) -> Described:
        options = self.options
        described = await describe(options, self._kept, self._code, self._workers)
        self._host.check_begun()
        check_pools(options.profiles, described.topology)
        self.takers += self.more_takers(described.topology)
        check_events(options.events, self.sources, self.takers, described.topology)
        await self._workers.prepare(described.apart)
        return described

    async def _assemble(self, directory: DataDirectory, described: Described) -> Assembled:
        assembler = Assembler(self._host.wake)
        opened = self._transport = transport(DIRECTORY).open(
            directory.path, assembler.callbacks, self._host.call, max_size=self.options.max_size
        )
        for source in self.sources:
            source.is_final = source.is_final or directory.is_temporary  # no run will go on from here
        rng, failed, notice = random.Random(), self._host.stop_with, self._teller.notice
        around = Surroundings(opened, self._spawning, self.clock, rng, failed, notice)
        return await assembler.assemble(self._plan(described, opened), around)

    def _plan(self, described: Described, opened: Transport) -> Plan:
        options = self.options
        cores = os.cpu_count() or 1
        profiles = profiles_of(described, self._kept)
        reserve = options.reserve
        if reserve is None:
            reserve = max(_MIN_RESERVE, min(options.max_size, opened.room()) // 10)
        return Plan(
            topology=described.topology,
            parts=described.parts,
            limits=options.limits,
            sizes=Sizes(profiles, options.workers or cores, max(4, 2 * cores)),
            sources=self.sources,
            taken=taken_by(self.takers),
            partitions=options.partitions,
            removals=Removals(options.drop_slots, options.drop_nodes, options.discard_slots),
            reserve=reserve,
        )

    def _connect(self, assembled: Assembled, described: Described, directory: DataDirectory) -> Serving:
        """Engine, workers, sources and takers get to know each other."""
        app, engine, host, notice = assembled.app, assembled.engine, self._host, self._teller.notice
        self.app, self.engine = app, engine
        engine.tell = self._teller.failed
        self._workers.engine = engine
        self._workers.crash_log = CrashLog(directory.path)
        self._spawning.engine, self._spawning.inline = engine, described.inline
        dead = count_dead(app, engine.transport)
        self._feeding = feeding = Sources(assembled, host, notice, self.options.max_dead, dead)
        feeding.advise(goes_on=not directory.is_temporary)
        takers = Takers(self.takers, assembled, self.clock, Told(host.wake, host.stop_with, notice))
        return Serving(assembled, feeding, takers, host, self.clock, self.options)

    async def _serve(self, assembled: Assembled, serving: Serving, directory: DataDirectory) -> Outcomes:
        app, engine = assembled.app, assembled.engine
        engine.start()
        self._workers.end_unused()
        stopped = await serving.until_over()
        numbers = engine.numbers()
        await self._end_workers(engine)
        due = engine.next_due()
        assert self._transport is not None
        outcomes = Outcomes(
            stats=app.stats,
            app=app.record.name,
            data=directory.path,
            kept=True,
            seconds=time.monotonic() - self._started,
            stopped=stopped,
            backlog=app.backlog_events + app.holds + app.timers,
            due=None if due is None else due / 1e6,
            dead_stored=count_dead(app, self._transport),
            stopped_events=engine.stopped_events,
            feeding_stopped=serving.feeding_stopped,
            numbers=numbers,
        )
        return structs.replace(outcomes, kept=not directory.is_temporary or self._is_worth_keeping(outcomes))

    async def _end_workers(self, engine: Engine) -> None:
        engine.drain()
        engine.stop_workers()
        hangs = self._host.is_stopping and engine.in_flight  # its time to finish is over
        await self._workers.end(engine.check_ends, lambda: self._host.is_aborting or hangs)

    def _is_worth_keeping(self, outcomes: Outcomes) -> bool:
        """Of a temporary directory: something is left in it to do, to look at, or to go on from."""
        again = [source for source in self.sources if not source.name.endswith("=-")]  # stdin cannot be read again
        goes_on = outcomes.stopped and self.sources_open > 0 and bool(outcomes.stats.fed) and bool(again)
        return goes_on or outcomes.dead_stored > 0 or outcomes.stopped_events > 0 or outcomes.backlog > 0

    # ------------------------------------------------------------------ nothing is left of it

    async def _close(self) -> None:
        if self.engine is not None:
            self.engine.drain()  # whoever ends now is not replaced
        await self._workers.close()
        self._teller.finish()
        for source in self.sources:
            with contextlib.suppress(BaseException):
                source.close()
        close_sinks(self.takers)
        self._close_transport()

    def _close_transport(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _remove(self, directory: DataDirectory) -> None:
        """A temporary one, unless what was fed lies in it and could not be worked off."""
        if self.app is not None and self.app.stats.fed and self._host.fatal is not None:
            self._teller.notice(f"the data directory was kept: {directory.path}")
        else:
            directory.remove()
