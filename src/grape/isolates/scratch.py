"""Temporary directories of workers, and their removal: whatever a worker left there, nothing outside is touched."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import tempfile
import threading
import time
from collections import deque
from typing import Final

_PREFIX: Final = "grape-workers-"
_AT_ONCE: Final = 1.0
_CHUNK: Final = 1000


class Scratch:
    """One directory per worker, below one of this engine's own that is locked while the engine lives.

    What an engine that was killed left behind is removed by the next one. Removing goes on in a thread when it takes
    longer than a second: a million files must not keep other workers waiting.
    """

    def __init__(self) -> None:
        base = tempfile.gettempdir()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._old = _abandoned(base)
        while True:
            self._path = os.path.join(base, f"{_PREFIX}{secrets.token_hex(8)}")
            os.mkdir(self._path, 0o700)
            with contextlib.suppress(OSError):  # another engine that starts takes it for abandoned
                fd = _lock(self._path)
                os.fchmod(fd, 0o711)
                break
        self._trash = _Trash(self._path, fd)
        self._clean()

    def make(self, worker: str, uid: int, gid: int) -> str:
        """A new directory that only ``uid`` may enter (-1: the caller)."""
        name = f"{re.sub('[^A-Za-z0-9._-]', '_', worker)}-{secrets.token_hex(4)}"
        os.mkdir(name, 0o700, dir_fd=self._trash.top)
        if uid != -1 or gid != -1:
            os.chown(name, uid, gid, dir_fd=self._trash.top, follow_symlinks=False)
        return os.path.join(self._path, name)

    def remove(self, path: str) -> None:
        """Remove a directory that `make` returned: at once, or in the background when it holds very much."""
        self._trash.take(os.path.basename(path))
        self._clean()

    def close(self) -> str:
        """Remove everything. Returns what could not be removed and why, or ""."""
        self._trash.take_all()
        self._empty(None)
        return "; ".join(self._trash.close())

    def _clean(self) -> None:
        done = self._empty(time.monotonic() + _AT_ONCE)
        if not done and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._empty, args=(None,), name="grape-scratch", daemon=True)
            self._thread.start()

    def _empty(self, deadline: float | None) -> bool:
        if not self._lock.acquire(blocking=deadline is None):
            return False  # the thread is at it
        try:
            while self._old:
                if not self._old[0].empty(deadline):
                    return False
                self._old.pop(0).close()
            return self._trash.empty(deadline)
        finally:
            self._lock.release()


class _Trash:
    """What is to be removed from a directory that only we may write to.

    A directory is moved to its top first and opened then, relative to descriptors and never through a symbolic link.
    So nothing is deeper than one level, and what cannot be moved, a mount point, is never entered.
    """

    def __init__(self, path: str, top: int) -> None:
        self.top = top
        self._path = path
        self._names: deque[str] = deque()
        self._troubles: list[str] = []

    def take(self, name: str) -> None:
        self._take(self.top, name)

    def take_all(self) -> None:
        for name in os.listdir(self.top):
            if name not in self._names:
                self._take(self.top, name)

    def empty(self, deadline: float | None) -> bool:
        """Remove what was taken. False: there was no time to."""
        while self._names:
            if deadline is not None and time.monotonic() > deadline:
                return False
            if self._thin_out(self._names[0]):
                self._names.popleft()
        return True

    def close(self) -> list[str]:
        """Remove the directory itself. Returns everything that went wrong, up to some lines."""
        try:
            os.rmdir(self._path)
        except OSError as e:
            self._troubles.append(str(e))
        os.close(self.top)
        return self._troubles

    def _thin_out(self, name: str) -> bool:
        """Remove some of a directory's entries. True: it is gone, or never will be."""
        removed = 0
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.top)
        except NotADirectoryError:
            self._unlink(self.top, name)
            return True
        except OSError as e:
            return self._give_up(name, e)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    is_directory = entry.is_dir(follow_symlinks=False)
                    removed += (self._take if is_directory else self._unlink)(fd, entry.name)
                    if removed == _CHUNK:
                        return False
            os.rmdir(name, dir_fd=self.top)
        except OSError as e:
            if e.errno == errno.ENOTEMPTY and removed:
                return False  # removing while listing may have passed over some
            return self._give_up(name, e)
        finally:
            os.close(fd)
        return True

    def _take(self, fd: int, name: str) -> bool:
        taken = f".{secrets.token_hex(8)}"
        try:
            try:
                os.rename(name, taken, src_dir_fd=fd, dst_dir_fd=self.top)
            except PermissionError:  # a directory that its owner may not write to
                _open_up(fd, name)
                os.rename(name, taken, src_dir_fd=fd, dst_dir_fd=self.top)
            _open_up(self.top, taken)
        except OSError as e:
            self._give_up(name, e)
            return False
        self._names.append(taken)
        return True

    def _unlink(self, fd: int, name: str) -> bool:
        try:
            os.unlink(name, dir_fd=fd)
        except OSError as e:
            self._give_up(name, e)
            return False
        return True

    def _give_up(self, name: str, error: OSError) -> bool:
        if error.errno != errno.ENOENT and len(self._troubles) < 3:
            self._troubles.append(f"{self._path}: {name}: {error.strerror}")
        return True


def _open_up(parent: int, name: str) -> None:
    """Let the owner read, write and enter a directory; what is not a directory is left as it is."""
    with contextlib.suppress(OSError):
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        finally:
            os.close(fd)


def _lock(path: str) -> int:
    """
    Raises:
        OSError: somebody has it, or it is not there any more.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), os.lstat(path)):
            raise FileNotFoundError(errno.ENOENT, "moved away", path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _abandoned(base: str) -> list[_Trash]:
    """Directories of engines that are gone, locked."""
    found = []
    for name in os.listdir(base):
        if name.startswith(_PREFIX):
            path = os.path.join(base, name)
            with contextlib.suppress(OSError):
                if os.lstat(path).st_uid == os.geteuid():
                    trash = _Trash(path, _lock(path))
                    trash.take_all()
                    found.append(trash)
    return found
