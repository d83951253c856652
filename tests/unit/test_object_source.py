"""Objects as a source of events: chunks of several pages, bounded whatever the objects are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from grape.abc.source import Columns
from grape.errors import UsageError
from grape.storage import source as module
from grape.storage.connect import opened
from grape.storage.objects import Objects
from grape.storage.source import ObjectsSource, Over, position_of


@pytest.fixture
def url(tmp_path: Path) -> str:
    async def fill() -> None:
        async with opened(f"file://{tmp_path}") as storage:
            for i in range(25):
                await Objects(storage, "n").put(f"o/{i:02}", b"x" * i, tags=["even"] if i % 2 == 0 else [])

    asyncio.run(fill())
    return f"file://{tmp_path}"


def chunks_of(make: Callable[[], ObjectsSource], anew: bool = False) -> list[list[str]]:
    """Keys by chunk. ``anew``: by another source each time, as after a death."""
    found: list[list[str]] = []
    position, source = b"", make()
    source.open(position)
    while (chunk := source.read(position)) is not None:
        position = chunk.position
        for columns in chunk.columns:
            assert isinstance(columns, Columns)
            data = msgspec.msgpack.decode(msgspec.msgpack.encode(columns.data))
            assert [one["key"] for one in data] == columns.keys
            assert {one["namespace"] for one in data} == {"n"}
            assert [one["size"] for one in data] == [int(key[2:]) for key in columns.keys or () if key]
            found.append([key for key in columns.keys or () if key])
        if anew:
            source.close()
            source = make()
            source.open(position)
    source.close()
    assert position_of(position).is_over
    assert position_of(position).count == sum(map(len, found))
    return found


ALL = [f"o/{i:02}" for i in range(25)]


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("most", [1, 10, 25, 1_000])
def test_a_chunk_has_several_pages_and_no_more_than_it_may(
    url: str, monkeypatch: pytest.MonkeyPatch, most: int, anew: bool
) -> None:
    monkeypatch.setattr(module, "_PAGE", 4)
    found = chunks_of(lambda: ObjectsSource("e", Over(url, "n", "o/"), "name", most=most), anew)
    assert [key for chunk in found for key in chunk] == ALL
    assert {len(chunk) for chunk in found[:-1]} <= {most}


@pytest.mark.parametrize(("what", "value"), [("_BYTES", 400), ("_LONGEST", -1.0)])
def test_a_chunk_is_bounded_by_its_bytes_and_by_time(
    url: str, monkeypatch: pytest.MonkeyPatch, what: str, value: float
) -> None:
    monkeypatch.setattr(module, "_PAGE", 4)
    monkeypatch.setattr(module, what, value)
    found = chunks_of(lambda: ObjectsSource("e", Over(url, "n", "o/"), "name"))
    assert [key for chunk in found for key in chunk] == ALL
    assert max(map(len, found)) == 4


def test_a_rate_is_kept_in_small_chunks(url: str) -> None:
    found = chunks_of(lambda: ObjectsSource("e", Over(url, "n", "o/"), "name", rate=200.0, most=7))
    assert [len(chunk) for chunk in found] == [7, 7, 7, 4]


def test_by_tags(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", 4)
    found = chunks_of(lambda: ObjectsSource("e", Over(url, "n", "o/", ("even",)), "name", most=6))
    assert [key for chunk in found for key in chunk] == ALL[::2]
    assert len(found) <= 3


def test_a_position_is_in_what_it_was_given_for(url: str) -> None:
    source = ObjectsSource("e", Over(url, "n", "o/"), "name", most=5)
    source.open(b"")
    chunk = source.read(b"")
    assert chunk is not None
    source.close()
    same = ObjectsSource("e", Over(f"{url}?timeout=7", "n", "o/", (), "called"), "name")
    same.open(chunk.position)
    assert same.read(chunk.position) is not None
    same.close()
    for over in (Over(url, "n", "o"), Over(url, "m", "o/"), Over(url, "n", "o/", ("x",)), Over(f"{url}/x", "n", "o/")):
        other = ObjectsSource("e", over, "name")
        with pytest.raises(UsageError, match=r"by this --name .*/n/o/ was gone through, not .*: take another one"):
            other.open(chunk.position)
        other.close()


def test_no_two_have_one_identity() -> None:
    assert Over("s", "n", "x#b").identity != Over("s", "n", "x", ("b",)).identity
    assert Over("s", "n", "x", ("b#c",)).identity != Over("s", "n", "x", ("b", "c")).identity
    assert Over("s", "n", "x", ("b", "c")).identity == Over("s", "n", "x", ("c", "b", "c")).identity
    assert Over("s://u:secret@h/x?k=v", "n").identity == Over("s://u:other@h/x", "n").identity
    assert "secret" not in Over("s://u:secret@h/x?k=v", "n").identity
