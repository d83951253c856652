"""`grape.Client`: a server, or the engine of one app, for programs with threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

from grape.authoring.emitter import Reply
from grape.client.calls import answer_as
from grape.client.events import ClientEvent
from grape.errors import UsageError
from grape.remote.asked import Call, Heard, Timeout, Wire, address_of
from grape.remote.door import DoorWire
from grape.remote.ground import Ground, check_concurrency
from grape.remote.items import Items, Pick, check_iterable, note_accepted
from grape.remote.talks import Pause, StreamTalk, Talk, batch_talk, talk
from grape.remote.web import Web
from grape.running import at_the_call
from grape.server.hosted import AppInfo

T = TypeVar("T")

_AHEAD: Final = 2
"""Calls of a `map` that are begun for each that may run: the others go on beside a slow one."""


class Client:
    """A server that is spoken to over HTTP, or an engine of this machine by its door. Any thread::

        with grape.Client("http://127.0.0.1:8080") as client:
            client.emit("orders@order", {"item": "nails"}, key="ann")
            print(client.call("orders@question", "1+2"))

    Whatever is handed in carries an id. What goes wrong on the way, or is refused for now, is tried again with the same
    one until the time is over, and is done once.

    Args:
        url: of the server; None: $GRAPE_URL, else http://127.0.0.1:8080. "door:DIR": the engine that runs on the data
            directory DIR.
        token: that the server asks for; None: $GRAPE_TOKEN, else none.
        timeout: seconds that whatever is asked may take with all tries, if it does not say itself; None: without an
            end. A server that never was there is given up after 5.
        retries: tries after the first one at most; None: as many as fit into the time.
        traceparent: of the span in which all that is handed in is to be traced, if it is sampled; the one that is
            current in the program's own OpenTelemetry goes before it.

    Raises:
        BadArgument: one of them cannot be.
        UsageError: httpx is not installed.
    """

    @at_the_call
    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        timeout: float | None = 30.0,
        retries: int | None = None,
        traceparent: str | None = None,
    ) -> None:
        self._ground = Ground(url, token, timeout, retries, traceparent)
        self._is_closed = False
        self._wire: Wire = (
            DoorWire(self._ground.directory) if self._ground.directory else Web(self._ground.url, self._ground.token)
        )

    @property
    def url(self) -> str:
        """Of the server, or "door:DIR"."""
        return self._ground.url

    # ------------------------------------------------------------------ events

    @at_the_call
    def emit(
        self,
        app_event: str,
        data: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        deadline: float | None = None,
        timeout: Timeout = ...,
    ) -> None:
        """Hand in an event, "app@event"; returns when it is durable.

        Args:
            id: the event's own id: the same id and content is accepted once, other content is a conflict.
            deadline: in so many seconds nobody is interested any more: no handler starts with it, or with what was
                emitted for it, later than that; it becomes a dead letter.
            timeout: seconds; None: without an end; else as the client says.

        Raises:
            Full: the backlog is at its limit. Away: the app is stopped or broken, or does not come back.
            Conflict: the id was used for another event.
            UnknownEvent, NoApp: nothing listens to it; there is no such app.
            BadArgument: a name, key, id or time that cannot be one; BadValue, TooLarge: data that cannot travel.
            Unauthorized, Forbidden: a token is needed, or this one is not for that.
            Unreachable: no server is there; a ConnectionError.
            NoAnswer: it is not known whether it was accepted; with ``id`` it can be emitted again. A TimeoutError.
        """
        self._run(self._ground.emit(app_event, data, key, id, deadline, timeout))

    @at_the_call
    def emit_many(
        self, app_event: str, items: Iterable[Any], *, key: Pick = None, id: Pick = None, timeout: Timeout = ...
    ) -> int:
        """Hand in many events of one name, in order; how many. They go in batches of 1,000 events or 4 MiB, and only as
        fast as they are accepted.

        Args:
            items: each is data, or a pair (key, data), or an `Event` with a name of its own.
            key, id: functions that get the data of each and say its key and its id.
            timeout: of each batch, for as long as nothing of it is accepted.

        Raises:
            GrapeError: as of `emit`.
            Exception: what ``items`` raises.

        The ``accepted`` of whatever is raised says how many are known to be, from the first one on. Whoever goes on
        behind those hands in none twice if they have ids of their own.
        """
        check_iterable(items, (Iterable,))
        made = Items(*address_of(app_event), key, id)
        count = 0
        try:
            for item in items:
                batch = made.add(item)
                if batch is not None:
                    count = self._run(batch_talk(batch, self._ground.patience(timeout), count))
            batch = made.rest()
            if batch is not None:
                count = self._run(batch_talk(batch, self._ground.patience(timeout), count))
        except BaseException as e:
            note_accepted(e, count)
            raise
        return count

    # ------------------------------------------------------------------ calls

    @at_the_call
    def call(
        self,
        app_event: str,
        data: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        deadline: float | None = None,
        timeout: Timeout = ...,
        type: Any = Any,
    ) -> Any:
        """Hand in an event, "app@event", and wait for its answer: the data of the first final reply to it.

        Args:
            id: the event's own id: the answer is kept for some time, and the same call again has the same.
            type: what the answer is decoded as.

        Raises:
            BadPayload: the answer does not fit ``type``.
            CallFailed: what should have answered failed for good; it has the code, text and node of the failure.
            NoAnswer: nothing came in time. A TimeoutError.
            GrapeError: as of `emit`.
        """
        return answer_as(self._run(self._ground.call(app_event, data, key, id, deadline, timeout)), type)

    @at_the_call
    def call_stream(
        self,
        app_event: str,
        data: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        deadline: float | None = None,
        timeout: Timeout = ...,
    ) -> Stream[Reply]:
        """Hand in an event, now; an iterator over the replies to it, as they come: ``reply.data``, and ``reply.final``
        of the last one. Each comes once, whatever dies meanwhile. Arguments and errors are those of `call`, but that
        ``timeout`` is for each reply. Whoever reads no further closes it.

        Over HTTP the data of a reply are what JSON can say: bytes come as text in base64.
        """
        replies = self._replies(self._ground.stream(app_event, data, key, id, deadline, timeout))
        next(replies)  # it is on its way
        return Stream(_given(replies))

    @at_the_call
    def map(
        self,
        app_event: str,
        items: Iterable[Any],
        concurrency: int = 16,
        *,
        key: Pick = None,
        id: Pick = None,
        timeout: Timeout = ...,
        type: Any = Any,
    ) -> Stream[Any]:
        """Call with each of ``items``, of which so many run at a time; an iterator over the answers, in the order of
        the items. No more are taken than can be begun. Whoever reads no further closes it.

        Args:
            items, key, id: as of `emit_many`.

        Raises:
            GrapeError: as of `call`, when the answer's turn has come; nothing comes after it.
        """
        check_iterable(items, (Iterable,))
        most = check_concurrency(concurrency)
        app, name = address_of(app_event)
        self._ground.patience(timeout)
        return Stream(self._mapped(app, Items(app, name, key, id), iter(items), most, timeout, type))

    def _mapped(
        self, app: str, made: Items, items: Iterator[Any], most: int, timeout: Timeout, kind: Any
    ) -> Generator[Any, None, None]:
        def ask(event: ClientEvent) -> Any:
            return answer_as(self._run(talk(Call(app, event), self._ground.patience(timeout))), kind)

        with closing(_Crew(most)) as crew:
            waiting: deque[Future[Any]] = deque()
            for item in items:
                event = made.event(item)
                waiting.append(crew.begin(lambda event=event: ask(event)))  # type: ignore[misc]
                if len(waiting) >= most * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    # ------------------------------------------------------------------ apps

    @at_the_call
    def apps(self, *, timeout: Timeout = ...) -> tuple[AppInfo, ...]:
        """What the server knows of all of its apps.

        Raises:
            GrapeError: as of `emit`. Unsupported: it is a door.
        """
        found: tuple[AppInfo, ...] = self._run(self._ground.order("apps", "", timeout))
        return found

    @at_the_call
    def app(self, name: str, *, timeout: Timeout = ...) -> AppInfo:
        """What it knows of one: ``state``, ``version``, ``numbers``. Errors are those of `apps`."""
        return self._order(self._ground.order("app", name, timeout))

    @at_the_call
    def start(self, name: str, *, timeout: Timeout = ...) -> AppInfo:
        """Have an app run, also after the next start of the server. Errors are those of `apps`."""
        return self._order(self._ground.order("start", name, timeout))

    @at_the_call
    def stop(self, name: str, *, timeout: Timeout = ...) -> AppInfo:
        """Have an app stop: what runs is committed, the rest waits. Errors are those of `apps`."""
        return self._order(self._ground.order("stop", name, timeout))

    @at_the_call
    def pause(self, name: str, *, timeout: Timeout = ...) -> AppInfo:
        """Give its workers nothing more: what comes waits until `resume`. Errors are those of `apps`."""
        return self._order(self._ground.order("pause", name, timeout))

    @at_the_call
    def resume(self, name: str, *, timeout: Timeout = ...) -> AppInfo:
        """Let one that is paused go on. Errors are those of `apps`."""
        return self._order(self._ground.order("resume", name, timeout))

    @at_the_call
    def restart(self, name: str, *, timeout: Timeout = ...) -> AppInfo:
        """Stop it, and start it anew. Errors are those of `apps`, and NoAnswer if it is not known whether it was done:
        this, `upgrade` and `rollback` are not tried again then."""
        return self._order(self._ground.order("restart", name, timeout))

    @at_the_call
    def upgrade(
        self, name: str, version: str = "", *, drop_slots: tuple[str, ...] = (), timeout: Timeout = ...
    ) -> AppInfo:
        """Change to another version that was uploaded; "": to the newest. ``drop_slots``: "EVENT>NODE", whose events
        may be dropped. Errors are those of `restart`."""
        return self._order(self._ground.order("upgrade", name, timeout, version, drop_slots))

    @at_the_call
    def rollback(self, name: str, *, drop_slots: tuple[str, ...] = (), timeout: Timeout = ...) -> AppInfo:
        """Change back to the version before. Arguments and errors are those of `upgrade`."""
        return self._order(self._ground.order("rollback", name, timeout, "", drop_slots))

    def _order(self, order: Talk[Any]) -> AppInfo:
        found: AppInfo = self._run(order)
        return found

    # ------------------------------------------------------------------ itself

    def _run(self, talk: Talk[T]) -> T:
        heard: Heard | None = None
        try:
            while True:
                step = talk.send(heard)
                self._check_open()
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    heard = None
                else:
                    heard = self._wire.ask(step.asked, step.timeout)
        except StopIteration as e:
            answer: T = e.value
            return answer

    def _replies(self, talk: StreamTalk) -> Generator[Reply | None, None, None]:
        """None, once the event is on its way, then the replies."""
        while not talk.is_over:
            self._check_open()
            with closing(self._wire.replies(*talk.next_try())) as replies:
                pause = 0.0
                for came in replies:
                    if isinstance(came, Heard):
                        pause = talk.failed(came)
                        break
                    if came is None or talk.came(came):
                        yield came
                    if isinstance(came, Reply) and came.final:
                        break
            time.sleep(pause)

    def _check_open(self) -> None:
        """
        Raises:
            UsageError: it is closed.
        """
        if self._is_closed:
            raise UsageError("the client is closed")

    def close(self) -> None:
        """Let its connections go."""
        self._is_closed = True
        self._wire.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream(Generic[T]):
    """An iterator that can be left before its end: ``with`` it, or `close` it."""

    def __init__(self, found: Generator[T, None, None]) -> None:
        self._found = found

    def __iter__(self) -> Stream[T]:
        return self

    @at_the_call
    def __next__(self) -> T:
        return next(self._found)

    def close(self) -> None:
        """Nobody waits for the rest."""
        self._found.close()

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _given(replies: Generator[Reply | None, None, None]) -> Generator[Reply, None, None]:
    with closing(replies):
        yield from (reply for reply in replies if reply is not None)


class _Crew:
    """Threads that do what they are told, and do not keep the program from ending."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = 0
        self._is_closed = False

    def begin(self, task: Callable[[], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        self._tasks.put((done, task))
        if self._threads < self._most:
            self._threads += 1
            threading.Thread(target=self._work, name="grape-call", daemon=True).start()
        return done

    def _work(self) -> None:
        while (given := self._tasks.get()) is not None:
            done, task = given
            if self._is_closed:
                continue
            try:
                done.set_result(task())
            except BaseException as e:
                done.set_exception(e)

    def close(self) -> None:
        """What has not begun does not begin any more."""
        self._is_closed = True
        for _ in range(self._threads):
            self._tasks.put(None)
