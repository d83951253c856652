"""WebSocket: events and calls in, replies and what comes into outputs back, over one connection.

What is under way is bounded in number and in bytes. Whoever asks faster than he is answered is not read on; whoever
does not read what he has asked for is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Final

import msgspec
from msgspec import Struct
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from grape.client.calls import decoded_reply, failure_in
from grape.client.events import client_event
from grape.errors import BadArgument, Full, GrapeError
from grape.gateway.access import Access, Verb
from grape.gateway.answers import as_problem, json_of
from grape.gateway.bodies import UNREADABLE
from grape.gateway.doors import AppDoor, Doors
from grape.gateway.events import WAIT, bug, check_wait, hand_in_one, replies_to, traced
from grape.gateway.outputs import followed_by, packed_places, places_in, shown
from grape.gateway.problems import Problem, problem_of
from grape.protocol import queues
from grape.protocol.queues import Tail, Tailed

MAX_MESSAGE: Final = 16 << 20
"""Bytes of one message of a client."""
MAX_UNREAD: Final = 64 << 20
"""Bytes of messages that a client has not read."""
PROTOCOL: Final = "grape"
"""What a client may offer, with "bearer.TOKEN" beside it: a page cannot send Authorization."""
_BEARER: Final = "bearer."
_UNDER_WAY: Final = 1_000
"""Of one connection: events and calls."""
_TAILS: Final = 32
_GRACE: Final = 15.0
"""Seconds for what is under way when the gateway ends."""
_GOING_AWAY: Final = 1001
_UNSUITABLE: Final = 1008


class Asked(Struct, forbid_unknown_fields=True):
    """One message of a client: ``emit`` hands in an event, ``tail`` looks on at an output, ``end`` ends what has this
    ``ref``. ``ref``: stands in all answers to it."""

    emit: str | None = None
    tail: str | None = None
    end: str | int | None = None
    ref: str | int | None = None
    key: str | None = None
    data: Any = None
    id: str | None = None
    deadline: float | None = None
    call: bool = False
    wait: float = WAIT
    after: str = ""
    traceparent: str = ""


class Talks:
    """
    Args:
        doors: of the apps. access: who may do what.
    """

    def __init__(self, doors: Doors, access: Access) -> None:
        self._doors = doors
        self._access = access

    async def talk(self, socket: WebSocket) -> None:
        """One connection, from its first to its last word."""
        name = socket.path_params["app"]
        headers = dict(socket.scope["headers"])
        offered = socket.scope["subprotocols"]
        token = next((one for one in offered if one.startswith(_BEARER)), None)
        if token is not None:
            headers[b"authorization"] = b"Bearer " + token.removeprefix(_BEARER).encode()
        try:
            self._check(headers, name)
            app = self._doors.app(name)
        except Problem as problem:
            await socket.send_denial_response(as_problem(problem))
            return
        await socket.accept(PROTOCOL if PROTOCOL in offered else None)
        await _Talk(socket, app, self._access, headers, self._doors.ending).run()

    def _check(self, headers: dict[bytes, bytes], name: str) -> None:
        """He may do something here; what, is looked at with each message."""
        try:
            self._access.check(headers, name, "emit")
        except Problem:
            self._access.check(headers, name, "read")


class _Talk:
    def __init__(
        self, socket: WebSocket, app: AppDoor, access: Access, headers: dict[bytes, bytes], ending: asyncio.Event
    ) -> None:
        self._socket = socket
        self._app = app
        self._access = access
        self._headers = headers
        self._ending = ending
        self._events: dict[asyncio.Task[None], str | int | None] = {}
        self._tails: dict[asyncio.Task[None], str | int | None] = {}
        self._calls: set[asyncio.Task[Any]] = set()
        """Of events that were accepted, and are only waited for."""
        self._ended: set[asyncio.Task[Any]] = set()
        """Which nobody waits for any more."""
        self._unread = 0
        self._turn = asyncio.Lock()
        self._has_room = asyncio.Event()
        self._is_over = asyncio.Event()
        """It does not read, and is not waited for."""

    async def run(self) -> None:
        reading, *ends = map(asyncio.ensure_future, (self._read(), self._ending.wait(), self._is_over.wait()))
        try:
            await asyncio.wait((reading, *ends), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            else:
                reading.cancel()
                await self._close()
        except (WebSocketDisconnect, OSError):
            pass
        finally:
            for task in (reading, *ends, *self._events, *self._tails):
                task.cancel()

    async def _read(self) -> None:
        """One message after the other, while there is room for what comes of it."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text: str | None = message.get("text")
            self._take(message["bytes"] if text is None else text)
            while len(self._events) >= _UNDER_WAY:
                self._has_room.clear()
                await self._has_room.wait()

    async def _close(self) -> None:
        """What is under way is done, and told."""
        for task in self._tails:
            task.cancel()
        if self._is_over.is_set():
            await self._socket.close(_UNSUITABLE, f"over {MAX_UNREAD >> 20} MiB were not read")
            return
        if self._events:
            await asyncio.wait(self._events, timeout=_GRACE)
        await self._socket.close(_GOING_AWAY, "the server ends; come again")

    # ------------------------------------------------------------------ what is asked

    def _take(self, said: str | bytes) -> None:
        ref: str | int | None = None
        try:
            asked = msgspec.json.decode(said, type=Asked)
            ref = asked.ref
            if [asked.emit, asked.tail, asked.end].count(None) != 2:
                raise BadArgument('a message has one of "emit", "tail" and "end"')
            if asked.emit is not None:
                self._begin(self._events, ref, self._emit(asked.emit, asked))
            elif asked.tail is not None:
                if len(self._tails) >= _TAILS:
                    raise Full(f"{_TAILS} outputs are looked on at already, over this connection")
                self._begin(self._tails, ref, self._tail(asked.tail, asked))
            else:
                for task in [task for task, other in self._events.items() if other == asked.end]:
                    self._ended.add(task)
                    if task in self._calls:
                        task.cancel()
                for task in [task for task, other in self._tails.items() if other == asked.end]:
                    task.cancel()
        except UNREADABLE as e:
            self._refuse(ref, Problem(400, "bad-argument", f"that is no message: {e}"))
        except GrapeError as e:
            self._refuse(ref, problem_of(e))

    def _refuse(self, ref: str | int | None, problem: Problem) -> None:
        self._begin(self._events, ref, self._say({"ref": ref, "error": problem.document}))

    def _begin(
        self, among: dict[asyncio.Task[None], str | int | None], ref: str | int | None, work: Coroutine[Any, Any, None]
    ) -> None:
        task = asyncio.ensure_future(self._done(ref, work))
        among[task] = ref

        def over(task: asyncio.Task[None]) -> None:
            del among[task]
            self._calls.discard(task)
            self._ended.discard(task)
            self._has_room.set()

        task.add_done_callback(over)

    async def _done(self, ref: str | int | None, work: Coroutine[Any, Any, None]) -> None:
        try:
            try:
                await work
            except Problem as problem:
                await self._say({"ref": ref, "error": problem.document})
            except GrapeError as e:
                await self._say({"ref": ref, "error": problem_of(e).document})
        except (WebSocketDisconnect, OSError):
            pass  # nobody is there any more
        except Exception as e:
            with contextlib.suppress(WebSocketDisconnect, OSError):
                await self._say({"ref": ref, "error": bug(e).document})
            raise

    def _may(self, verb: Verb) -> None:
        self._access.check(self._headers, self._app.name, verb)

    async def _emit(self, name: str, asked: Asked) -> None:
        self._may("emit")
        door = self._app.open_door or await self._app.door()
        event = client_event(name, asked.data, asked.key, asked.id, asked.deadline, door.limits.max_event)
        if asked.traceparent:
            event = traced(event, asked.traceparent, "ws")
        if not asked.call:
            await hand_in_one(self._app, door, event)
            await self._say({"ref": asked.ref, "accepted": 1})
            return
        replying = replies_to(self._app, event, check_wait(asked.wait), self._accepted)
        async with contextlib.aclosing(replying) as replies:
            async for packed, final in replies:
                data = decoded_reply(packed)
                if final and (failed := failure_in(data)) is not None:
                    raise failed
                await self._say({"ref": asked.ref, "reply" if final else "part": data})

    def _accepted(self) -> None:
        """What the task that runs has handed in."""
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        if task in self._ended:
            task.cancel()

    async def _tail(self, output: str, asked: Asked) -> None:
        """The first answer says that he looks on. As long as he may: a token can be taken back."""
        self._may("read")
        first = await self._app.ask(queues.TAIL, Tail(output, places_in(asked.after)), Tailed)
        is_first = True
        async with contextlib.aclosing(followed_by(self._app, output, first, self._ending)) as followed:
            async for tailed in followed:
                self._may("read")
                if tailed.events or is_first:
                    events = [shown(delivery) for delivery in tailed.events]
                    await self._say({"ref": asked.ref, "events": events, "after": packed_places(tailed.places)})
                is_first = False

    # ------------------------------------------------------------------ what is answered

    async def _say(self, document: dict[str, Any]) -> None:
        text = json_of(document).decode()
        self._unread += len(text)
        try:
            if self._unread > MAX_UNREAD:
                self._is_over.set()
                return
            async with self._turn:
                if self._socket.application_state is not WebSocketState.CONNECTED:
                    raise WebSocketDisconnect  # it was closed while this waited
                await self._socket.send_text(text)
        finally:
            self._unread -= len(text)
