"""`grape.aopen`: an engine for programs under asyncio.

The engine runs as it does for `grape.open`, in a process of its own. Nothing here blocks the caller's loop;
what the engine has to say comes by ``call_soon_threadsafe``. A task that is cancelled while it waits leaves everything
sound: an emit may or may not be accepted, a call no longer waits for its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Final, TypedDict, TypeVar, Unpack

from grape import running
from grape.authoring.emitter import Reply
from grape.authoring.topology import Topology
from grape.client.calls import Call, answer_as
from grape.client.events import check_call_timeout, check_timeout, client_event
from grape.client.programs import UNKNOWN
from grape.errors import BadArgument, NoAnswer, UsageError
from grape.host.options import names_of
from grape.model.event import Event
from grape.model.near import did_you_mean
from grape.model.numbers import AppNumbers
from grape.model.topology import Limits
from grape.running import Profiles, RunningEngine, Summary, at_the_call, options_of, unstarted

T = TypeVar("T")


class OpenOptions(TypedDict, total=False):
    """The keywords of `grape.open`, which explains them."""

    data: str | os.PathLike[str] | None
    outputs: tuple[str, ...] | None
    workers: int | None
    partitions: int | None
    config: dict[str, Any] | None
    inline: bool
    profile: Profiles
    env: Mapping[str, str] | None
    storages: Mapping[str, str] | None
    log_level: str | Mapping[str, str] | None
    limits: Limits | None
    max_dead: int
    max_size: int
    reserve: int | None


_DEFAULTS: Final = {
    name: parameter.default
    for name, parameter in inspect.signature(running.open).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}


@at_the_call
def aopen(topology: Topology | str | os.PathLike[str], **options: Unpack[OpenOptions]) -> AsyncEngine:
    """An engine for a program under asyncio (or uvloop)::

        async with grape.aopen(topology) as engine:
            await engine.emit("order", {"id": "a"}, key="ann")
            print(await engine.call("question", "1+2"))
            async for event in engine.outputs("total"):
                ...

    Options are those of `grape.open`. They are checked here; it starts with the ``async with``, and leaving that closes
    it, also by an exception.

    Raises:
        BadArgument, TopologyError: as of `grape.open`.
    """
    for name in options:
        if name not in _DEFAULTS:
            raise BadArgument(f"aopen has no option {name!r}; {did_you_mean(name, _DEFAULTS, 'see grape.open')}")
    given = {**_DEFAULTS, **options}
    names = None if given["outputs"] is None else names_of(given["outputs"], "outputs=")
    checked, _ = options_of(topology, given["profile"], given)
    return AsyncEngine(unstarted(checked, names))


class AsyncEngine:
    """What `grape.aopen` gives. Its methods belong to the loop in which it was entered."""

    def __init__(self, engine: RunningEngine) -> None:
        self._engine = engine
        self._was_entered = False

    async def __aenter__(self) -> AsyncEngine:
        """
        Raises:
            GrapeError: it could not be started.
        """
        if self._was_entered:
            raise UsageError("an engine is entered once; open another one with grape.aopen")
        self._was_entered = True
        started = _on_thread(self._engine.start)
        if await _settled(started, self._engine.give_up):
            with contextlib.suppress(Exception):
                started.result()
                await _settled(_on_thread(self._engine.close))
            raise asyncio.CancelledError
        started.result()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> Summary:
        """Stop: what runs is committed, the rest waits in the data directory. A task that is cancelled meanwhile goes
        on waiting for it, and is cancelled then.

        Raises:
            GrapeError: it had to stop before.
        """
        closed = _on_thread(self._engine.close)
        if await _settled(closed):
            raise asyncio.CancelledError
        return closed.result()

    async def emit(
        self,
        event: str,
        data: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        deadline: float | None = None,
        timeout: float | None = 30.0,
    ) -> None:
        """Hand in an event; returns when it is durable. Arguments and errors: `RunningEngine.emit`.

        If it is cancelled it may or may not have been accepted; with ``id=`` it can be emitted again.
        """
        checked = client_event(event, data, key, id, deadline, self._engine.limits.max_event)
        wait = check_timeout(timeout)

        await _answered(self._engine.hand_in(checked), wait, UNKNOWN)

    async def call(
        self,
        event: str,
        data: Any = None,
        *,
        key: str | None = None,
        deadline: float | None = None,
        timeout: float | None = 30.0,
        type: Any = Any,
    ) -> Any:
        """Hand in an event and wait for its answer. Arguments and errors: `RunningEngine.call`."""
        async with self._start_call(event, data, key, deadline, timeout, keeps_parts=False) as replies:
            return answer_as((await anext(replies)).data, type)

    def call_stream(
        self,
        event: str,
        data: Any = None,
        *,
        key: str | None = None,
        deadline: float | None = None,
        timeout: float | None = 30.0,
    ) -> AsyncCallStream:
        """Hand in an event, now; an asynchronous iterator over its replies. Arguments and errors:
        `RunningEngine.call_stream`. Whoever reads no further than to the final one uses ``async with``."""
        return self._start_call(event, data, key, deadline, timeout, keeps_parts=True)

    def _start_call(
        self, event: str, data: Any, key: str | None, deadline: float | None, timeout: float | None, keeps_parts: bool
    ) -> AsyncCallStream:
        checked = client_event(event, data, key, None, deadline, self._engine.limits.max_event)
        wait = check_call_timeout(timeout)
        fresh = asyncio.Event()
        call = self._engine.calls.open(keeps_parts, _waking(fresh))
        self._engine.start_call(call, checked)
        return AsyncCallStream(call, fresh, wait)

    async def outputs(self, event: str, *, timeout: float | None = None) -> AsyncIterator[Event]:
        """Committed events of an output, as they come. Ends when none came for ``timeout`` seconds (None: never), or
        with the engine.

        Raises:
            UsageError: it is no output of this topology.
            BadArgument: a timeout that is none.
        """
        wait = check_timeout(timeout)
        sink = self._engine.queue_of(event)
        fresh = asyncio.Event()
        listener = _waking(fresh)
        sink.listeners.add(listener)
        try:
            while True:
                fresh.clear()
                has_ended = self._engine.has_ended
                found = sink.get(0)
                if found is not None:
                    yield found
                elif has_ended:
                    return
                else:
                    try:
                        async with asyncio.timeout(wait):
                            await fresh.wait()
                    except TimeoutError:
                        return
        finally:
            sink.listeners.discard(listener)

    async def numbers(self) -> AppNumbers:
        """What is measured, as it is now; see `RunningEngine.numbers`."""

        return await _answered(self._engine.ask_numbers(), 30.0, "no answer")


class AsyncCallStream:
    """The replies to one call, as they come: the last one is final. ``async with``, or `aclose`, gives the rest up."""

    def __init__(self, call: Call, fresh: asyncio.Event, timeout: float | None) -> None:
        self._call = call
        self._fresh = fresh
        self._timeout = timeout
        self._is_over = False

    def __aiter__(self) -> AsyncCallStream:
        return self

    async def __anext__(self) -> Reply:
        """
        Raises:
            CallFailed: what should have answered failed for good.
            NoAnswer: no reply came in time.
            GrapeError: the engine had to stop.
        """
        if self._is_over:
            raise StopAsyncIteration
        try:
            reply = await self._next()
        except BaseException:
            self._close()
            raise
        if reply.final:
            self._close()
        return reply

    async def _next(self) -> Reply:
        try:
            async with asyncio.timeout(self._timeout):
                while (reply := self._call.take()) is None:
                    await self._fresh.wait()
                    self._fresh.clear()
                return reply
        except TimeoutError as e:
            if isinstance(e, NoAnswer):
                raise
            raise self._call.late(self._timeout) from None

    async def aclose(self) -> None:
        """Nobody waits for further replies."""
        self._close()

    def _close(self) -> None:
        self._is_over = True
        self._call.close()

    async def __aenter__(self) -> AsyncCallStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()

    def __del__(self) -> None:
        self._close()


async def _answered(asked: Future[T], timeout: float | None, unsaid: str) -> T:
    """
    Raises:
        NoAnswer: nothing came in time.
        GrapeError: as the engine says.
    """
    done = asyncio.Event()
    asked.add_done_callback(lambda _, wake=_waking(done): wake())  # type: ignore[misc]
    try:
        async with asyncio.timeout(timeout):
            await done.wait()
    except TimeoutError:
        if not asked.done():
            raise NoAnswer(f"{unsaid} after {timeout:g} s") from None
    return asked.result()


def _waking(event: asyncio.Event) -> Callable[[], None]:
    """Sets ``event`` of this loop, from any thread; if the loop has ended nobody waits."""
    loop = asyncio.get_running_loop()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(event.set)

    return wake


def _on_thread(function: Callable[[], T]) -> Future[T]:
    """Run what blocks on a thread of its own, which ends with it."""
    done: Future[T] = Future()

    def main() -> None:
        try:
            done.set_result(function())
        except BaseException as e:
            done.set_exception(e)

    threading.Thread(target=main, name="grape-wait", daemon=True).start()
    return done


async def _settled(future: Future[Any], cancelled: Callable[[], object] = lambda: None) -> bool:
    """Wait for it whatever happens: what begins or ends an engine is not left half done. Returns whether this task was
    cancelled meanwhile; ``cancelled`` is called then."""
    done = asyncio.Event()
    future.add_done_callback(partial(lambda wake, _: wake(), _waking(done)))
    was_cancelled = False
    while not done.is_set():
        try:
            await done.wait()
        except asyncio.CancelledError:
            was_cancelled = True
            cancelled()
    return was_cancelled
