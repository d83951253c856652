"""A worker as a process: the socket to the engine, and who reads it when.

While a handler's question waits for its answer nobody but the asker reads. Otherwise a synchronous pool reads when it
has nothing to do, and an asynchronous one when its loop says that something came. The loop may say so late: somebody
who asked in the same round may have read it all. So whoever is called by the loop must not wait (`Connection.read`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from grape.protocol.framing import engine_frames, frame
from grape.protocol.messages import FromWorker, ToWorker, Welcome
from grape.worker.dispatcher import Dispatcher
from grape.worker.mishaps import run_loop
from grape.worker.pacing import Pacer
from grape.worker.runtime import Runtime
from grape.worker.speaking import Speaking
from grape.worker.watchdog import Watchdog

_READ: Final = 1 << 20
_TURN: Final = 1.0
"""Seconds between signs that the loop turns."""


class Readable(Protocol):
    """What comes from the engine."""

    def fileno(self) -> int: ...

    def read(self, take: Callable[[ToWorker], None], *, wait: bool) -> bool:
        """Read once, and hand over the messages that are complete now; False: the engine is gone. Without ``wait``
        there may be nothing."""


class Connection(Readable):
    """The socket to the engine: whole messages."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = engine_frames()
        self._lock = threading.Lock()

    def send(self, message: FromWorker) -> None:
        """Send at once; from any thread."""
        data = frame(message)
        with self._lock:
            self._sock.sendall(data)

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self, take: Callable[[ToWorker], None], *, wait: bool) -> bool:
        try:
            data = self._sock.recv(_READ, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        if data:
            for message in self._frames.feed(data):
                take(message)
            self._frames.check()
        return bool(data)


class WorkerProcess:
    """A process that does what the engine says: a `Dispatcher` between the socket and this thread, or its loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._dispatcher = Dispatcher(connection.send, _by_hand, self._read_or_leave, self._welcomed, self._is_set_up)
        self._watchdog: Watchdog | None = None
        self.ask = self._dispatcher.ask

    def serve(self, runtime: Runtime) -> None:
        """Until the engine says to stop, or is gone.

        Raises:
            SetupFailed: see there.
        """
        dispatcher, connection = self._dispatcher, self._connection
        self._runtime = runtime
        runtime.pacer = Pacer(connection.send, self._read_or_leave, dispatcher.is_unwanted)
        dispatcher.serve(runtime)
        while not dispatcher.has_ended:
            if dispatcher.pool is not None:
                run_loop(serve_on_loop(connection, dispatcher), runtime.complain or _unsaid, Speaking(runtime).node)
                break
            if dispatcher.has_messages:
                dispatcher.step()
            elif not connection.read(dispatcher.take, wait=True):
                break
        if self._watchdog is not None:
            self._watchdog.stop()
            runtime.teardown()

    def _read_or_leave(self) -> None:
        if not self._connection.read(self._dispatcher.take, wait=True):
            raise SystemExit(0)

    def _welcomed(self, message: Welcome) -> None:
        self._runtime.now_us = engine_time(message.boot_offset)

    def _is_set_up(self, message: Welcome) -> None:
        self._watchdog = Watchdog(self._runtime, self._connection.send, message.heartbeat_timeout / 6)
        self._watchdog.start()


def _by_hand(step: Callable[[], None]) -> None:
    """`WorkerProcess.serve` looks itself whether there is a step to do."""


def _unsaid(text: str, slot: str | None = None, /) -> None:
    sys.stderr.write(text)


def engine_time(offset: int) -> Callable[[], int]:
    """The engine's wall time (microseconds), which goes on evenly when somebody sets the clock."""
    return lambda: offset + time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


async def serve_on_loop(connection: Readable, dispatcher: Dispatcher, turn_every: float | None = _TURN) -> None:
    """Do what the engine says on the running loop, until it says to stop, or is gone.

    Args:
        turn_every: seconds between signs that the loop turns, for a watchdog; None: there is none.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def fail(error: BaseException) -> None:
        if not ended.done():
            ended.set_exception(error)

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    def readable() -> None:
        try:
            if not connection.read(dispatcher.take, wait=False):
                end()
        except BaseException as e:
            fail(e)

    def schedule(step: Callable[[], None]) -> None:
        loop.call_soon(guarded, step)

    def guarded(step: Callable[[], None]) -> None:
        try:
            step()
            if dispatcher.has_ended:
                end()
        except BaseException as e:
            fail(e)

    pool = dispatcher.pool
    assert pool is not None
    pool.broken = fail

    turning: list[asyncio.TimerHandle] = []

    def turn() -> None:
        pool.turned()
        if turn_every is not None:
            turning[:] = [loop.call_later(turn_every, turn)]

    turn()
    loop.add_reader(connection.fileno(), readable)
    dispatcher.reschedule(schedule)
    try:
        while not ended.done():
            with contextlib.suppress(asyncio.CancelledError):  # a handler may cancel every task that it finds
                await asyncio.wait([ended])
        ended.result()
        dispatcher.end()
    finally:
        for timer in turning:
            timer.cancel()
        loop.remove_reader(connection.fileno())
