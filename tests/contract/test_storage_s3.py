"""Objects in S3, on a real server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import psutil
import pytest

from contract import weed
from grape.abc.storage import Place, Put, Storage
from grape.errors import BadArgument, Conflict, StorageFailed
from grape.storage.objects import Objects
from grape.storage.s3 import S3Config, S3Storage
from grape.storage.s3calls import Answer
from grape.storage.streams import chunks_of
from grape.testing.contracts.storage import StorageContract

PART = 5 << 20


def config(server: weed.Weed, **settings: object) -> S3Config:
    all_of_them = {"bucket": weed.BUCKET, "endpoint": server.endpoint, "variables": weed.VARIABLES, **settings}
    return S3Config(**all_of_them)  # type: ignore[arg-type]


class TestS3(StorageContract):
    largest_written = 20 << 20

    @asynccontextmanager
    async def opened(self, count: int = 1) -> AsyncIterator[list[Storage]]:
        storages: list[Storage] = [S3Storage(config(weed.shared(), prefix="contract")) for _ in range(count)]
        for storage in storages:
            await storage.open()
        yield storages
        for storage in storages:
            await storage.close()


@asynccontextmanager
async def opened(server: weed.Weed, **settings: object) -> AsyncIterator[Objects]:
    storage = S3Storage(config(server, **settings))
    await storage.open()
    try:
        yield Objects(storage, "photos")
    finally:
        await storage.close()


def ask(objects: Objects, method: str, key: str = "", body: bytes = b"", **more: dict[str, str]) -> Answer:
    """As another program does."""
    storage = objects.storage
    assert isinstance(storage, S3Storage)
    return storage._calls.ask(method, key, more.get("query"), more.get("headers"), body)


def uploads(objects: Objects) -> int:
    return ask(objects, "GET", query={"uploads": ""}).text.count("<UploadId>")


def test_what_is_told_of_this_server() -> None:
    """SeaweedFS keeps all conditions, those of removals too; its lists go through a tree."""

    async def run() -> None:
        async with opened(weed.shared(), prefix="told") as objects:
            features = objects.storage.features
            assert (features.swaps, features.removes, features.in_order) == (True, True, False)
            assert ".grape-probe" not in ask(objects, "GET", query={"list-type": "2", "prefix": "told/"}).text

    asyncio.run(run())


def test_other_programs_write_and_read_the_same_objects() -> None:
    async def run() -> None:
        async with opened(weed.shared(), prefix="others") as objects:
            headers = {"content-type": "image/png", "x-amz-meta-camera": "50% b"}
            ask(objects, "PUT", "others/photos/2026/100%.png", b"theirs", headers=headers)
            found = await objects.get("2026/100%.png")
            assert found is not None
            assert (found.data, found.about.content_type, found.about.checksum) == (b"theirs", "image/png", "")
            assert found.about.user == {"camera": "50% b"}
            assert found.about.time > 1_700_000_000_000_000
            await objects.put("2026/a.txt", b"ours", content_type="text/plain", user={"camera": "ä b"}, tags=["x"])
            answer = ask(objects, "GET", "others/photos/2026/a.txt")
            assert (answer.body, answer.headers["content-type"]) == (b"ours", "text/plain")
            assert answer.headers["x-amz-meta-camera"] == "%C3%A4%20b"
            # Whoever writes over ours: what was known of it is not said of the new one.
            before = await objects.stat("2026/a.txt")
            ask(objects, "PUT", "others/photos/2026/a.txt", b"theirs")
            after = await objects.stat("2026/a.txt")
            assert before is not None
            assert after is not None
            assert (before.tags, after.tags, after.user) == (("x",), (), {})
            with pytest.raises(Conflict):
                await objects.put("2026/a.txt", b"lost", if_version=before.version)
            # What no key of ours can name is left out.
            ask(objects, "PUT", "others/photos/folder/", b"")
            assert [about.key async for about in objects.list()] == ["2026/100%.png", "2026/a.txt"]

    asyncio.run(run())


def test_pages_leave_nothing_out() -> None:
    """Also what has objects below it; by any limit, by any prefix, however many there are."""

    async def run() -> None:
        random = Random(7)
        names = ["a", "b", "a b", "a.b", "a-b", "ab", "é", "z", "Z", "0", "a!", "a~", "%25", "%5C", "b\\", "%", "%2"]
        keys = {"/".join(random.choice(names) for _ in range(random.randint(1, 4))) for _ in range(250)}
        async with opened(weed.shared(), prefix=f"pages{secrets.token_hex(4)}") as objects:
            for key in sorted(keys):  # one by one: see docs/storage-s3.md of "a" and "a/b" at the same moment
                await objects.put(key, b"")
            for prefix in ("", "a", "a/", "a/a", "a b", "é", "b\\", "%", "%2", "%25", "%5", "nothing"):
                expected = {key for key in keys if key.startswith(prefix)}
                for limit in (3, 17, 1000):
                    seen, position = [], ""
                    while True:
                        page = await objects.page(prefix, position, limit)
                        seen += [about.key for about in page.items]
                        position = page.position
                        if not position:
                            break
                    assert len(seen) == len(set(seen))
                    assert set(seen) == expected, (prefix, limit)

    asyncio.run(run())


def test_a_version_of_a_page_is_good_for_conditions() -> None:
    async def run() -> None:
        async with opened(weed.shared(), prefix="versions") as objects:
            await objects.put("key", b"1")
            (about,) = (await objects.page()).items
            await objects.put("key", b"1")  # the same bytes
            await objects.put("key", b"2", if_version=about.version)
            with pytest.raises(Conflict):
                await objects.put("key", b"3", if_version=about.version)
            with pytest.raises(Conflict):
                await objects.remove("key", if_version=about.version)
            (about,) = (await objects.page()).items
            assert await objects.remove("key", if_version=about.version) is True

    asyncio.run(run())


def test_the_same_bytes_written_again_are_another_version() -> None:
    async def run() -> None:
        async with opened(weed.shared(), prefix="same") as objects:
            first = await objects.put("key", b"same", tags=["a"])
            await objects.put("key", b"same", tags=["b"])
            with pytest.raises(Conflict):
                await objects.put("key", b"other", if_version=first.version)
            with pytest.raises(Conflict):
                await objects.remove("key", if_version=first.version)
            about = await objects.stat("key")
            assert about is not None
            assert about.tags == ("b",)

    asyncio.run(run())


def test_keys_and_metadata_that_do_not_fit() -> None:
    async def run() -> None:
        async with opened(weed.shared(), prefix="long") as objects:
            with pytest.raises(BadArgument, match="takes no such long key, or part of one"):
                await objects.put("n" * 300, b"1")
            with pytest.raises(BadArgument, match=r"at most 1,024 bytes in S3"):
                await objects.put("\\" * 400, b"1")
            user = {"2026": "", "a_b.c-d": '  %41, "x"  y;ä', "grape": "1", "grape-tags": "mine"}
            tags = [f"{i},%2C {'ä' * 50}" for i in range(20)]
            await objects.put("full", b"1", user=user, tags=tags)
            about = await objects.stat("full")
            assert about is not None
            assert (about.user, about.tags) == (user, tuple(sorted(tags)))

    asyncio.run(run())


def test_conditions_of_what_is_large() -> None:
    async def run() -> None:
        async with opened(weed.shared(), prefix="parts", part=PART) as objects:
            data = os.urandom(PART + 1)
            about = await objects.put("key", data, if_absent=True, content_type="image/png", tags=["x"])
            assert await objects.stat("key") == about
            for condition in ({"if_absent": True}, {"if_version": "x"}, {"if_checksum": "sha256:00"}):
                with pytest.raises(Conflict):
                    await objects.put("key", data, **condition)  # type: ignore[arg-type]
            others = [os.urandom(PART + 1) for _ in range(3)]
            done = await asyncio.gather(
                *(objects.put("key", other, if_version=about.version) for other in others), return_exceptions=True
            )
            assert sorted(isinstance(one, Conflict) for one in done) == [False, True, True], done
            await objects.verify("key")
            assert uploads(objects) == 0

    asyncio.run(run())


@pytest.mark.parametrize("condition", [{}, {"if_absent": True}], ids=["in parts", "by one request"])
def test_memory_stays_flat(condition: dict[str, Any]) -> None:
    """An object of many times of what may be in memory goes up and down."""

    async def run() -> None:
        size = 100 << 20
        process = psutil.Process()
        piece = os.urandom(1 << 20)
        seen: list[int] = []

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(size >> 20):
                yield piece

        def taken() -> int:
            """What is shared is the temporary file, of which the system may take back what it needs."""
            found = process.memory_info()
            return int(found.rss - found.shared)

        async def watch() -> None:
            while True:
                seen.append(taken())
                await asyncio.sleep(0.01)

        async with opened(weed.shared(), prefix=f"flat{secrets.token_hex(4)}", part=PART) as objects:
            await objects.put("warm", os.urandom(PART + 1))
            await objects.get("warm")
            before = taken()
            watcher = asyncio.create_task(watch())
            about = await objects.put("key", chunks(), **condition)
            assert ("-" in about.version) == (not condition)
            assert await objects.verify("key") == about
            watcher.cancel()
            assert len(seen) > 20
            assert max(seen) - before < 64 << 20, (max(seen) - before) >> 20
            await objects.remove("key")

    asyncio.run(run())


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_of_a_write() -> None:
    """What was there is there, nothing half is seen, nothing stays; it works again when the server does."""

    async def run(server: weed.Weed) -> None:
        async with opened(server, prefix="killed", part=PART, timeout=5.0) as objects:
            place = Place("photos", "key")
            data = os.urandom(6 * PART)
            put = Put(size=len(data), checksum=f"sha256:{hashlib.sha256(data).hexdigest()}")
            await objects.put("key", b"before")

            async def until_killed() -> AsyncIterator[bytes]:
                for at in range(0, len(data), PART):
                    if at == 3 * PART:
                        assert uploads(objects) == 1
                        server.kill("server")
                    yield data[at : at + PART]

            with pytest.raises(StorageFailed, match=r"nobody answers at|the connection to .* broke"):
                await objects.storage.write(place, until_killed(), put)
            with pytest.raises(StorageFailed, match="nobody answers at"):
                await objects.get("key")
            server.start()
            found = await objects.get("key")
            assert found is not None
            assert found.data == b"before"
            assert [about.size async for about in objects.list()] == [6]
            await objects.storage.write(place, chunks_of(data), put)
            found = await objects.get("key")
            assert found is not None
            assert found.data == data
            assert uploads(objects) == 0

    with weed.own() as server:
        asyncio.run(run(server))


@pytest.mark.slow
def test_one_of_three_volume_servers_is_killed() -> None:
    """Everything is kept twice: what was written is read, and writes go on."""

    async def run(server: weed.Weed) -> None:
        async with opened(server, prefix="cluster", part=PART, timeout=10.0) as objects:
            bodies = {f"key{i}": os.urandom(1000 * (i + 1)) for i in range(60)}
            bodies["large"] = os.urandom(3 * PART)
            for key, body in bodies.items():
                await objects.put(key, body)
            server.kill("volume1")
            for key, body in bodies.items():
                found = await objects.get(key)
                assert found is not None
                assert found.data == body
            more = {f"more{i}": os.urandom(1000) for i in range(40)}
            more["more"] = os.urandom(3 * PART)
            for key, body in more.items():
                await objects.put(key, body, if_absent=True)
            await objects.swap("key0", lambda there: (there or b"") + b"x")
            for key, body in {**bodies, **more, "key0": bodies["key0"] + b"x"}.items():
                found = await objects.get(key)
                assert found is not None
                assert found.data == body
                await objects.verify(key)
            assert len([about async for about in objects.list()]) == len(bodies) + len(more)

    with weed.own(volumes=3, copies=2) as server:
        asyncio.run(run(server))
