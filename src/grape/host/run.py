"""A run from its beginning to its end: one app on one engine under asyncio, for those who come to its door.

describe (first workers) -> the owner says open -> open the directory -> assemble -> the owner attaches and says begin
-> serve -> end the workers -> outcomes
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import structs

from grape.abc.blobs import Blobs
from grape.abc.elsewhere import OtherStorages
from grape.abc.transport import Transport
from grape.builtins import DIRECTORY, other_storages, transport
from grape.engine.clock import SystemClock
from grape.engine.engine import Engine
from grape.engine.pausing import Pause
from grape.engine.surroundings import Sizes, Surroundings
from grape.errors import EngineError, GrapeError, Interrupted, UsageError
from grape.host.assembly import Assembled, Assembler, Plan
from grape.host.describe import Described, OwnCode, describe, profiles_of
from grape.host.directory import DataDirectory, count_dead
from grape.host.door import Door
from grape.host.host import Host
from grape.host.house import House
from grape.host.objects import objects, put_emit
from grape.host.opening import Removals
from grape.host.options import Options
from grape.host.ordering import ordering
from grape.host.outgoing import Outgoing
from grape.host.queues import Queues
from grape.host.serving import Serving
from grape.host.spans import Spans
from grape.host.spawning import Spawning
from grape.host.streams import Streams
from grape.host.tails import Tails
from grape.host.telling import Teller
from grape.host.trial import Trials
from grape.host.verbs import answers, counts_of, logging, pausing, telemetry
from grape.model.bound import Bound
from grape.model.levels import check_nodes, ordered
from grape.model.names import own_namespace
from grape.model.near import did_you_mean, no_such
from grape.model.topology import DEFAULT_POOL, TopologySpec
from grape.processes.crashes import CrashLog
from grape.processes.output import Line
from grape.processes.profiles import Profiles
from grape.processes.runtimes import python_command
from grape.processes.workers import Workers
from grape.protocol.door import Ended, Failed
from grape.protocol.outcomes import Outcomes
from grape.store.blobs import FileBlobs

_MIN_RESERVE: Final = 256 << 20
_LARGEST_PART: Final = 4
"""Of what the data may grow to, that is kept in reserve."""
_FAREWELL: Final = 5.0


class Run:
    """One run. Everything happens on the thread that awaits ``run``.

    Args:
        options: what to run.
        owner: its end of the socket by which its owner speaks to it.
    """

    def __init__(self, options: Options, owner: socket.socket) -> None:
        self.options = options
        self._owner = owner
        self._clock = SystemClock()
        self._started = time.monotonic()
        self._kept = Profiles(options.profiles, options.user)
        self._code = OwnCode(options)
        config = msgspec.json.encode(options.config).decode()
        command = python_command(options.target, config, options.directory, options.env)
        self._directory = DataDirectory(options.data)
        self._host = Host(self._abandon)
        self._workers = Workers(options.target, command, self._kept, self._show, self._host.stir)
        self._spawning = Spawning(self._workers, self._code, self._clock, self._host.stir)
        self._teller = Teller(self._show, self._clock)
        self._house = House(self._host, self._clock, self._directory.path, self._teller.notice)
        self._door = Door(self._house)
        self._transport: Transport | None = None
        self._blobs: Blobs | None = None
        self._elsewhere: OtherStorages | None = None
        self._assembled: Assembled | None = None

    def _abandon(self, why: GrapeError) -> None:
        self._workers.abandon(why)

    def _show(self, worker: str, line: Line) -> None:
        self._door.show(worker, line)

    def stop(self) -> None:
        """What runs is committed, the rest stays. Called again: stop at once. From any thread."""
        self._host.stop()

    # ------------------------------------------------------------------ from its beginning to its end

    async def run(self) -> None:
        """Whatever comes of it is told at the door."""
        kept = not self._directory.is_temporary
        self._host.begin()
        await self._door.let_owner_in(self._owner)
        try:
            try:
                outcomes = await self._until_over()
                kept = outcomes.kept
                message: Ended | Failed = Ended(msgspec.Raw(msgspec.msgpack.encode(outcomes)))
            except GrapeError as e:
                message = Failed(e.code, str(e))
                kept = kept or self._has_rest
            except BaseException as e:
                message = Failed(EngineError.code, f"the engine failed, which is a bug in it: {e!r}")
                kept = True
                raise
            finally:
                await self._close()
                if not kept:
                    self._directory.remove()
        finally:
            self._house.over(message)
            await self._door.close(_FAREWELL)

    async def _until_over(self) -> Outcomes:
        """
        Raises:
            UserError: wrong use or topology, or workers that cannot start.
            EngineError: the engine had to stop.
        """
        await self._until_said(lambda: self._house.has_owner)
        described = await self._describe()
        await self._until_said(lambda: self._house.is_wanted)
        self._directory.note_missing()
        try:
            assembled = self._assembled = await self._assemble(described)
            serving = self._connect(assembled, described)
            await self._door.open(self._directory.path)
            await self._until_said(lambda: self._house.is_begun)
        except BaseException:
            self._close_transport()
            self._directory.undo()
            raise
        return await self._serve(assembled, serving)

    async def _until_said(self, is_said: Callable[[], bool]) -> None:
        """
        Raises:
            Interrupted: it is to stop before, or nobody is there who could say it.
        """
        host = self._host
        while not is_said():
            host.check()
            host.check_begun()
            if self._house.is_deserted:
                raise Interrupted("whoever started the engine has gone")
            host.look_anew()
            if not is_said():
                await host.wait(1.0)

    async def _describe(self) -> Described:
        options = self.options
        described = await describe(options, self._kept, self._code, self._workers)
        self._host.check_begun()
        _check_pools(options.profiles, described.topology)
        check_nodes(options.levels, [node.name for node in described.topology.nodes])
        self._workers.levels = ordered(options.levels, options.level_orders)
        await self._workers.prepare(described.apart)
        self._house.verbs.update(Trials(Path(self._directory.path), described.topology, self._workers).verbs())
        self._house.described(described.topology)
        return described

    async def _assemble(self, described: Described) -> Assembled:
        assembler = Assembler(self._host.stir)
        opened = self._transport = transport(DIRECTORY).open(
            self._directory.path,
            assembler.callbacks,
            self._host.call,
            soon=self._host.soon,
            max_size=self.options.max_size,
        )
        directory, inline = Path(self._directory.path), self.options.inline
        rng, failed, notice = random.Random(), self._host.stop_with, self._teller.notice
        blobs = self._blobs = FileBlobs(directory, self._host.call, at_once=inline)
        elsewhere = None
        if bound := self._bound(described):
            elsewhere = self._elsewhere = other_storages()(bound, directory, self._host.call, at_once=inline)
            await elsewhere.open()
        around = Surroundings(opened, self._spawning, self._clock, rng, failed, notice, blobs, elsewhere)
        return await assembler.assemble(self._plan(described, opened), around)

    def _bound(self, described: Described) -> dict[str, Bound]:
        """Of the namespaces that the app uses, those that are in other storages.

        Raises:
            UsageError: it would write where it may not, or does not use one that was said.
        """
        own = own_namespace(described.topology.name)
        rights = {**self.options.namespaces, own: "write"}
        found = {name: bound for name, bound in self.options.storages.items() if name in rights}
        if self.options.keeps is None:  # else a server has more than one app
            for name in self.options.storages.keys() - found.keys():
                hint = did_you_mean(name, rights, f"it uses {', '.join(map(repr, rights))}")
                raise UsageError(f"the app uses no namespace {name!r} of objects; {hint} ([namespaces] in grape.toml)")
        for name, bound in found.items():
            if bound.is_read_only and rights[name] == "write":
                what = "is where the app's own objects lie" if name == own else 'is "write" in its grape.toml'
                raise UsageError(f"the app may only read the storage of the namespace {name!r}, which {what}")
        return found

    def _plan(self, described: Described, opened: Transport) -> Plan:
        options = self.options
        cores = os.cpu_count() or 1
        profiles = profiles_of(described, self._kept)
        reserve = options.reserve
        if reserve is None:
            reserve = max(_MIN_RESERVE, min(options.max_size, opened.room()) // 10)
            reserve = min(reserve, options.max_size // _LARGEST_PART)  # a small directory takes something in, too
        return Plan(
            topology=described.topology,
            parts=described.parts,
            limits=options.limits,
            sizes=Sizes(profiles, options.workers or cores, max(4, 2 * cores)),
            partitions=options.partitions,
            removals=Removals(options.drop_slots, options.drop_nodes, options.discard_slots),
            reserve=reserve,
            peers=options.peers,
            code=options.code,
            traced=options.traced,
            namespaces=options.namespaces,
            elsewhere=frozenset(self._bound(described)),
            levels=self._workers.levels,
        )

    def _connect(self, assembled: Assembled, described: Described) -> Serving:
        """Engine, workers, and those at the door get to know each other."""
        app, engine = assembled.app, assembled.engine
        engine.tell = self._teller.failed
        self._workers.engine = engine
        self._workers.crash_log = CrashLog(self._directory.path)
        self._spawning.engine, self._spawning.inline = engine, described.inline
        dead = count_dead(app, engine.transport, failed=True)
        streams = self._streams = Streams(app, engine, self._host, self.options.max_dead, dead)
        pause = Pause(engine)
        engine.holds_back = lambda: streams.have_too_many_dead or pause.is_on
        self._house.verbs.update(telemetry(engine, self._streams, self._workers.pids))
        self._house.verbs.update(answers(engine, self._house.fan))
        self._house.verbs.update(pausing(pause))
        self._house.verbs.update(logging(engine, self._workers, self.options.levels))
        self._house.verbs.update(objects(engine, self._bound(described)))
        pause.set(self.options.is_paused)
        tails = Tails(app, engine.transport, engine.on_arrival, self._host, self._clock, self._house.unread)
        queues = Queues(app.topology, assembled.attaching, tails, self._host, self._clock)
        self._house.verbs.update(queues.verbs())
        outgoing = Outgoing(app, engine, assembled.attaching)
        self._house.verbs.update(outgoing.verbs())
        self._house.leaving += [queues.left, tails.left, outgoing.left]
        Spans(assembled.attaching, app, engine, self._host, self._clock, self.options.spans).begin()
        if self.options.keeps is not None:
            queues.begin(self.options.keeps)
        self._house.verbs.update(ordering(engine, assembled.attaching, self._streams, self._host))
        self._house.opened(assembled, self._streams)
        clients = self._house.inside.clients
        self._house.verbs.update(put_emit(engine, clients, self._clock.now, self._bound(described)))
        return Serving(assembled, self._streams, self._house, self._host, self._clock, self.options)

    async def _serve(self, assembled: Assembled, serving: Serving) -> Outcomes:
        app, engine = assembled.app, assembled.engine
        engine.start()
        self._workers.end_unused()
        self._house.begun()
        if self.options.keep_open:
            self._house.keep_replies()
        stopped = await serving.until_over()
        numbers = engine.numbers()
        await self._end_workers(engine)
        due = engine.next_due()
        assert self._transport is not None
        outcomes = Outcomes(
            counts=counts_of(app),
            app=app.record.name,
            data=self._directory.path,
            kept=True,
            seconds=time.monotonic() - self._started,
            stopped=stopped,
            backlog=app.backlog_events + app.holds + app.timers,
            due=None if due is None else due / 1e6,
            dead_stored=count_dead(app, self._transport),
            stopped_events=engine.stopped_events,
            feeding_stopped=serving.feeding_stopped,
            numbers=numbers,
            unshipped=app.unshipped_objects,
            stuck=app.stuck_objects,
        )
        return structs.replace(outcomes, kept=not self._directory.is_temporary or self._is_worth_keeping(outcomes))

    async def _end_workers(self, engine: Engine) -> None:
        engine.drain()
        engine.stop_workers()
        hangs = self._host.is_stopping and engine.in_flight  # its time to finish is over
        await self._workers.end(engine.check_ends, lambda: self._host.is_aborting or hangs)

    def _is_worth_keeping(self, outcomes: Outcomes) -> bool:
        """Of a temporary directory: something is left in it to do, to look at, or to go on from."""
        goes_on = outcomes.stopped and bool(outcomes.counts.fed) and self._streams.can_go_on
        is_left = outcomes.dead_stored or outcomes.stopped_events or outcomes.backlog
        return bool(goes_on or is_left or outcomes.unshipped or outcomes.stuck)

    @property
    def _has_rest(self) -> bool:
        """Of a temporary directory: what was fed lies in it and could not be worked off."""
        if self._assembled is None or not self._assembled.app.stats.fed or self._host.fatal is None:
            return False
        self._teller.notice(f"the data directory was kept: {self._directory.path}")
        return True

    # ------------------------------------------------------------------ nothing is left of it

    async def _close(self) -> None:
        if self._assembled is not None:
            self._assembled.engine.drain()  # whoever ends now is not replaced
        await self._workers.close()
        self._teller.finish()
        self._close_transport()

    def _close_transport(self) -> None:
        if self._elsewhere is not None:
            self._elsewhere.close()
        if self._blobs is not None:
            self._blobs.close()
        if self._transport is not None:
            self._transport.close()


def _check_pools(named: Iterable[str], topology: TopologySpec) -> None:
    """Of profiles. The default pool may always have one.

    Raises:
        UsageError: there is no such pool.
    """
    known = tuple(pool.name for pool in topology.pools)
    for name in named:
        if name not in known and name != DEFAULT_POOL:
            raise UsageError(f"[pool.{name}]: {no_such('pool', name, known, topology.name)}")
