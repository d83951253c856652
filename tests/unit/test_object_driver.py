"""A driver of objects in a storage that does not tell what changes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from grape.drivers.objects import ObjectSource
from grape.drivers.spec import ObjectsDriver
from grape.model.bound import Bound
from grape.storage.connect import opened
from grape.storage.objects import Objects


async def steps(
    path: Path, position: bytes, *, removed: bool, existing: bool, prefix: str = "a/"
) -> tuple[list[Any], bytes]:
    """All that is told from there on, as (change, key), and where it ends."""
    driver = ObjectsDriver(
        event="x", namespace="pictures", prefix=prefix, removed=removed, existing=existing, interval=0.1
    )
    source = ObjectSource(driver, "app", str(path), {"pictures": Bound(f"file://{path}", "there")}, lambda: None)
    source.begin(position)
    found: list[Any] = []
    while True:
        try:
            step = await asyncio.wait_for(source.step(), 0.5)
        except TimeoutError:
            return found, position
        for event in step.events:
            data = msgspec.msgpack.decode(event.data)
            assert (event.key, data["namespace"]) == (data["key"], "pictures")
            found.append((data["change"], data["key"]))
        source.took(step)
        position = step.position


@pytest.mark.parametrize("removed", [True, False])
def test_what_is_told_of_a_storage_that_is_looked_at(tmp_path: Path, removed: bool) -> None:
    async def run() -> None:
        async with opened(f"file://{tmp_path}") as storage:
            objects = Objects(storage, "there")
            await objects.put("a/1", b"1")
            await objects.put("b/1", b"not of the prefix")
            found, _ = await steps(tmp_path, b"", removed=removed, existing=True)
            assert found == [("written", "a/1")]
            found, at = await steps(tmp_path, b"", removed=removed, existing=False)
            assert found == []
            await objects.put("a/2", b"2")
            await objects.put("a/1", b"one")
            found, at = await steps(tmp_path, at, removed=removed, existing=False)
            assert sorted(found) == [("written", "a/1"), ("written", "a/2")]
            await objects.remove("a/1")
            found, at = await steps(tmp_path, at, removed=removed, existing=False)
            assert found == ([("removed", "a/1")] if removed else [])
            await objects.put("a/1", b"back")
            found, at = await steps(tmp_path, at, removed=removed, existing=False)
            assert found == [("written", "a/1")]

    asyncio.run(run())


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("removed", [True, False])
def test_the_first_one_of_an_empty_namespace_is_told_of(tmp_path: Path, removed: bool, existing: bool) -> None:
    async def run() -> None:
        async with opened(f"file://{tmp_path}") as storage:
            found, at = await steps(tmp_path, b"", removed=removed, existing=existing)
            assert found == []
            assert at
            await Objects(storage, "there").put("a/1", b"1")
            found, at = await steps(tmp_path, at, removed=removed, existing=existing)
            assert found == [("written", "a/1")]

    asyncio.run(run())


@pytest.mark.parametrize("removed", [True, False])
def test_what_was_there_is_not_told_of_however_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    """Also not after the driver looks elsewhere."""
    monkeypatch.setattr("grape.drivers.watching._STEP", 3)
    monkeypatch.setattr("grape.drivers.objects._STEP", 3)

    async def run() -> None:
        async with opened(f"file://{tmp_path}") as storage:
            objects = Objects(storage, "there")
            for i in range(10):
                await objects.put(f"a/{i}", b"1")
            found, at = await steps(tmp_path, b"", removed=removed, existing=False)
            assert found == []
            await objects.put("a/new", b"1")
            found, at = await steps(tmp_path, at, removed=removed, existing=False)
            assert found == [("written", "a/new")]
            found, at = await steps(tmp_path, at, removed=removed, existing=False, prefix="")
            assert found == []
            for i in range(10):
                await objects.put(f"b/{i}", b"1")
            found, _ = await steps(tmp_path, at, removed=removed, existing=False, prefix="")
            assert sorted(found) == [("written", f"b/{i}") for i in range(10)]
            found, _ = await steps(tmp_path, b"", removed=removed, existing=True, prefix="")
            assert sorted(key for _, key in found) == sorted(
                [f"a/{i}" for i in range(10)] + ["a/new"] + [f"b/{i}" for i in range(10)]
            )

    asyncio.run(run())
