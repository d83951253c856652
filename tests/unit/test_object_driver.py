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


async def steps(path: Path, position: bytes, *, removed: bool, existing: bool) -> tuple[list[Any], bytes]:
    """All that is told from there on, as (change, key), and where it ends."""
    driver = ObjectsDriver(
        event="x", namespace="pictures", prefix="a/", removed=removed, existing=existing, interval=0.1
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
