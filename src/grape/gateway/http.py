"""What can be asked over HTTP. Every answer that is an error is `application/problem+json`; what was handed in is
durable when the answer comes."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version as package_version
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp

from grape.client.calls import decoded_reply
from grape.errors import GrapeError
from grape.gateway import asyncapi, metrics, openapi
from grape.gateway.access import Access, Verb
from grape.gateway.answers import as_json, as_problem, as_reply
from grape.gateway.bodies import items_of, media_of, named_events
from grape.gateway.doors import Doors
from grape.gateway.events import Events, bug, handed_in, own_id, wait_of
from grape.gateway.hooks import Hooks
from grape.gateway.objects import ObjectPages
from grape.gateway.operating import Operating
from grape.gateway.outputs import Outputs
from grape.gateway.packages import Packages, who_asks
from grape.gateway.packing import Packing
from grape.gateway.problems import Problem, no_app, problem_of
from grape.gateway.reading import body_of
from grape.gateway.talks import Talks
from grape.model.stored import KEPT
from grape.model.topology import TopologySpec
from grape.server.config import ServerConfig
from grape.server.hosted import AppInfo
from grape.server.levels import LevelInfo
from grape.server.supervisor import Change, Level, Named

Handler = Callable[[Request], Awaitable[Response]]


class Gateway:
    """
    Args:
        doors: of the apps. access: who may do what. max_package: bytes of one that is uploaded.
    """

    def __init__(self, doors: Doors, access: Access, max_package: int = int(ServerConfig().max_package)) -> None:
        self._max_package = max_package
        self.doors = doors
        self._access = access

    def app(self, origins: Sequence[str] = ()) -> ASGIApp:
        """It as an ASGI application. ``origins``: of pages that browsers may let ask, and read the answers."""
        routes: list[BaseRoute] = [
            Route("/healthz", self._healthy, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
            Route("/asyncapi.json", self._asyncapi, methods=["GET"]),
            Route("/apps", self._apps, methods=["GET"]),
            Route("/apps/{app}", self._app, methods=["GET"]),
            *Operating(self.doors, self._access).routes(),
            Route("/apps/{app}/level", self._level, methods=["GET"]),
            Route("/apps/{app}/readyz", self._app_ready, methods=["GET"]),
            Route("/apps/{app}/events", self._emit_several, methods=["POST"]),
            Route("/apps/{app}/answers/{id:path}", self._answer, methods=["GET"]),
            *Outputs(self.doors, self._may).routes(),
            *Hooks(self.doors, self._may).routes(),
            *ObjectPages(self.doors, self._may).routes(),
            *Packages(self.doors, self._access, self._max_package).routes(),
            WebSocketRoute("/apps/{app}/ws", Talks(self.doors, self._access).talk),
            *(
                Route(f"/apps/{{app}}/{verb}", self._order(verb), methods=["POST"])
                for verb in ("start", "stop", "restart", "pause", "resume", "level", "upgrade", "rollback")
            ),
        ]
        handlers: dict[Any, Any] = {
            Problem: _say,
            GrapeError: lambda request, error: _say(request, problem_of(error)),
            HTTPException: _say_http,
            ClientDisconnect: lambda request, error: Response(status_code=400),
            Exception: _say_bug,
        }
        routed = Starlette(routes=routes, exception_handlers=handlers)
        routed.router.redirect_slashes = False  # to wherever the request says that this is
        app: ASGIApp = Packing(Events(self.doors, self._access, routed))
        if origins:
            app = CORSMiddleware(
                app,
                allow_origins=list(origins),
                allow_methods=["GET", "POST"],
                allow_headers=[
                    "authorization",
                    "content-encoding",
                    "content-type",
                    "idempotency-key",
                    "last-event-id",
                    "prefer",
                    "traceparent",
                ],
                expose_headers=["location", "retry-after"],
            )
        return app

    def _may(self, request: Request, app: str, verb: Verb) -> None:
        self._access.check(dict(request.scope["headers"]), app, verb)

    # ------------------------------------------------------------------ events

    async def _emit_several(self, request: Request) -> Response:
        """Events that name themselves: {"event", "data", "key", "id"}, as an array or lines."""
        name = request.path_params["app"]
        self._may(request, name, "emit")
        app = self.doors.app(name)
        door = await app.door()
        body = await body_of(request)
        found = items_of(body, media_of(dict(request.scope["headers"]).get(b"content-type", b"")))
        own = own_id(dict(request.scope["headers"]))
        return await handed_in(app, named_events(found, door.limits.max_event), own)

    # ------------------------------------------------------------------ calls

    async def _answer(self, request: Request) -> Response:
        """The answer to a call that has an id: it is kept for the app's reply-ttl."""
        name, own = request.path_params["app"], request.path_params["id"]
        self._may(request, name, "emit")
        app = self.doors.app(name)
        wait = wait_of(dict(request.query_params)) or 0.0
        with app.waiting.open(KEPT + own) as waiter:
            kept = await app.kept(waiter)
            parts = [decoded_reply(packed) for packed, final in kept.replies if not final]
            final = next((packed for packed, final in kept.replies if final), None)
            if final is None and wait and kept.is_known:
                with contextlib.suppress(TimeoutError):
                    final = (await waiter.next(wait))[0]
        if final is not None:
            return as_reply(final, request.headers.get("accept", ""))
        if not kept.is_known:
            raise Problem(404, "no-call", f"nothing is known of a call {own!r:.100}, or not any more")
        return as_json({"id": own, "parts": parts}, 202, {"retry-after": "1"})

    # ------------------------------------------------------------------ apps

    async def _healthy(self, request: Request) -> Response:
        return as_json({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        await self.doors.ask("names", None, list[str])
        return as_json({"status": "ok"})

    async def _app_ready(self, request: Request) -> Response:
        name = request.path_params["app"]
        info = await self.doors.look(name)
        if info is None or info.state != "parked":  # whoever asks just that does not wake it
            await self.doors.app(name).door(0.5)
        return as_json({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        self._may(request, "", "read")
        found = metrics.shown(await self.doors.ask("apps", None, list[AppInfo]))
        return Response(found, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _openapi(self, request: Request) -> Response:
        found, version = await self._told(request), package_version("grape-engine")
        return as_json(openapi.document(found, version, asks_nobody=self._access.asks_nobody))

    async def _asyncapi(self, request: Request) -> Response:
        found, url = await self._told(request), request.url
        return as_json(asyncapi.document(found, package_version("grape-engine"), url.netloc, url.scheme == "https"))

    async def _told(self, request: Request) -> dict[str, TopologySpec]:
        """The apps that run, and that whoever asks may hand events to."""
        found: dict[str, TopologySpec] = {}
        refused: Problem | None = None
        for name in await self.doors.ask("names", None, list[str]):
            try:
                self._may(request, name, "emit")
            except Problem as problem:
                refused = problem
                continue
            info = await self.doors.look(name)
            if info is not None and info.serves:
                found[name] = (await self.doors.app(name).door()).topology
        if refused is not None and not found:
            raise refused
        return found

    async def _apps(self, request: Request) -> Response:
        self._may(request, "", "read")
        return as_json(await self.doors.ask("apps", None, list[AppInfo]))

    async def _app(self, request: Request) -> Response:
        name = request.path_params["app"]
        self._may(request, name, "read")
        if await self.doors.look(name) is None:
            raise no_app(name)
        return as_json(await self.doors.ask("app", Named(name), AppInfo))

    async def _level(self, request: Request) -> Response:
        """How much its handlers log."""
        name = request.path_params["app"]
        self._may(request, name, "read")
        if await self.doors.look(name) is None:
            raise no_app(name)
        return as_json(await self.doors.ask("levels", Named(name), LevelInfo))

    def _order(self, verb: str) -> Handler:
        async def order(request: Request) -> Response:
            name = request.path_params["app"]
            self._may(request, name, "admin")
            if await self.doors.look(name) is None:
                raise no_app(name)
            asked: object = Named(name)
            kind: type[Any] = AppInfo
            if verb in ("upgrade", "rollback"):
                query = request.query_params
                asked = Change(name, query.get("version", ""), tuple(query.getlist("drop-slot")))
            elif verb == "level":
                asked, kind = (
                    Level(name, request.query_params.get("level", ""), request.query_params.get("slot", "")),
                    LevelInfo,
                )
            asked_verb = "change" if verb == "upgrade" else verb
            who = who_asks(self._access, request)
            return as_json(await self.doors.ask_for(who, asked_verb, asked, kind))

        return order


# ---------------------------------------------------------------------- errors


def _say(request: Request, problem: Problem) -> Response:
    return as_problem(problem)


def _say_http(request: Request, error: HTTPException) -> Response:
    codes = {404: "no-page", 405: "method"}
    text = f"there is no {request.url.path[:200]!r} here" if error.status_code == 404 else error.detail
    return as_problem(
        Problem(error.status_code, codes.get(error.status_code, "http"), text, None, dict(error.headers or {}))
    )


def _say_bug(request: Request, error: Exception) -> Response:
    return as_problem(bug(error))
