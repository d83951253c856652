"""Which files have come or changed: pure, told what is there now.

What was seen is the position of the driver's stream: of each file 8 bytes of a digest of its path, and 8 of one of its
size and time. A file that goes is remembered for a while: one that comes back as it was, as when a disk was away, is no
new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, Literal

import msgspec
from msgspec import Struct

MOST: Final = 10_000
"""Files of one driver."""
_KEPT: Final = 2 * MOST
"""That are remembered."""
_STEP: Final = 1_000


class SeenAt(Struct, frozen=True, array_like=True, tag="files"):
    """A position. ``where``: path and pattern. ``seen``: 16 bytes a file, the longest unchanged first.
    ``fired``: when the last event was made, milliseconds since 1970."""

    where: str
    seen: bytes
    fired: int = 0


class File(Struct, frozen=True):
    """One that is to be told of. ``mtime``: nanoseconds."""

    path: str
    size: int
    mtime: int
    change: Literal["created", "changed"]


class Watching:
    """
    Args:
        where: says the same of two that watch the same. settle: seconds for which a file must not change.

    Attributes:
        fired: when there was something last, milliseconds; 0: never.
        is_begun: something is stored of what this watches, if only that nothing was there.
    """

    def __init__(self, where: str, settle: float) -> None:
        self.fired = 0
        self.is_begun = False
        self._where = where
        self._settle = settle
        self._seen: dict[bytes, bytes] = {}
        self._unsettled: dict[str, tuple[bytes, float]] = {}

    def begin(self, position: bytes) -> None:
        """Go on from what is stored. What another path or pattern has seen is nothing to this one."""
        try:
            stored = msgspec.msgpack.decode(position, type=SeenAt)
        except msgspec.MsgspecError:  # there is none, or it was of another kind
            stored = SeenAt("", b"")
        self.fired = stored.fired
        self.is_begun = stored.where == self._where
        seen = stored.seen if self.is_begun else b""
        self._seen = {seen[i : i + 8]: seen[i + 8 : i + 16] for i in range(0, len(seen), 16)}

    def all(self, found: Mapping[str, tuple[int, int]]) -> list[File]:
        """Them all, as of now."""
        return [File(path, size, mtime, "created") for path, (size, mtime) in sorted(found.items())]

    def look(self, found: Mapping[str, tuple[int, int]], now: float) -> list[File]:
        """What is to be told of.

        Args:
            found: size and time of each file. now: seconds of a clock that nobody sets.
        """
        changes: list[File] = []
        unsettled: dict[str, tuple[bytes, float]] = {}
        for path, (size, mtime) in sorted(found.items(), key=lambda each: (each[1][1], each[0])):
            known, mark = self._seen.get(_digest(path.encode(errors="surrogateescape"))), _mark(size, mtime)
            if known == mark:
                continue
            before, since = self._unsettled.get(path, (b"", now))
            since = since if before == mark else now
            if now - since < self._settle:
                unsettled[path] = mark, since
            elif len(changes) < _STEP:
                changes.append(File(path, size, mtime, "created" if known is None else "changed"))
                unsettled[path] = mark, since  # until it is stored
            else:
                unsettled[path] = mark, since
        self._unsettled = unsettled
        return changes

    def position(self, files: list[File], found: Mapping[str, tuple[int, int]], now: int) -> bytes:
        """What is stored with them. ``now``: milliseconds since 1970."""
        seen = self._with(files)
        if len(seen) > _KEPT:
            here = {_digest(path.encode(errors="surrogateescape")) for path in found}
            gone = [digest for digest in seen if digest not in here]
            for digest in gone[: len(seen) - _KEPT]:
                del seen[digest]
        return msgspec.msgpack.encode(SeenAt(self._where, b"".join(key + mark for key, mark in seen.items()), now))

    def took(self, files: list[File], position: bytes) -> None:
        """They and that are stored."""
        self.begin(position)
        for file in files:
            self._unsettled.pop(file.path, None)

    def _with(self, files: list[File]) -> dict[bytes, bytes]:
        seen = dict(self._seen)
        for file in files:
            digest = _digest(file.path.encode(errors="surrogateescape"))
            seen.pop(digest, None)
            seen[digest] = _mark(file.size, file.mtime)
        return seen


def _mark(size: int, mtime: int) -> bytes:
    return _digest(b"%d %d" % (size, mtime))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()
