"""The command `grape` without the start of an interpreter: each call is a process of its own, forked from one that has
loaded everything and done nothing. For tests of what a command does to a directory; those of signals, streams,
terminals and the start itself run the installed script, `GRAPE`."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

GRAPE: Final = str(Path(sys.executable).parent / "grape")

_SERVER: Final = """
import contextlib, json, os, socket, sys
import grape_command, grape.cli.main
with contextlib.suppress(ImportError):
    import typer._adapters  # it would be loaded when arguments are read
calls = socket.socket(fileno=int(sys.argv[1]))
while True:
    data, fds, _, _ = socket.recv_fds(calls, 1 << 20, 3)
    if not data:
        sys.exit()
    pid = os.fork()
    if pid == 0:
        break
    for fd in fds:
        os.close(fd)
    calls.send(b"%d" % pid)
    calls.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
calls.close()
for number, fd in enumerate(fds):
    os.dup2(fd, number)
    os.close(fd)
call = json.loads(data)
os.chdir(call["cwd"])
os.environ.clear()
os.environ.update(call["env"])
sys.argv[:] = call["argv"]
sys.path[0] = os.path.dirname(sys.argv[0])
grape_command.main()
"""

_server: tuple[socket.socket, subprocess.Popen[bytes]] | None = None


def grape(
    *arguments: object, cwd: Path | None = None, stdin: bytes = b"", timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run to its end, with a few bytes on its input."""
    argv = [GRAPE, *map(str, arguments)]
    call = {"argv": argv, "cwd": str(cwd or Path.cwd()), "env": dict(os.environ)}
    (given, put), (out, said), (err, told) = (os.pipe() for _ in range(3))
    os.write(put, stdin)
    os.close(put)
    with ThreadPoolExecutor(2) as readers:
        texts = [readers.submit(_read, fd) for fd in (out, err)]
        code = _call(call, [given, said, told], timeout)
    return subprocess.CompletedProcess(argv, code, *(text.result() for text in texts))


def _read(fd: int) -> str:
    with open(fd) as file:
        return file.read()


def _call(call: dict[str, Any], fds: list[int], timeout: float) -> int:
    global _server
    if _server is None:
        _server = _start()
    calls = _server[0]
    socket.send_fds(calls, [json.dumps(call).encode()], fds)
    for fd in fds:
        os.close(fd)
    pid = int(calls.recv(100))
    calls.settimeout(timeout)
    try:
        return int(calls.recv(100))
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        calls.settimeout(None)
        calls.recv(100)
        raise subprocess.TimeoutExpired(call["argv"], timeout) from None
    finally:
        calls.settimeout(None)


def _start() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        command = [sys.executable, "-c", _SERVER, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd="/", **streams)
    atexit.register(_end, ours, process)
    return ours, process


def _end(ours: socket.socket, process: subprocess.Popen[bytes]) -> None:
    ours.close()
    process.wait(30)
