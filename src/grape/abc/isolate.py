"""The contract of an isolate: how the worker processes of a pool are confined.

Two phases. ``prepare`` finds out, by trying, whether the host can do what is asked, and builds what the pool's
workers share; it refuses by name and remedy, so that a level is never weaker than what was asked for. ``spawn``
starts one worker.

An isolate is constructed with (pool, config), where ``config`` is its own `Config`: a frozen `Struct` decoded from
``[pool.NAME.isolate]`` of a profile. Its methods may block; ``spawn`` is always called from the same thread, which
lives as long as the engine (workers die with the thread that started them), ``Process.reap`` from any.
"""

from __future__ import annotations

import socket
from typing import Any, ClassVar, Protocol

from msgspec import Struct


class Command(Struct, frozen=True, kw_only=True):
    """What to run.

    ``argv``: without the arguments that an isolate adds itself: ``--fd N`` (the socket) and ``--parent PID`` (0: the
    jail sees to it that the worker dies with the engine). ``directory``: the app's own; the worker starts there,
    unless it has to have another one, and may read it. ``env``: variables beside those that every worker keeps.
    ``readable``: further files and directories that the runtime needs to see. ``input``: what standard input holds, up
    to its end; it may be a secret, which command lines and variables are not the place for.
    """

    argv: tuple[str, ...]
    directory: str
    env: dict[str, str] = {}
    readable: tuple[str, ...] = ()
    input: bytes = b""


class Ability(Struct, frozen=True):
    """One thing that this host can or cannot do: a row of ``grape doctor``.

    ``why`` says what was found (a version, a path, an error), ``remedy`` what to do about it.
    """

    name: str
    works: bool
    why: str = ""
    remedy: str = ""


class Ending(Struct, frozen=True):
    """How a worker ended.

    ``code``: exit code of the worker itself, negative: a signal. ``reason``: what the jail knows of it, in words and
    with the limit ("out of memory: the worker reached its limit of 512 MiB (isolate.memory)"), or "".
    """

    code: int
    reason: str = ""


class Process(Protocol):
    """A worker that was started.

    ``socket`` and the pipes ``stdout``, ``stderr`` do not block; who has the process reads them and closes the socket
    and the pidfd. ``pid`` is that of the process started on the host. ``pidfd`` becomes readable when it has ended.
    """

    pid: int
    pidfd: int
    socket: socket.socket
    stdout: int
    stderr: int

    def terminate(self) -> None:
        """Ask the worker to end (SIGTERM). Does not block; harmless when it has ended."""

    def kill(self) -> None:
        """End the worker and everything it started (SIGKILL). Does not block; harmless when it has ended."""

    def reap(self) -> Ending:
        """After ``pidfd`` became readable: collect the process, end whatever is left of its descendants, remove what
        was its own (temporary directory, cgroup leaf), close the pipes. Called once. Blocking."""


class Isolate(Protocol):
    """One level for one pool."""

    name: ClassVar[str]
    Config: ClassVar[type[Struct]]

    def __init__(self, pool: str, config: Any) -> None: ...

    @classmethod
    def abilities(cls) -> list[Ability]:
        """What this level needs, tried on this host. Blocking, without effects that last."""

    def prepare(self) -> None:
        """Check what is asked for against the host, and build what the pool's workers share.

        Raises:
            Unsupported: the host cannot do it; the text names the feature and the remedy.
        """

    def spawn(self, worker: str, command: Command) -> Process:
        """Start a worker; ``worker`` is its name (``main.0``). Starting one of the same name again is fine.

        Raises:
            OSError: it cannot be started now.
        """

    def close(self) -> None:
        """Remove what ``prepare`` built. All workers have ended."""
