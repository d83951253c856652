"""What all that read bytes share: positions, their hash, descriptors that others may close."""

from __future__ import annotations

import os
import threading
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

BLOCK: Final = 1 << 20
TAIL: Final = 4096
"""Bytes before a position whose hash it carries."""

pack: Final = msgspec.msgpack.Encoder().encode


class Position(Struct, frozen=True, array_like=True):
    """Where a file was read up to: bytes, lines, whether the last line had no end then, a hash of what is before it.
    ``inode``: which file it was, if it is one of several (0: there is but one)."""

    offset: int = 0
    line: int = 0
    inside: bool = False
    tail: bytes = b""
    inode: int = 0


unpack_position: Final = msgspec.msgpack.Decoder(Position).decode


def hash_of(tail: bytes) -> bytes:
    """The hash that positions carry: blake2b, 128 bits."""
    return blake2b(tail, digest_size=16).digest()


def fill(fd: int, start: int, size: int) -> bytes:
    """``size`` bytes, less only at the end of the file."""
    block = os.pread(fd, size, start)
    while block and len(block) < size:
        more = os.pread(fd, size - len(block), start + len(block))
        if not more:
            break
        block += more
    return block


class Descriptor:
    """A file descriptor that one thread uses and any other may close: closed when nobody uses it any more, since its
    number could be another file's by then."""

    def __init__(self, *fds: int) -> None:
        self._fds = fds
        self._lock = threading.RLock()
        self._used = False
        self._closed = False

    def is_closed(self) -> bool:
        return self._closed

    def __enter__(self) -> bool:
        with self._lock:
            self._used = not self._closed
            return self._used

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._used:
                self._used = False
                if self._closed:
                    self._close()

    def close(self, wake: int | None = None) -> None:
        """Close it now, or as soon as it is not used any more. ``wake``: a descriptor to write to if it is used."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if not self._used:
                self._close()
            elif wake is not None:
                os.write(wake, b"x")

    def _close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def shown_path(path: Path) -> str:
    """A path as text that can be stored, whatever bytes it has."""
    return os.fsencode(path).decode(errors="backslashreplace")
