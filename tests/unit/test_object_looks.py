"""What an engine does about bytes that nobody has: a step at a time, and nothing while somebody keeps a moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from grape.engine import objects as engine_objects
from grape.model.objects import encode
from grape.store.blobs import path_of
from grape.store.keeping import keep
from unit.blobbing import HOME, LOOK, Process, content


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    yield made
    made.close()


@contextmanager
def kept(directory: Path) -> Iterator[None]:
    """As by a `Snapshot`, which is another process's."""
    fd = keep(directory)
    assert fd is not None
    yield
    os.close(fd)


def digest(n: int) -> bytes:
    return sha256(b"%d" % n).digest()


def test_millions_of_them_are_looked_at_a_step_at_a_time(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tick takes long, and all of them are reached."""
    monkeypatch.setattr(engine_objects, "_STEP", 100)
    process.looks()
    rows = [(digest(n), encode(n % 2)) for n in range(4_000)]
    done: list[Any] = []
    process.store.submit(lambda w, _: w.put(HOME, "blob", rows), None, lambda _: done.append(True))
    process.until(done)
    asked: list[int] = []
    scan, get, drop = process.transport.scan, process.transport.get, process.transport.drop_blobs

    def counted(home: Any, table: Any, after: bytes, limit: int, before: bytes | None = None) -> Any:
        if table == "blob":
            asked.append(limit)
        return scan(home, table, after, limit, before)

    def got(home: Any, table: Any, keys: Any) -> Any:
        asked.append(len(keys))
        return get(home, table, keys)

    def dropped(home: Any, digests: Any, then: Any) -> None:
        asked.append(len(digests))
        drop(home, digests, then)

    monkeypatch.setattr(process.transport, "scan", counted)
    monkeypatch.setattr(process.transport, "get", got)
    monkeypatch.setattr(process.transport, "drop_blobs", dropped)

    def left() -> int:
        return len(scan(HOME, "blob", b"", 10_000))

    for expected in (4_000, 2_000):  # at the first look they are seen
        process.clock.advance_to(process.clock.now() + LOOK)
        ticks = 0
        at: int | None = process.clock.now()
        while at is not None:
            assert at - process.clock.now() < 10_000
            process.clock.advance_to(at)
            before = len(asked)
            at = process.objects.tick(process.clock.now())
            assert len(asked) - before <= 3
            ticks += 1
            while process.turn():
                pass
        assert 39 <= ticks <= 41
        assert left() == expected
    assert max(asked) == 100


def test_files_of_a_directory_that_nobody_has_go_after_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_objects, "_STEP", 10)
    with closing(Process(tmp_path)) as process:
        process.put(1)
    for n in range(95):
        path = path_of(tmp_path, digest(n))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d" % n)
    with closing(Process(tmp_path)) as process:
        ticks = 0
        while len(list((tmp_path / "blobs").glob("??/*"))) > 1:
            process.turn()
            process.objects.tick(process.clock.now())
            ticks += 1
            assert ticks < 100
        assert ticks >= 10
    assert path_of(tmp_path, sha256(content(1)).digest()).exists()


def test_while_a_moment_is_kept_nothing_goes(process: Process, tmp_path: Path) -> None:
    """F95: a backup takes as long as it takes; what it has seen is there until it is over, and then it goes."""
    for n in (1, 2):
        process.put(n)
    first, second = (path_of(tmp_path, sha256(content(n)).digest()) for n in (1, 2))
    with kept(tmp_path):
        process.put(3)
        process.put(4)  # 1 and 2 are removed
        for _ in range(3):
            process.looks()
        assert first.read_bytes() == content(1)
        assert second.read_bytes() == content(2)
        process.put(5)
        process.put(6)
        process.looks()
    for _ in range(2):
        process.looks()
    there = {path.name for path in (tmp_path / "blobs").glob("??/*")}
    assert there == {sha256(content(n)).hexdigest() for n in (5, 6)}


def test_what_comes_again_while_a_moment_is_kept_stays(process: Process, tmp_path: Path) -> None:
    for n in (1, 2):
        process.put(n)
    with kept(tmp_path):
        process.put(3)
        process.looks()  # no row names 1 any more
        process.put(9)  # the bytes of 3
    process.brought(content(1))
    path = path_of(tmp_path, sha256(content(1)).digest())
    for _ in range(3):
        process.looks()
        assert path.exists()
