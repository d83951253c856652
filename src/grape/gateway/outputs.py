"""Outputs over HTTP: as queues, and to look on at."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct, structs
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from grape.client.calls import decoded_reply
from grape.errors import BadArgument, GrapeError, NoAnswer, Stopping
from grape.gateway.access import Verb
from grape.gateway.answers import STREAM, as_json, json_of, sent_problem
from grape.gateway.bodies import LINES, MSGPACK, UNREADABLE
from grape.gateway.doors import AppDoor, Doors
from grape.gateway.problems import Problem, problem_of
from grape.gateway.reading import body_of
from grape.protocol import queues
from grape.protocol.queues import Delivery, OutputNumbers, Peek, Tail, Tailed, Tokens, Which

T = TypeVar("T", bound=Struct)
A = TypeVar("A")
May = Callable[[Request, str, Verb], None]

_BEAT: Final = 15.0
"""Seconds after which a line is sent to whoever looks on, so that everybody between knows that it is alive."""
_GLANCE: Final = 1.0
"""Seconds after which is looked whether whoever waits is still there."""
_AGAIN: Final = 0.2


class Outputs:
    """
    Args:
        may: raises if whoever asks may not.
    """

    def __init__(self, doors: Doors, may: May) -> None:
        self._doors = doors
        self._may = may

    def routes(self) -> list[Route]:
        place = "/apps/{app}/outputs/{event}"
        return [
            Route(place, self._consumers, methods=["GET"]),
            Route(f"{place}/tail", self._tail, methods=["GET"]),
            Route(f"{place}/peek", self._lend(queues.PEEK), methods=["POST"]),
            Route(f"{place}/pop", self._lend(queues.POP), methods=["POST"]),
            Route(f"{place}/ack", self._order(queues.ACK, Tokens), methods=["POST"]),
            Route(f"{place}/nack", self._order(queues.NACK, Tokens), methods=["POST"]),
            Route(f"{place}/clear", self._order(queues.CLEAR, Which), methods=["POST"]),
            Route(f"{place}/forget", self._order(queues.FORGET, Which), methods=["POST"]),
        ]

    def _app(self, request: Request) -> tuple[AppDoor, str]:
        name = request.path_params["app"]
        self._may(request, name, "read")
        return self._doors.app(name), request.path_params["event"]

    async def _asked(self, request: Request, event: str, kind: type[T]) -> T:
        body = await body_of(request)
        try:
            found = msgspec.json.decode(body or b"{}", type=dict[str, Any])
            return msgspec.convert({**found, "event": event}, kind)
        except UNREADABLE as e:
            raise BadArgument(str(e)) from None

    async def _consumers(self, request: Request) -> Response:
        app, event = self._app(request)
        return as_json(await app.ask(queues.CONSUMERS, {"event": event}, OutputNumbers))

    def _lend(self, verb: str) -> Callable[[Request], Awaitable[Response]]:
        async def lend(request: Request) -> Response:
            app, event = self._app(request)
            asked = await self._asked(request, event, Peek)
            found = await self._lent(request, app, verb, asked)
            if any(media in request.headers.get("accept", "") for media in MSGPACK):
                return Response(msgspec.msgpack.encode(found), 200, None, "application/msgpack")
            return as_json({"events": [shown(delivery) for delivery in found]})

        return lend

    async def _lent(self, request: Request, app: AppDoor, verb: str, asked: Peek) -> list[Delivery]:
        """Asked for in pieces of time: what comes when whoever asked is gone is not for him."""
        left = asked.wait
        while True:
            wait = min(left, _GLANCE)
            found = await app.ask(verb, structs.replace(asked, wait=wait), list[Delivery])
            left -= wait
            if found or left <= 0 or self._doors.ending.is_set() or await request.is_disconnected():
                return found

    def _order(self, verb: str, kind: type[T]) -> Callable[[Request], Awaitable[Response]]:
        async def order(request: Request) -> Response:
            app, event = self._app(request)
            asked = await self._asked(request, event, kind)
            return as_json(await app.ask(verb, asked, dict[str, Any]))

        return order

    async def _tail(self, request: Request) -> Response:
        """Server-sent events from now on, or from where ``Last-Event-ID`` says, or ``from=start``: with all that is
        kept; JSON lines for whoever wants those."""
        app, event = self._app(request)
        places = places_in(request.headers.get("last-event-id", ""))
        begin = request.query_params.get("from", "now")
        if begin not in ("now", "start"):
            raise BadArgument(f"from: now or start, not {begin!r:.60}")
        if places is None and begin == "start":
            places = [0] * (await app.door()).partitions
        first = await app.ask(queues.TAIL, Tail(event, places), Tailed)
        as_lines = any(media in request.headers.get("accept", "") for media in LINES)
        media = "application/x-ndjson" if as_lines else STREAM
        followed = _sent_tail(followed_by(app, event, first, self._doors.ending), as_lines=as_lines)
        return StreamingResponse(followed, media_type=media, headers={"cache-control": "no-store"})


async def followed_by(app: AppDoor, event: str, tailed: Tailed, ending: asyncio.Event) -> AsyncGenerator[Tailed, None]:
    """What comes, until ``ending``, over the restarts of the engine; nothing, from time to time, if nothing does.

    Raises:
        Problem: the app is not there.
        GrapeError: it refuses.
    """
    while True:
        yield tailed
        try:
            ask = app.ask(queues.TAIL, Tail(event, tailed.places, wait=_BEAT), Tailed)
            came = await until(ending, ask)
            if came is None:
                return
            tailed = came
        except (Stopping, NoAnswer):
            tailed = Tailed(tailed.places, [])
            await asyncio.sleep(_AGAIN)


async def _sent_tail(followed: AsyncGenerator[Tailed, None], *, as_lines: bool) -> AsyncIterator[bytes]:
    yield b"" if as_lines else b": looking on\n\n"
    try:
        async with contextlib.aclosing(followed):
            async for tailed in followed:
                yield _sent(tailed, as_lines=as_lines)
    except Problem as problem:
        yield b"" if as_lines else sent_problem(problem)
    except GrapeError as e:
        yield b"" if as_lines else sent_problem(problem_of(e))


def _sent(tailed: Tailed, *, as_lines: bool) -> bytes:
    lines = [json_of(shown(delivery)) for delivery in tailed.events]
    if as_lines:
        return b"".join(line + b"\n" for line in lines)
    if not lines:
        return b": alive\n\n"
    sent = [b"event: event\ndata: " + line + b"\n\n" for line in lines]
    sent[-1] = b"id: " + packed_places(tailed.places).encode() + b"\n" + sent[-1]
    return b"".join(sent)


async def until(ending: asyncio.Event, ask: Coroutine[Any, Any, A]) -> A | None:
    """What is answered; None: it ends before."""
    asked, ends = asyncio.ensure_future(ask), asyncio.ensure_future(ending.wait())
    try:
        await asyncio.wait((asked, ends), return_when=asyncio.FIRST_COMPLETED)
        return asked.result() if asked.done() else None
    finally:
        asked.cancel()
        ends.cancel()


def shown(delivery: Delivery) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.structs.asdict(delivery)
    found["data"] = decoded_reply(delivery.data)
    return found


def packed_places(places: list[int]) -> str:
    """Where to go on, as whoever looks on gets it and says it again."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(places)).rstrip(b"=").decode()


def places_in(text: str) -> list[int] | None:
    """What `packed_places` has made; None: from now on.

    Raises:
        BadArgument: it has not.
    """
    if not text:
        return None
    try:
        return msgspec.msgpack.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=list[int])
    except UNREADABLE:  # what base64 raises is a ValueError
        raise BadArgument(f"{text[:60]!r} is no place that was given here (Last-Event-ID, after)") from None
