"""An engine is started for whoever asks for one: a process of its own, or a thread if its nodes are to run here.

Its owner has the other end of a socket. When that is closed without a word, or the owner's process ends, the engine
ends at once: what is not committed then is done by the next one.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from msgspec import structs

from grape.host.options import Options
from grape.host.process import LENGTH, new_event_loop, serve
from grape.host.run import Run

_PATIENCE: Final = 10.0
_CODE: Final = (
    "import sys; sys.path[:0] = [sys.argv[1]]; sys.path += sys.argv[3:]; "
    "from grape.host.process import main; main(int(sys.argv[2]))"
)


class Launched(Protocol):
    """An engine that runs. ``end``: of its socket."""

    end: socket.socket

    def how_it_ended(self) -> str:
        """In words, when it is gone without one."""

    def join(self) -> None:
        """Wait until nothing is left of it; it has said, or been told, that it ends."""

    def kill(self) -> None:
        """At once, if that can be."""


class EngineThread:
    """In this process: for debuggers, and nodes that share it."""

    def __init__(self, options: Options) -> None:
        self.end, other = socket.socketpair()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, args=(options, other), name="grape-engine", daemon=True)
        self._thread.start()

    def _main(self, options: Options, other: socket.socket) -> None:
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(Run(options, other).run())
        except BaseException as e:
            self._error = e
        finally:
            other.close()

    def how_it_ended(self) -> str:
        return f"the engine failed, which is a bug in it: {self._error!r}"

    def join(self) -> None:
        self._thread.join()

    def kill(self) -> None:
        pass  # a thread cannot be


class _EngineProcess:
    """A child."""

    def __init__(self, end: socket.socket, pid: int) -> None:
        self.end = end
        self.pid = pid
        self._status: int | None = None
        self._waiting = threading.Lock()

    def _wait(self) -> int:
        with self._waiting:
            if self._status is None:
                with suppress(ChildProcessError):  # somebody else has waited for all children
                    self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return self._status or 0

    def how_it_ended(self) -> str:
        code = self._wait()
        if code < 0:
            with suppress(ValueError):
                return f"the engine was killed by signal {-code} ({signal.Signals(-code).name}); {_GO_ON}"
        return f"the engine ended with code {code} without a word; {_GO_ON}"

    def join(self) -> None:
        self._wait()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def launcher(options: Options, apart: Callable[[Options], Launched]) -> Callable[[Options], Launched]:
    """What starts an engine: ``apart``, or here if nodes of it are to run in this process."""
    inline = options.inline or any(profile.is_inline for profile in options.profiles.values())
    return EngineThread if inline else apart


_GO_ON: Final = "the same command goes on from what was committed"


def fork_engine(options: Options) -> Launched:
    """For the command line, which has loaded everything and started nothing: no thread may run."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return _EngineProcess(ours, pid)
    code = 70
    try:
        ours.close()
        _leave(theirs.fileno())
        serve(options, theirs)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _leave(kept: int) -> None:
    """Of the streams and descriptors of the command only messages are left: whoever waits for the end of a pipe waits
    for the command alone."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd != kept:
            with suppress(OSError):  # the one that listed them
                os.close(fd)


def spawn_engine(options: Options, stderr: int | None = None) -> Launched:
    """For a program that may be anything: a new interpreter, with nothing of the program in it. ``stderr``: a
    descriptor for what it prints; else the program's."""
    ours, theirs = socket.socketpair()
    with theirs:
        own = str(Path(__file__).parents[2])
        others = [path for path in sys.path if path and path != own]
        command = [sys.executable, "-I", "-c", _CODE, own, str(theirs.fileno()), *others]
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    packed = pickle.dumps(structs.replace(options, topology=None))
    with suppress(OSError):  # it has ended: it will be seen
        ours.sendall(LENGTH.pack(len(packed)) + packed)
    process.returncode = 0  # it is waited for below, not by `subprocess`
    return _EngineProcess(ours, process.pid)
