"""Objects in MongoDB when the server dies, is away or is slow, or the one who writes dies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract import mongo
from contract.test_storage_mongodb import FILE, PARTS, PIECE, documents, named, opened
from grape.errors import Conflict, StorageFailed
from grape.storage.connect import storage_of
from grape.storage.objects import Objects

AWAY = r"nobody answers at mongodb://127|the connection to mongodb://127.* broke"
pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("small_files")]


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grape.storage.mongodb.bodies.WHOLE", FILE)
    monkeypatch.setattr("grape.storage.mongodb.bodies.CHUNK", PIECE)


def test_a_server_that_is_killed_in_the_middle_of_a_write() -> None:
    """What was there is there, nothing half is seen, what was left goes; it works again when the server does."""

    async def run(server: mongo.Mongo) -> None:
        name, data = named(), os.urandom(4 * FILE)
        async with opened(name, server, timeout=1.5) as objects:
            await objects.put("key", b"before")

            async def until_killed() -> AsyncIterator[bytes]:
                for at in range(0, len(data), PIECE):
                    if at == 2 * FILE:
                        assert documents(name, "chunks", server=server)[1] > 0
                        server.kill()
                    yield data[at : at + PIECE]

            with pytest.raises(StorageFailed, match=AWAY):
                await objects.put("key", until_killed())
            with pytest.raises(StorageFailed, match=AWAY):
                await objects.get("key")
            server.start()
            found = await objects.get("key")
            assert found is not None
            assert found.data == b"before"
            assert [about.size async for about in objects.list()] == [6]
            await objects.put("key", data)
            assert await objects.verify("key") is not None
        async with opened(name, server, abandoned=0.05):
            assert documents(name, *PARTS, server=server) == [1, 0, 1, 16, 0]

    with mongo.own() as server:
        asyncio.run(run(server))


def test_a_server_that_is_killed_in_the_middle_of_a_read() -> None:
    async def run(server: mongo.Mongo) -> None:
        name, data = named(), os.urandom(8 * FILE)
        async with opened(name, server, timeout=1.5) as objects, opened(name, server, timeout=20.0) as patient:
            await objects.put("key", data)
            async with objects.open("key") as found, patient.open("key") as other:
                assert found is not None
                assert other is not None
                came = await anext(found.chunks), await anext(other.chunks)
                assert came[0] == came[1] == data[:PIECE]
                server.kill()
                with pytest.raises(StorageFailed, match=AWAY):
                    async for _ in found.chunks:
                        pass
                back = asyncio.create_task(asyncio.to_thread(server.start))
                rest = [chunk async for chunk in other.chunks]  # it waits for it
                assert came[1] + b"".join(rest) == data
                await back
            assert await objects.verify("key") is not None

    with mongo.own() as server:
        asyncio.run(run(server))


def test_who_counts_while_the_server_is_killed_ends_at_the_exact_number() -> None:
    """Fifty, each with a name that is in what they write: who was not told whether it is done looks for it."""

    async def run(server: mongo.Mongo) -> None:
        collection, failed = named(), 0

        async def count(objects: Objects, name: str) -> None:
            nonlocal failed

            def more(there: bytes | None) -> bytes:
                names = (there or b"").split()
                return b" ".join(names if name.encode() in names else [*names, name.encode()])

            while True:
                try:
                    await objects.swap("count", more)
                    return
                except StorageFailed:
                    failed += 1

        async def kill() -> None:
            for _ in range(3):
                await asyncio.sleep(0.7)
                server.kill()
                await asyncio.sleep(0.2)
                await asyncio.to_thread(server.start)

        async with opened(collection, server, timeout=5.0) as one, opened(collection, server, timeout=5.0) as two:
            async with asyncio.TaskGroup() as group:
                group.create_task(kill())
                for i in range(50):
                    group.create_task(count((one, two)[i % 2], f"n{i}"))
            found = await one.get("count")
            assert found is not None
            assert sorted(found.data.split()) == sorted(f"n{i}".encode() for i in range(50)), failed

    with mongo.own() as server:
        asyncio.run(run(server))


def test_a_server_that_is_away_and_comes_back() -> None:
    async def run(server: mongo.Mongo) -> None:
        name = named()
        async with opened(name, server, timeout=1.0) as objects:
            about = await objects.put("key", b"1")
            server.kill()
            late = storage_of(server.url(name, timeout=1.0))
            for doing in (
                lambda: objects.get("key"),
                lambda: objects.put("key", b"2"),
                objects.page,
                lambda: objects.remove("key"),
                late.open,
            ):
                begun = time.monotonic()
                with pytest.raises(StorageFailed, match=AWAY):
                    await doing()
                assert time.monotonic() - begun < 5
            server.start()
            assert await objects.stat("key") == about
            await objects.put("key", b"2", if_version=about.version)
            await late.open()
            found = await Objects(late, "photos").get("key")
            await late.close()
            assert found is not None
            assert found.data == b"2"

    with mongo.own() as server:
        asyncio.run(run(server))


def test_a_server_that_says_nothing_is_told_in_time() -> None:
    async def run(server: mongo.Mongo) -> None:
        async with opened(named(), server, timeout=0.7) as objects:
            about = await objects.put("key", b"1")
            server.stall()
            for doing in (lambda: objects.get("key"), lambda: objects.put("key", b"2", if_version=about.version)):
                begun = time.monotonic()
                with pytest.raises(StorageFailed, match=rf"has not answered for 0\.7 s|{AWAY}"):
                    await doing()
                assert time.monotonic() - begun < 5
            server.go_on()
            await asyncio.sleep(0.3)
            there = await objects.stat("key")  # it may have been done all the same, and is seen whole
            assert there is not None
            await objects.put("key", b"3", if_version=there.version)
            with pytest.raises(Conflict):
                await objects.put("key", b"4", if_version=about.version)

    with mongo.own() as server:
        asyncio.run(run(server))


@pytest.mark.slow
def test_who_writes_is_killed_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The object is what it was, or what it was to be, whole; and of all that was left nothing stays."""
    monkeypatch.setattr("grape.storage.mongodb.heads.LEFT", 0.0)
    name, size, chunks = named(), FILE + 2 * PIECE, 6
    url = mongo.shared().url(name)
    script = Path(__file__).with_name("mongo_dying.py")
    command = [sys.executable, str(script), url, str(FILE), str(PIECE), str(size)]

    async def look(before: bytes, after: bytes) -> bytes:
        async with opened(name) as objects:
            found = await objects.get("key")
            assert found is not None
            assert found.data in (before, after)
        await asyncio.sleep(0.06)
        async with opened(name, abandoned=0.05) as objects:
            assert [about.key async for about in objects.list()] == ["key"]
            again = await objects.get("key")
            assert again is not None
            assert again.data == found.data
            assert documents(name, *PARTS) == [1, 0, 1, chunks, 0]
        return found.data

    async def first() -> None:
        async with opened(name) as objects:
            await objects.put("key", b"f" * size)

    asyncio.run(first())
    there, seen = b"f" * size, []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for step in range(100):
            print(step, file=process.stdin, flush=True)
            code = int(process.stdout.readline())
            before, there = there, asyncio.run(look(there, bytes([step]) * size))
            seen.append(there != before)
            if code == 0:
                break
        process.stdin.close()
    assert code == 0
    assert len(seen) > chunks + 5
    # From one step on it is what it was to be.
    assert seen.index(True) > chunks
    assert all(seen[seen.index(True) :])
