"""A run from its beginning to its end: one app, its sources and takers, on one engine under asyncio.

describe (first worker) -> open directory -> catalog -> engine -> feed, take, tick -> drain -> summary
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from grape.abc.source import Chunk, Source
from grape.abc.transport import Arrival, Callbacks, Commit, Outcome
from grape.authoring.loading import load
from grape.authoring.topology import Topology
from grape.engine.app import App, Stats
from grape.engine.check import check_emits
from grape.engine.clock import SystemClock
from grape.engine.engine import Engine
from grape.engine.first import Failed, FirstFailures
from grape.engine.fitting import fit
from grape.engine.ids import Ids
from grape.engine.intake import Feed
from grape.engine.outlet import DeadOutputs, Take, dead_log
from grape.engine.surroundings import Sizes, Surroundings
from grape.engine.telemetry import AppNumbers
from grape.errors import EngineError, GrapeError, Interrupted, StorageFailed, UsageError
from grape.inline import InlineLink
from grape.model.address import PartitionId
from grape.model.near import did_you_mean
from grape.model.profile import Profile
from grape.model.section import Duration
from grape.model.stored import OUTPUT, REPLIES, SOURCE, TAKER
from grape.model.topology import DEFAULT_POOL, TopologySpec, with_pool
from grape.processes.crashes import CrashLog
from grape.processes.hints import hint_for
from grape.processes.link import ProcessLink
from grape.processes.output import Line
from grape.processes.profiles import Profiles
from grape.processes.runtimes import python_command
from grape.processes.workers import Printed, Workers
from grape.protocol.messages import Ask, FromWorker, Values
from grape.session.advice import advice, guarantees
from grape.session.feeding import Feeder, opened
from grape.session.opening import Opening
from grape.session.options import Options
from grape.session.taking import Taker, Taking, Told
from grape.transports.embedded import EmbeddedTransport

_DRAIN: Final = 5.0
_STALL: Final = 3.0
_TICK: Final = 0.005
_IDLE: Final = 0.25
_REPLY: Final = "reply"
_MAX_TAKING: Final = 1_000
_MIN_RESERVE: Final = 256 << 20


class Outcomes(Struct, kw_only=True):
    """How a run ended. ``stopped``: by a signal or `Session.stop`, with work left. ``feeding_stopped``: before the end
    of the input, as there were too many dead letters."""

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


class Session:
    """One run. Everything but ``stop`` and ``call`` happens on the thread that awaits ``run``.

    Args:
        options: what to run.
        sources, takers: see `grape.connectors`.
        printed: called with what handlers print.
    """

    def __init__(
        self,
        options: Options,
        sources: list[Source],
        takers: list[Taker],
        printed: Printed,
    ) -> None:
        self.options = options
        self.sources = sources
        self.takers = takers
        self._printed = printed
        self._failures = FirstFailures()
        self._kept = Profiles(options.profiles)
        self.more_takers: Callable[[TopologySpec], list[Taker]] = lambda topology: []
        """What is also taken, once the topology is known."""
        self.engine: Engine | None = None
        self.app: App | None = None
        self._others: set[str] = set()
        """Pools that are not Python."""
        self._parts: dict[str, TopologySpec] = {}
        """What the workers of each pool describe, if that is not the whole."""
        self._opening: Opening | None = None
        self._topology: Topology | None = None
        self.feeds: list[Feed] = []
        self._takings: list[Taking] = []
        self._advice: dict[str, str] = {}
        """What is to be said of sources once more than one batch has come of them."""
        self.fed_bytes = 0
        self.sources_open = len(sources)
        self.started = time.monotonic()
        self.ready = threading.Event()
        self._wake = asyncio.Event()
        self._stopping = False
        self._aborting = False
        self._fatal: GrapeError | None = None
        self._full_since = 0.0
        self._dead_before = 0
        self._feeding_stopped = False

    # ------------------------------------------------------------------ from other threads

    def stop(self) -> None:
        """Sources stop, what runs is committed, the rest stays. Called again: stop at once."""
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._stopping:
            self._aborting = True
        self._stopping = True
        self._workers.abandon(Interrupted("stopped before the app was loaded"))
        self._wake.set()

    def call(self, function: Callable[[], None]) -> None:
        """Run on the engine's thread."""
        self._loop.call_soon_threadsafe(function)

    # ------------------------------------------------------------------ the run

    async def run(self) -> Outcomes:
        """
        Raises:
            UserError: wrong use or topology, or workers that cannot start.
            EngineError: the engine had to stop.
        """
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._bug)
        self.clock = SystemClock()
        options = self.options
        temporary = options.data is None
        data = options.data or tempfile.mkdtemp(prefix="grape-")
        config = msgspec.json.encode(options.config).decode()
        command = python_command(options.target, config, options.directory, options.env)
        self._workers = Workers(options.target, command, self._kept, self._printed, self._wake.set)
        # A sink may wait as long as it likes, and no other one for it: a thread for each write that waits.
        self._executor = ThreadPoolExecutor(_MAX_TAKING, thread_name_prefix="grape-take")
        kept = not temporary
        try:
            topology = await self._describe()
            if self._stopping:
                raise Interrupted("stopped before the app was loaded")
            self._check_profiles(topology)
            self.takers += self.more_takers(topology)
            self._check_names(topology)
            missing = [path for path in (Path(data).absolute(), *Path(data).absolute().parents) if not path.exists()]
            try:
                await self._open(data, topology)
            except BaseException:
                self._unmake(missing)
                raise
            self.ready.set()
            outcome = await self._serve(data)
            kept = kept or self._is_worth_keeping(outcome)
            outcome.kept = kept
            return outcome
        finally:
            self.ready.set()
            if self.engine is not None:
                self.engine.drain()  # whoever ends now is not replaced
            await self._workers.close()
            for line in self._failures.rest():
                self.notice(line)
            for source in self.sources:
                with contextlib.suppress(BaseException):
                    source.close()
            self._executor.shutdown(wait=False, cancel_futures=True)
            for taker in self.takers:
                with contextlib.suppress(BaseException):
                    taker.sink.close()
            transport = getattr(self, "_transport", None)
            if transport is not None:
                transport.close()
            if temporary and not kept and self.app is not None and self.app.stats.fed and self._fatal is not None:
                self.notice(f"the data directory was kept: {data}")
            elif temporary and not kept:
                shutil.rmtree(data, ignore_errors=True)

    def _is_worth_keeping(self, outcome: Outcomes) -> bool:
        """Of a temporary directory: something is left in it to do, to look at, or to go on from."""
        again = [source for source in self.sources if not source.name.endswith("=-")]  # stdin cannot be read again
        goes_on = outcome.stopped and self.sources_open > 0 and bool(outcome.stats.fed) and bool(again)
        return goes_on or outcome.dead_stored > 0 or outcome.stopped_events > 0 or outcome.backlog > 0

    def _bug(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something failed that nobody expected: an engine in an unknown state must not go on."""
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error)) if error is not None else ""
        self.stop_with(EngineError(f"the engine failed, which is a bug in it: {context.get('message')}\n{trace}"))

    async def _describe(self) -> TopologySpec:
        """What the app is, with the pools in other languages."""
        self._check_inline()
        inline = self._is_inline(DEFAULT_POOL)
        own = self._own_topology().spec() if inline else await self._workers.describe()
        others = [pool for pool in own.pools if pool.runtime != "python"]
        if not others:
            return own
        self._others = {pool.name for pool in others}
        told = await self._workers.describe_pools(others)
        self._parts = {pool.name: told.get(pool.name, own) for pool in own.pools}
        whole = own
        for name, part in told.items():
            whole = with_pool(whole, name, part)
        check_emits(whole)
        return whole

    def _is_inline(self, pool: str) -> bool:
        """Whether its nodes run in this process."""
        if pool in self._others:
            return False
        return self.options.inline or self._kept.of(pool).is_inline

    def _own_topology(self) -> Topology:
        """The app, loaded into this process."""
        if self._topology is None:
            self._topology = self.options.topology or load(self.options.target, self.options.config)
        return self._topology

    def _profiles(self, topology: TopologySpec) -> dict[str, Profile]:
        """Of each pool."""
        profiles = {pool.name: self._kept.of(pool.name) for pool in topology.pools}
        for pool in topology.pools:
            if self._is_inline(pool.name):
                # There is one set of nodes in this process, and no watchdog.
                profiles[pool.name] = msgspec.structs.replace(
                    profiles[pool.name],
                    pool_limit=1,
                    pool_min=None,
                    max_events=0,
                    idle_timeout=Duration(0),
                    heartbeat_timeout=Duration(1e12),
                )
        return profiles

    def _check_inline(self) -> None:
        guarded = self._kept.guarded
        if self.options.inline and guarded is not None:
            raise UsageError(
                f"--inline runs all slots in the engine's own process, which is not confined, but "
                f"[pool.{guarded}.isolate] says how they are to be; leave one of them out"
            )

    def _check_profiles(self, topology: TopologySpec) -> None:
        known = [pool.name for pool in topology.pools]
        for name in self.options.profiles:
            if name not in known and name != DEFAULT_POOL:
                raise UsageError(f"[pool.{name}]: {_no_such('pool', name, tuple(known), topology)}")

    def _check_names(self, topology: TopologySpec) -> None:
        """What is fed and taken is there; nothing has been made yet."""
        for event in self.options.events:
            if event not in topology.events:
                raise UsageError(f"--feed {event}: {_no_such('slot', event, topology.events, topology)}")
        for taker in self.takers:
            if taker.event is not None and taker.event not in topology.outputs:
                raise UsageError(f"--take {taker.event}: {_no_such('output', taker.event, topology.outputs, topology)}")

    def _unmake(self, missing: list[Path]) -> None:
        """A run that could not begin leaves no directory that was not there before."""
        transport = getattr(self, "_transport", None)
        if transport is not None:
            transport.close()
        if missing:
            shutil.rmtree(missing[0], ignore_errors=True)
            for path in missing[1:]:
                with contextlib.suppress(OSError):
                    path.rmdir()

    async def _open(self, data: str, topology: TopologySpec) -> None:
        options = self.options
        callbacks = Callbacks(self._done, self._arrived, self._failed)
        self._transport = EmbeddedTransport.open(
            data, callbacks, self._loop.call_soon_threadsafe, max_size=options.max_size
        )
        limits = fit(options.limits, self._transport.features)
        taken = frozenset(t.event for t in self.takers if t.event is not None)
        logs = [SOURCE + s.name for s in self.sources] + [TAKER + t.sink.name for t in self.takers]
        logs += sorted({dead_log(taker.event or _REPLY) for taker in self.takers})
        self._opening = opening = Opening(
            self._transport,
            self.clock,
            limits,
            options.drop_slots,
            options.drop_nodes,
            options.discard_slots,
        )
        record = await opening.record(topology, options.partitions, logs)
        if opening.discarded:
            self.notice(f"{opening.discarded:,} events were given up without dead letters (--discard-slot)")
        self.app = app = App(record, topology, limits, taken, self._parts)
        self._dead_before = self._count_dead()
        rng = random.Random()
        await self._workers.prepare([pool.name for pool in topology.pools if not self._is_inline(pool.name)])
        reserve = options.reserve
        if reserve is None:
            reserve = max(_MIN_RESERVE, min(options.max_size, self._transport.room()) // 10)
        cores = os.cpu_count() or 1
        self.engine = self._workers.engine = Engine(
            app,
            Surroundings(self._transport, self, self.clock, rng, self.stop_with, self.notice),
            Sizes(self._profiles(topology), options.workers or cores, max(4, 2 * cores)),
            reserve,
        )
        self.engine.tell = self._tell
        self._workers.crash_log = CrashLog(data)
        self._open_sources(app, self.engine)
        takes: dict[str, list[Take]] = {}
        dead: dict[str, DeadOutputs] = {}
        told = Told(self._wake.set, self.stop_with, self.notice)
        for taker in self.takers:
            log = REPLIES if taker.event is None else OUTPUT + taker.event
            take = Take(app, taker.sink.name, log, self._transport, self.clock)
            event = taker.event or _REPLY
            if event not in dead:
                dead[event] = DeadOutputs(app, event, self._transport, self.engine.own)
            taking = Taking(taker, take, self._executor, dead[event], self.clock, told)
            self._takings.append(taking)
            takes.setdefault(log, []).append(take)
            take.peers = takes[log]
            self.engine.own(take.id, take.done)
            for number in take.logs:
                self.engine.on_arrival(app.log(log, number), partial(taking.arrived, number))

    def _open_sources(self, app: App, engine: Engine) -> None:
        calls = any(t.event is None for t in self.takers)
        ids = Ids(app, self._transport, self.clock)
        for source in self.sources:
            if source.terms.on_end and source.terms.on_end not in app.routing.listeners:
                name = source.terms.on_end
                raise UsageError(f"on_end={name}: {_no_such('slot', name, app.topology.events, app.topology)}")
            if self.options.data is None:  # no run will go on from here
                source.is_final = True
            feed = Feed(app, source, self._transport, calls, self.clock, ids)
            opened(feed)
            self.feeds.append(feed)
            engine.own(feed.id, feed.done)
        fresh = [feed.source for feed in self.feeds if not feed.head.position]
        if self.options.data is not None:
            for line in guarantees(fresh):
                self.notice(line)
        for name, line in advice(app.topology, fresh, app.partitions).items():
            size = next(source for source in fresh if source.name == name).total()
            if size is None:
                self._advice[name] = line
            elif size > app.limits.batch_target:
                self.notice(line)

    async def _serve(self, data: str) -> Outcomes:
        engine, app = self.engine, self.app
        assert engine is not None
        assert app is not None
        engine.start()
        self._workers.end_unused()
        for feed in self.feeds:
            Feeder(feed, self, self._advice.get(feed.source.name, ""), app.limits.batch_target).start()
        takers = [asyncio.create_task(taking.run()) for taking in self._takings]
        stopped = False
        ticked = 0.0
        try:
            while True:
                if self._fatal is not None:
                    raise self._fatal
                self._wake.clear()
                timeout = ticked + _TICK - time.monotonic()
                if timeout <= 0:  # what is due is looked for now and then, not after every message
                    timeout = self._tick(engine)
                    ticked = time.monotonic()
                if self._stopping:
                    stopped = await self._drain(engine)
                    break
                if self._has_too_many_dead() and self.feeds:
                    # Whatever else waits would most likely die as well.
                    self._feeding_stopped = True
                    engine.drain()
                    if not engine.in_flight and all(taking.take.is_idle for taking in self._takings):
                        break
                if self._is_over(engine):
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), timeout)
        finally:
            for task in takers:
                task.cancel()
        numbers = engine.numbers()
        await self._end_workers(engine)
        due = engine.next_due()
        return Outcomes(
            stats=app.stats,
            app=app.record.name,
            data=data,
            kept=True,
            seconds=time.monotonic() - self.started,
            stopped=stopped,
            backlog=app.backlog_events + app.holds + app.timers,
            due=None if due is None else due / 1e6,
            dead_stored=self._count_dead(),
            stopped_events=engine.stopped_events,
            feeding_stopped=self._feeding_stopped,
            numbers=numbers,
        )

    def _tick(self, engine: Engine) -> float:
        """Do what is due; returns in how many seconds to look again at the latest."""
        wake = engine.tick()
        engine.check_room()
        self._check_stall(engine)
        return _IDLE if wake is None else min(_IDLE, max(0.0005, (wake - self.clock.now()) / 1e6))

    def _check_stall(self, engine: Engine) -> None:
        """Sources wait while the disk is full, for as long as working off what waits may make room."""
        if not (self.sources_open and engine.gate.is_full and engine.finished):
            self._full_since = 0.0
        elif not self._full_since:
            self._full_since = time.monotonic()
        elif time.monotonic() - self._full_since > _STALL:
            self.stop_with(engine.gate.stalled())

    def _is_over(self, engine: Engine) -> bool:
        app = self.app
        assert app is not None
        feeding = self.sources_open and not self._feeding_stopped
        if self.options.keep_open or feeding or app.backlog_events:
            return False
        if not all(taking.take.is_idle for taking in self._takings):
            return False
        return engine.finished or (not self.options.wait and engine.waits_only_for_time)

    async def _drain(self, engine: Engine) -> bool:
        """What is running is committed, for five seconds at most."""
        engine.drain()
        deadline = time.monotonic() + _DRAIN
        while engine.in_flight and time.monotonic() < deadline and not self._aborting and self._fatal is None:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), 0.05)
        if self._fatal is not None:
            raise self._fatal
        app = self.app
        assert app is not None
        return bool(app.backlog_events or app.holds or app.timers or self.sources_open)

    async def _end_workers(self, engine: Engine) -> None:
        engine.drain()
        engine.stop_workers()
        hangs = self._stopping and engine.in_flight  # its time to finish is over
        await self._workers.end(engine.check_ends, lambda: self._aborting or hangs)

    def _count_dead(self) -> int:
        """Dead letters in the directory: of partitions, and of sources (input that never became an event)."""
        assert self.app is not None
        record = self.app.record
        total = 0
        for name in record.logs:
            if not name.startswith((OUTPUT, REPLIES, TAKER)):
                for number in range(1 if name.startswith(SOURCE) else record.partitions):
                    total += self._count_rows(self.app.log(name, number))
        return total

    def _count_rows(self, partition: PartitionId) -> int:
        total, after = 0, b""
        while rows := self._transport.scan(partition, "dead", after, 1000):
            total += len(rows)
            after = rows[-1][0] + b"\0"
        return total

    # ------------------------------------------------------------------ Spawner

    def spawn(self, pool: str, index: int) -> ProcessLink | InlineLink:
        return self._spawn_inline(pool, index) if self._is_inline(pool) else self._workers.spawn(pool, index)

    def _spawn_inline(self, pool: str, index: int) -> InlineLink:
        engine = self.engine
        assert engine is not None

        def received(link: InlineLink, message: FromWorker) -> None:
            if isinstance(message, Ask):
                partition = engine.partition(pool, message.partition)
                link.send(Values(engine.questions.at_once(partition, message.node, message.keys)))
                return
            engine.received(pool, index, link, message)
            self._wake.set()

        def gone(link: InlineLink, how: str) -> None:
            engine.gone(pool, index, link, how)
            self._wake.set()

        return InlineLink(self._own_topology(), received, self._loop.call_soon, gone, time.monotonic, self.clock.now)

    def _tell(self, worker: str, failed: Failed) -> None:
        """An event has failed: the first of its kind is shown."""
        lines = self._failures.tell(failed, self.clock.now())
        if len(lines) > 1:
            hint = hint_for(failed.trace, os.environ, sys.path)
            lines += [hint] if hint else []
        for line in lines:
            self._printed(worker, Line("error", failed.node, line))

    def notice(self, text: str) -> None:
        """A line for people."""
        self._printed("engine", Line("stderr", "", text))

    def workers(self) -> list[tuple[str, int]]:
        """(name, pid) of every worker process there is."""
        return self._workers.pids()

    # ------------------------------------------------------------------ transport callbacks

    def _done(self, outcomes: list[tuple[Commit, Outcome]]) -> None:
        if self.engine is not None:
            self.engine.done(outcomes)
        else:
            assert self._opening is not None
            for commit, outcome in outcomes:
                self._opening.done(commit, outcome)
        self._wake.set()

    def _arrived(self, arrivals: list[Arrival]) -> None:
        if self.engine is not None:
            self.engine.arrived(arrivals)
            self._wake.set()
        elif self._opening is not None:
            self._opening.arrived()

    def _failed(self, error: BaseException) -> None:
        failure = error if isinstance(error, GrapeError) else StorageFailed(str(error))
        self.stop_with(failure)
        if self._opening is not None:
            self._opening.failed(failure)

    def stop_with(self, error: GrapeError) -> None:
        if self._fatal is None:
            self._fatal = error
        self._workers.abandon(error)
        self._wake.set()

    # ------------------------------------------------------------------ feeding

    @property
    def is_ending(self) -> bool:
        """Sources are to stop."""
        return self._stopping or self._feeding_stopped or self._fatal is not None

    def later(self, delay: float, function: Callable[[], None]) -> None:
        """Run on the engine's thread, in ``delay`` seconds."""
        self._loop.call_later(delay, function)

    def check_chunk(self, chunk: Chunk) -> None:
        """
        Raises:
            UsageError: it has events that nothing listens to.
        """
        assert self.app is not None
        for part in chunk.columns:
            if part.name not in self.app.routing.listeners:
                raise UsageError(_no_such("slot", part.name, self.app.topology.events, self.app.topology))

    def may_feed(self, events: Iterable[str]) -> bool:
        """Whether such events may come in now: not while more have failed than may become dead letters, and not any
        more once they have."""
        assert self.engine is not None
        assert self.app is not None
        if self._has_too_many_dead():
            self._feeding_stopped = True
            self._wake.set()
            return False
        if self.app.holds > self.dead_left and self._will_retry():
            return False
        return self.engine.feeding_is_open(self.app.pools_of(events))

    @property
    def dead_left(self) -> int:
        """How many more dead letters may come before feeding stops."""
        assert self.app is not None
        return self.options.max_dead - self._dead_before - self.app.stats.dead

    def _has_too_many_dead(self) -> bool:
        return self.dead_left < 0

    def _will_retry(self) -> bool:
        """Some of what has failed gets another attempt by itself."""
        assert self.engine is not None
        pools = self.engine.pools.values()
        return any(part.holds.next_due() is not None for pool in pools for part in pool.partitions)

    @property
    def is_worked_off(self) -> bool:
        """Nothing waits in the logs."""
        assert self.app is not None
        return not self.app.backlog_events

    def fed(self, size: int) -> None:
        """So many bytes of input have become durable."""
        self.fed_bytes += size

    def source_ended(self) -> None:
        """All of a source is durable."""
        self.sources_open -= 1
        self._wake.set()


def _no_such(kind: str, name: str, known: tuple[str, ...], topology: TopologySpec) -> str:
    hint = did_you_mean(name, known, f"it has {', '.join(map(repr, known)) or 'none'}")
    return f"app {topology.name!r} has no {kind} {name!r}; {hint}"
