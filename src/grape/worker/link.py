"""The worker's end of the socket to the engine. Its descriptor is a number like any other: a handler may close it."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

EXIT_LOST: Final = 71
"""Exit code of a worker whose socket was closed by somebody else. The engine says what it means."""


class LostSocket(OSError):
    """The descriptor was closed; what has its number now, if anything, is somebody else's."""


class EngineSocket(socket.socket):
    """Knows whether it is still what it was, before anything is sent to it, or read from it."""

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self._self = _identity(fileno)

    @property
    def is_lost(self) -> bool:
        number = self.fileno()
        try:
            return number < 0 or _identity(number) != self._self
        except OSError:
            return True

    def sendall(self, *arguments: Any) -> None:
        self._check()
        super().sendall(*arguments)

    def send(self, *arguments: Any) -> int:
        self._check()
        return super().send(*arguments)

    def recv(self, *arguments: Any) -> bytes:
        self._check()
        return super().recv(*arguments)

    def _check(self) -> None:
        """
        Raises:
            LostSocket: see there.
        """
        if self.is_lost:
            raise LostSocket("the socket to the engine was closed by somebody else")


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
