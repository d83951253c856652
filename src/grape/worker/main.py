"""A worker process: one socket to the engine, and the loop around `Runtime`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from grape.authoring.loading import load
from grape.authoring.topology import Topology
from grape.errors import GrapeError, TopologyError
from grape.protocol.framing import engine_frames, frame
from grape.protocol.messages import (
    VERSION,
    FromWorker,
    Hello,
    Refusal,
    ToWorker,
    Welcome,
)
from grape.worker import output
from grape.worker.blame import user_traceback
from grape.worker.dispatcher import Dispatcher, SetupFailed
from grape.worker.runtime import CAPABILITIES, Runtime
from grape.worker.watchdog import Watchdog

_PR_SET_PDEATHSIG = 1
_READ = 1 << 20


class Connection:
    """The socket to the engine: blocking, whole messages."""

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

    def read(self, take: Callable[[ToWorker], None]) -> bool:
        """Read once, and hand over the messages that are complete now; False: the engine is gone."""
        data = self._sock.recv(_READ)
        if data:
            for message in self._frames.feed(data):
                take(message)
            self._frames.check()
        return bool(data)


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the engine dies; leave if it has died already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(0)


def begin(fd: int, parent: int) -> socket.socket:
    """Live as a worker of ``parent`` has to; returns the socket to it. ``parent`` 0: the jail sees to its end."""
    if parent:
        die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    return sock


def run(sock: socket.socket, topology: Topology) -> None:
    """Serve the engine with an app in Python."""
    connection = Connection(sock)
    worker = WorkerProcess(connection)
    spec = topology.spec()
    runtime = Runtime(topology.handlers, spec, worker.ask, connection.send)
    output.install(runtime)
    connection.send(Hello(VERSION, os.getpid(), "python", spec, CAPABILITIES))
    worker.serve(runtime)


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
        dispatcher.serve(runtime)
        while not dispatcher.has_ended:
            if dispatcher.pool is not None:
                asyncio.run(run_async(connection, dispatcher))
                break
            if dispatcher.has_messages:
                dispatcher.step()
            elif not connection.read(dispatcher.take):
                break
        if self._watchdog is not None:
            self._watchdog.stop()
            runtime.teardown()

    def _read_or_leave(self) -> None:
        if not self._connection.read(self._dispatcher.take):
            raise SystemExit(0)

    def _welcomed(self, message: Welcome) -> None:
        self._runtime.now_us = engine_time(message.boot_offset)

    def _is_set_up(self, message: Welcome) -> None:
        self._watchdog = Watchdog(self._runtime, self._connection.send, message.heartbeat_timeout / 6)
        self._watchdog.start()


def _by_hand(step: Callable[[], None]) -> None:
    """`WorkerProcess.serve` looks itself whether there is a step to do."""


def engine_time(offset: int) -> Callable[[], int]:
    """The engine's wall time (microseconds), which goes on evenly when somebody sets the clock."""
    return lambda: offset + time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


async def run_async(connection: Connection, dispatcher: Dispatcher) -> None:
    """The same for a pool with async nodes; ends when the engine says so, or is gone."""
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
            if not connection.read(dispatcher.take):
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

    def failed(_: object, context: dict[str, Any]) -> None:
        fail(context.get("exception") or RuntimeError(context.get("message")))

    loop.set_exception_handler(failed)
    loop.add_reader(connection.fileno(), readable)
    dispatcher.reschedule(schedule)
    try:
        await ended
        dispatcher.end()
    finally:
        loop.remove_reader(connection.fileno())


def refuse(sock: socket.socket, error: BaseException) -> None:
    """Tell the engine why this app cannot be run."""
    kind = error.code if isinstance(error, GrapeError) else "start"
    text = str(error) if isinstance(error, GrapeError) else user_traceback(error)
    with contextlib.suppress(OSError):
        sock.sendall(frame(Refusal(kind, text)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="grape.worker", description="A worker of Grape; started by the engine.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--config", default="{}")
    options = parser.parse_args()
    sock = begin(options.fd, options.parent)
    config = msgspec.json.decode(options.config)
    try:
        topology = load(options.target, config)
        topology.spec()
    except (TopologyError, Exception) as e:
        refuse(sock, e)
        sys.exit(2)
    # What is loaded stays. The default of 700 would look for cycles several times in every stage.
    gc.freeze()
    gc.set_threshold(20_000)
    try:
        run(sock, topology)
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(0)
    except SetupFailed as e:
        refuse(sock, e.error)
        sys.stderr.write(user_traceback(e.error))
        sys.exit(1)
    except Exception as e:
        refuse(sock, e)
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
