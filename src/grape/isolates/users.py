"""Users for workers: one each, that nobody else on this host is, and no two workers have the same at one time.

Two processes of one user may signal each other, and share the limits of that user. So a user is taken for as long as a
worker lives, from all engines of the host: by a lock on one byte of a file that only root may open. The kernel gives it
back when the engine ends, however that comes. Users are given out in turn, so that one is not used again for long, and
one who has processes already is passed over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Final

from grape.errors import Unsupported

RANGES: Final = ((0x70000000, 1 << 20), (61_184, 4_000))
"""First, and how many: one that neither people nor containers have (systemd.io/UIDS-GIDS); and, where the engine is
root of a container that has but 65,536 users, one that only services have which come and go."""
PLACES: Final = ("/run", "/tmp")
_FILE: Final = "grape/users"
_COUNTER: Final = 1 << 40
"""Locked while the next one is found: far behind all bytes that stand for users."""
_FLOCK: Final = struct.Struct("@hhqqi4x")


class Users:
    """Those of one pool. ``first``: number of the first one there can be.

    Raises:
        Unsupported: there is no place for the file, or not that many users.
    """

    def __init__(self, first: int, count: int) -> None:
        self._first = first
        self._count = count
        self._taken: set[int] = set()
        self._fd = _open()

    def take(self) -> int:
        """One that no worker has.

        Raises:
            OSError: all are taken.
        """
        _lock(self._fd, fcntl.F_WRLCK, _COUNTER, wait=True)
        try:
            busy = _users_of_processes()
            start = int.from_bytes(os.pread(self._fd, 8, 0), "little")
            for step in range(self._count):
                number = (start + step) % self._count
                if self._first + number not in busy and self._lock_one(number):
                    os.pwrite(self._fd, (number + 1).to_bytes(8, "little"), 0)
                    return self._first + number
        finally:
            _lock(self._fd, fcntl.F_UNLCK, _COUNTER)
        raise OSError(errno.EAGAIN, f"all {self._count} users that workers may be are taken")

    def _lock_one(self, number: int) -> bool:
        # What one description has locked already it may lock again.
        if number in self._taken or not _lock(self._fd, fcntl.F_WRLCK, self._first + number):
            return False
        self._taken.add(number)
        return True

    def give_back(self, uid: int) -> None:
        """Nothing of it runs any more."""
        if self._fd != -1 and uid - self._first in self._taken:
            self._taken.remove(uid - self._first)
            _lock(self._fd, fcntl.F_UNLCK, uid)

    def close(self) -> None:
        os.close(self._fd)
        self._fd = -1


def find() -> tuple[int, int] | None:
    """The users that workers may be, as many as this user namespace has; None: too few."""
    for first, count in RANGES:
        if has(first) and has(first + count - 1):
            return first, count
    return None


def has(number: int) -> bool:
    """Whether there is such a user and group here."""
    return all(_is_mapped(number, f"/proc/self/{kind}_map") for kind in ("uid", "gid"))


def _is_mapped(number: int, path: str) -> bool:
    """Whether a user or group exists in this process's user namespace."""
    ranges = [list(map(int, line.split())) for line in Path(path).read_text().splitlines()]
    return any(first <= number < first + count for first, _, count in ranges)


def _open() -> int:
    """The file, in a directory that nobody but this user may enter."""
    said = []
    for place in PLACES:
        path = os.path.join(place, _FILE)
        folder = os.path.dirname(path)
        try:
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                found = os.lstat(folder)
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                    raise PermissionError(errno.EPERM, "somebody else has made or may write to it", folder) from None
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as e:
            said.append(f"{folder}: {e.strerror}")
    raise Unsupported(f"there is no place to write down which users workers are: {', '.join(said)}")


def _lock(fd: int, kind: int, byte: int, *, wait: bool = False) -> bool:
    """One byte, for whoever has this open file: not for the process, in which other pools are. False: it is taken."""
    request = _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _users_of_processes() -> set[int]:
    """Everybody who has a process that is to be seen from here."""
    found = set()
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                try:
                    found.add(entry.stat().st_uid)
                except OSError:  # it has ended
                    continue
    return found
