"""One worker process as the engine sees it: its socket, what it prints, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Final, Protocol

from grape.abc.isolate import Ending, Process
from grape.errors import ProtocolError
from grape.processes.output import LAST_READS, Line, Output
from grape.protocol.framing import frame, worker_frames
from grape.protocol.messages import FromWorker, ToWorker

MESSAGE_RATE: Final = 10_000.0
"""Messages that a worker may say a second; who says more is read with pauses, so that beats cannot cost a core."""
_READ: Final = 1 << 20
_TOGETHER: Final = 64
"""Messages of one system call."""


class Listener(Protocol):
    """Who is told."""

    def received(self, worker: ProcessLink, message: FromWorker) -> None: ...

    def broken(self, worker: ProcessLink, error: ProtocolError) -> None: ...

    def gone(self, worker: ProcessLink, how: str) -> None: ...

    def printed(self, worker: ProcessLink, line: Line) -> None: ...


class ProcessLink:
    """One worker process: whole messages both ways, lines of output, and its end, told once, after everything else.

    What is sent before the process is there goes out when it is.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listener: Listener, reaper: ThreadPoolExecutor, kept_lines: int
    ) -> None:
        self.pid = 0
        self.is_hopeless = False
        """It could not be started, nor could another."""
        self._output = Output(loop, kept_lines, partial(listener.printed, self))
        self._process: Process | None = None
        self._loop = loop
        self._listener = listener
        self._reaper = reaper
        self._frames = worker_frames()
        self._unsent: deque[memoryview] = deque()
        self._has_writer = False
        # Filled and copied: to have so much room made and taken back for each reading costs more.
        self._buffer = memoryview(bytearray(_READ))
        self.unread = 0
        self._ended = False
        self._is_killed = False
        self._messages = Rate(MESSAGE_RATE)

    # ------------------------------------------------------------------ start

    def attach(self, process: Process) -> None:
        """The process is there."""
        loop = self._loop
        self.pid = process.pid
        self._process = process
        self._socket = process.socket
        loop.add_reader(self._socket.fileno(), self._readable)
        self._output.attach(process.stdout, process.stderr)
        loop.add_reader(process.pidfd, self._exited)
        if self._is_killed:
            process.kill()
        self._writable()

    def failed(self, error: BaseException) -> None:
        """No process could be started. A PermissionError says that none ever can be."""
        self._ended = True
        self.is_hopeless = isinstance(error, PermissionError)
        self._listener.gone(self, f"it could not be started: {error}")

    @property
    def is_over(self) -> bool:
        """The process has ended, or is being ended."""
        return self._ended or self._is_killed

    @property
    def last_lines(self) -> Sequence[Line]:
        """The last lines that it printed."""
        return self._output.last_lines

    # ------------------------------------------------------------------ Link

    def send(self, message: ToWorker) -> None:
        if self._ended:
            return
        data = memoryview(frame(message))
        self._unsent.append(data)
        self.unread += len(data)
        if len(self._unsent) == 1 and self._process is not None:
            self._loop.call_soon(self._writable)  # with what else is said in this turn of the loop

    def terminate(self) -> None:
        if self._process is not None and not self._ended:
            self._process.terminate()

    def kill(self) -> None:
        self._is_killed = True
        if self._process is not None and not self._ended:
            self._process.kill()

    # ------------------------------------------------------------------ socket

    def _writable(self) -> None:
        while self._unsent:
            try:
                sent = self._socket.sendmsg(tuple(islice(self._unsent, _TOGETHER)))
            except BlockingIOError:
                self._has_writer = True
                self._loop.add_writer(self._socket.fileno(), self._writable)
                return
            except OSError:  # it is ending; `_exited` tells
                self._unsent.clear()
                break
            self.unread -= sent
            while self._unsent and sent >= len(self._unsent[0]):
                sent -= len(self._unsent.popleft())
            if sent:
                self._unsent[0] = self._unsent[0][sent:]
        if self._has_writer:
            self._has_writer = False
            self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        if not self._read_some():
            self._loop.remove_reader(self._socket.fileno())

    def _read_some(self) -> bool:
        try:
            data = bytes(self._buffer[: self._socket.recv_into(self._buffer)])
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        try:
            messages = self._frames.feed(data)
            for message in messages:
                self._listener.received(self, message)
            self._frames.check()
        except ProtocolError as e:
            self._listener.broken(self, e)
            return False
        pause = self._messages.take(len(messages), time.monotonic())
        if pause:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.call_later(pause, self._read_on)
        return True

    def _read_on(self) -> None:
        if not self._ended and not self._is_killed:
            self._loop.add_reader(self._socket.fileno(), self._readable)

    # ------------------------------------------------------------------ end

    def _exited(self) -> None:
        process, loop = self._process, self._loop
        assert process is not None
        self._ended = True
        loop.remove_reader(process.pidfd)
        for _ in range(LAST_READS):
            if not self._has_more() or not self._read_some():
                break
        self._output.finish()
        self._unsent.clear()
        self._has_writer = False
        loop.remove_reader(self._socket.fileno())
        loop.remove_writer(self._socket.fileno())
        self._socket.close()
        os.close(process.pidfd)
        # What it left behind may take long to remove.
        loop.run_in_executor(self._reaper, process.reap).add_done_callback(self._reaped)

    def _has_more(self) -> bool:
        """Whether something is left to read."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _reaped(self, reaped: asyncio.Future[Ending]) -> None:
        error = reaped.exception()
        how = f"it could not be cleaned up: {error}" if error is not None else how_it_ended(reaped.result())
        self._listener.gone(self, how)


class Rate:
    """So many of something a second, and as many at once. Pure."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._left = per_second
        self._at = 0.0

    def take(self, count: int, now: float) -> float:
        """``count`` more have come; returns for how many seconds there may be none. ``now``: monotonic seconds."""
        self._left = min(self._rate, self._left + (now - self._at) * self._rate) - count
        self._at = now
        return max(0.0, -self._left / self._rate)


_BY_CODE: Final = {
    71: ": its socket to the engine was closed, by something that closes descriptors it did not open (os.closerange?)",
    126: ": it is no program, or may not be executed",
    127: ": the program was not found, or what its first line names (#!) was not",
}
"""What a worker of ours (`grape.worker.link.EXIT_LOST`), and whoever executes a program for somebody else, says by its
exit code."""


def how_it_ended(ending: Ending) -> str:
    """In words."""
    if ending.reason:
        return ending.reason
    if ending.code >= 0:
        return f"it exited with code {ending.code}{_BY_CODE.get(ending.code, '')}"
    try:
        return f"it was killed by signal {-ending.code} ({signal.Signals(-ending.code).name})"
    except ValueError:
        return f"it was killed by signal {-ending.code}"
