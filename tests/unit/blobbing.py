"""A process that stores large objects as an engine does: what a partition commits, rows of objects, files of bytes."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue
from random import Random
from threading import Barrier
from types import SimpleNamespace
from typing import Any

from grape.abc.transport import Callbacks, Commit, ObjectWrites
from grape.engine.clock import FakeClock
from grape.engine.objects import AppObjects
from grape.engine.pins import Pins
from grape.engine.surroundings import Surroundings
from grape.errors import GrapeError
from grape.model.address import PartitionId
from grape.model.objects import OBJECTS, REMOVED, ObjectWrite
from grape.store.blobs import THREADS, FileBlobs
from grape.store.store import Store
from grape.transports.embedded import EmbeddedTransport

P, HOME = PartitionId(1, 1, 0), PartitionId(1, 2, 0)
LOOK = 300_000_000


def content(n: int) -> bytes:
    """Of the n-th object; every third one is what another has been."""
    return Random(n // 3 if n % 3 == 0 else n).randbytes(200_000)


class Told(Exception):
    """The disk does not."""


class Process:
    """As an engine: what a partition commits, its objects, and the files of their bytes."""

    def __init__(self, directory: Path) -> None:
        self.posted: SimpleQueue[Any] = SimpleQueue()
        self.outcomes: list[str] = []
        self.failures: list[BaseException] = []
        self.claims: list[Any] = []
        self.store = Store(directory, self.posted.put)
        callbacks = Callbacks(
            lambda r: self.outcomes.extend(o for _, o in r),
            lambda a: None,
            self.failures.append,
            lambda claims: self.claims.extend(claim for _, claim in claims),
        )
        self.transport = EmbeddedTransport(self.store, callbacks)
        self.blobs = FileBlobs(directory, self.posted.put)
        self.clock = FakeClock(LOOK)
        self.app: Any = SimpleNamespace(
            pins=Pins(), objects=HOME, record=SimpleNamespace(logs={OBJECTS: 2}), elsewhere=frozenset()
        )
        around: Any = Surroundings(self.transport, None, self.clock, Random(1), None, blobs=self.blobs)  # type: ignore[arg-type]
        self.objects = AppObjects(self.app, around)
        self.transport.claim([P])
        self.claim = self.until(self.claims)
        self.objects.start()
        self.number = 0

    def until(self, found: list[Any]) -> Any:
        while not found:
            self.posted.get(timeout=30)()
            if self.failures:
                raise Told(str(self.failures[0])) from self.failures[0]
        return found.pop()

    def brought(self, data: bytes) -> tuple[bytes, int]:
        token = object()
        for part, last in ((data[:100_000], False), (data[100_000:], True)):
            found: list[Any] = []
            self.blobs.part(token, part, last, found.append)
            answer = self.until(found)
            if isinstance(answer, GrapeError):
                raise Told(str(answer)) from answer
        self.app.pins.bring(token, *answer)
        return answer  # type: ignore[no-any-return]

    def put(self, n: int) -> None:
        """Object n comes, the last but one goes; committed when it returns."""
        digest, size = self.brought(content(n))
        writes = [ObjectWrite("a", f"{n}", size, digest, n, blob=True)]
        if n > 2:
            writes.append(ObjectWrite("a", f"{n - 2}", REMOVED))
        self.number += 1
        objects = ObjectWrites(HOME, writes)
        self.transport.commit(Commit(P, self.claim.term, self.number, b"%d" % n, objects=objects))
        assert self.until(self.outcomes) == "committed"
        for token in list(self.app.pins._brought):
            self.app.pins.gone(token)

    def looks(self) -> None:
        """Two, after which nothing is left of what nobody has."""
        for _ in range(3):
            self.clock.advance_to(self.clock.now() + LOOK)
            self.objects.tick(self.clock.now())
            while self.turn():
                pass

    def turn(self) -> bool:
        """All that its threads have to do is done, and the engine knows; returns whether there may be more now."""
        done: list[Any] = []
        meeting = Barrier(THREADS)
        for _ in range(THREADS):  # each is free when all of them have come, whatever it was that took long
            self.blobs._do(meeting.wait, done.append)
        self.store.submit(lambda w, _: None, None, done.append)
        turns = 0
        while len(done) <= THREADS:
            self.posted.get(timeout=30)()
            turns += 1
            if self.failures:
                raise Told(str(self.failures[0])) from self.failures[0]
        return turns > len(done) or not self.posted.empty()

    def close(self) -> None:
        self.blobs.close()
        self.transport.close()


def main(directory: str, rounds: int) -> int:
    process: Process | None = None
    try:
        process = Process(Path(directory))
        first = int(process.claim.head or b"0")
        print("claimed", first, flush=True)
        for n in range(first + 1, first + rounds + 1):
            process.put(n)
            print("committed", n, flush=True)
            process.looks()
    except (Told, GrapeError) as e:
        print("failed", e, flush=True)
        return 3
    finally:
        if process is not None:
            process.close()
    print("closed", flush=True)
    return 0
