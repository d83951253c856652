"""Worker processes under asyncio: how they start, their sockets, what they print, how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, Protocol

from grape.abc.isolate import Ending, Process
from grape.errors import ProtocolError
from grape.protocol.framing import frame, worker_frames
from grape.protocol.messages import FromWorker, ToWorker

_READ: Final = 1 << 20
_LINE: Final = 64 << 10
_MARK: Final = "\x1e"
MESSAGE_RATE: Final = 10_000.0
"""Messages that a worker may say a second; who says more is read with pauses, so that beats cannot cost a core."""
OUTPUT_RATE: Final = 1_000_000
"""Bytes a second that a worker may print; what is over it is cut, with a count. As many at once."""
_LINE_COSTS: Final = 256
"""What a line costs beside its bytes: to show very many short ones would keep everybody waiting."""
_PAUSE: Final = 0.005
"""Seconds between two looks at what is cut anyway."""
_LAST_READS: Final = 64
"""Of what a dead worker has said or printed: more than its socket and pipes hold. Somebody it started may go on."""
_REAPERS: Final = 64
"""Threads that clean up after workers, if so many are needed: a full directory of one is not to keep the others."""
_LEVELS: Final = {"debug", "info", "warning", "error", "critical"}


class Line(NamedTuple):
    """A line that a worker printed. ``level``: "stdout" or "stderr", or that of a log record ("warning"). ``slot``: the
    node that ran, "" if none did."""

    level: str
    slot: str
    text: str


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
        self.last_lines: deque[Line] = deque(maxlen=kept_lines)
        self._process: Process | None = None
        self._loop = loop
        self._listener = listener
        self._reaper = reaper
        self._frames = worker_frames()
        self._unsent: deque[memoryview] = deque()
        self.unread = 0
        self._lines: dict[int, bytes] = {}
        self._ended = False
        self._is_killed = False
        self._allowance = _Allowance()
        self._messages = Rate(MESSAGE_RATE)

    # ------------------------------------------------------------------ start

    def attach(self, process: Process) -> None:
        """The process is there."""
        loop = self._loop
        self.pid = process.pid
        self._process = process
        self._socket = process.socket
        self._lines = {process.stdout: b"", process.stderr: b""}
        loop.add_reader(self._socket.fileno(), self._readable)
        for pipe in self._lines:
            loop.add_reader(pipe, self._printed, pipe)
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

    # ------------------------------------------------------------------ Link

    def send(self, message: ToWorker) -> None:
        if self._ended:
            return
        data = memoryview(frame(message))
        self._unsent.append(data)
        self.unread += len(data)
        if len(self._unsent) == 1 and self._process is not None:
            self._writable()

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
                sent = self._socket.send(self._unsent[0])
            except BlockingIOError:
                sent = 0
            except OSError:  # it is ending; `_exited` tells
                self._unsent.clear()
                break
            self.unread -= sent
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

    # ------------------------------------------------------------------ output

    def _printed(self, pipe: int) -> None:
        try:
            data = os.read(pipe, _LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data and self._allowance.is_spent(time.monotonic()):
            self._allowance.cut += data.count(b"\n")
            self._lines[pipe] = data.rpartition(b"\n")[2]
            self._loop.remove_reader(pipe)
            self._loop.call_later(_PAUSE, self._look_again, pipe)
        elif data:
            self._take_output(pipe, data)
        else:
            self._loop.remove_reader(pipe)
            self._tell(pipe, self._lines[pipe])
            self._lines[pipe] = b""

    def _look_again(self, pipe: int) -> None:
        if not self._ended:
            self._loop.add_reader(pipe, self._printed, pipe)

    def _take_output(self, pipe: int, data: bytes) -> None:
        *lines, rest = (self._lines[pipe] + data).split(b"\n")
        if len(rest) > _LINE:
            lines.append(rest)
            rest = b""
        for line in lines:
            self._tell(pipe, line)
        self._lines[pipe] = rest

    def _tell(self, pipe: int, raw: bytes) -> None:
        if not raw:
            return
        may, cut = self._allowance.take(len(raw) + _LINE_COSTS, time.monotonic())
        if cut:
            self._say(Line("stderr", "", f"({cut:,} lines were cut: over {OUTPUT_RATE / 1e6:g} MB a second)"))
        if not may:
            return
        text, level, slot = raw.decode("utf-8", "replace"), "", ""
        if text.startswith(_MARK) and text.count(_MARK) >= 3:
            _, level, slot, text = text.split(_MARK, 3)
            level = level if level in _LEVELS else ""
        assert self._process is not None
        self._say(Line(level or ("stdout" if pipe == self._process.stdout else "stderr"), slot, text))

    def _say(self, line: Line) -> None:
        self.last_lines.append(line)
        self._listener.printed(self, line)

    # ------------------------------------------------------------------ end

    def _exited(self) -> None:
        process, loop = self._process, self._loop
        assert process is not None
        self._ended = True
        loop.remove_reader(process.pidfd)
        for _ in range(_LAST_READS):
            if not self._has_more() or not self._read_some():
                break
        for pipe in list(self._lines):
            loop.remove_reader(pipe)
            with contextlib.suppress(OSError):
                for _ in range(_LAST_READS):
                    data = os.read(pipe, _LINE)
                    if not data:
                        break
                    self._take_output(pipe, data)
            self._tell(pipe, self._lines[pipe])
        if self._allowance.cut:
            self._say(Line("stderr", "", f"({self._allowance.cut:,} lines were cut at its end)"))
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


class _Allowance:
    """How much may be printed: `OUTPUT_RATE` bytes a second, and as many at once. ``cut``: lines since the last one
    that was let through."""

    def __init__(self) -> None:
        self._left = float(OUTPUT_RATE)
        self._at = time.monotonic()
        self.cut = 0

    def _refill(self, now: float) -> None:
        self._left = min(OUTPUT_RATE, self._left + (now - self._at) * OUTPUT_RATE)
        self._at = now

    def is_spent(self, now: float) -> bool:
        """Whether nothing may be shown now."""
        self._refill(now)
        return bool(self.cut) and self._left < OUTPUT_RATE / 4

    def take(self, size: int, now: float) -> tuple[bool, int]:
        """Whether a line may be shown, and how many before it were not."""
        self._refill(now)
        # Once something is cut, a good part of a second has to be free again: not one line in three, but a gap.
        if self._left < (OUTPUT_RATE / 4 if self.cut else size):
            self.cut += 1
            return False, 0
        self._left -= size
        cut, self.cut = self.cut, 0
        return True, cut


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


class Supervisor:
    """Starts worker processes and ties them to a listener.

    One thread starts all workers of a pool, and lives until `close`: workers die with the thread that started them.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._starters: defaultdict[str, ThreadPoolExecutor] = defaultdict(
            lambda: ThreadPoolExecutor(1, thread_name_prefix="grape-spawn")
        )
        self._reaper = ThreadPoolExecutor(_REAPERS, thread_name_prefix="grape-reap")
        self.links: set[ProcessLink] = set()

    def start(self, pool: str, spawn: Callable[[], Process], kept_lines: int) -> ProcessLink:
        """Start one; ``spawn`` runs on its pool's thread. It ends as any other if it cannot be started."""
        loop = asyncio.get_running_loop()
        link = ProcessLink(loop, self._listener, self._reaper, kept_lines)
        self.links.add(link)

        def started(process: asyncio.Future[Process]) -> None:
            if process.cancelled():
                return
            error = process.exception()
            if error is None:
                link.attach(process.result())
            else:
                link.failed(error)

        loop.run_in_executor(self._starters[pool], spawn).add_done_callback(started)
        return link

    async def on_starter(self, pool: str, function: Callable[[], object]) -> None:
        """Run something on the thread that starts the workers of ``pool``."""
        await asyncio.get_running_loop().run_in_executor(self._starters[pool], function)

    def ended(self, link: ProcessLink) -> None:
        self.links.discard(link)

    def kill_all(self) -> None:
        for link in list(self.links):
            link.kill()

    def close(self) -> None:
        """The threads end, and what they started with them."""
        for starter in self._starters.values():
            starter.shutdown(wait=False, cancel_futures=True)
        self._reaper.shutdown(wait=False)
