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
from grape.authoring.raised import line_of
from grape.authoring.topology import Topology
from grape.errors import ProtocolError
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
from grape.worker import children
from grape.worker.blame import refusal_of, user_traceback
from grape.worker.concurrent import AsyncPool
from grape.worker.link import EXIT_LOST, EngineSocket
from grape.worker.mishaps import hook_threads, run_loop
from grape.worker.output import Output
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


def begin(fd: int, parent: int) -> EngineSocket:
    """Live as a worker of ``parent`` has to; returns the socket to it. ``parent`` 0: the jail sees to its end."""
    if parent:
        die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sock = EngineSocket(fileno=fd)
    sock.set_inheritable(False)
    children.watch(sock)
    return sock


class SetupFailed(Exception):
    """A node's `setup` has failed, with this error."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(line_of(error))
        self.error = error


def run(sock: socket.socket, topology: Topology, output: Output) -> None:
    """Serve the engine with an app in Python."""
    engine = Engine(sock)
    spec = topology.spec()
    runtime = Runtime(topology.handlers, spec, engine.ask, engine.send)
    runtime.complain = output.complain
    output.speak_for(runtime.speaks)
    children.at_fork(runtime.abandon)
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
                except BaseException as e:
                    children.end_child(e)
                    raise SetupFailed(e) from None
                children.end_child()
                engine.send(Beat())
                watchdog = Watchdog(runtime, engine.send, message.heartbeat_timeout / 6)
                watchdog.start()
                if runtime.is_async:
                    run_loop(run_async(engine, runtime), runtime.complain or _unsaid, runtime.speaks)
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

    def broken(error: BaseException) -> None:
        if not ended.done():
            ended.set_exception(error)

    pool.broken = broken

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
            broken(e)

    loop.add_reader(engine.fileno(), readable)
    if engine.has_messages:  # they came together with the welcome
        loop.call_soon(readable)
    try:
        while not ended.done():
            with contextlib.suppress(asyncio.CancelledError):  # a handler may cancel every task that it finds
                await asyncio.wait([ended])
        ended.result()
        pool.flush()
    finally:
        loop.remove_reader(engine.fileno())


def _unsaid(text: str, slot: str | None = None, /) -> None:
    sys.stderr.write(text)


def refuse(sock: socket.socket, error: BaseException) -> None:
    """Tell the engine why this app cannot be run."""
    with contextlib.suppress(OSError):
        sock.sendall(frame(Refusal(*refusal_of(error))))


def main() -> None:
    parser = argparse.ArgumentParser(prog="grape.worker", description="A worker of Grape; started by the engine.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--config", default="{}")
    options = parser.parse_args()
    sock = begin(options.fd, options.parent)
    config = msgspec.json.decode(options.config)
    output = Output()
    hook_threads(output.complain)
    code = _live(sock, options.target, config, output)
    output.flush()
    if sock.is_lost:
        os._exit(EXIT_LOST)  # whatever came of that
    sys.exit(code)


def _live(sock: EngineSocket, target: str, config: dict[str, Any], output: Output) -> int:
    """The life of a worker; returns its exit code."""
    try:
        topology = load(target, config)
        topology.spec()
        children.end_child()
    except BaseException as e:
        children.end_child(e)
        refuse(sock, e)
        return 2
    # What is loaded stays. The default of 700 would look for cycles several times in every stage.
    gc.freeze()
    gc.set_threshold(20_000)
    try:
        run(sock, topology, output)
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except SetupFailed as e:
        refuse(sock, e.error)
        output.complain(user_traceback(e.error))
        return 1
    except SystemExit as e:
        children.end_child(e)
        return e.code if isinstance(e.code, int) else 0
    except BaseException as e:
        children.end_child(e)
        refuse(sock, e)
        output.complain(user_traceback(e))
        return 1
    return 0
