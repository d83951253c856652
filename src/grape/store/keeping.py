"""Files beside the tree, of rows and of objects, go only while nobody keeps a moment of the directory (`Snapshot`).

    DIR/large/lock    held, shared, by whoever keeps one

Whoever keeps one has the lock first and looks then. A file goes after what named it has gone: either it is seen that
somebody keeps a moment, or that moment does not name it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from grape.store.files import make_directory

_PLACE: Final = "large"
LOCK: Final = "lock"


class Keepers:
    """Those of a data directory, as whoever removes files from it asks for them. Any thread."""

    def __init__(self, directory: Path) -> None:
        make_directory(directory / _PLACE)
        self._fd = os.open(directory / _PLACE / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(self._fd, 0o600)  # an odd umask takes the owner's rights as well

    @contextmanager
    def away(self) -> Iterator[bool]:
        """Whether there are none, nor somebody else who removes; then none comes before this is over. Never waits."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def keep(directory: Path) -> int | None:
    """No file goes until the descriptor that is returned is closed; None: nobody has opened the directory since there
    are such files.

    Raises:
        OSError: it cannot be had.
    """
    try:
        fd = os.open(directory / _PLACE / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    except BaseException:
        os.close(fd)
        raise
    return fd
