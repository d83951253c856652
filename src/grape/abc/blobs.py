"""Bytes of large objects: each lies once, under its digest, until nobody has it any more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from hashlib import sha256

from grape.errors import Corrupt, GrapeError


class Blobs(ABC):
    """All methods are called on the engine's thread, and never block; what they are given to call is called there,
    later or at once. What went wrong comes in the place of an answer."""

    @abstractmethod
    def part(
        self, token: Hashable, data: bytes, last: bool, then: Callable[[tuple[bytes, int] | GrapeError | None], None]
    ) -> None:
        """The next bytes of what ``token`` stands for. ``then`` gets None, or with the last one SHA-256 and size of all
        of it, which is durable then. Parts of one token come one after the other."""

    @abstractmethod
    def forget(self, token: Hashable) -> None:
        """No more of it comes: what has come is gone."""

    @abstractmethod
    def read(self, digest: bytes, start: int, size: int, then: Callable[[bytes | GrapeError], None]) -> None:
        """At most ``size`` bytes from ``start`` on. Corrupt: it is not there."""

    @abstractmethod
    def sizes(self, digests: Sequence[bytes], then: Callable[[Sequence[int | None]], None]) -> None:
        """Bytes of each; None: it is not there. Nothing that is to be removed is found any more."""

    @abstractmethod
    def remove(self, digests: Sequence[bytes]) -> Sequence[bytes]:
        """Nobody has these any more; what is not there is gone already. Returns those that stay, as somebody keeps a
        moment (a backup) that may need them, or has just brought them; ask again, if nobody has them then."""

    @abstractmethod
    def all(self, then: Callable[[Sequence[bytes]], None]) -> None:
        """The digests of all that lie there."""

    @abstractmethod
    def close(self) -> None:
        """Nothing is called any more."""


class MemoryBlobs(Blobs):
    """In memory, at once."""

    def __init__(self) -> None:
        self.blobs: dict[bytes, bytes] = {}
        self._coming: dict[Hashable, bytearray] = {}

    def part(
        self, token: Hashable, data: bytes, last: bool, then: Callable[[tuple[bytes, int] | GrapeError | None], None]
    ) -> None:
        buffer = self._coming.setdefault(token, bytearray())
        buffer += data
        if not last:
            then(None)
            return
        whole = bytes(self._coming.pop(token))
        digest = sha256(whole).digest()
        self.blobs[digest] = whole
        then((digest, len(whole)))

    def forget(self, token: Hashable) -> None:
        self._coming.pop(token, None)

    def read(self, digest: bytes, start: int, size: int, then: Callable[[bytes | GrapeError], None]) -> None:
        found = self.blobs.get(digest)
        then(Corrupt(f"the bytes {digest.hex()} are not there") if found is None else found[start : start + size])

    def sizes(self, digests: Sequence[bytes], then: Callable[[Sequence[int | None]], None]) -> None:
        then([len(self.blobs[digest]) if digest in self.blobs else None for digest in digests])

    def remove(self, digests: Sequence[bytes]) -> Sequence[bytes]:
        for digest in digests:
            self.blobs.pop(digest, None)
        return ()

    def all(self, then: Callable[[Sequence[bytes]], None]) -> None:
        then(list(self.blobs))

    def close(self) -> None:
        pass
