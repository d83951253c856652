"""Events and calls over HTTP.

One event a request is what most requests are: `Events` is an ASGI application in front of the router, and looks at each
of them once, without the objects that the router makes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from msgspec import structs
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from grape.client.events import ClientEvent, client_event
from grape.errors import BadArgument, GrapeError, NoAnswer
from grape.gateway.access import Access
from grape.gateway.answers import STREAM, as_json, as_problem, as_reply, sent_problem, sent_reply
from grape.gateway.batches import check_names
from grape.gateway.bodies import LINES, events_of, items_of, media_of, value_of
from grape.gateway.door import Door
from grape.gateway.doors import AppDoor, Doors
from grape.gateway.problems import Problem, problem_of
from grape.gateway.reading import read_body
from grape.gateway.waiting import Waiter
from grape.model.stored import KEPT, KEPT_BRIEFLY
from grape.model.tracing import fresh_traceparent, read_traceparent

MAX_WAIT: Final = 300.0
WAIT: Final = 30.0
_MAX_KEY: Final = 255
_WINDOW: Final = 1_000
"""Events of one request that are under way at a time."""
_BODY: Final = b'{"accepted":1}'
_ACCEPTED: Final = {
    "type": "http.response.start",
    "status": 202,
    "headers": [(b"content-length", b"%d" % len(_BODY)), (b"content-type", b"application/json")],
}
_ACCEPTED_BODY: Final = {"type": "http.response.body", "body": _BODY}


class Events:
    """
    Args:
        doors: of the apps. access: who may do what. others: gets all other requests.
    """

    def __init__(self, doors: Doors, access: Access, others: ASGIApp) -> None:
        self._doors = doors
        self._access = access
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not _is_text(scope):
                await as_problem(Problem(400, "usage", "what is percent-encoded in a URL is UTF-8"))(
                    scope, receive, send
                )
                return
            place = scope["path"].split("/", 4)  # "", "apps", APP, "events", EVENT
            if len(place) == 5 and place[3] == "events" and place[1] == "apps" and not place[0] and place[2]:
                await self._answer(place[2], place[4], scope, receive, send)
                return
        await self._others(scope, receive, send)

    async def _answer(self, name: str, event: str, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._emit(name, event, scope, receive)
        except Problem as problem:
            answer = as_problem(problem)
        except GrapeError as e:
            answer = as_problem(problem_of(e))
        except ClientDisconnect:
            return
        except Exception as e:
            await as_problem(bug(e))(scope, receive, send)
            raise  # who serves writes down where it was
        if answer is None:
            await send(_ACCEPTED)
            await send(_ACCEPTED_BODY)
        else:
            await answer(scope, receive, send)

    async def _emit(self, name: str, event_name: str, scope: Scope, receive: Receive) -> Response | None:
        """One event, or several of one name; with ``wait`` or by ``Prefer: respond-async`` it is a call. None: the one
        was accepted."""
        if scope["method"] != "POST":
            raise Problem(405, "method", "Method Not Allowed", None, {"allow": "POST"})
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self._access.check(headers, name, "emit")
        app = self._doors.app(name)
        door = app.open_door or await app.door()
        asked = query_of(scope["query_string"])
        media = media_of(headers.get(b"content-type", b""))
        body = await read_body(receive, headers)
        if media in LINES:
            found = events_of(items_of(body, media), event_name, asked.get("key-field", ""), door.limits.max_event)
            return await handed_in(app, found, own_id(headers))
        own = own_id(headers)
        wait, is_async = wait_of(asked), b"respond-async" in headers.get(b"prefer", b"")
        if is_async and own is None:
            own = uuid.uuid4().hex
        event = client_event(
            event_name,
            value_of(body, media),
            asked.get("key"),
            own,
            _seconds(asked, "deadline"),
            door.limits.max_event,
        )
        if b"traceparent" in headers:
            event = traced(event, headers[b"traceparent"].decode("latin-1"), "http")
        if is_async:
            assert own is not None
            await app.hand_in(event, KEPT + own)
            place = f"/apps/{name}/answers/{quote(own, safe='')}"
            return as_json({"accepted": 1, "id": own, "answer": place}, 202, {"location": place})
        if wait is not None:
            return await _called(app, event, wait, headers.get(b"accept", b"").decode("latin-1"))
        await hand_in_one(app, door, event)
        return None


async def hand_in_one(app: AppDoor, door: Door, event: ClientEvent) -> None:
    """Returns when it is durable. ``door``: of the app.

    Raises:
        Problem: the app is not there.
        GrapeError: it was refused, or it is not known what became of it.
    """
    if event.id or event.wait is not None or event.trace or event.name in door.eager:
        await app.hand_in(event)
    elif door.traced and random.random() < door.traced:  # all others the engine chooses from
        await app.hand_in(structs.replace(event, trace=fresh_traceparent(), via="http"))
    else:  # with all others that come at the same time
        check_names([event], door)
        await app.hand_in_all([event])


def traced(event: ClientEvent, header: str, via: str) -> ClientEvent:
    """It with what a ``traceparent`` says, if that can be one."""
    return structs.replace(event, trace=header.strip(), via=via) if read_traceparent(header) is not None else event


async def handed_in(app: AppDoor, events: list[ClientEvent], own: str | None = None) -> Response:
    """All of them were checked before the first one is handed in. Without ids they go as a batch. ``own``: the id of
    the request, of which and its place that of each is made.

    Raises:
        BadArgument: they have ids beside that.
    """
    if own is not None:
        if any(event.id for event in events):
            raise BadArgument("either the events have ids, or the request has an Idempotency-Key")
        events = [structs.replace(event, id=f"{own}:{place}") for place, event in enumerate(events)]
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


# ---------------------------------------------------------------------- calls


def request_of(event: ClientEvent) -> str:
    """Under which the replies to a call come: they are kept if it has an id, and briefly if not."""
    return KEPT + event.id if event.id else f"{KEPT_BRIEFLY}{uuid.uuid4().hex}"


async def _called(app: AppDoor, event: ClientEvent, wait: float, accepts: str) -> Response:
    if STREAM in accepts:
        replies = _sent_replies(app, event, wait)
        return StreamingResponse(replies, media_type=STREAM, headers={"cache-control": "no-store"})
    request = request_of(event)
    with app.waiting.open(request) as waiter:
        await app.hand_in(event, request)
        packed = await _final(app, waiter, wait, is_kept=bool(event.id))
    return as_reply(packed, accepts)


async def _final(app: AppDoor, waiter: Waiter, wait: float, *, is_kept: bool) -> bytes:
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


async def replies_to(
    app: AppDoor, event: ClientEvent, wait: float, accepted: Callable[[], None] = lambda: None
) -> AsyncGenerator[tuple[bytes, bool], None]:
    """The replies to a call, as they are made: packed, and whether it is the final one. ``accepted`` is called once the
    event is.

    Raises:
        NoAnswer: nothing came for ``wait`` seconds.
        Problem: the app is not there.
        GrapeError: the event was refused, or it is not known what became of it.
    """
    request = request_of(event)
    with app.waiting.open(request, takes_parts=True) as waiter:
        await app.hand_in(event, request)
        accepted()
        final = False
        for packed, final in (await app.kept(waiter)).replies if event.id else ():
            yield packed, final
        while not final:
            try:
                packed, final = await waiter.next(wait)
            except TimeoutError:
                raise NoAnswer(f"no reply after {wait:g} s; the event was accepted") from None
            yield packed, final


async def _sent_replies(app: AppDoor, event: ClientEvent, wait: float) -> AsyncIterator[bytes]:
    """Them as server-sent events: "part", then "final", or "error"."""
    try:
        async with contextlib.aclosing(replies_to(app, event, wait)) as replies:
            async for packed, final in replies:
                yield sent_reply(packed, final)
    except Problem as problem:
        yield sent_problem(problem)
    except GrapeError as e:
        yield sent_problem(problem_of(e))


# ---------------------------------------------------------------------- what is asked


_NO_TEXT: Final = "what is percent-encoded in a URL is UTF-8"


def _is_text(scope: Scope) -> bool:
    """Else two names would be read as the same one."""
    raw: bytes = scope["raw_path"] + b"?" + scope["query_string"]
    if b"%" not in raw and raw.isascii():
        return True
    try:
        unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        return False
    return True


def query_of(query: bytes) -> dict[str, str]:
    """What stands behind the question mark; the last one of a name counts."""
    text = query.decode("latin-1")
    if query.isascii() and "%" not in text and "+" not in text:
        parts = (pair.partition("=") for pair in text.split("&") if pair)
        return {name: value for name, _, value in parts}
    return dict(parse_qsl(text, keep_blank_values=True))


def wait_of(asked: dict[str, str]) -> float | None:
    """Seconds; None: nobody waits.

    Raises:
        BadArgument: it is no time that anybody may wait.
    """
    if "wait" not in asked:
        return None
    return check_wait(_seconds(asked, "wait") if asked["wait"] else WAIT)


def check_wait(seconds: float | None) -> float:
    """
    Raises:
        BadArgument: it is no time that anybody may wait.
    """
    if seconds is None or not 0 < seconds <= MAX_WAIT:
        raise BadArgument(f"wait: a number of seconds up to {MAX_WAIT:g}, not {seconds}")
    return seconds


def own_id(headers: dict[bytes, bytes]) -> str | None:
    found = headers.get(b"idempotency-key")
    if found is not None and not 1 <= len(found) <= _MAX_KEY:
        raise BadArgument(f"Idempotency-Key: text of 1 to {_MAX_KEY} characters, not {len(found)}")
    return None if found is None else found.decode("latin-1")


def _seconds(asked: dict[str, str], name: str) -> float | None:
    text = asked.get(name)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise BadArgument(f"{name}: a number of seconds, not {text!r:.60}") from None


def bug(error: Exception) -> Problem:
    """What is said of a fault of the gateway's own."""
    return Problem(500, "bug", f"the gateway failed, which is a bug in it: {type(error).__name__}")
