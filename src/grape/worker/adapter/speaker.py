"""The program that an adapter stands before: what it is asked, and one that speaks messages."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, Protocol

from grape.errors import ProtocolError
from grape.model.foreign import Peers
from grape.model.levels import Levels
from grape.protocol.base import FromSpeaker, OtherApps, Ran, Run, ToSpeaker, Want
from grape.protocol.framing import frame, speaker_frames
from grape.protocol.messages import VERSION, Beat, Drain, Hello, LevelsChanged, Refusal, Welcome
from grape.worker.adapter.objects import RunObjects

_READ: Final = 1 << 20
_PR_SET_PDEATHSIG: Final = 1
_PATIENCE: Final = 5.0

Progressed = Callable[[int], None]
"""Takes how many events of a run are finished; also the same number again, as a sign of life."""


class Speaker(Protocol):
    """``is_exact``: it is always known which event runs."""

    is_exact: bool

    def welcome(self, message: Welcome) -> None:
        """What the app is."""

    def setup(self) -> None:
        """Wait until it is ready.

        Raises:
            Gone: it could not set itself up; the text says why.
        """

    def change_peers(self, peers: Peers) -> None:
        """The other apps are these from now on; between two runs."""

    def change_levels(self, levels: Levels) -> None:
        """It logs as much as this from now on; between two runs."""

    def run(self, run: Run, progressed: Progressed, objects: RunObjects) -> Iterator[Ran]:
        """Run events in their order; ends when they are finished, or at some place behind one that failed.

        Raises:
            ProtocolError: it cannot be gone on with.
        """

    def close(self) -> None:
        """Let it end."""


class Gone(Exception):
    """The program has ended."""


def start(
    argv: Sequence[str], stdin: int, stdout: int | None = None, inherited: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start the program; it dies with the adapter.

    Raises:
        OSError: it cannot be started.
    """
    interpreter = _interpreter(argv[0])
    if interpreter and not os.path.exists(interpreter):
        raise FileNotFoundError(2, f"the interpreter in its first line is missing: {interpreter!r}", argv[0])
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)

    return subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=stdout,
        pass_fds=inherited,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - it makes system calls, and nothing else
    )


def _interpreter(program: str) -> str:
    """What a script names in its first line; "": it is no script."""
    try:
        with open(program, "rb") as file:
            first = file.read(256).partition(b"\n")[0]
    except OSError:
        return ""
    return os.fsdecode(first[2:].split()[0]) if first.startswith(b"#!") and first[2:].split() else ""


def name_of(argv: Sequence[str]) -> str:
    """What to call it: the script, or the program itself."""
    return os.path.basename(argv[1] if len(argv) > 1 and not argv[1].startswith("-") else argv[0])


def how_it_ended(program: subprocess.Popen[bytes], what: str) -> Gone:
    """In words, for an event that was running."""
    code = program.wait()
    how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exited with code {code}"
    return Gone(f"{what} {how}")


class BaseSpeaker:
    """A worker that speaks section 11 of the protocol, over a socket as the adapter does itself."""

    is_exact = False

    def __init__(self, argv: Sequence[str]) -> None:
        self._sock, other = socket.socketpair()
        with other:
            other.set_inheritable(True)
            words = [*argv, "--fd", str(other.fileno()), "--parent", str(os.getpid())]
            # Its configuration is in there; the adapter has no use for it.
            self._program = start(words, stdin=0, inherited=(other.fileno(),))
        self._frames = speaker_frames()
        self._inbox: deque[FromSpeaker] = deque()
        self._name = name_of(argv)

    def hello(self) -> Hello | Refusal:
        """Its first word.

        Raises:
            Gone: it ended without one.
            ProtocolError: it is another one.
        """
        first = self._receive()
        if isinstance(first, Refusal):
            return first
        if not isinstance(first, Hello):
            raise ProtocolError(f"its first word is {type(first).__name__}, not Hello")
        if first.version != VERSION:
            raise ProtocolError(f"it speaks protocol {first.version}; this adapter speaks {VERSION}")
        self._hears_peers = "peers" in first.capabilities
        self._hears_levels = "logs" in first.capabilities
        return first

    def welcome(self, message: Welcome) -> None:
        self._send(message)

    def setup(self) -> None:
        match self._receive():
            case Beat():
                return
            case Refusal() as refusal:
                raise Gone(refusal.text)
            case other:
                raise ProtocolError(f"{type(other).__name__} in answer to Welcome, not Beat: it is ready")

    def change_peers(self, peers: Peers) -> None:
        if self._hears_peers:
            self._send(OtherApps(peers))

    def change_levels(self, levels: Levels) -> None:
        if self._hears_levels:
            self._send(LevelsChanged(levels))

    def run(self, run: Run, progressed: Progressed, objects: RunObjects) -> Iterator[Ran]:
        self._send(run)
        done = 0
        while done < run.events:
            match self._receive():
                case Ran() as ran:
                    done += ran.events
                    if not ran.events >= 0 or done > run.events or (ran.failed and ran.failed.index != done - 1):
                        raise ProtocolError(f"{done} events of a run of {run.events}, the last one failed or not")
                    progressed(done)
                    yield ran
                    if ran.failed:
                        return
                case Beat():
                    progressed(done)
                case Want() as want:
                    if not done <= want.index < run.events:
                        raise ProtocolError(f"objects of the event {want.index} of a run, of which {done} are finished")
                    self._send(objects.answer(want))
                case Refusal() as refusal:
                    raise Gone(refusal.text)
                case other:
                    raise ProtocolError(f"{type(other).__name__} in answer to Run")

    def close(self) -> None:
        with suppress(OSError):
            self._send(Drain())
            self._sock.shutdown(socket.SHUT_WR)
        with suppress(subprocess.TimeoutExpired):
            self._program.wait(_PATIENCE)
        self._program.kill()
        self._program.wait()

    def _send(self, message: ToSpeaker) -> None:
        try:
            self._sock.sendall(frame(message))
        except (BrokenPipeError, ConnectionResetError):
            raise self._end() from None

    def _receive(self) -> FromSpeaker:
        while not self._inbox:
            try:
                data = self._sock.recv(_READ)
            except ConnectionResetError:
                data = b""
            if not data:
                raise self._end()
            self._inbox.extend(self._frames.feed(data))
            self._frames.check()
        return self._inbox.popleft()

    def _end(self) -> Gone:
        sys.stderr.flush()
        return how_it_ended(self._program, self._name)
