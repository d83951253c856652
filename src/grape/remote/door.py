"""The door of an engine as a `Wire`: for a program on the same machine, without a server.

What is done at it is a generator of what to wait for, which one waits for with a thread and one under asyncio. The
replies to a call are kept by the engine under its id, so a call goes on with the engine that comes next.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import Future
from contextlib import aclosing, closing
from typing import Any, Final

import msgspec

from grape.authoring.emitter import Reply
from grape.client.calls import decoded_reply, failure_in
from grape.client.connection import settle
from grape.client.events import ClientEvent
from grape.client.programs import UNKNOWN
from grape.client.waiting import here
from grape.errors import CallFailed, GrapeError, NoAnswer, NoApp, TooLarge, Unreachable, Unsupported, UsageError
from grape.model.near import did_you_mean
from grape.model.stored import KEPT
from grape.protocol.outcomes import Kept
from grape.remote.asked import Asked, Batch, Call, Emit, Heard, Order
from grape.running import ConnectedEngine, connect

PREFIX: Final = "door:"

Steps = Generator[Future[Any] | Reply | Heard, Any, None]
"""Waits for futures, and is sent what they give; says what has come."""


class _Door:
    """What both have in common."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._engine: ConnectedEngine | None = None
        self._was_reached = False

    def engine(self) -> ConnectedEngine:
        """The engine that runs there now. Blocks while it begins.

        Raises:
            GrapeError: none does.
        """
        with self._lock:
            if self._engine is not None and not is_over(self._engine):
                return self._engine
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            self._engine = connect(self._directory)
            self._was_reached = True
            return self._engine

    def unreached(self, error: GrapeError) -> Heard:
        """No engine is there."""
        if isinstance(error, UsageError):  # there is none, or not for this user
            is_there = os.path.isdir(self._directory)
            return Heard(error=Unreachable(str(error)), again=is_there, is_stranger=not self._was_reached)
        return Heard(error=error, again=True)

    def close_engine(self) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.close()


class DoorWire(_Door):
    """Of any thread."""

    def ask(self, asked: Asked, timeout: float | None) -> Heard:
        for came in self._done(asked, timeout, takes_parts=False):
            if came is not None:
                return came if isinstance(came, Heard) else Heard(came.data)
        raise AssertionError("it says what came of it")

    def replies(self, call: Call, timeout: float | None) -> Generator[Reply | Heard | None, None, None]:
        yield from self._done(call, timeout, takes_parts=True)

    def _done(
        self, asked: Asked, timeout: float | None, *, takes_parts: bool
    ) -> Generator[Reply | Heard | None, None, None]:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            engine = self.engine()
        except GrapeError as e:
            yield self.unreached(e)
            return
        with closing(steps_of(engine, asked, takes_parts)) as steps:
            step = next(steps, None)
            if takes_parts:
                yield None  # it is on its way
            while step is not None:
                if isinstance(step, Future):
                    left = None if deadline is None else max(0.0, deadline - time.monotonic())
                    try:
                        step.exception(left)
                    except TimeoutError:
                        yield late(timeout)
                        return
                else:
                    yield step
                    deadline = None if timeout is None else time.monotonic() + timeout
                step = _next(steps, step)

    def close(self) -> None:
        self.close_engine()


class AsyncDoorWire(_Door):
    """Under asyncio."""

    async def ask(self, asked: Asked, timeout: float | None) -> Heard:
        async with aclosing(self._done(asked, timeout, takes_parts=False)) as done:
            async for came in done:
                if came is not None:
                    return came if isinstance(came, Heard) else Heard(came.data)
        raise AssertionError("it says what came of it")

    async def replies(self, call: Call, timeout: float | None) -> AsyncGenerator[Reply | Heard | None, None]:
        async with aclosing(self._done(call, timeout, takes_parts=True)) as done:
            async for came in done:
                yield came

    async def _done(
        self, asked: Asked, timeout: float | None, *, takes_parts: bool
    ) -> AsyncGenerator[Reply | Heard | None, None]:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            engine = self._engine
            if engine is None or is_over(engine):
                engine = await asyncio.to_thread(self.engine)
        except GrapeError as e:
            yield self.unreached(e)
            return
        with closing(steps_of(engine, asked, takes_parts)) as steps:
            step = next(steps, None)
            if takes_parts:
                yield None  # it is on its way
            while step is not None:
                if isinstance(step, Future):
                    left = None if deadline is None else max(0.0, deadline - time.monotonic())
                    try:
                        async with asyncio.timeout(left):
                            await here(_settled(step))
                    except TimeoutError:
                        yield late(timeout)
                        return
                else:
                    yield step
                    deadline = None if timeout is None else time.monotonic() + timeout
                step = _next(steps, step)

    async def close(self) -> None:
        await asyncio.to_thread(self.close_engine)


# ---------------------------------------------------------------------- what is done at it


def steps_of(engine: ConnectedEngine, asked: Asked, takes_parts: bool) -> Steps:
    """Ends with a `Heard`, or the final `Reply`."""
    try:
        if isinstance(asked, Order):
            raise Unsupported(f"at a door is one engine, and no server that could {asked.verb}; say the url of one")
        _check_app(engine, asked.app)
        match asked:
            case Emit():
                yield engine.hand_in(_fitting(engine, asked.event))
                yield Heard()
            case Batch():
                yield from _several(engine, asked)
            case Call():
                yield from _call(engine, asked.event, takes_parts)
    except CallFailed as e:
        yield Heard(error=e)
    except GrapeError as e:
        yield _failed(engine, e, isinstance(asked, Call))


def _several(engine: ConnectedEngine, batch: Batch) -> Steps:
    handed_in = [engine.hand_in(_fitting(engine, event)) for event in batch.events]
    untaken: list[int] = []
    worst: GrapeError | None = None
    for i, each in enumerate(handed_in):
        try:
            yield each
        except GrapeError as e:
            worst = worst or e
            untaken.append(i)
    heard = Heard(len(handed_in)) if worst is None else _failed(engine, worst, False)
    yield msgspec.structs.replace(heard, untaken=tuple(untaken))


def _call(engine: ConnectedEngine, event: ClientEvent, takes_parts: bool) -> Steps:
    fresh: list[Future[None]] = [Future()]
    call = engine.calls.open(takes_parts, lambda: settle(fresh[0]), KEPT + event.id)
    try:
        yield engine.hand_in(_fitting(engine, event), call.request)
        asked = engine.connected().ask_verb("answer", call.request, lambda _: call.clear())
        kept = msgspec.msgpack.decode((yield asked), type=Kept)
        for packed, final in kept.replies:
            data = decoded_reply(packed)
            failed = failure_in(data) if final else None
            if failed is not None:
                raise failed
            if final or takes_parts:
                yield Reply(data, final)
            if final:
                return
        while True:
            fresh[0] = Future()
            reply = call.take()
            if reply is None:
                yield fresh[0]
                continue
            yield reply
            if reply.final:
                return
    finally:
        call.close()


def _fitting(engine: ConnectedEngine, event: ClientEvent) -> ClientEvent:
    """
    Raises:
        TooLarge: it does not fit.
    """
    most = engine.limits.max_event
    if len(event.data) > most:
        raise TooLarge(f"an event of {len(event.data):,} bytes; the limit is {most:,}")
    return event


def _check_app(engine: ConnectedEngine, app: str) -> None:
    """
    Raises:
        NoApp: it is another one.
    """
    name = engine.connected().described.result().topology.name
    if app != name:
        raise NoApp(f"at this door is no app {app!r}; {did_you_mean(app, [name], f'it is that of {name!r}')}")


def _failed(engine: ConnectedEngine, error: GrapeError, was_accepted: bool) -> Heard:
    if is_over(engine):
        is_open = was_accepted or isinstance(error, NoAnswer)
        text = f"the engine has ended: {error}"
        return Heard(error=NoAnswer(f"{text}; {UNKNOWN}") if is_open else error, again=True, is_open=is_open)
    return Heard(error=error, again=error.retriable, is_open=isinstance(error, NoAnswer))


def late(timeout: float | None) -> Heard:
    """Nothing came in time."""
    return Heard(error=NoAnswer(f"no answer after {timeout:g} s; {UNKNOWN}"), again=True, is_open=True)


def is_over(engine: ConnectedEngine) -> bool:
    """It has ended."""
    try:
        return engine.connected().is_over
    except GrapeError:
        return True


def _next(steps: Steps, step: Future[Any] | Reply | Heard) -> Future[Any] | Reply | Heard | None:
    """What comes after a step that is done."""
    try:
        if not isinstance(step, Future):
            return next(steps)
        error = step.exception()
        return steps.throw(error) if error is not None else steps.send(step.result())
    except StopIteration:
        return None


def _settled(future: Future[Any]) -> Future[None]:
    """Done with it, whatever it gives."""
    done: Future[None] = Future()
    future.add_done_callback(lambda _: settle(done))
    return done
