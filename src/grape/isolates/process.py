"""A worker as a plain process: one socket, null as stdin, two pipes, a clean environment, a session of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Final

from msgspec import Struct

KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "VIRTUAL_ENV", "TMPDIR")
"""Variables of the engine that a worker keeps; all others only if asked for."""

_SOCKET_BUFFER: Final = 4 << 20


class Command(Struct, frozen=True):
    """What to run: ``argv`` without the arguments that name socket and parent; ``env`` beside what is kept."""

    argv: tuple[str, ...]
    directory: str
    env: dict[str, str]


class Spawned(Struct):
    """``socket`` and the pipes are not blocking. ``pidfd`` becomes readable when the process has ended."""

    pid: int
    pidfd: int
    socket: socket.socket
    stdout: int
    stderr: int
    popen: subprocess.Popen[bytes]


def python_worker(target: str, config: str) -> tuple[str, ...]:
    """The command line of a Python worker."""
    return (sys.executable, "-m", "grape.worker", "--target", target, "--config", config)


def spawn(command: Command) -> Spawned:
    """Start a worker. Call it from a thread that lives as long as the engine: the worker dies with that thread.

    Raises:
        OSError: it cannot be started.
    """
    ours, theirs = socket.socketpair()
    try:
        for end in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
        ours.setblocking(False)
        env = {name: os.environ[name] for name in KEPT if name in os.environ}
        env.update(command.env)
        env.setdefault("PYTHONUNBUFFERED", "1")
        argv = [*command.argv, "--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
        popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=command.directory,
            env=env,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    assert popen.stdout is not None
    assert popen.stderr is not None
    for pipe in (popen.stdout, popen.stderr):
        os.set_blocking(pipe.fileno(), False)
    return Spawned(popen.pid, os.pidfd_open(popen.pid), ours, popen.stdout.fileno(), popen.stderr.fileno(), popen)
