"""One app of a server: what is installed of it, and its engine process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct, structs

from grape.apps import environment
from grape.apps.manifest import Manifest, check_fits, manifest_of
from grape.apps.running import options_of
from grape.drivers.told import DriverInfo
from grape.errors import EngineError, Full, GrapeError, InUse, Stopping, UsageError, UserError
from grape.host.options import MAX_DEAD, Options, check_options
from grape.model.bound import Bound
from grape.model.foreign import Peers
from grape.model.numbers import AppNumbers
from grape.model.profile import Profile
from grape.model.topology import TopologySpec
from grape.protocol.outcomes import Outcomes, Progress
from grape.protocol.trial import Trial
from grape.server.home import Home, Installed, Version
from grape.server.keeper import Keeper
from grape.server.log import AppLog, LogKind
from grape.server.process import EngineProcess
from grape.server.users import AppUsers, check_claims

_PATIENCE: Final = 30.0
"""Seconds that an engine may take to end when it is asked to; then it is killed, which loses nothing."""
_LOOK_TIME: Final = 5.0
"""Seconds that an engine has to say how it is."""


class AppInfo(Struct, frozen=True):
    """What a server tells of an app. ``state``: of `Keeper`, or "upgrading", or "paused" if it runs so. ``since``:
    seconds of wall time. ``digest``, ``version``: of what runs, or would."""

    name: str
    state: str
    since: float
    why: str
    wanted: str
    version: str
    digest: str
    previous: str
    versions: tuple[Version, ...]
    deaths: int
    data: str
    log: str
    numbers: AppNumbers | None = None
    drivers: tuple[DriverInfo, ...] = ()
    paused: bool = False

    @property
    def serves(self) -> bool:
        """It takes events."""
        return self.state in ("running", "paused")


class Neighbours(Protocol):
    """The other apps of its server."""

    def of(self, name: str) -> Peers:
        """All but this one."""

    def changed(self) -> None:
        """An app began, or ended, or listens to something else."""


class Hosted:
    """Everything belongs to the server's loop.

    Args:
        changed: called when there may be something to do.
        around: what its events may go to. users: who its workers are. log: how its log is kept.
        storages: namespaces that it has in other storages.
    """

    def __init__(
        self,
        home: Home,
        installed: Installed,
        changed: Callable[[], None],
        around: Neighbours,
        users: AppUsers,
        log: LogKind = LogKind(),
        storages: Mapping[str, Bound] | None = None,
    ) -> None:
        self.installed = installed
        self.keeper = Keeper(time.monotonic())
        self.log = AppLog(home.log(installed.name), installed.name, log)
        self._home = home
        self._users = users
        self._storages = dict(storages or {})
        self.noted: Callable[[Installed, Installed], None] = lambda before, after: None
        """Called with what was known of it, and what is."""
        self._is_root = ""
        """Why its workers are: told once."""
        self._changed = changed
        self._around = around
        self._told_peers: Peers = {}
        self._process: EngineProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._is_upgrading = False
        self._died: GrapeError | None = None
        self._rested = (-1, 0.0)
        self._asked_at = 0.0
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def name(self) -> str:
        return self.installed.name

    @property
    def is_changing(self) -> bool:
        """To another version."""
        return self._is_upgrading

    def note(self, installed: Installed) -> None:
        """It is so from now on, also after the next start."""
        before, self.installed = self.installed, installed
        try:
            self._home.note(installed)
        except BaseException:
            self.installed = before
            raise
        self.noted(before, installed)
        self._changed()

    # ------------------------------------------------------------------ as the keeper says

    def step(self) -> None:
        """Do what is to be done now."""
        if self._is_upgrading:
            return
        match self.keeper.step(time.monotonic()):
            case "start":
                self._task = asyncio.ensure_future(self._run())
            case "stop":
                self._stopping = asyncio.ensure_future(self._stop())

    async def _run(self) -> None:
        """One life of its engine."""
        try:
            await self._start()
            assert self._process is not None
            outcomes = await self._process.ended()
        except GrapeError as e:
            self._ended(e)
        except OSError as e:
            if self._process is not None:
                await _killed(self._process)
            self._ended(EngineError(f"its engine could not be started: {e.filename or self.name}: {e.strerror or e}"))
        else:
            self._ended(outcomes)

    async def _start(self) -> None:
        """
        Raises:
            GrapeError: it cannot.
        """
        installed = self.installed
        if installed.trying:
            # The server ended in the middle of a change, and the directory may be of the new version already.
            try:
                await self._begin(installed.trying)
            except UserError as e:
                self.log.note(f"the change to {installed.trying[:12]} is taken back: {e}")
            else:
                self._changed_to(installed.trying)
                return
            self.note(structs.replace(installed, trying=""))
        await self._begin(installed.current)

    async def _begin(self, digest: str) -> None:
        options = await self._options(digest)
        if self.keeper.state == "stopping":  # as there was no process yet, there was none to be stopped
            raise Stopping(f"{self.name} was stopped before its engine was started")
        process = self._process = EngineProcess(options, self.log)
        self._told_peers = options.peers
        try:
            topology = await process.described()
            self._check(digest, topology)
            await process.begin()
        except GrapeError:
            await _buried(process)
            raise
        self._begun(topology)

    def _begun(self, topology: TopologySpec) -> None:
        self.keeper.begun(time.monotonic())
        noted = structs.replace(self.installed, is_parked=False, due=None, events=topology.events)
        if noted != self.installed:
            self.note(noted)
        self._tell()
        self._around.changed()
        version = self.installed.version(self.installed.current)
        self.log.note(f"{self.name} {version.version if version else ''} runs")

    def _ended(self, how: Outcomes | GrapeError) -> None:
        self._process = None
        error = how if isinstance(how, GrapeError) else None
        if self._is_upgrading:  # what that means is seen at the end of it
            self._died = error
            return
        if not isinstance(how, GrapeError) and self.keeper.is_parking and self._may_be_parked(how):
            self._park(how.due)
            return
        hopeless = isinstance(error, UserError) and not isinstance(error, InUse)
        self.keeper.ended(time.monotonic(), "" if error is None else str(error), is_hopeless=hopeless)
        self.log.note(f"{self.name} has stopped" if error is None else f"{self.name} has ended: {error}")
        self._tell()
        self._around.changed()
        self._changed()

    # ------------------------------------------------------------------ nothing to do

    async def rest(self, after: float) -> None:
        """Looked at now and then: once nothing has happened for ``after`` seconds it is parked."""
        process, now = self._process, time.monotonic()
        if process is None or self.keeper.state != "running" or self._is_upgrading or self.installed.is_paused:
            self._rested = (-1, now)
            return
        try:
            packed = await asyncio.wait_for(process.ask("progress"), _LOOK_TIME)
        except (TimeoutError, GrapeError):
            return
        progress = msgspec.msgpack.decode(packed, type=Progress)
        done, since = self._rested
        if progress.backlog or progress.held or progress.outgoing or progress.finished != done:
            self._rested = (progress.finished, now)
        elif now - since >= after and now - self._asked_at >= after:
            self.keeper.park(now)
            self._changed()

    def _may_be_parked(self, outcomes: Outcomes) -> bool:
        return not outcomes.unshipped and (not outcomes.backlog or outcomes.due is not None)

    def _park(self, due: float | None) -> None:
        now = time.monotonic()
        with contextlib.suppress(OSError):  # then the next server starts it, and parks it
            self.note(structs.replace(self.installed, is_parked=True, due=due))
        self.keeper.parked(now, None if due is None else now + max(0.0, due - time.time()))
        self.log.note(f"{self.name} is parked: it has nothing to do")
        self.log.close()
        self._tell()
        self._around.changed()
        self._changed()

    def begin(self) -> None:
        """With the server: as it was."""
        now, installed = time.monotonic(), self.installed
        self.keeper.want(now, runs=installed.wanted == "running")
        if installed.is_parked and installed.wanted == "running":
            self.keeper.parked(now, None if installed.due is None else now + max(0.0, installed.due - time.time()))

    def wake(self) -> None:
        """Somebody wants something of it."""
        self._asked_at = time.monotonic()
        if self.keeper.state == "parked" or self.keeper.is_parking:
            self.keeper.wake(time.monotonic())
            self._changed()

    async def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        process.stop()
        for _ in range(2):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._gone(), _PATIENCE)
                return
            process.kill()

    async def _gone(self) -> None:
        """Whatever came of it."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _options(self, digest: str, drop_slots: frozenset[str] = frozenset()) -> Options:
        """What its engine is started with.

        Raises:
            UsageError: its manifest, its profile or a secret cannot be.
            Corrupt: its package is not what it was.
        """
        name, home = self.name, self._home

        def read() -> Options:
            place = home.checked(name, digest)
            manifest, options = options_of(place, os.environ, home.profile(name))
            options.data = str(home.data(name))
            beside = home.environment(place)
            if beside is not None:
                for variable, place_of_code in environment.variables(beside).items():
                    own = options.env.get(variable)
                    both = f"{place_of_code}{os.pathsep}{own}" if own else place_of_code
                    options.env = {**options.env, variable: both}
            options.user = self._user(manifest, place, beside, options.profiles.values())
            options.directory = str(place)
            options.keep_open = True
            options.keeps = manifest.output
            options.max_dead = MAX_DEAD
            options.drop_slots = drop_slots
            options.peers = peers
            options.storages = self._storages
            options.code = f"{options.code} ({digest[:12]})"
            options.is_paused, options.level_orders = is_paused, levels
            return check_options(options)

        peers, is_paused, levels = self._around.of(name), self.installed.is_paused, self.installed.levels
        return await asyncio.to_thread(read)

    def _user(self, manifest: Manifest, package: Path, beside: Path | None, profiles: Iterable[Profile]) -> int | None:
        """Of its workers; None: that of the server. Blocking.

        Raises:
            UsageError: it says itself who it is.
            Corrupt: who is who cannot be read.
        """
        are_others = self._users.let_others_in(package, beside, profiles)
        user = self._users.of(self.name)
        if user is None:
            return None
        check_claims(manifest)
        why = self._users.let_in(user, package, beside, are_others=are_others)
        if why and why != self._is_root:
            self.log.note(f"its workers are root, unless a profile says otherwise: {why}")
        self._is_root = why
        return None if why else user

    async def tell_peers(self) -> None:
        """It hears which other apps there are, if that is something else than what it has heard."""
        peers = self._around.of(self.name)
        if self._process is None or self.keeper.state != "running" or self._is_upgrading or peers == self._told_peers:
            return
        self._told_peers = peers
        with contextlib.suppress(GrapeError):  # one that ends hears it at its next start
            await self._process.ask("peers", peers)

    def _check(self, digest: str, topology: TopologySpec) -> None:
        """
        Raises:
            UsageError: its drivers make what it does not listen to.
        """
        place = self._home.package(digest)
        check_fits(place, manifest_of(place), topology.events, topology.outputs)

    # ------------------------------------------------------------------ what its operator wants

    async def want(self, *, runs: bool, again: bool = False) -> None:
        """Run, stop, or stop and run; waits until it is so.

        Raises:
            GrapeError: it cannot, and why.
        """
        self._check_free()
        if runs and not self.installed.current:
            raise UsageError(f"{self.name}: nothing of it is uploaded")
        self.note(structs.replace(self.installed, wanted="running" if runs else "stopped"))
        self.keeper.want(time.monotonic(), runs=runs, again=again)
        self._changed()
        while not self._is_as_wanted(runs):
            await self._told()

    async def pause(self, *, paused: bool) -> None:
        """Its workers get nothing more, now and after every start, until it is resumed. One that is parked is started:
        what comes has to go into its log.

        Raises:
            Full: it is in the middle of a change.
        """
        self.check_settled()
        self.note(structs.replace(self.installed, is_paused=paused, is_parked=False, due=None))
        self.log.note(f"{self.name} is {'paused' if paused else 'resumed'}")
        if paused:
            self.wake()
        self._rested = (-1, time.monotonic())
        await self.ask_engine("pause", paused)  # else the next one is started so

    async def ask_engine(self, verb: str, argument: Any = None) -> Any:
        """The answer as it is packed; None: it does not run, or no more."""
        if self._process is not None and self.keeper.state == "running":
            with contextlib.suppress(EngineError, Stopping):
                return await self._process.ask(verb, argument)
        return None

    def _is_as_wanted(self, runs: bool) -> bool:
        """
        Raises:
            GrapeError: it will not be.
        """
        state = self.keeper.state
        if not runs:
            return state in ("stopped", "broken", "waiting", "parked")
        if state in ("broken", "waiting"):
            raise UsageError(f"{self.name} does not run: {self.keeper.why}")
        if not self.keeper.is_wanted:
            raise UsageError(f"{self.name}: somebody has stopped it meanwhile")
        return state == "running" and not self.keeper.is_to_stop_first

    def _check_free(self) -> None:
        """
        Raises:
            Full: it is in the middle of a change.
        """
        if self._is_upgrading:
            raise Full(f"{self.name} is being upgraded; ask again when that is done")

    def check_settled(self) -> None:
        """
        Raises:
            Full: it is in the middle of a change, or on its way.
        """
        self._check_free()
        if self.keeper.state in ("starting", "stopping"):
            raise Full(f"{self.name} is {self.keeper.state}; ask again when that is done")

    def _tell(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def _told(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    # ------------------------------------------------------------------ another version

    async def trial(self, digest: str, drop_slots: frozenset[str] = frozenset()) -> Trial:
        """What this version would make of what is stored; nothing changes.

        Raises:
            GrapeError: it cannot be loaded, or what is stored not be read.
        """
        candidate = EngineProcess(await self._options(digest, drop_slots), self.log)
        try:
            self._check(digest, await candidate.described())
            return await _tried(candidate)
        finally:
            await _buried(candidate)

    async def change_to(self, digest: str, drop_slots: frozenset[str] = frozenset(), *, unread: bool = False) -> None:
        """Run this version instead: it is loaded, tries a sample of the state, and its workers are warm before the
        other one stops. If it cannot be, the other one goes on. ``unread``: also if it cannot read some of the sample.

        Raises:
            GrapeError: it cannot be, and why.
        """
        self.check_settled()
        if self.keeper.state != "running" and not drop_slots:
            await self._options(digest)  # what can be seen without running it
            self._changed_to(digest)
            if self.installed.wanted == "running":
                await self.want(runs=True)
            return
        self._is_upgrading = True
        try:
            await self._change_to(digest, drop_slots, unread=unread)
        finally:
            self._is_upgrading = False
            if self._process is None and self.keeper.state == "running":  # it died meanwhile
                self._ended(self._died or EngineError("its engine has ended"))
            self._tell()
            self._changed()

    async def _change_to(self, digest: str, drop_slots: frozenset[str], *, unread: bool) -> None:
        options = await self._options(digest, drop_slots)
        candidate = EngineProcess(options, self.log)
        try:
            topology = await candidate.described()
            self._check(digest, topology)
            if not unread:
                _refuse_unread(self.name, await _tried(candidate))
            self.note(structs.replace(self.installed, trying=digest))
        except (GrapeError, OSError):
            await _buried(candidate)
            raise
        await self._stop()
        try:
            await candidate.begin()
        except GrapeError as e:
            await _buried(candidate)
            self.log.note(f"the change to {digest[:12]} is taken back: {e}")
            self.note(structs.replace(self.installed, trying=""))
            self._again()
            raise
        try:
            self._changed_to(digest)
        except OSError:  # it is still being tried, and is begun as after a death of the server
            await _killed(candidate)
            self._again()
            raise
        self._process, self._told_peers = candidate, options.peers
        now = time.monotonic()
        self.keeper = Keeper(now, self.keeper.deaths)
        self.keeper.want(now, runs=True)
        self.keeper.step(now)
        self._begun(topology)
        self.keeper.want(now, runs=self.installed.wanted == "running")
        self._task = asyncio.ensure_future(self._watch(candidate))

    def _again(self) -> None:
        """The version before goes on, as if it had just been asked to."""
        runs = self.installed.wanted == "running"
        self.keeper = Keeper(time.monotonic(), self.keeper.deaths)
        self.keeper.want(time.monotonic(), runs=runs)

    async def _watch(self, process: EngineProcess) -> None:
        try:
            outcomes = await process.ended()
        except GrapeError as e:
            self._ended(e)
        else:
            self._ended(outcomes)

    def _changed_to(self, digest: str) -> None:
        installed = self.installed
        previous = installed.current if installed.current != digest else installed.previous
        self.note(structs.replace(installed, current=digest, previous=previous, trying=""))

    # ------------------------------------------------------------------ what is told of it

    def look(self) -> AppInfo:
        """How it is."""
        installed, keeper = self.installed, self.keeper
        is_paused = installed.is_paused and keeper.state == "running"
        version = installed.version(installed.current)
        return AppInfo(
            name=self.name,
            state="upgrading" if self._is_upgrading else "paused" if is_paused else keeper.state,
            since=time.time() - (time.monotonic() - keeper.since),
            why=keeper.why,
            wanted=installed.wanted,
            version="" if version is None else version.version,
            digest=installed.current,
            previous=installed.previous,
            versions=installed.versions,
            deaths=keeper.deaths,
            data=str(self._home.data(self.name)),
            log=str(self._home.log(self.name)),
            paused=installed.is_paused,
        )

    async def info(self) -> AppInfo:
        """How it is, with what its engine measures, if it runs."""
        return structs.replace(self.look(), numbers=await self._numbers())

    async def _numbers(self) -> AppNumbers | None:
        if self._process is None or self.keeper.state != "running":
            return None
        try:
            packed = await asyncio.wait_for(self._process.ask("numbers"), _LOOK_TIME)
        except (TimeoutError, GrapeError):
            return None
        return msgspec.msgpack.decode(packed, type=AppNumbers)

    async def close(self) -> None:
        """Its engine ends in order, and whoever waits hears of it."""
        while self._is_upgrading:
            await self._told()
        self.keeper.want(time.monotonic(), runs=False)
        self.step()
        await self._gone()
        self._tell()
        self.log.close()


async def _tried(candidate: EngineProcess) -> Trial:
    return msgspec.msgpack.decode(await candidate.ask("trial"), type=Trial)


def _refuse_unread(name: str, trial: Trial) -> None:
    """
    Raises:
        UsageError: some of the sample could not be read.
    """
    if trial.problems:
        first = trial.problems[0]
        raise UsageError(
            f"{name}: node {first.node!r} of the new version cannot read {len(trial.problems)} of the "
            f"{sum(trial.sampled.values())} records of state that it was given; of key {first.key!r:.100}: "
            f"{first.text}\nthe version before goes on. Mend it (State(..., version=, upgrade=)), see more with: grape "
            f"app upgrade {name} --dry-run; or change nevertheless, events of such keys fail then: --unread"
        )


async def _killed(process: EngineProcess) -> None:
    """Which loses nothing."""
    process.kill()
    with contextlib.suppress(GrapeError):
        await process.ended()


async def _buried(process: EngineProcess) -> None:
    """One that could not begin."""
    process.stop()
    with contextlib.suppress(GrapeError):
        await process.ended()
