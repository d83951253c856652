"""What can be asked over HTTP. Every answer that is an error is `application/problem+json`; what was handed in is
durable when the answer comes."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.metadata import version as package_version
from typing import Any, Final
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from grape.client.calls import decoded_reply
from grape.client.events import ClientEvent, client_event
from grape.errors import BadArgument, GrapeError, NoAnswer
from grape.gateway import metrics, openapi
from grape.gateway.access import Access, Verb
from grape.gateway.answers import STREAM, as_json, as_problem, as_reply, sent_problem, sent_reply
from grape.gateway.batches import check_names
from grape.gateway.bodies import LINES, events_of, items_of, media_of, named_events, value_of
from grape.gateway.doors import AppDoor, Doors, Who
from grape.gateway.hooks import Hooks
from grape.gateway.operating import Operating
from grape.gateway.outputs import Outputs
from grape.gateway.packages import Packages
from grape.gateway.problems import Problem, no_app, problem_of
from grape.gateway.reading import address_of, read_body
from grape.gateway.waiting import Waiter
from grape.model.stored import KEPT, KEPT_BRIEFLY
from grape.model.topology import TopologySpec
from grape.server.config import ServerConfig
from grape.server.hosted import AppInfo
from grape.server.supervisor import Change, Named

Handler = Callable[[Request], Awaitable[Response]]

MAX_WAIT: Final = 300.0
_WAIT: Final = 30.0
_MAX_KEY: Final = 255
_WINDOW: Final = 1_000
"""Events of one request that are under way at a time."""


class Gateway:
    """
    Args:
        doors: of the apps. access: who may do what. max_package: bytes of one that is uploaded.
    """

    def __init__(self, doors: Doors, access: Access, max_package: int = int(ServerConfig().max_package)) -> None:
        self.doors = doors
        self._max_package = max_package
        self._access = access

    def app(self, origins: Sequence[str] = ()) -> Starlette:
        """It as an ASGI application. ``origins``: of pages that browsers may let ask, and read the answers."""
        routes = [
            Route("/healthz", self._healthy, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
            Route("/apps", self._apps, methods=["GET"]),
            Route("/apps/{app}", self._app, methods=["GET"]),
            *Operating(self.doors, self._access).routes(),
            Route("/apps/{app}/readyz", self._app_ready, methods=["GET"]),
            Route("/apps/{app}/events", self._emit_several, methods=["POST"]),
            Route("/apps/{app}/events/{event:path}", self._emit, methods=["POST"]),
            Route("/apps/{app}/answers/{id:path}", self._answer, methods=["GET"]),
            *Outputs(self.doors, self._may).routes(),
            *Hooks(self.doors, self._may).routes(),
            *Packages(self.doors, self._access, self._max_package).routes(),
            *(
                Route(f"/apps/{{app}}/{verb}", self._order(verb), methods=["POST"])
                for verb in ("start", "stop", "restart", "pause", "resume", "upgrade", "rollback")
            ),
        ]
        handlers: dict[Any, Any] = {
            Problem: _say,
            GrapeError: lambda request, error: _say(request, problem_of(error)),
            HTTPException: _say_http,
            ClientDisconnect: lambda request, error: Response(status_code=400),
            Exception: _say_bug,
        }
        middleware: list[Middleware] = []
        if origins:
            headers = ["authorization", "content-type", "idempotency-key", "last-event-id", "prefer"]
            shown = ["location", "retry-after"]
            middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=list(origins),
                    allow_methods=["GET", "POST"],
                    allow_headers=headers,
                    expose_headers=shown,
                )
            )
        return Starlette(routes=routes, exception_handlers=handlers, middleware=middleware)

    def _may(self, request: Request, app: str, verb: Verb) -> None:
        self._access.check(dict(request.scope["headers"]), app, verb)

    def _who(self, request: Request, app: str, verb: Verb) -> Who:
        return Who(self._access.check(dict(request.scope["headers"]), app, verb), address_of(request))

    # ------------------------------------------------------------------ events

    async def _emit(self, request: Request) -> Response:
        """One event, or several of one name; with ``wait`` or by ``Prefer: respond-async`` it is a call."""
        name, event_name = request.path_params["app"], request.path_params["event"]
        self._may(request, name, "emit")
        app = self.doors.app(name)
        door = await app.door()
        media = media_of(request.headers.get("content-type", ""))
        body = await read_body(request)
        if media in LINES:
            key_field = request.query_params.get("key-field", "")
            return await self._several(
                app, events_of(items_of(body, media), event_name, key_field, door.limits.max_event)
            )
        own_id = _own_id(request)
        wait, is_async = _wait(request), "respond-async" in request.headers.get("prefer", "")
        if is_async and own_id is None:
            own_id = uuid.uuid4().hex
        event = client_event(
            event_name,
            value_of(body, media),
            request.query_params.get("key"),
            own_id,
            _seconds(request, "deadline"),
            door.limits.max_event,
        )
        if is_async:
            assert own_id is not None
            await app.hand_in(event, KEPT + own_id)
            place = f"/apps/{name}/answers/{quote(own_id, safe='')}"
            return as_json({"accepted": 1, "id": own_id, "answer": place}, 202, {"location": place})
        if wait is None:
            if event.id or event.wait is not None or event_name in door.eager:
                await app.hand_in(event)
            else:  # with all others that come at the same time
                check_names([event], door)
                await app.hand_in_all([event])
            return as_json({"accepted": 1}, 202)
        return await self._call(request, app, event, wait)

    async def _emit_several(self, request: Request) -> Response:
        """Events that name themselves: {"event", "data", "key", "id"}, as an array or lines."""
        name = request.path_params["app"]
        self._may(request, name, "emit")
        app = self.doors.app(name)
        door = await app.door()
        body = await read_body(request)
        found = items_of(body, media_of(request.headers.get("content-type", "")))
        return await self._several(app, named_events(found, door.limits.max_event))

    async def _several(self, app: AppDoor, events: list[ClientEvent]) -> Response:
        """All of them were checked before the first one is handed in. Without ids they go as a batch."""
        check_names(events, await app.door())
        if not any(event.id for event in events):
            if events:
                await app.hand_in_all(events)
            return as_json({"accepted": len(events)}, 202)
        refused: list[dict[str, Any]] = []
        worst: GrapeError | None = None
        for start in range(0, len(events), _WINDOW):
            part = events[start : start + _WINDOW]
            for at, came in enumerate(
                await asyncio.gather(*(app.hand_in(event) for event in part), return_exceptions=True), start
            ):
                if isinstance(came, GrapeError):
                    worst = worst or came
                    refused.append({"item": at, "code": came.code, "detail": str(came)})
                elif came is not None:
                    raise came
            if worst is not None:
                break  # what comes behind it may depend on it
        if worst is None:
            return as_json({"accepted": len(events)}, 202)
        tried = min(len(events), start + _WINDOW)
        problem = problem_of(worst)
        problem.document |= {"accepted": tried - len(refused), "refused": refused, "untried": len(events) - tried}
        raise problem

    # ------------------------------------------------------------------ calls

    async def _call(self, request: Request, app: AppDoor, event: ClientEvent, wait: float) -> Response:
        accepts = request.headers.get("accept", "")
        waits_for = KEPT + event.id if event.id else f"{KEPT_BRIEFLY}{uuid.uuid4().hex}"
        if STREAM in accepts:
            return StreamingResponse(
                _sent_replies(app, event, waits_for, wait), media_type=STREAM, headers={"cache-control": "no-store"}
            )
        with app.waiting.open(waits_for) as waiter:
            await app.hand_in(event, waits_for)
            packed = await self._final(app, waiter, wait, is_kept=bool(event.id))
        return as_reply(packed, accepts)

    async def _final(self, app: AppDoor, waiter: Waiter, wait: float, *, is_kept: bool) -> bytes:
        """
        Raises:
            NoAnswer: none came in time.
        """
        if is_kept:  # it may have been answered long ago
            for packed, final in (await app.kept(waiter)).replies:
                if final:
                    return packed
        try:
            return (await waiter.next(wait))[0]
        except TimeoutError:
            how = "ask again with the same Idempotency-Key" if is_kept else "what answers later is dropped"
            raise NoAnswer(f"no answer after {wait:g} s; the event was accepted: {how}") from None

    async def _answer(self, request: Request) -> Response:
        """The answer to a call that has an id: it is kept for the app's reply-ttl."""
        name, own_id = request.path_params["app"], request.path_params["id"]
        self._may(request, name, "emit")
        app = self.doors.app(name)
        wait = _wait(request) or 0.0
        with app.waiting.open(KEPT + own_id) as waiter:
            kept = await app.kept(waiter)
            parts = [decoded_reply(packed) for packed, final in kept.replies if not final]
            final = next((packed for packed, final in kept.replies if final), None)
            if final is None and wait and kept.is_known:
                with contextlib.suppress(TimeoutError):
                    final = (await waiter.next(wait))[0]
        if final is not None:
            return as_reply(final, request.headers.get("accept", ""))
        if not kept.is_known:
            raise Problem(404, "no-call", f"nothing is known of a call {own_id!r:.100}, or not any more")
        return as_json({"id": own_id, "parts": parts}, 202, {"retry-after": "1"})

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
        """Of the apps that run, and that whoever asks may hand events to."""
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
        return as_json(openapi.document(found, package_version("grape-engine")))

    async def _apps(self, request: Request) -> Response:
        self._may(request, "", "read")
        return as_json(await self.doors.ask("apps", None, list[AppInfo]))

    async def _app(self, request: Request) -> Response:
        name = request.path_params["app"]
        self._may(request, name, "read")
        if await self.doors.look(name) is None:
            raise no_app(name)
        return as_json(await self.doors.ask("app", Named(name), AppInfo))

    def _order(self, verb: str) -> Handler:
        async def order(request: Request) -> Response:
            name = request.path_params["app"]
            who = self._who(request, name, "admin")
            if await self.doors.look(name) is None:
                raise no_app(name)
            asked: object = Named(name)
            if verb in ("upgrade", "rollback"):
                query = request.query_params
                asked = Change(name, query.get("version", ""), tuple(query.getlist("drop-slot")))
            asked_verb = "change" if verb == "upgrade" else verb
            return as_json(await self.doors.ask_for(who, asked_verb, asked, AppInfo))

        return order


async def _sent_replies(app: AppDoor, event: ClientEvent, waits_for: str, wait: float) -> AsyncIterator[bytes]:
    """The replies to a call as server-sent events: "part", then "final", or "error"."""
    with app.waiting.open(waits_for, takes_parts=True) as waiter:
        try:
            await app.hand_in(event, waits_for)
            final = False
            for packed, final in (await app.kept(waiter)).replies if event.id else ():
                yield sent_reply(packed, final)
            while not final:
                packed, final = await waiter.next(wait)
                yield sent_reply(packed, final)
        except TimeoutError:
            yield sent_problem(problem_of(NoAnswer(f"no reply after {wait:g} s; the event was accepted")))
        except Problem as problem:
            yield sent_problem(problem)
        except GrapeError as e:
            yield sent_problem(problem_of(e))


# ---------------------------------------------------------------------- what is asked


def _own_id(request: Request) -> str | None:
    found = request.headers.get("idempotency-key")
    if found is not None and not 1 <= len(found) <= _MAX_KEY:
        raise BadArgument(f"Idempotency-Key: text of 1 to {_MAX_KEY} characters, not {len(found)}")
    return found


def _wait(request: Request) -> float | None:
    """Seconds; None: nobody waits."""
    if "wait" not in request.query_params:
        return None
    if request.query_params["wait"] == "":
        return _WAIT
    found = _seconds(request, "wait")
    if found is None or not 0 < found <= MAX_WAIT:
        raise BadArgument(f"wait: a number of seconds up to {MAX_WAIT:g}, not {request.query_params['wait']!r:.60}")
    return found


def _seconds(request: Request, name: str) -> float | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise BadArgument(f"{name}: a number of seconds, not {text!r:.60}") from None


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
    return as_problem(Problem(500, "bug", f"the gateway failed, which is a bug in it: {type(error).__name__}"))
