"""The server: it keeps the engines of its apps as their operator wants them, and does what it is told.

It holds no event and no state of an app. When it is killed its engines end with it, and the next server starts what is
to run; nothing confirmed is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct, structs

from grape.apps.manifest import Manifest
from grape.apps.signature import MAX_BYTES as MAX_SIGNATURE
from grape.apps.signature import check_signature, read_key
from grape.errors import BadArgument, Corrupt, Full, GrapeError, UsageError
from grape.host.door import listening
from grape.logs.sending import Sink
from grape.model.bound import Bound
from grape.model.near import did_you_mean
from grape.protocol.place import CONTROL
from grape.protocol.trial import Trial
from grape.server.audit import Asker, Audit, Done
from grape.server.beside import Beside, SideProcess
from grape.server.config import ServerConfig, bound_for
from grape.server.control import ControlConnection, Verb
from grape.server.drivers import Drivers
from grape.server.exporter import TraceExport
from grape.server.foreign import check_named
from grape.server.gateways import Gateways
from grape.server.home import Home, Installed, Version, check_name, with_version
from grape.server.hosted import AppInfo, Hosted
from grape.server.levels import LevelInfo, change_level, level_info
from grape.server.log import LogKind, Say
from grape.server.neighbours import Neighbours, Running
from grape.server.notify import notify, watchdog_seconds
from grape.server.repository import Repository
from grape.server.saving import HUSH, Hush
from grape.server.syncing import Syncing
from grape.server.users import AppUsers

T = TypeVar("T", bound=Struct)

_IDLE: Final = 3600.0
_LOOK: Final = 15.0


class Named(Struct, frozen=True, forbid_unknown_fields=True):
    """Of an app."""

    name: str


class Upload(Struct, frozen=True, forbid_unknown_fields=True):
    """``path``: of a package, which the server can read. ``apps``: of one of which it has to be; None: of any.
    ``signature``: of it, as its file has it."""

    path: str
    apps: tuple[str, ...] | None = None
    signature: bytes = b""


class Uploaded(Struct, frozen=True):
    """``is_known``: the same package had been uploaded before."""

    name: str
    version: str
    digest: str
    is_known: bool


class Change(Struct, frozen=True, forbid_unknown_fields=True):
    """``version``: its name or the beginning of its digest; "": the newest. ``drop_slots``: see `grape run`.
    ``unread``: also if the new version cannot read some of the state."""

    name: str
    version: str = ""
    drop_slots: tuple[str, ...] = ()
    unread: bool = False


class Level(Struct, frozen=True, forbid_unknown_fields=True):
    """``level``: from now on; "default": as the app says. ``slot``: the node; "": all."""

    name: str
    level: str = ""
    slot: str = ""


class Remove(Struct, frozen=True, forbid_unknown_fields=True):
    """``data``: what it has stored goes as well."""

    name: str
    data: bool = False


class _Asked(Struct, frozen=True):
    """Whatever any of the verbs is asked with."""

    name: str = ""
    version: str = ""
    drop_slots: tuple[str, ...] = ()
    data: bool = False
    level: str = ""
    slot: str = ""


AUDITED: Final = frozenset(
    {
        *("upload", "sync", "start", "stop", "restart", "pause", "resume", "change", "level", "rollback"),
        *("remove", "shutdown"),
    }
)
VERBS: Final = {"change": "upgrade"}
"""As people call them."""


class Supervisor:
    """One server. Everything happens on the loop that runs ``serve``.

    Args:
        say: a line for people.
        config: what it was told. sinks: where the logs of its apps go beside files.
    """

    def __init__(self, home: Home, say: Say, config: ServerConfig, sinks: Iterable[Sink] = ()) -> None:
        self.home = home
        self.apps: dict[str, Hosted] = {}
        self.is_stopping = False
        self._say = say
        self._config = config
        self._logs = LogKind.of(config, sinks)
        self._park_after = float(config.park_after)
        self._audit = Audit(home.path, int(config.audit_size), config.audit_older)
        self._users = AppUsers(home, is_wanted=config.app_users)
        self._happened = asyncio.Event()
        self._store = asyncio.Lock()
        self._gateways = Gateways(home, config, say, self._happened.set) if config.http else None
        bridge = SideProcess("the bridge", "bridge.process", {"home": str(home.path)}, say, self._happened.set)
        self._neighbours = Neighbours(self.apps, bridge)
        self._drivers = Drivers(home, config, self.apps, say, self._happened.set)
        export = TraceExport(home, self.apps, say, self._happened.set)
        self._beside: list[Beside] = [self._neighbours, self._drivers, export]
        if self._gateways is not None:
            self._beside.insert(0, self._gateways)
        self._connections: list[ControlConnection] = []
        self._keys = tuple(read_key(Path(path)) for path in config.signed_by)
        self._syncing: Syncing | None = None
        if config.repository:
            repository = Repository(config.repository, config.run_list, home, self._keys)
            self._syncing = Syncing(repository, home, self.apps, self._host_more, say, self._store)
        self.verbs: dict[str, Verb] = {
            "names": self._names,
            "apps": self._apps,
            "app": self._app,
            "look": self._look,
            "storages": self._storages,
            "running": self._running,
            "wake": self._wake,
            "hush": self._hush,
            "upload": self._upload,
            "sync": self._sync,
            "start": self._start,
            "stop": self._stop_app,
            "restart": self._restart,
            "pause": self._pause,
            "resume": self._resume,
            "level": self._level,
            "levels": self._levels,
            "change": self._change,
            "rollback": self._rollback,
            "trial": self._trial,
            "remove": self._remove,
            "shutdown": self._shutdown,
            "audit": self._done,
            **self._drivers.verbs,
        }

    async def serve(self) -> None:
        """Until it is told to stop.

        Raises:
            GrapeError: it cannot begin.
        """
        self.home.open()
        try:
            self._host_all()
            loop = asyncio.get_running_loop()
            if self._gateways is not None:
                self._gateways.listen()
                self._say(f"listening at {self._gateways.address}")
            server = await loop.create_unix_server(self._come, sock=listening(str(self.home.path), CONTROL))
            try:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, self.stop)
                notify("READY=1")
                beating = asyncio.ensure_future(_beat())
                syncing = asyncio.ensure_future(self._syncing.run()) if self._syncing is not None else None
                resting = asyncio.ensure_future(self._rest()) if self._park_after else None
                await self._until_stopped()
                notify("STOPPING=1")
                beating.cancel()
                if syncing is not None:
                    syncing.cancel()
                if resting is not None:
                    resting.cancel()
            finally:
                server.close()
                (self.home.path / CONTROL).unlink(missing_ok=True)
                await asyncio.gather(*(beside.close() for beside in self._beside))
                await asyncio.gather(*(app.close() for app in self.apps.values()))
                for connection in self._connections:
                    connection.close()
        finally:
            self.home.close()

    def stop(self) -> None:
        """Engines commit what runs, and end."""
        if self.is_stopping:
            return
        self.is_stopping = True
        self._say("stopping: what runs is finished and committed")
        self._happened.set()

    async def _until_stopped(self) -> None:
        while not self.is_stopping:
            self._happened.clear()
            for app in tuple(self.apps.values()):
                app.step()
            dues = [due for app in self.apps.values() if (due := app.keeper.due()) is not None]
            for beside in self._beside:
                beside.step()
                dues += beside.dues()
            wait = min(dues, default=time.monotonic() + _IDLE) - time.monotonic()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._happened.wait(), max(0.001, wait))

    def _come(self) -> ControlConnection:
        connection = ControlConnection(self.verbs, AUDITED, self._heard)
        self._connections = [each for each in self._connections if each.is_open]
        self._connections.append(connection)
        return connection

    def _host_all(self) -> None:
        for name in self.home.names():
            try:
                installed = self.home.installed(name)
                app = self._host(installed)
            except (Corrupt, OSError) as e:  # the others have nothing to do with it
                self._say(f"{name} is left alone: {e}", "error")
            else:
                app.begin()

    def _host(self, installed: Installed) -> Hosted:
        app = self.apps[installed.name] = Hosted(
            self.home,
            installed,
            self._happened.set,
            self._neighbours,
            self._users,
            self._logs,
            bound_for(self._config, installed.name),
        )
        if self._syncing is not None:
            app.noted = self._syncing.noted
        self._neighbours.changed()
        return app

    def _host_more(self, installed: Installed) -> None:
        self._host(installed).begin()
        self._happened.set()

    # ------------------------------------------------------------------ verbs

    def _named(self, packed: msgspec.Raw) -> Hosted:
        return self._find(_read(packed, Named).name)

    def _find(self, name: str) -> Hosted:
        """
        Raises:
            UsageError: there is none.
        """
        app = self.apps.get(name)
        if app is None:
            hint = did_you_mean(name, self.apps, f"there are {', '.join(self.apps) or 'none'}")
            raise UsageError(f"there is no app {name!r:.100}; {hint}")
        return app

    async def _names(self, packed: msgspec.Raw) -> list[str]:
        return list(self.apps)

    async def _apps(self, packed: msgspec.Raw) -> list[AppInfo]:
        return list(await asyncio.gather(*(app.info() for app in self.apps.values())))

    async def _app(self, packed: msgspec.Raw) -> AppInfo:
        app = self._named(packed)
        return structs.replace(await app.info(), drivers=self._drivers.look(app))

    async def _look(self, packed: msgspec.Raw) -> AppInfo:
        return self._named(packed).look()

    async def _storages(self, packed: msgspec.Raw) -> dict[str, Bound]:
        """The namespaces of an app that are in other storages."""
        return bound_for(self._config, self._named(packed).name)

    async def _running(self, packed: msgspec.Raw) -> Running:
        return await self._neighbours.running(msgspec.msgpack.decode(packed, type=int))

    async def _wake(self, packed: msgspec.Raw) -> AppInfo:
        """As "look", by somebody who wants something of it."""
        app = self._named(packed)
        app.wake()
        return app.look()

    async def _rest(self) -> None:
        while True:
            await asyncio.sleep(max(0.1, min(_LOOK, self._park_after / 4)))
            await asyncio.gather(*(app.rest(self._park_after) for app in tuple(self.apps.values())))

    async def _heard(
        self, asker: Asker, verb: str, packed: msgspec.Raw, value: object, error: GrapeError | None
    ) -> None:
        """It is written down before whoever asked hears of it. A disk that does not take it stops nobody: it
        is done by then."""
        with contextlib.suppress(msgspec.MsgspecError):
            asked = _read(packed, _Asked)
            name = value.name if isinstance(value, Uploaded) else asked.name
            detail = " ".join(
                [
                    *([f"version {asked.version}"] if asked.version else []),
                    *(f"drop-slot {slot}" for slot in asked.drop_slots),
                    *(["with its data"] if asked.data else []),
                    *([asked.level] if asked.level else []),
                    *([f"at {asked.slot}"] if asked.slot else []),
                    *([f"version {value.version} {value.digest[:12]}"] if isinstance(value, Uploaded) else []),
                ]
            )
            result, why = ("ok", "") if error is None else (error.code, str(error))
            await self._write_down(asker, verb, name, detail, result, why)

    async def _write_down(self, asker: Asker, verb: str, app: str, detail: str, result: str, why: str) -> None:
        try:
            await asyncio.to_thread(self._audit.add, asker, VERBS.get(verb, verb), app, detail, result, why)
        except GrapeError as e:
            self._say(f"{asker.who} asked for {verb} {app}, which is not in the audit log: {e}", "error")

    async def _done(self, packed: msgspec.Raw) -> None:
        """What a gateway has had an engine do."""
        done = _read(packed, Done)
        asker = Asker(done.who, "http", done.address)
        await self._write_down(asker, done.verb, done.app, done.detail, done.result, done.why)

    async def _hush(self, packed: msgspec.Raw) -> bool:
        """While a backup looks at all apps at once."""
        seconds = _read(packed, Hush).seconds
        if seconds and (changing := [app.name for app in self.apps.values() if app.is_changing]):
            raise Full(f"{changing[0]} is being upgraded; ask again when that is done")
        was_hushed = await self._neighbours.hush(min(max(0.0, seconds), HUSH))
        self._happened.set()
        return was_hushed

    async def _upload(self, packed: msgspec.Raw) -> Uploaded:
        self._check_serving()
        asked = _read(packed, Upload)
        async with self._store:
            digest, manifest = await asyncio.to_thread(self._take_in, asked)
            if self._syncing is not None:
                await self._syncing.repository.keep(digest, Path(asked.path), asked.signature)
            app = self._with(digest, manifest)
            await self._drop_unused()
        return app

    async def _sync(self, packed: msgspec.Raw) -> list[str]:
        """The apps that have changed by what the repository says."""
        self._check_serving()
        if self._syncing is None:
            raise UsageError("this server has no repository: grape config show")
        return await self._syncing.now()

    def _take_in(self, asked: Upload) -> tuple[str, Manifest]:
        """With what it needs beside it: whoever uploads hears of it if that cannot be had."""
        if self._keys:
            check_signature(Path(asked.path), asked.signature[:MAX_SIGNATURE], self._keys)
        digest, manifest = self.home.take_in(Path(asked.path), asked.apps)
        known = self.apps.get(manifest.name)
        if asked.apps is not None and (known is None or known.installed.version(digest) is None):
            check_named(manifest, self.home.package(digest), self._config)
        self.home.environment(self.home.package(digest))
        return digest, manifest

    async def _drop_unused(self) -> None:
        used = [app.installed for app in self.apps.values()]
        await asyncio.to_thread(self.home.drop_unused, used)

    def _with(self, digest: str, manifest: Manifest) -> Uploaded:
        name = manifest.name
        check_name(name)
        known = self.apps.get(name)
        installed = Installed(name) if known is None else known.installed
        is_known = installed.version(digest) is not None
        installed = with_version(installed, digest, manifest.version)
        if not installed.current:
            installed = structs.replace(installed, current=digest)
        if known is None:
            self.home.note(installed)
            self._host(installed)
            if self._syncing is not None:
                self._syncing.changed(name)
        else:
            known.note(installed)
        return Uploaded(name, manifest.version, digest, is_known)

    async def _start(self, packed: msgspec.Raw) -> AppInfo:
        return await self._wanted(self._named(packed), runs=True)

    async def _stop_app(self, packed: msgspec.Raw) -> AppInfo:
        return await self._wanted(self._named(packed), runs=False)

    async def _restart(self, packed: msgspec.Raw) -> AppInfo:
        return await self._wanted(self._named(packed), runs=True, again=True)

    async def _pause(self, packed: msgspec.Raw) -> AppInfo:
        app = self._named(packed)
        await app.pause(paused=True)
        return await app.info()

    async def _resume(self, packed: msgspec.Raw) -> AppInfo:
        app = self._named(packed)
        await app.pause(paused=False)
        return await app.info()

    async def _level(self, packed: msgspec.Raw) -> LevelInfo:
        asked = _read(packed, Level)
        if not asked.level:
            raise BadArgument("level: which one?")
        return await change_level(self._find(asked.name), self.home, asked.slot, asked.level)

    async def _levels(self, packed: msgspec.Raw) -> LevelInfo:
        return await level_info(self._named(packed), self.home)

    async def _wanted(self, app: Hosted, *, runs: bool, again: bool = False) -> AppInfo:
        self._check_serving()
        await app.want(runs=runs, again=again)
        return await app.info()

    async def _change(self, packed: msgspec.Raw) -> AppInfo:
        self._check_serving()
        self._check_loud()
        change = _read(packed, Change)
        app = self._find(change.name)
        if not app.installed.versions:
            raise UsageError(f"{app.name}: nothing of it is uploaded")
        await app.change_to(_wanted(app, change).digest, frozenset(change.drop_slots), unread=change.unread)
        return await app.info()

    async def _trial(self, packed: msgspec.Raw) -> Trial:
        self._check_serving()
        change = _read(packed, Change)
        app = self._find(change.name)
        if not app.installed.versions:
            raise UsageError(f"{app.name}: nothing of it is uploaded")
        return await app.trial(_wanted(app, change).digest, frozenset(change.drop_slots))

    async def _rollback(self, packed: msgspec.Raw) -> AppInfo:
        self._check_serving()
        self._check_loud()
        change = _read(packed, Change)
        app = self._find(change.name)
        if not app.installed.previous:
            raise UsageError(f"{app.name}: no version ran before this one")
        await app.change_to(app.installed.previous, frozenset(change.drop_slots), unread=change.unread)
        return await app.info()

    async def _remove(self, packed: msgspec.Raw) -> None:
        self._check_loud()
        remove = _read(packed, Remove)
        app = self._find(remove.name)
        if app.keeper.state in ("starting", "running", "stopping"):
            raise UsageError(f"{app.name} runs; stop it first: grape app stop {app.name}")
        data = self.home.data(app.name)
        if data.exists() and not remove.data:
            raise UsageError(f"{app.name} has stored something, in {data}; with --data that goes as well")
        del self.apps[app.name]
        self._neighbours.changed()
        await app.close()
        async with self._store:
            await asyncio.to_thread(self.home.forget, app.name)
            await self._drop_unused()
        if self._syncing is not None:
            self._syncing.changed(app.name)

    async def _shutdown(self, packed: msgspec.Raw) -> None:
        self.stop()

    def _check_serving(self) -> None:
        """
        Raises:
            Full: it is about to end.
        """
        if self.is_stopping:
            raise Full("the server is stopping")

    def _check_loud(self) -> None:
        """
        Raises:
            Full: a backup is being begun.
        """
        if self._neighbours.is_hushed:
            raise Full("a backup is being begun, of the apps as they are; ask again in some seconds")


def _wanted(app: Hosted, change: Change) -> Version:
    """
    Raises:
        UsageError: there is no such version.
    """
    return app.installed.find(change.version) if change.version else app.installed.versions[-1]


async def _beat() -> None:
    """As long as the loop turns systemd hears of it."""
    seconds = watchdog_seconds()
    while seconds is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds)


def _read(packed: msgspec.Raw, kind: type[T]) -> T:
    """
    Raises:
        MsgspecError: that is not what the verb is asked with.
    """
    return msgspec.msgpack.decode(packed, type=kind)


async def serve(home: Home, say: Say, config: ServerConfig, sinks: Iterable[Sink] = ()) -> None:
    """Be a server, until SIGTERM or SIGINT.

    Raises:
        GrapeError: it cannot begin.
    """
    try:
        await Supervisor(home, say, config, sinks).serve()
    except OSError as e:
        raise UsageError(f"{e.filename or home.path}: {e.strerror or e}") from None
