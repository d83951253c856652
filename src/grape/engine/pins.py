"""Bytes of large objects that somebody is about to use, so that they must not go although no object has them yet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_MOST: Final = 1_000
"""Of one worker: what it has brought and not used."""


class Pins:
    """How often each is held, and how large it is.

    Attributes:
        loose: what was held and is not any more, so that it may be that nobody has it.
    """

    def __init__(self) -> None:
        self._held: dict[bytes, int] = {}
        self._sizes: dict[bytes, int] = {}
        self._brought: dict[object, list[bytes]] = {}
        self.loose: set[bytes] = set()

    def size_of(self, digest: bytes) -> int | None:
        """None: nobody holds it."""
        return self._sizes.get(digest)

    def hold(self, digest: bytes, size: int) -> None:
        self._held[digest] = self._held.get(digest, 0) + 1
        self._sizes[digest] = size

    def let_go(self, digest: bytes) -> None:
        left = self._held.get(digest, 0) - 1
        if left > 0:
            self._held[digest] = left
        else:
            self._held.pop(digest, None)
            self._sizes.pop(digest, None)
            self.loose.add(digest)

    def bring(self, who: object, digest: bytes, size: int) -> None:
        """A worker has brought it, and will name it."""
        self.hold(digest, size)
        brought = self._brought.setdefault(who, [])
        brought.append(digest)
        if len(brought) > _MOST:
            self.let_go(brought.pop(0))

    def brought_by(self, who: object) -> list[bytes]:
        return list(self._brought.get(who, ()))

    def unused(self, who: object, digests: Iterable[bytes]) -> None:
        """It will not name these any more."""
        brought = self._brought.get(who, [])
        for digest in digests:
            if digest in brought:
                brought.remove(digest)
                self.let_go(digest)

    def gone(self, who: object) -> None:
        """It will name nothing any more."""
        for digest in self._brought.pop(who, ()):
            self.let_go(digest)
