"""Bytes of large objects come and go at the same time; each callback is run when the test says so."""

from __future__ import annotations

import queue
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grape.errors import Corrupt
from grape.store.blobs import FileBlobs, path_of


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
