"""A data directory that several parts of one process read: LMDB lets a process open it once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from grape.tools.directory import Directory

T = TypeVar("T")

_lock: Final = threading.Lock()
_open: Final[dict[str, Shared]] = {}


class Shared:
    """One directory. From any thread; reads come one after the other, and are short."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._users = 0
        self._directory: Directory | None = None

    def look(self, do: Callable[[Directory], T]) -> T:
        """What ``do`` finds.

        Raises:
            UsageError, Corrupt, StorageFailed: as `Directory.open`, and as ``do``.
        """
        with self.opened() as directory:
            return do(directory)

    @contextmanager
    def opened(self) -> Iterator[Directory]:
        """The same for as long as the block takes."""
        with self._lock:
            if self._directory is None:
                self._directory = Directory.open(self._path)
            yield self._directory

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody here reads it meanwhile, so that it can be opened to be written."""
        with self._lock:
            self._close()
            yield

    def _close(self) -> None:
        if self._directory is not None:
            directory, self._directory = self._directory, None
            directory.reader.close()

    def enter(self) -> None:
        self._users += 1

    def leave(self) -> bool:
        """Whether nobody has it any more."""
        self._users -= 1
        if not self._users:
            with self._lock:
                self._close()
        return not self._users


def share(path: Path) -> Shared:
    """It belongs to whoever asks until he gives it back."""
    name = os.path.realpath(path)
    with _lock:
        shared = _open.get(name)
        if shared is None:
            shared = _open[name] = Shared(name)
        shared.enter()
        return shared


def give_back(shared: Shared) -> None:
    with _lock:
        for name, each in tuple(_open.items()):
            if each is shared and shared.leave():
                del _open[name]
