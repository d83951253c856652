"""Storages beside an engine that do not answer: nothing waits without a word, and no version comes out of order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from grape.abc.storage import About, Place, Put
from grape.errors import GrapeError, StorageFailed
from grape.model.bound import Bound
from grape.model.objects import Stored
from grape.storage import beside
from grape.storage.beside import StorageThread
from grape.storage.memory import MemoryConfig, MemoryStorage
from grape.storage.streams import collected
from grape.store.blobs import path_of


class Hanging(MemoryStorage):
    """Each write waits until it is let go, in a thread of its own, as those of files do."""

    def __init__(self) -> None:
        super().__init__(MemoryConfig())
        self.begun: Queue[threading.Event] = Queue()
        self.written: list[bytes] = []
        self.slowly = 0.0

    async def write(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        if self.slowly:
            async for _ in chunks:
                await asyncio.sleep(self.slowly)
            self.written.append(b"slowly")
            return About(place.key, put.size or 0, "1")
        data = await collected(chunks)
        gate = threading.Event()
        self.begun.put(gate)

        def write() -> None:
            gate.wait(30)
            self.written.append(data)

        await asyncio.get_running_loop().run_in_executor(None, write)
        return About(place.key, len(data), "1")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[StorageThread, Hanging, Queue[Any]]]:
    storage, posted = Hanging(), Queue[Any]()
    monkeypatch.setattr(beside, "storage_of", lambda url: storage)
    monkeypatch.setattr(beside, "_PATIENCE", 0.3)
    with closing(StorageThread({"n": Bound("memory://", "n")}, tmp_path, posted.put)) as thread:
        yield thread, storage, posted
        while not storage.begun.empty():
            storage.begun.get().set()


def version(data: bytes) -> Stored:
    return Stored(1, len(data), sha256(data).digest(), data=data)


def answer(posted: Queue[Any]) -> None:
    posted.get(timeout=20)()


def test_a_write_that_hangs_is_told_of_and_the_next_version_waits_for_its_end(there: Any) -> None:
    thread, storage, posted = there
    told: list[GrapeError | None] = []
    thread.ship("n", "k", version(b"one"), told.append)
    first = storage.begun.get(timeout=20)
    answer(posted)
    assert isinstance(told[0], StorageFailed)
    assert "has not gone on for 0.3 s" in str(told[0])
    assert "see whether the storage hangs" in str(told[0]).lower()
    thread.ship("n", "k", version(b"two"), told.append)  # tried again: it has not begun
    answer(posted)
    assert isinstance(told[1], StorageFailed)
    assert storage.begun.empty()
    thread.ship("n", "other", version(b"other"), told.append)  # others go
    storage.begun.get(timeout=20).set()
    answer(posted)
    assert told[2] is None
    thread.ship("n", "k", version(b"two"), told.append)
    first.set()
    storage.begun.get(timeout=20).set()
    answer(posted)
    assert told[3] is None
    assert storage.written == [b"other", b"one", b"two"]


def test_what_is_slow_and_goes_on_is_not_given_up(there: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thread, storage, posted = there
    monkeypatch.setattr(beside, "_PATIENCE", 1.0)
    storage.slowly = 0.2
    data = bytes(8 << 20)
    digest = sha256(data).digest()
    path_of(tmp_path, digest).parent.mkdir(parents=True)
    path_of(tmp_path, digest).write_bytes(data)
    told: list[GrapeError | None] = []
    thread.ship("n", "k", Stored(1, len(data), digest, blob=True), told.append)
    answer(posted)
    assert told == [None]
    assert storage.written == [b"slowly"]


def test_a_question_is_answered_at_once_where_handlers_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "storage_of", lambda url: MemoryStorage(MemoryConfig()))
    posted: Queue[Any] = Queue()
    with closing(StorageThread({"n": Bound("memory://", "n")}, tmp_path, posted.put, at_once=True)) as thread:
        told: list[Any] = []
        thread.ship("n", "k", version(b"one"), told.append)
        answer(posted)
        thread.read("n", "k", 0, 10, told.append)
        thread.stat("n", "none", told.append)
        assert told[1][1] == b"one"
        assert told == [None, told[1], None]
