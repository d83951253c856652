"""Starting a process: one socket, an input, two pipes, nothing else inherited; and the programs that confine it.

What confines a process is set between fork and exec by small programs of util-linux, so that it holds for every
executable, whatever its language; Python code cannot run there safely in a process with threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from grape.abc.isolate import Ability
from grape.errors import Unsupported
from grape.isolates.procs import CHILDREN, STARTED, TAG, engine_id

KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "VIRTUAL_ENV", "GRAPE_PURE")
"""Variables of the engine that a worker keeps; all others only if asked for."""

FINDS_CODE: Final = ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "PYTHONPLATLIBDIR")
"""Variables by which Python finds code: kept where a worker is not confined, so that it finds what its engine finds."""

_SOCKET_BUFFER: Final = 4 << 20
_OOM_SCORE: Final = b"500"


class Child(Struct):
    """A process that was started. ``socket`` and the pipes do not block."""

    pid: int
    pidfd: int
    socket: socket.socket
    stdout: int
    stderr: int
    popen: subprocess.Popen[bytes]

    def wait(self) -> tuple[int, float]:
        """Wait for its end, close the pipes. Returns exit code (negative: a signal) and seconds of CPU time that it
        and what it waited for have used."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with CHILDREN:
            _, status, usage = os.wait4(self.pid, 0)
            STARTED.discard(self.pid)
        self.popen.returncode = os.waitstatus_to_exitcode(status)
        os.close(self.stdout)
        os.close(self.stderr)
        return self.popen.returncode, usage.ru_utime + usage.ru_stime


class Handle:
    """What every `Process` of ours has of its child."""

    def __init__(self, child: Child) -> None:
        self.pid = child.pid
        self.pidfd = child.pidfd
        self.socket = child.socket
        self.stdout = child.stdout
        self.stderr = child.stderr
        self._child = child


def start(
    argv: Sequence[str],
    *,
    directory: str,
    env: dict[str, str],
    umask: int = 0o077,
    parent: int | None = None,
    inherit: tuple[int, ...] = (),
    given: bytes = b"",
) -> Child:
    """Start ``argv --fd N --parent PID`` in a session of its own. It dies with the thread that calls this, if
    something in ``argv`` sees to it.

    Args:
        parent: what stands for PID; the caller's, if None.
        inherit: further descriptors.
        given: what standard input holds; as nothing else of a process, nobody but its own user can read that.

    Raises:
        OSError: it cannot be started.
    """
    with contextlib.ExitStack() as undo:
        with contextlib.ExitStack() as undo_all:
            ours, theirs = _socket_pair(undo, undo_all)
            stdout, stderr = _pipe(undo, undo_all), _pipe(undo, undo_all)
            stdin = sealed(given) if given else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, stdin)
            with CHILDREN:
                popen = subprocess.Popen(
                    [*argv, "--fd", str(theirs.fileno()), "--parent", str(os.getpid() if parent is None else parent)],
                    stdin=stdin,
                    stdout=stdout.writing,
                    stderr=stderr.writing,
                    cwd=directory,
                    env=env,
                    umask=umask,
                    pass_fds=(theirs.fileno(), *inherit),
                    start_new_session=True,
                )
                try:
                    pidfd = os.pidfd_open(popen.pid)
                except OSError:
                    popen.kill()
                    popen.wait()
                    raise
                STARTED.add(popen.pid)
            with contextlib.suppress(OSError), open(f"/proc/{popen.pid}/oom_score_adj", "wb", buffering=0) as file:
                file.write(_OOM_SCORE)  # when the host is out of memory, the engine is not what goes first
            undo_all.pop_all()
        return Child(popen.pid, pidfd, ours, stdout.reading, stderr.reading, popen)


def _socket_pair(undo: contextlib.ExitStack, undo_all: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """The engine's end, which ``undo_all`` closes, and the worker's, which ``undo`` does."""
    ours, theirs = socket.socketpair()
    undo.callback(theirs.close)
    undo_all.callback(ours.close)
    for end in (ours, theirs):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
    ours.setblocking(False)
    return ours, theirs


class _Pipe(NamedTuple):
    reading: int
    writing: int


def _pipe(undo: contextlib.ExitStack, undo_all: contextlib.ExitStack) -> _Pipe:
    """As `_socket_pair`: the engine reads."""
    pipe = _Pipe(*os.pipe())
    undo_all.callback(os.close, pipe.reading)
    undo.callback(os.close, pipe.writing)
    os.set_blocking(pipe.reading, False)
    return pipe


def sealed(data: bytes) -> int:
    """A descriptor of a file in memory to read ``data`` from. It cannot be written to or made larger: whoever gets it
    would have memory that no limit of a process counts."""
    fd = os.memfd_create("grape-input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        os.lseek(fd, 0, os.SEEK_SET)
        os.fchmod(fd, 0o400)
    except BaseException:
        os.close(fd)
        raise
    return fd


def worker_env(own: dict[str, str], tag: str) -> dict[str, str]:
    """What a worker's environment consists of: what every worker keeps, the app's own, and its tag."""
    env = {name: os.environ[name] for name in KEPT if name in os.environ}
    env.setdefault("PYTHONUNBUFFERED", "1")
    return {**env, **own, TAG: tag}


def code_env() -> dict[str, str]:
    """The engine's own `FINDS_CODE`. Its paths count from its directory, wherever the worker's is."""
    env = {name: os.environ[name] for name in FINDS_CODE if name in os.environ}
    if "PYTHONPATH" in env:
        env["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, env["PYTHONPATH"].split(os.pathsep))))
    return env


def new_tag() -> str:
    """Of one worker: this engine's id and something random."""
    return f"{engine_id()}-{secrets.token_hex(8)}"


def find_tool(program: str, package: str) -> str:
    """Full path of a program that has to be installed.

    Raises:
        Unsupported: it is not.
    """
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    if path is None:
        raise Unsupported(f"the program {program} is not on this host; install the package {package}")
    return path


def attempt(name: str, argv: Sequence[str], remedy: str = "") -> Ability:
    """Whether a command works here, by running it."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return Ability(name, False, str(e), remedy)
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip() or f"{argv[0]} ended with {done.returncode}"
        return Ability(name, False, said, remedy)
    return Ability(name, True, argv[0])
