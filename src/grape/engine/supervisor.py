"""Worker processes under asyncio: their sockets, what they print, how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from grape.errors import ProtocolError
from grape.protocol.framing import frame, worker_frames
from grape.protocol.messages import FromWorker, ToWorker

_READ: Final = 1 << 20
_LINE: Final = 64 << 10
_MARK: Final = "\x1e"


class Process(Protocol):
    """What an isolate's ``spawn`` returns."""

    pid: int
    pidfd: int
    socket: socket.socket
    stdout: int
    stderr: int


class Listener(Protocol):
    """Who is told."""

    def received(self, worker: ProcessLink, message: FromWorker) -> None: ...

    def broken(self, worker: ProcessLink, error: ProtocolError) -> None: ...

    def gone(self, worker: ProcessLink, how: str) -> None: ...

    def printed(self, worker: ProcessLink, stream: str, slot: str, line: str) -> None: ...


class ProcessLink:
    """One worker process: whole messages both ways, lines of output, and its end, told once, after everything else."""

    def __init__(self, process: Process, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        self.pid = process.pid
        self._process = process
        self._loop = loop
        self._listener = listener
        self._frames = worker_frames()
        self._unsent: deque[memoryview] = deque()
        self._lines = {process.stdout: b"", process.stderr: b""}
        self._ended = False
        self._socket = process.socket
        loop.add_reader(self._socket.fileno(), self._readable)
        for pipe in self._lines:
            loop.add_reader(pipe, self._printed, pipe)
        loop.add_reader(process.pidfd, self._exited)

    # ------------------------------------------------------------------ Link

    def send(self, message: ToWorker) -> None:
        if self._ended:
            return
        self._unsent.append(memoryview(frame(message)))
        if len(self._unsent) == 1:
            self._writable()

    def kill(self) -> None:
        if not self._ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process.pidfd, signal.SIGKILL)

    # ------------------------------------------------------------------ socket

    def _writable(self) -> None:
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent[0])
            except BlockingIOError:
                sent = 0
            except OSError:  # it is ending; `_exited` tells
                self._unsent.clear()
                break
            if sent < len(self._unsent[0]):
                self._unsent[0] = self._unsent[0][sent:]
                self._loop.add_writer(self._socket.fileno(), self._writable)
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        if not self._read_some():
            self._loop.remove_reader(self._socket.fileno())

    def _read_some(self) -> bool:
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        try:
            for message in self._frames.feed(data):
                self._listener.received(self, message)
        except ProtocolError as e:
            self._listener.broken(self, e)
            return False
        return True

    # ------------------------------------------------------------------ output

    def _printed(self, pipe: int) -> None:
        try:
            data = os.read(pipe, _LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(pipe)
            self._tell_lines(pipe, self._lines[pipe], b"")
            return
        *lines, rest = (self._lines[pipe] + data).split(b"\n")
        if len(rest) > _LINE:
            lines.append(rest)
            rest = b""
        for line in lines:
            self._tell_lines(pipe, line, rest)
        self._lines[pipe] = rest

    def _tell_lines(self, pipe: int, line: bytes, rest: bytes) -> None:
        self._lines[pipe] = rest
        text = line.decode("utf-8", "replace")
        slot = ""
        if text.startswith(_MARK):
            slot, _, text = text[1:].partition(_MARK)
        if text or slot:
            stream = "stdout" if pipe == self._process.stdout else "stderr"
            self._listener.printed(self, stream, slot, text)

    # ------------------------------------------------------------------ end

    def _exited(self) -> None:
        self._ended = True
        loop, process = self._loop, self._process
        loop.remove_reader(process.pidfd)
        while self._alive_socket() and self._read_some():
            pass
        for pipe in list(self._lines):
            loop.remove_reader(pipe)
            with contextlib.suppress(OSError):
                while data := os.read(pipe, _LINE):
                    *lines, rest = (self._lines[pipe] + data).split(b"\n")
                    for line in lines:
                        self._tell_lines(pipe, line, rest)
                    self._lines[pipe] = rest
            self._tell_lines(pipe, self._lines[pipe], b"")
        how = self._reap()
        loop.remove_reader(self._socket.fileno())
        loop.remove_writer(self._socket.fileno())
        self._socket.close()
        os.close(process.pidfd)
        self._listener.gone(self, how)

    def _alive_socket(self) -> bool:
        """Whether something is left to read."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _reap(self) -> str:
        popen = getattr(self._process, "popen", None)
        code = popen.wait() if popen is not None else os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        for pipe in (popen.stdout, popen.stderr) if popen is not None else ():
            pipe.close()
        return how_it_ended(code)


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"it exited with code {code}"
    try:
        return f"it was killed by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"it was killed by signal {-code}"


Spawn = Callable[[], Process]


class Supervisor:
    """Starts worker processes and ties them to the engine."""

    def __init__(self, spawn: Spawn, listener: Listener) -> None:
        self._spawn = spawn
        self._listener = listener
        self.links: set[ProcessLink] = set()

    def start(self) -> ProcessLink:
        """
        Raises:
            OSError: no process can be started.
        """
        link = ProcessLink(self._spawn(), asyncio.get_running_loop(), self._listener)
        self.links.add(link)
        return link

    def ended(self, link: ProcessLink) -> None:
        self.links.discard(link)

    def kill_all(self) -> None:
        for link in list(self.links):
            link.kill()
