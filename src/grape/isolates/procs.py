"""What /proc tells of processes: who they are, and which of them stem from a worker."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct

TAG: Final = "GRAPE_WORKER"
"""Variable that every worker has; whatever it starts inherits it."""

STARTED: Final[set[int]] = set()
"""Pids of children of this process that somebody waits for; each has a session of its own."""

CHILDREN: Final = threading.Lock()
"""Held while a child is started or collected: between that and its entry in `STARTED` nobody else may take it for an
orphan, or its pid for free."""

_PATIENCE: Final = 5.0
_EXEC: Final = 0.5
"""Seconds in which one that becomes another program is through with that."""
_AGAIN: Final = 0.002
_DESCENDANTS: Final = 4096
_KERNEL: Final = 2
"""The parent of the kernel's own threads, which have no environment."""


class Stat(Struct, frozen=True):
    """Of /proc/PID/stat: ``start`` in clock ticks since boot."""

    state: str
    parent: int
    session: int
    start: int


def stat(pid: int | str) -> Stat | None:
    """None: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return Stat(fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def engine_id() -> str:
    """This process, among all that this host has seen since it booted: pid namespace, pid, start."""
    me = stat("self")
    assert me is not None
    return f"{os.stat('/proc/self/ns/pid').st_ino}-{os.getpid()}-{me.start}"


def is_dead(engine: str) -> bool:
    """Whether the process that had this `engine_id` is gone; False of one that cannot be seen from here."""
    try:
        namespace, pid, start = map(int, engine.split("-"))
    except ValueError:
        return False
    if namespace != os.stat("/proc/self/ns/pid").st_ino:
        return False
    found = stat(pid)
    return found is None or found.start != start or found.state in "ZX"


def end_descendants(worker: int, tag: str, since: int) -> list[int]:
    """Kill what a worker that has ended, but was not waited for, left behind: everything in its session, and
    everything that carries its tag. Blocking, for five seconds at most; returns what is alive after that.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker, signal.SIGKILL)
    # To look at an environment may take seconds while its process forks; other workers and theirs are passed over.
    others = STARTED - {worker}
    mark = f"{TAG}={tag}".encode()

    def is_left_behind(pid: int, one: Stat) -> bool | None:
        if one.session == worker:
            return True
        if one.session in others:
            return False
        environ = _environ(pid)
        if environ == [b""] and one.session and one.parent != _KERNEL:
            return None  # in the middle of an exec it has none, for a moment
        return mark in environ

    return _end_all(is_left_behind, worker, since)


def end_strays() -> None:
    """Kill what workers of engines that are gone have left behind. Blocking."""
    live: dict[str, bool] = {}

    def strays(pid: int, one: Stat) -> bool:
        for variable in _environ(pid):
            name, _, value = variable.partition(b"=")
            if name == TAG.encode():
                engine = value.decode("ascii", "replace").rpartition("-")[0]
                return live.setdefault(engine, is_dead(engine))
        return False

    _end_all(strays, 0, 0)


def descendants(pid: int) -> list[int]:
    """Pidfds of everything below a living process, without a walk through all of /proc; some thousands at most."""
    found: list[int] = []
    todo = [pid]
    while todo and len(found) < _DESCENDANTS:
        for child in children(todo.pop()):
            with contextlib.suppress(OSError):
                found.append(os.pidfd_open(child))
                todo.append(child)
    return found


def children(pid: int | str) -> list[int]:
    """Empty where the kernel does not list them."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


def _end_all(is_meant: Callable[[int, Stat], bool | None], but: int, since: int) -> list[int]:
    """Kill until there is none; returns those that are left when patience ends. ``is_meant``: None: look again."""
    began = time.monotonic()
    deadline = began + _PATIENCE
    while True:
        found: dict[int, int] = {}
        is_known = True
        for pid in [int(name) for name in os.listdir("/proc") if name.isdecimal()]:
            one = stat(pid)
            if one is None or one.state in "ZX" or one.start < since or pid in (but, os.getpid()):
                continue
            verdict = is_meant(pid, one)
            is_known = is_known and verdict is not None
            if verdict:
                with contextlib.suppress(OSError):
                    found[pid] = os.pidfd_open(pid)
                    again = stat(pid)
                    if again is not None and again.start == one.start:
                        signal.pidfd_send_signal(found[pid], signal.SIGKILL)
        for pid, fd in found.items():
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            os.close(fd)
            with contextlib.suppress(ChildProcessError):  # ours, if this process adopts orphans
                os.waitpid(pid, os.WNOHANG)
        now = time.monotonic()
        if (not found and (is_known or now > began + _EXEC)) or now > deadline:
            return sorted(found)
        if not found:
            time.sleep(_AGAIN)


def _environ(pid: int) -> list[bytes]:
    """With what it was started; empty of one that may not be looked at."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []
