"""`grape.AsyncClient`: `grape.Client` for programs under asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from grape.authoring.emitter import Reply
from grape.client.calls import answer_as
from grape.client.events import ClientEvent
from grape.errors import UsageError
from grape.remote.asked import AsyncWire, Call, Heard, Timeout, address_of
from grape.remote.door import AsyncDoorWire
from grape.remote.ground import Ground, at_the_await, check_concurrency
from grape.remote.items import Items, Pick, check_iterable, note_accepted
from grape.remote.talks import Pause, StreamTalk, Talk, batch_talk, talk
from grape.remote.web import AsyncWeb
from grape.running import at_the_call
from grape.server.hosted import AppInfo

T = TypeVar("T")


class AsyncClient:
    """`grape.Client`, which explains arguments and errors, to be awaited::

        async with grape.AsyncClient("http://127.0.0.1:8080") as client:
            await client.emit("orders@order", {"item": "nails"}, key="ann")
            print(await client.call("orders@question", "1+2"))

    It belongs to the loop in which it is first used. A task that is cancelled while it waits leaves it sound: an event
    may or may not have been accepted, a call no longer waits.
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
        self._wire: AsyncWire = (
            AsyncDoorWire(self._ground.directory)
            if self._ground.directory
            else AsyncWeb(self._ground.url, self._ground.token)
        )

    @property
    def url(self) -> str:
        """Of the server, or "door:DIR"."""
        return self._ground.url

    # ------------------------------------------------------------------ events

    @at_the_await
    async def emit(
        self,
        app_event: str,
        data: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        deadline: float | None = None,
        timeout: Timeout = ...,
    ) -> None:
        """See `Client.emit`."""
        await self._run(self._ground.emit(app_event, data, key, id, deadline, timeout))

    @at_the_await
    async def emit_many(
        self,
        app_event: str,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        key: Pick = None,
        id: Pick = None,
        timeout: Timeout = ...,
    ) -> int:
        """See `Client.emit_many`. ``items`` may be asynchronous."""
        check_iterable(items, (Iterable, AsyncIterable))
        made = Items(*address_of(app_event), key, id)
        count = 0
        try:
            async for item in _items(items):
                batch = made.add(item)
                if batch is not None:
                    count = await self._run(batch_talk(batch, self._ground.patience(timeout), count))
            batch = made.rest()
            if batch is not None:
                count = await self._run(batch_talk(batch, self._ground.patience(timeout), count))
        except BaseException as e:
            note_accepted(e, count)
            raise
        return count

    # ------------------------------------------------------------------ calls

    @at_the_await
    async def call(
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
        """See `Client.call`."""
        return answer_as(await self._run(self._ground.call(app_event, data, key, id, deadline, timeout)), type)

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
    ) -> AsyncStream[Reply]:
        """See `Client.call_stream`. The event is handed in when the first reply is asked for. Whoever reads no further
        than to the final one uses ``async with``."""
        return AsyncStream(self._replies(self._ground.stream(app_event, data, key, id, deadline, timeout)))

    @at_the_call
    def map(
        self,
        app_event: str,
        items: Iterable[Any] | AsyncIterable[Any],
        concurrency: int = 16,
        *,
        key: Pick = None,
        id: Pick = None,
        timeout: Timeout = ...,
        type: Any = Any,
    ) -> AsyncStream[Any]:
        """See `Client.map`. ``items`` may be asynchronous."""
        check_iterable(items, (Iterable, AsyncIterable))
        most = check_concurrency(concurrency)
        app, name = address_of(app_event)
        self._ground.patience(timeout)
        return AsyncStream(self._mapped(app, Items(app, name, key, id), items, most, timeout, type))

    async def _mapped(
        self,
        app: str,
        made: Items,
        items: Iterable[Any] | AsyncIterable[Any],
        most: int,
        timeout: Timeout,
        kind: Any,
    ) -> AsyncGenerator[Any, None]:
        may_run = asyncio.Semaphore(most)

        async def ask(event: ClientEvent) -> Any:
            async with may_run:
                return answer_as(await self._run(talk(Call(app, event), self._ground.patience(timeout))), kind)

        waiting: deque[asyncio.Task[Any]] = deque()
        try:
            async for item in _items(items):
                waiting.append(asyncio.create_task(ask(made.event(item))))
                if len(waiting) >= 2 * most:
                    yield await waiting[0]
                    waiting.popleft()
            while waiting:
                yield await waiting[0]
                waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    # ------------------------------------------------------------------ apps

    @at_the_await
    async def apps(self, *, timeout: Timeout = ...) -> tuple[AppInfo, ...]:
        """See `Client.apps`."""
        found: tuple[AppInfo, ...] = await self._run(self._ground.order("apps", "", timeout))
        return found

    @at_the_await
    async def app(self, name: str, *, timeout: Timeout = ...) -> AppInfo:
        """See `Client.app`."""
        return await self._order(self._ground.order("app", name, timeout))

    @at_the_await
    async def start(self, name: str, *, timeout: Timeout = ...) -> AppInfo:
        """See `Client.start`."""
        return await self._order(self._ground.order("start", name, timeout))

    @at_the_await
    async def stop(self, name: str, *, timeout: Timeout = ...) -> AppInfo:
        """See `Client.stop`."""
        return await self._order(self._ground.order("stop", name, timeout))

    @at_the_await
    async def pause(self, name: str, *, timeout: Timeout = ...) -> AppInfo:
        """See `Client.pause`."""
        return await self._order(self._ground.order("pause", name, timeout))

    @at_the_await
    async def resume(self, name: str, *, timeout: Timeout = ...) -> AppInfo:
        """See `Client.resume`."""
        return await self._order(self._ground.order("resume", name, timeout))

    @at_the_await
    async def restart(self, name: str, *, timeout: Timeout = ...) -> AppInfo:
        """See `Client.restart`."""
        return await self._order(self._ground.order("restart", name, timeout))

    @at_the_await
    async def upgrade(
        self, name: str, version: str = "", *, drop_slots: tuple[str, ...] = (), timeout: Timeout = ...
    ) -> AppInfo:
        """See `Client.upgrade`."""
        return await self._order(self._ground.order("upgrade", name, timeout, version, drop_slots))

    @at_the_await
    async def rollback(self, name: str, *, drop_slots: tuple[str, ...] = (), timeout: Timeout = ...) -> AppInfo:
        """See `Client.rollback`."""
        return await self._order(self._ground.order("rollback", name, timeout, "", drop_slots))

    async def _order(self, order: Talk[Any]) -> AppInfo:
        found: AppInfo = await self._run(order)
        return found

    # ------------------------------------------------------------------ itself

    async def _run(self, talk: Talk[T]) -> T:
        heard: Heard | None = None
        try:
            while True:
                step = talk.send(heard)
                self._check_open()
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    heard = None
                else:
                    heard = await self._wire.ask(step.asked, step.timeout)
        except StopIteration as e:
            answer: T = e.value
            return answer

    async def _replies(self, talk: StreamTalk) -> AsyncGenerator[Reply, None]:
        while not talk.is_over:
            self._check_open()
            async with aclosing(self._wire.replies(*talk.next_try())) as replies:
                pause = 0.0
                async for came in replies:
                    if isinstance(came, Heard):
                        pause = talk.failed(came)
                        break
                    if came is not None and talk.came(came):
                        yield came
                    if isinstance(came, Reply) and came.final:
                        break
            await asyncio.sleep(pause)

    def _check_open(self) -> None:
        """
        Raises:
            UsageError: it is closed.
        """
        if self._is_closed:
            raise UsageError("the client is closed")

    async def close(self) -> None:
        """Let its connections go."""
        self._is_closed = True
        await self._wire.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncStream(Generic[T]):
    """An asynchronous iterator that can be left before its end: ``async with`` it, or `aclose` it."""

    def __init__(self, found: AsyncGenerator[T, None]) -> None:
        self._found = found

    def __aiter__(self) -> AsyncStream[T]:
        return self

    @at_the_await
    async def __anext__(self) -> T:
        return await anext(self._found)

    async def aclose(self) -> None:
        """Nobody waits for the rest."""
        await self._found.aclose()

    async def __aenter__(self) -> AsyncStream[T]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _items(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
