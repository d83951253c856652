"""What a jail shows of the host: the runtime and the app, read-only, at their own paths.

Nothing is shown but what is needed: /usr, the Python that runs the engine, Grape itself (not the project around it),
the app's directory and what else was asked for. Symbolic links on the way to them are made anew, so that every path
that leads there on the host leads there in the jail. /etc holds some lines that programs ask for.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct

from grape.abc.isolate import Command

GRAPE: Final = str(Path(__file__).parents[1])
PYTHON: Final = os.path.realpath(getattr(sys, "_base_executable", sys.executable))

UID: Final = 1000
HOSTNAME: Final = "grape"
TEMP: Final = "/tmp/worker"
"""TMPDIR and HOME of a worker: not /tmp itself, where what the jail shows may be as well."""

DEVICES: Final = ("null", "zero", "full", "random", "urandom")
"""Of /dev; no terminals and no pseudo-terminals: they are a large piece of kernel, and there is nobody to talk to."""

DEVICE_LINKS: Final = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}

ETC: Final = {
    "hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}

_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_OF_ETC: Final = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_PRIVATE: Final = ("/boot", "/dev", "/proc", "/run", "/sys", "/var/run")
_NOBODY: Final = 65534
_TOP: Final = frozenset({"/", "/etc", "/home", "/mnt", "/opt", "/srv", "/tmp", "/var", "/var/tmp"})


class View(Struct, frozen=True):
    """``paths``: real paths, none within another one, shown where they are. ``links``: path and target of symbolic
    links. ``program``: the executable of the command, an absolute path."""

    paths: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    program: str


def view(command: Command, readable: Iterable[str] = (), *, runtime: bool = True, system: bool = True) -> View:
    """
    Args:
        runtime: show the engine's Python and Grape.
        system: show /usr and what belongs to it.

    Raises:
        FileNotFoundError: what is to be shown does not exist.
        PermissionError: it is more than an app's directory.
    """
    optional: list[str] = []
    if system:
        optional += [*_SYSTEM, *_OF_ETC]
    if runtime:
        optional += [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, PYTHON, GRAPE]
    wanted = [path for path in optional if os.path.lexists(path)]
    for path in (command.directory, *command.readable, *readable):
        check(path)
        wanted.append(path)
    program = find_program(command) if system else command.argv[0]
    if system:
        wanted.append(program)
    links: dict[str, str] = {}
    paths = outermost(_walk(os.path.abspath(path), links) for path in wanted)
    return View(
        tuple(paths),
        tuple((path, target) for path, target in links.items() if not is_within(path, paths)),
        program,
    )


def passwd(uid: int) -> dict[str, str]:
    """The files of /etc that say who the worker is."""
    return {
        "passwd": f"grape:x:{uid}:{uid}::{TEMP}:/bin/sh\n",
        "group": f"grape:x:{uid}:\n",
    }


def find_program(command: Command) -> str:
    """The executable, as `execvp` would find it from the app's directory.

    Raises:
        FileNotFoundError: there is none.
    """
    name = command.argv[0]
    found = shutil.which(name, path=command.env.get("PATH", os.environ.get("PATH", os.defpath)))
    if found is None and os.path.dirname(name):
        found = shutil.which(os.path.join(command.directory, name))
    if found is None:
        raise FileNotFoundError(2, "no such program, or it is not executable", name)
    return os.path.abspath(found)


def check(path: str) -> None:
    """
    Raises:
        FileNotFoundError: it does not exist.
        PermissionError: to show it would show what belongs to the host or to a user, not to an app.
    """
    real = os.path.realpath(path, strict=True)
    homes = [
        os.path.realpath(user.pw_dir) for user in pwd.getpwall() if user.pw_uid == 0 or 1000 <= user.pw_uid < _NOBODY
    ]
    if real in _TOP or any(is_within(home, [real]) for home in homes) or is_within(real, _PRIVATE):
        raise PermissionError(
            13,
            "this directory is more than an app's own: everything in it could be read by code that is not trusted; "
            "put the app, and what it reads, into a directory of its own",
            path,
        )


def is_within(path: str, tops: Iterable[str]) -> bool:
    """Whether ``path`` is one of them or below one."""
    return any(path == top or path.startswith(top.rstrip("/") + "/") for top in tops)


def outermost(paths: Iterable[str]) -> list[str]:
    """Without those that are below others: a mount point is never made in what somebody else may have written to."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not is_within(path, found):
            found.append(path)
    return found


def is_open_to(path: str, uid: int, gid: int) -> bool:
    """Whether the mode bits of ``path`` and of the directories above let a user in; not what access lists add."""
    return can_reach(path, uid, gid) and is_readable_by(path, uid, gid)


def can_reach(path: str, uid: int, gid: int) -> bool:
    """The same of the directories above alone."""
    return all(is_readable_by(str(above), uid, gid, enter_only=True) for above in Path(path).parents)


def is_readable_by(path: str, uid: int, gid: int, enter_only: bool = False) -> bool:
    """The same of ``path`` alone: read it, and enter it if it is a directory."""
    status = os.stat(path)
    shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
    need = 1 if enter_only else 5 if stat.S_ISDIR(status.st_mode) else 4
    return status.st_mode >> shift & need == need


def _walk(path: str, links: dict[str, str], depth: int = 40) -> str:
    """The real path; the symbolic links on the way, with their targets, are added to ``links``."""
    done = "/"
    todo = path.split("/")[::-1]
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            done = os.path.dirname(done)
            continue
        here = os.path.join(done, name)
        if os.path.islink(here):
            target = os.readlink(here)
            links[here] = target
            depth -= 1
            if depth < 0:
                raise OSError(40, "too many symbolic links", path)
            todo += target.split("/")[::-1]
            done = "/" if target.startswith("/") else done
        else:
            done = here
    return done
