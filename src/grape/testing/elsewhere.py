"""Another storage in memory, for a machine in which nothing moves unless somebody says so."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable

from msgspec import structs

from grape.abc.blobs import MemoryBlobs
from grape.abc.elsewhere import Elsewhere
from grape.errors import GrapeError
from grape.model.objects import Stored


class MemoryElsewhere(Elsewhere):
    """Outlives the engines that ask it.

    Args:
        namespaces: that are there.
        blobs: where the bytes of large objects are.

    Attributes:
        objects: what is there, by namespace and key. pending: what was asked and has not happened.
        refuses: asked before anything happens: what goes wrong instead. ships_fail: the same of writes alone.
    """

    def __init__(self, namespaces: Iterable[str], blobs: MemoryBlobs) -> None:
        self.namespaces = frozenset(namespaces)
        self.objects: dict[tuple[str, str], tuple[Stored, bytes]] = {}
        self.pending: deque[Callable[[], None]] = deque()
        self.refuses: Callable[[str], GrapeError | None] = lambda key: None
        self.ships_fail: Callable[[str], GrapeError | None] = lambda key: None
        self.versions = 0
        self._blobs = blobs

    def step(self) -> None:
        """The oldest question is answered."""
        self.pending.popleft()()

    def kill(self, happening: int = 0) -> None:
        """Who has asked is gone; what the first ``happening`` questions are for still happens."""
        pending = list(self.pending)
        self.pending.clear()
        for each in pending[:happening]:
            each()
        self.pending.clear()  # what came of those

    def put(self, namespace: str, key: str, data: bytes) -> None:
        """By somebody else."""
        self._keep(namespace, key, Stored(0, len(data), hashlib.sha256(data).digest()), data)

    def _keep(self, namespace: str, key: str, stored: Stored, data: bytes) -> None:
        self.versions += 1
        there = structs.replace(stored, number=self.versions, version=str(self.versions), data=b"", blob=False)
        self.objects[namespace, key] = there, data

    def stat(self, namespace: str, key: str, then: Callable[[Stored | GrapeError | None], None]) -> None:
        def answer() -> None:
            found = self.objects.get((namespace, key))
            then(self.refuses(key) or (None if found is None else found[0]))

        self.pending.append(answer)

    def read(
        self,
        namespace: str,
        key: str,
        start: int,
        size: int,
        then: Callable[[tuple[Stored, bytes] | GrapeError | None], None],
    ) -> None:
        def answer() -> None:
            found = self.objects.get((namespace, key))
            then(self.refuses(key) or (None if found is None else (found[0], found[1][start : start + size])))

        self.pending.append(answer)

    def page(
        self,
        namespace: str,
        prefix: str,
        position: str,
        limit: int,
        then: Callable[[tuple[list[tuple[str, Stored]], str] | GrapeError], None],
    ) -> None:
        def answer() -> None:
            keys = sorted(k for n, k in self.objects if n == namespace and k.startswith(prefix) and k > position)
            items = [(key, self.objects[namespace, key][0]) for key in keys[:limit]]
            then(self.refuses(prefix) or (items, items[-1][0] if len(keys) > limit else ""))

        self.pending.append(answer)

    def ship(self, namespace: str, key: str, stored: Stored, then: Callable[[GrapeError | None], None]) -> None:
        def write() -> None:
            error = self.refuses(key) or self.ships_fail(key)
            if error is None and stored.is_there:
                data = self._blobs.blobs[stored.checksum] if stored.blob else stored.data
                self._keep(namespace, key, stored, data)
            elif error is None:
                self.objects.pop((namespace, key), None)
            then(error)

        self.pending.append(write)

    def close(self) -> None:
        self.pending.clear()
