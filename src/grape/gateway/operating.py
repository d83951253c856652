"""What the dashboard asks for beside what programs do: to look into an app, and to put right what failed in it.

To look takes the scope "read", to change "admin". A change is a POST of JSON, which no page of others can make a
browser send without asking first.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec
import psutil
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import grape
from grape.apps.manifest import manifest_of
from grape.errors import BadArgument, GrapeError
from grape.gateway import driven, looking, page, tracing
from grape.gateway.access import Access, Verb
from grape.gateway.answers import json_of
from grape.gateway.bodies import JSON, UNREADABLE, media_of
from grape.gateway.doors import Doors
from grape.gateway.emitting import Code
from grape.gateway.packages import who_asks
from grape.gateway.problems import Problem, no_app
from grape.gateway.reading import body_of
from grape.model.spots import Place, parse_place, parse_places
from grape.model.stored import AppRecord, SourceHead
from grape.model.topology import TopologySpec
from grape.processes.crashes import CrashLog
from grape.processes.profile_file import load_profiles
from grape.processes.profiles import DEFAULT_ISOLATE, Profiles
from grape.protocol.orders import DROP, RETRY, Changes, Letters
from grape.protocol.outcomes import Progress
from grape.server.hosted import AppInfo
from grape.server.supervisor import Named
from grape.tools.choice import Choice
from grape.tools.directory import Directory
from grape.tools.why import Apps

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]

_MAX_BODY: Final = 1 << 20
_PAGE: Final = 500
"""Ids of one order, all of one partition: its answer comes within seconds."""
_REFUSED: Final = 100
"""Reasons that are told."""
_FRESH: Final = 2.0
"""Seconds for which what takes some time to find out is told again."""
_SOON: Final = 0.5
_ASKED: Final = 16
"""Questions why something is here that wait at a time: each looks through all that is kept of traces."""
_RIGHTS: Final[tuple[tuple[str, Verb], ...]] = (("change", "admin"), ("emit", "emit"))
_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Which(Struct, frozen=True, forbid_unknown_fields=True):
    """Of the letters: these ``ids``, those that fit, or ``all``."""

    ids: list[str] = []
    all: bool = False
    node: str | None = None
    event: str | None = None
    kind: str | None = None
    key: str | None = None

    @property
    def choice(self) -> Choice:
        return Choice(self.node, self.event, self.kind, self.key)


class Process(Struct, frozen=True):
    """``memory``: bytes; ``cpu``: seconds; None: not known."""

    name: str
    pid: int
    memory: int | None = None
    cpu: float | None = None


class Operating:
    """
    Args:
        doors: of the apps. access: who may do what.
    """

    def __init__(self, doors: Doors, access: Access) -> None:
        self._doors = doors
        self._access = access
        self._looker = looking.Looker()
        self._threads = ThreadPoolExecutor(2, "looking")
        self._tracing = ThreadPoolExecutor(1, "tracing")  # all that is kept of traces is looked through
        self._asked_why = 0
        self._counted: dict[str, tuple[float, asyncio.Future[looking.Backlog]]] = {}

    def routes(self) -> list[Route]:
        """Those of the page among them."""
        shown = {
            "topology": self._topology,
            "processes": self._processes,
            "backlog": self._backlog,
            "state": self._state,
            "crashes": self._crashes,
            "log": self._log,
            "drivers": self._drivers,
            "traces": self._traces,
            "why": self._why,
        }
        found = [*page.routes(), Route("/overview", self._overview, methods=["GET"])]
        found += [Route(f"/apps/{{app}}/{name}", show, methods=["GET"]) for name, show in shown.items()]
        for name, held in (("dead", False), ("held", True)):
            base = f"/apps/{{app}}/{name}"
            found += [
                Route(base, partial(self._letters, held), methods=["GET"]),
                Route(f"{base}/kinds", partial(self._kinds, held), methods=["GET"]),
                Route(f"{base}/letter", self._letter, methods=["GET"]),
                Route(f"{base}/retry", partial(self._change, RETRY, held), methods=["POST"]),
                Route(f"{base}/drop", partial(self._change, DROP, held), methods=["POST"]),
            ]
        return found

    # ------------------------------------------------------------------ common to all

    def _may(self, request: Request, app: str, verb: Verb) -> None:
        self._access.check(dict(request.scope["headers"]), app, verb)

    async def _app(self, request: Request, verb: Verb = "read") -> AppInfo:
        """
        Raises:
            Problem: there is none, or it is not for whoever asks.
        """
        name = request.path_params["app"]
        self._may(request, name, verb)
        info = await self._doors.look(name)
        if info is None:
            raise no_app(name)
        return info

    async def _thread(self, do: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, do)

    async def _look(self, info: AppInfo, do: Callable[[Directory, AppRecord], T]) -> T:
        """
        Raises:
            Problem: there is nothing to look at yet.
            GrapeError: what ``do`` says.
        """
        if not (Path(info.data) / "format").exists():
            raise Problem(404, "no-data", f"{info.name} has not run yet: nothing of it is stored")
        return await self._thread(lambda: self._looker.look(info.data, None, do))

    # ------------------------------------------------------------------ apps

    async def _overview(self, request: Request) -> Response:
        """All apps that whoever asks may read, and what he may change."""
        found: list[dict[str, Any]] = []
        refused: Problem | None = None
        for info in await self._doors.ask("apps", None, list[AppInfo]):
            try:
                self._may(request, info.name, "read")
            except Problem as e:
                refused = e
            else:
                may = {f"may_{what}": self._is_free(request, info.name, verb) for what, verb in _RIGHTS}
                found.append({**msgspec.to_builtins(info), **may})
        if not found:
            if refused is not None:
                raise refused
            self._may(request, "", "read")
        return _json({"apps": found, "grape": grape.__version__, "now": time.time()})

    def _is_free(self, request: Request, app: str, verb: Verb) -> bool:
        try:
            self._may(request, app, verb)
        except Problem:
            return False
        return True

    async def _topology(self, request: Request) -> Response:
        """Of the version that runs; of one that does not, as it was."""
        info = await self._app(request)
        try:
            topology = (await self._doors.app(info.name).door(_SOON)).topology
        except Problem:
            topology = await self._look(info, lambda directory, record: record.topology)
        package = self._doors.home.package(info.digest)
        profile = self._doors.home.profile(info.name)
        return _json(await self._thread(lambda: _described(topology, package, profile)))

    async def _processes(self, request: Request) -> Response:
        info = await self._app(request)
        door = await self._doors.app(info.name).door(_SOON)
        progress = msgspec.msgpack.decode(await door.ask("progress"), type=Progress)
        found = await self._thread(lambda: [_measured(name, pid) for name, pid in progress.pids])
        return _json({"processes": found, "cores": psutil.cpu_count() or 1, "now": time.monotonic()})

    async def _backlog(self, request: Request) -> Response:
        """What waits by slot; whoever asks within two seconds gets the same."""
        info = await self._app(request)
        now = time.monotonic()
        at, counting = self._counted.get(info.name, (0.0, None))
        if counting is None or now - at > _FRESH:
            counting = asyncio.ensure_future(self._look(info, looking.backlog))
            self._counted[info.name] = now, counting
        return _json(await asyncio.shield(counting))

    async def _state(self, request: Request) -> Response:
        info = await self._app(request)
        query = request.query_params
        node, key, prefix = query.get("node", ""), query.get("key"), query.get("prefix", "")
        limit = _limit(request)
        return _json(await self._look(info, lambda d, record: looking.states(d, record, node, key, prefix, limit)))

    async def _crashes(self, request: Request) -> Response:
        """The newest first; with ``number`` what that one printed last."""
        info = await self._app(request)
        crashes = await self._thread(CrashLog(info.data).all)
        wanted = request.query_params.get("number")
        if wanted is not None:
            for number, crash in crashes:
                if str(number) == wanted:
                    return _json({"number": number, **msgspec.to_builtins(crash)})
            raise Problem(404, "no-crash", f"there is no crash {wanted[:20]!r}; the newest hundred are kept")
        found = [
            {"number": n, "worker": c.worker, "pid": c.pid, "since": c.since, "time": c.time, "why": c.why}
            for n, c in reversed(crashes)
        ]
        return _json({"crashes": found})

    async def _log(self, request: Request) -> Response:
        info = await self._app(request)
        limit = _limit(request, most=5_000)
        return _json({"lines": await self._thread(lambda: looking.last_lines(Path(info.log), limit))})

    # ------------------------------------------------------------------ traces, drivers

    async def _traces(self, request: Request) -> Response:
        """The newest that went through this app."""
        info = await self._app(request)
        limit = _limit(request)
        found = await self._look(info, lambda directory, record: tracing.recent(directory, record, limit))
        return _json({"traces": found})

    async def _why(self, request: Request) -> Response:
        """What led to an event, and what came of it: through all apps that whoever asks may read. ``hidden``: there are
        others, of which nothing is told."""
        await self._app(request)
        wanted = request.query_params.get("id", "").strip()
        if not 0 < len(wanted) <= tracing.LONGEST:
            raise BadArgument(f"id: of an event, or of a trace: up to {tracing.LONGEST:,} characters")
        names = await self._doors.ask("names", None, list[str])
        paths = {name: self._doors.home.data(name) for name in names if self._is_free(request, name, "read")}
        apps = Apps(paths, self._looker.opened)
        if self._asked_why >= _ASKED:
            raise Problem(429, "full", "many ask for traces now", {"retriable": True}, {"retry-after": "1"})
        self._asked_why += 1
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._tracing, lambda: tracing.why(apps, wanted))
        finally:
            self._asked_why -= 1
        return _json({**found, "hidden": len(paths) < len(names)})

    async def _drivers(self, request: Request) -> Response:
        """What its manifest says of them, how they are now, and how far each is."""
        info = await self._app(request)
        infos = (await self._doors.ask("app", Named(info.name), AppInfo)).drivers
        stored: dict[str, SourceHead] = {}
        if infos:
            with contextlib.suppress(Problem):  # it has not run yet
                stored = await self._look(info, driven.positions)
        package, runs = self._doors.home.package(info.digest), info.wanted == "running"

        def found() -> list[dict[str, Any]]:
            return driven.shown(info.name, infos, manifest_of(package).driver if infos else {}, stored, runs=runs)

        return _json({"drivers": await self._thread(found), "now": time.time()})

    # ------------------------------------------------------------------ dead letters, held events

    async def _letters(self, held: bool, request: Request) -> Response:
        info = await self._app(request)
        query = request.query_params
        choice = Choice(query.get("node"), query.get("event"), query.get("kind"), query.get("key"))
        after, limit = query.get("after", ""), _limit(request)

        def found(directory: Directory, record: AppRecord) -> looking.Page:
            place = parse_place(record, after) if after else None
            return looking.page_of_letters(directory, record, held, choice, place, limit)

        return _json(await self._look(info, found))

    async def _kinds(self, held: bool, request: Request) -> Response:
        info = await self._app(request)
        return _json(await self._look(info, lambda d, record: looking.kinds_of_letters(d, record, held)))

    async def _letter(self, request: Request) -> Response:
        info = await self._app(request)
        wanted = request.query_params.get("id", "")
        found = await self._look(info, lambda d, record: looking.whole_letter(d, parse_place(record, wanted)))
        if found is None:
            raise Problem(404, "no-letter", f"there is no {wanted[:100]!r} (any more)")
        return _json(found)

    async def _change(self, verb: Literal["retry", "drop"], held: bool, request: Request) -> Response:
        """By the engine, between its commits. What was done when an error comes stays done."""
        info = await self._app(request, "admin")
        which = await _asked(request, Which)
        if sum((bool(which.ids), which.all, not which.choice.is_any)) != 1:
            raise BadArgument('which ones? {"ids": [..]}, or by node, event, kind and key, or {"all": true}')
        door = await self._doors.app(info.name).door(_SOON)

        def chosen(directory: Directory, record: AppRecord) -> list[Place]:
            if which.ids:
                return list(parse_places(record, which.ids))
            return looking.chosen(directory, record, held, which.choice)

        changes = Changes()
        who = who_asks(self._access, request)
        error: GrapeError | None = None
        try:
            for ids in _pages(await self._look(info, chosen)):
                packed = await door.ask(verb, Letters(ids, held))
                changes.add(msgspec.msgpack.decode(packed, type=Changes))
        except GrapeError as e:
            error = e
            raise
        finally:
            done = f"{changes.dead + changes.stopped + changes.held} events"
            await self._doors.write_down(who, f"{'held' if held else 'dead'} {verb}", info.name, done, error)
        return _json(
            {
                "changed": changes.dead + changes.stopped + changes.held,
                "refused": dict(list(changes.refused.items())[:_REFUSED]),
                "refused_count": len(changes.refused),
            }
        )


def _pages(places: list[Place]) -> list[list[str]]:
    """Ids, of one partition each."""
    found: list[list[str]] = []
    for _, group in groupby(sorted(set(places)), lambda place: (place.log, place.partition)):
        ids = [place.id for place in group]
        found += [ids[i : i + _PAGE] for i in range(0, len(ids), _PAGE)]
    return found


def _described(topology: TopologySpec, package: Path, profile: str | None) -> dict[str, Any]:
    """A topology, with what its slots emit without declaring it, and how its pools are confined."""
    code = Code(package)
    isolates = _isolates(topology, package, profile)
    return {
        "name": topology.name,
        "outputs": topology.outputs,
        "nodes": [
            {"name": node.name, "pool": node.pool, "states": [s.name for s in node.states], "is_async": node.is_async}
            for node in topology.nodes
        ],
        "slots": [
            {
                "event": slot.event,
                "node": slot.node,
                "emits": slot.emits,
                "seen": [name for name in code.emits(slot.where) if name not in slot.emits],
                "retries": slot.retries,
                "timeout": slot.timeout,
                "on_fail": slot.on_fail,
                "ordered": slot.ordered,
                "batch": slot.batch,
                "eager": slot.eager,
                "where": slot.where.removeprefix(f"{package}/"),
            }
            for slot in topology.slots
        ],
        "pools": [
            {"name": pool.name, "long": pool.long, "runtime": pool.runtime, "isolate": isolates.get(pool.name, "")}
            for pool in topology.pools
        ],
    }


def _isolates(topology: TopologySpec, package: Path, profile: str | None) -> dict[str, str]:
    """How each pool is confined, as far as its profiles can be read."""
    try:
        profiles = Profiles(load_profiles(profile, {"grape": {"pool": manifest_of(package).pool}}))
        return {pool.name: str(profiles.of(pool.name).isolate.get("type", DEFAULT_ISOLATE)) for pool in topology.pools}
    except (GrapeError, OSError):
        return {}


def _measured(name: str, pid: int) -> Process:
    """A worker with all that it has started; the engine alone, whose children are workers."""
    try:
        process = psutil.Process(pid)
        family = [process, *(process.children(recursive=True) if name != "engine" else ())]
        memory = sum(each.memory_info().rss for each in family)
        times = [each.cpu_times() for each in family]
    except psutil.Error:
        return Process(name, pid)
    return Process(name, pid, memory, sum(each.user + each.system for each in times))


def _limit(request: Request, most: int = looking.MOST) -> int:
    text = request.query_params.get("limit", "100")
    if not text.isdecimal() or len(text) > 6 or not 1 <= int(text) <= most:
        raise BadArgument(f"limit: a number from 1 to {most:,}, not {text!r:.60}")
    return int(text)


async def _asked(request: Request, kind: type[T]) -> T:
    """
    Raises:
        Problem: it is not JSON by its type, is too large or too slow.
        BadArgument: it is not what is asked with.
    """
    if media_of(dict(request.scope["headers"]).get(b"content-type", b"")) != JSON:
        raise Problem(415, "media-type", f"a change is asked for by a body of {JSON}")
    body = await body_of(request, _MAX_BODY)
    try:
        return msgspec.json.decode(body, type=kind)
    except UNREADABLE as e:
        raise BadArgument(f"the body: {e}") from None


def _json(value: Any) -> Response:
    return Response(json_of(value), 200, _HEADERS, JSON)
