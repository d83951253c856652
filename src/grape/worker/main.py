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
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from grape.authoring.loading import load
from grape.authoring.topology import Topology
from grape.errors import GrapeError, ProtocolError, TopologyError
from grape.protocol.framing import engine_frames, frame
from grape.protocol.messages import (
    VERSION,
    Ask,
    Assign,
    Beat,
    Drain,
    FromWorker,
    Hello,
    Refusal,
    Revoke,
    ToWorker,
    Values,
    Welcome,
    Work,
)
from grape.worker import output
from grape.worker.blame import user_traceback
from grape.worker.concurrent import AsyncPool
from grape.worker.runtime import CAPABILITIES, Runtime
from grape.worker.watchdog import Watchdog

_PR_SET_PDEATHSIG = 1
_READ = 1 << 20


class Engine:
    """The socket, seen from the worker: blocking, whole messages."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = engine_frames()
        self._inbox: deque[ToWorker] = deque()
        self._lock = threading.Lock()

    def send(self, message: FromWorker) -> None:
        """Send at once; from any thread."""
        data = frame(message)
        with self._lock:
            self._sock.sendall(data)

    def fileno(self) -> int:
        return self._sock.fileno()

    def read_some(self) -> list[ToWorker] | None:
        """What is there, after one read; None: the engine is gone. Only call it when there is something to read."""
        if not self._inbox and not self._fill():
            return None
        messages = list(self._inbox)
        self._inbox.clear()
        return messages

    @property
    def has_messages(self) -> bool:
        """Messages that came while the answer to a question was awaited."""
        return bool(self._inbox)

    def receive(self) -> ToWorker | None:
        """The next message in order; None: the engine is gone."""
        while not self._inbox:
            if not self._fill():
                return None
        return self._inbox.popleft()

    def _fill(self) -> bool:
        data = self._sock.recv(_READ)
        if data:
            self._inbox.extend(self._frames.feed(data))
            self._frames.check()
        return bool(data)

    def ask(self, question: Ask) -> list[bytes | None]:
        """Ask until all is answered: one answer may hold the first values only."""
        values = self._ask(question)
        while len(values) < len(question.keys):
            rest = question.keys[len(values) :]
            values += self._ask(Ask(question.partition, question.epoch, question.node, rest))
        return values

    def _ask(self, question: Ask) -> list[bytes | None]:
        """Send a question and wait for its answer, past whatever comes before it."""
        self.send(question)
        seen = 0
        while True:
            for i in range(seen, len(self._inbox)):
                message = self._inbox[i]
                if isinstance(message, Values):
                    del self._inbox[i]
                    return message.values
            seen = len(self._inbox)
            if not self._fill():
                raise SystemExit(0)


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


def read_to_end(fd: int) -> bytes:
    """What a descriptor holds; it is empty for everybody after that."""
    with open(fd, "rb", closefd=False) as file:
        data = file.read()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, fd)
    os.close(null)
    return data


class SetupFailed(Exception):
    """A node's `setup` has failed, with this error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def run(sock: socket.socket, topology: Topology) -> None:
    """Serve the engine with an app in Python."""
    engine = Engine(sock)
    spec = topology.spec()
    runtime = Runtime(topology.handlers, spec, engine.ask, engine.send)
    output.install(runtime)
    engine.send(Hello(VERSION, os.getpid(), "python", spec, CAPABILITIES))
    serve(engine, runtime)


def serve(engine: Engine, runtime: Runtime) -> None:
    """Do what the engine says, until it says to stop.

    Raises:
        SetupFailed: see there.
    """
    watchdog: Watchdog | None = None
    while True:
        message = engine.receive()
        match message:
            case Work():
                for result in runtime.work(message):
                    engine.send(result)
            case Assign():
                runtime.assign(message)
            case Revoke():
                runtime.revoke(message)
            case Welcome():
                if message.version != VERSION:
                    raise ProtocolError(f"the engine speaks protocol {message.version}, this worker {VERSION}")
                runtime.now_us = engine_time(message.boot_offset)
                runtime.welcome(message)
                try:
                    runtime.setup()
                except Exception as e:
                    raise SetupFailed(e) from None
                engine.send(Beat())
                watchdog = Watchdog(runtime, engine.send, message.heartbeat_timeout / 6)
                watchdog.start()
                if runtime.is_async:
                    asyncio.run(run_async(engine, runtime))
                    break
            case Drain() | None:
                break
            case Values():
                raise ProtocolError("an answer without a question")
    if watchdog is not None:
        watchdog.stop()
        runtime.teardown()


def engine_time(offset: int) -> Callable[[], int]:
    """The engine's wall time (microseconds), which goes on evenly when somebody sets the clock."""
    return lambda: offset + time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


async def run_async(engine: Engine, runtime: Runtime) -> None:
    """The same loop for a pool with async nodes; ends when the engine says so, or is gone."""
    pool = AsyncPool(runtime, engine.send)
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def readable() -> None:
        try:
            messages = engine.read_some()
            while messages is not None:
                for message in messages:
                    match message:
                        case Work():
                            pool.work(message)
                        case Assign():
                            pool.assign(message)
                        case Revoke():
                            pool.revoke(message)
                        case Drain():
                            messages = None
                            break
                if messages is None or not engine.has_messages:
                    break
                messages = engine.read_some()
            if messages is None and not ended.done():
                ended.set_result(None)
        except BaseException as e:
            if not ended.done():
                ended.set_exception(e)

    def failed(_: object, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(context.get("message"))
        if not ended.done():
            ended.set_exception(error)

    loop.set_exception_handler(failed)
    loop.add_reader(engine.fileno(), readable)
    if engine.has_messages:  # they came together with the welcome
        loop.call_soon(readable)
    try:
        await ended
        pool.flush()
    finally:
        loop.remove_reader(engine.fileno())


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
    parser.add_argument("--config", default="{}", help="the app's configuration, for whoever starts it by hand")
    parser.add_argument("--config-fd", type=int, help="where it is read from")
    options = parser.parse_args()
    sock = begin(options.fd, options.parent)
    config = msgspec.json.decode(options.config if options.config_fd is None else read_to_end(options.config_fd))
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
