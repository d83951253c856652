"""Bytes of large objects come and go at the same time; each callback is run when the test says so."""

from __future__ import annotations

import errno
import queue
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grape.errors import Corrupt, StorageFailed
from grape.store import blobs as storing
from grape.store.blobs import Coming, FileBlobs, path_of


class Loop:
    """The engine's thread: what is posted waits."""

    def __init__(self) -> None:
        self.posted: queue.Queue[Callable[[], None]] = queue.Queue()

    def one(self) -> None:
        self.posted.get(timeout=10)()


@pytest.fixture
def there(tmp_path: Path) -> Any:
    loop = Loop()
    blobs = FileBlobs(tmp_path, loop.posted.put)
    yield tmp_path, loop, blobs
    blobs.close()
    blobs.close()  # an engine that could not start does so


DATA = b"the same bytes" * 10_000
DIGEST = sha256(DATA).digest()


def test_what_has_just_come_is_not_removed(there: Any) -> None:
    """It has its name already, and whoever has brought it does not know of it yet: nobody can hold it."""
    path, loop, blobs = there
    found: list[Any] = []
    blobs.part("w", DATA, True, found.append)
    loop.one()  # it has its name
    assert path_of(path, DIGEST).exists()
    blobs.remove([DIGEST])
    loop.one()
    assert found == [(DIGEST, len(DATA))]
    assert path_of(path, DIGEST).read_bytes() == DATA
    blobs.remove([DIGEST])
    assert not path_of(path, DIGEST).exists()
    loop.one()
    assert not any((path / "blobs" / "incoming").iterdir())


def test_what_comes_while_the_same_is_removed_stays(there: Any) -> None:
    path, loop, blobs = there
    found: list[Any] = []
    blobs.part("w", DATA, True, found.append)
    loop.one()
    loop.one()
    blobs.part("w", DATA, True, found.append)
    blobs.remove([DIGEST])  # decided before it has come again
    while len(found) < 2:
        loop.one()
    assert path_of(path, DIGEST).read_bytes() == DATA


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["bring", "remove", "turn"]), max_size=20))
def test_what_is_held_is_there(steps: list[str]) -> None:
    """As an engine uses it: held from the moment in which it is told of, and not removed while it is."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        loop, held = Loop(), [0]
        blobs = FileBlobs(Path(directory), loop.posted.put)

        def brought(found: Any) -> None:
            held[0] += found == (DIGEST, len(DATA))

        outstanding = 0
        for step in steps:
            if step == "bring":
                outstanding += 1
                blobs.part(object(), DATA, True, brought)
            elif step == "remove" and not held[0]:
                blobs.remove([DIGEST])
            elif step == "turn" and (outstanding - held[0]):
                loop.one()
        while held[0] < outstanding:
            loop.one()
        assert not outstanding or path_of(Path(directory), DIGEST).read_bytes() == DATA
        blobs.close()


def test_what_is_not_there(there: Any) -> None:
    _, loop, blobs = there
    found: list[Any] = []
    blobs.read(DIGEST, 0, 10, found.append)
    blobs.sizes([DIGEST], found.append)
    loop.one()
    loop.one()
    assert any(isinstance(each, Corrupt) for each in found)
    assert [None] in found


def test_a_directory_that_one_who_died_has_made_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F14: it is there, and nobody knows whether it is after a power loss. Once is enough."""
    synced: list[Path] = []
    monkeypatch.setattr(storing, "fsync_directory", synced.append)
    path_of(tmp_path, DIGEST).parent.mkdir(parents=True)
    loop = Loop()
    found: list[Any] = []
    blobs = FileBlobs(tmp_path, loop.posted.put)
    for n in (1, 2):
        blobs.part("w", DATA, True, found.append)
        while len(found) < n:
            loop.one()
    blobs.close()
    above = [tmp_path / "blobs", tmp_path]
    assert synced == [path_of(tmp_path, DIGEST).parent, *above, path_of(tmp_path, DIGEST).parent]
    del synced[:]
    coming = Coming(tmp_path / "blobs")
    coming.add(DATA)
    coming.keep(tmp_path / "blobs")
    assert synced == [path_of(tmp_path, DIGEST).parent, *above]


def test_f20_who_came_before_a_sync_failed_is_not_confirmed_by_a_later_one(
    there: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F20: the system tells of it once, and what it has lost may be the name of another."""
    path, _, blobs = there
    answers: list[OSError | None] = [OSError(errno.EIO, "it is not there"), None, None, None]

    def fails(directory: Path) -> None:
        error = answers.pop(0) if answers else None
        if error is not None:
            raise error

    begun: list[Any] = []
    monkeypatch.setattr(storing, "fsync_directory", fails)
    monkeypatch.setattr(blobs, "_do", lambda what, then: begun.append((what, then)))
    found: list[Any] = []
    coming = [Coming(path / "blobs") for _ in range(2)]
    for n, each in enumerate(coming):
        each.add(b"%d" % n)
        blobs._land(each, *each.finish(path / "blobs"), found.append)
    for what, then in begun:
        try:
            what()
        except OSError as e:
            then(StorageFailed(str(e)))
        else:
            then(None)
    assert [type(each) for each in found] == [StorageFailed, StorageFailed]
    again = Coming(path / "blobs")
    again.add(b"1")
    blobs._land(again, *again.finish(path / "blobs"), found.append)
    what, then = begun.pop()
    what()
    then(None)
    assert found[2] == (sha256(b"1").digest(), 1)


def test_what_others_bring_is_not_taken_for_left(tmp_path: Path) -> None:
    """A command beside an engine that starts, or removes what nobody has: until it lets go, or dies."""
    mine, landed = Coming(tmp_path / "blobs"), Coming(tmp_path / "blobs")
    for coming in (mine, landed):
        coming.add(DATA)
    landed.keep(tmp_path / "blobs")
    left = tmp_path / "blobs" / "incoming" / "of-one-that-died"
    left.write_bytes(b"half of it")
    loop = Loop()
    with closing(FileBlobs(tmp_path, loop.posted.put)) as blobs:
        assert [path.name for path in (tmp_path / "blobs" / "incoming").iterdir()] == [mine.path.name]
        assert blobs.remove([DIGEST]) == [DIGEST]
        assert path_of(tmp_path, DIGEST).read_bytes() == DATA
        landed.drop()
        assert path_of(tmp_path, DIGEST).read_bytes() == DATA
        assert list(blobs.remove([DIGEST])) == []
        loop.one()
        assert not path_of(tmp_path, DIGEST).exists()
        mine.keep(tmp_path / "blobs")
        mine.drop()
        assert path_of(tmp_path, DIGEST).read_bytes() == DATA


def test_who_is_closed_holds_nothing(tmp_path: Path) -> None:
    loop = Loop()
    before = psutil.Process().num_fds()
    for whole in (False, True):
        blobs = FileBlobs(tmp_path, loop.posted.put)
        blobs.part("w", DATA, whole, lambda _: None)
        blobs.part("x", DATA, True, lambda _: None)
        if whole:
            loop.one()
        blobs.close()
        assert psutil.Process().num_fds() == before
        assert not any((tmp_path / "blobs" / "incoming").iterdir())
