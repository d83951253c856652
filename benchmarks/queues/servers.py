"""Processes that a peer needs: on a free port, in the run's directory, ended with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 5.0
TOOLS: Final = Path(sys.executable).parent
"""The programs that came with the peers."""


@contextlib.contextmanager
def started(directory: Path, *commands: list[str], **environment: str) -> Iterator[None]:
    """Run them beside what follows; what they print lies in the directory."""
    processes = []
    try:
        for number, command in enumerate(commands):
            with (directory / f"{Path(command[0]).name}-{number}.log").open("w") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment}))
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()  # what it leaves behind ends with the group of the run: `__main__`


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(what: str, ready: Callable[[], bool]) -> None:
    end = time.monotonic() + _START_SECONDS
    while not ready():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not start")
        time.sleep(0.05)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def redis(directory: Path, fsync: str = "always") -> Iterator[str]:
    """What a command has changed is in the file, and that on the disk, before it returns; with "everysec", which is
    what Redis advises, within a second or two."""
    port = free_port()
    command = [shutil.which("redis-server") or "/usr/bin/redis-server", "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", str(directory), "--appendonly", "yes", "--appendfsync", fsync, "--save", ""]
    with started(directory, command):
        until("redis-server", lambda: is_open(port))
        yield f"redis://127.0.0.1:{port}"


@contextlib.contextmanager
def nats(directory: Path) -> Iterator[str]:
    """By default JetStream syncs its files every two minutes, whatever it has acknowledged."""
    port = free_port()
    settings = directory / "nats.conf"
    settings.write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{directory}/jetstream", sync_interval: always }}\n'
    )
    with started(directory, [str(TOOLS / "nats-server"), "-c", str(settings)]):
        until("nats-server", lambda: is_open(port))
        yield f"nats://127.0.0.1:{port}"


@contextlib.contextmanager
def nothing(directory: Path) -> Iterator[str]:
    """For peers that work on files."""
    yield str(directory)


def server(peer: str, setting: str, directory: Path) -> contextlib.AbstractContextManager[str]:
    """What that peer needs; ``setting`` is for Redis."""
    if peer in ("dramatiq", "celery"):
        return redis(directory, setting or "always")
    return nats(directory) if peer == "faststream" else nothing(directory)
