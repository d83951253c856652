"""Objects in MongoDB, on a real server."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import gridfs
import psutil
import pymongo
import pytest
from pymongo import AsyncMongoClient

from contract import mongo
from grape.abc.storage import Storage
from grape.errors import BadArgument, Conflict, Corrupt, StorageFailed, UsageError
from grape.storage.connect import opened as opened_url
from grape.storage.connect import storage_of
from grape.storage.mongodb.bodies import INLINE
from grape.storage.mongodb.settings import MongoConfig, client_of
from grape.storage.mongodb.storage import MongoStorage
from grape.storage.objects import Objects
from grape.testing.contracts.storage import StorageContract

pytestmark = pytest.mark.timeout(1800)  # the first one builds the server
LARGE = (8 << 20) + 1
PIECE = 64 << 10
FILE = 256 << 10


def named() -> str:
    return f"c{secrets.token_hex(4)}"


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over `FILE` goes to GridFS, in more chunks than one: FerretDB takes some MB a second."""
    monkeypatch.setattr("grape.storage.mongodb.bodies.WHOLE", FILE)
    monkeypatch.setattr("grape.storage.mongodb.bodies.CHUNK", PIECE)


class TestMongo(StorageContract):
    largest_written = 300_000

    @asynccontextmanager
    async def opened(self, count: int = 1) -> AsyncIterator[list[Storage]]:
        url = mongo.shared().url(named())
        storages = [storage_of(url) for _ in range(count)]
        for storage in storages:
            await storage.open()
        yield storages
        for storage in storages:
            await storage.close()


@pytest.mark.slow
class TestMongoLarge(TestMongo):
    largest_written = LARGE


@asynccontextmanager
async def opened(collection: str, server: mongo.Mongo | None = None, **more: object) -> AsyncIterator[Objects]:
    async with opened_url((server or mongo.shared()).url(collection, **more)) as storage:
        yield Objects(storage, "photos")


def documents(collection: str, *parts: str, server: mongo.Mongo | None = None) -> list[int]:
    """How many there are in the collection, and in those that go with it."""
    database = (server or mongo.shared()).database()
    names = [collection, *(f"{collection}.{part}" for part in parts)]
    return [database[name].count_documents({}) for name in names]


PARTS = ("bodies", "files", "chunks", "coming")


@pytest.mark.usefixtures("small_files")
def test_nothing_stays_of_what_was_replaced_or_removed() -> None:
    async def run() -> None:
        name = named()
        async with opened(name) as objects:
            for size in (10, INLINE + 1, FILE + 1, 10, FILE + PIECE + 1, INLINE + 1):
                await objects.put("key", os.urandom(size), tags=[f"{size}"])
                found = await objects.get("key")
                assert found is not None
                assert (found.about.size, found.about.tags) == (size, (f"{size}",))
                file = size > FILE
                chunks = -(-size // PIECE) if file else 0
                assert documents(name, *PARTS) == [1, int(INLINE < size < FILE), int(file), chunks, 0], size
            await objects.remove("key")
            assert documents(name, *PARTS) == [1, 0, 0, 0, 0]  # that it is gone

    asyncio.run(run())


def test_other_programs_read_what_is_large_by_gridfs() -> None:
    async def run() -> None:
        name, data = named(), os.urandom(LARGE)
        async with opened(name) as objects:
            about = await objects.put("2026/a.png", data)
            bucket = gridfs.GridFSBucket(mongo.shared().database(), name)
            with bucket.open_download_stream(about.version) as stream:
                assert (stream.filename, stream.length) == ("photos/2026/a.png", len(data))
                assert stream.read() == data
            found = await objects.get("2026/a.png", (1 << 20) - 3, (3 << 20) + 5)
            assert found is not None
            assert found.data == data[(1 << 20) - 3 : (3 << 20) + 5]

    asyncio.run(run())


@pytest.mark.usefixtures("small_files")
def test_of_a_write_that_fails_nothing_stays() -> None:
    async def run() -> None:
        name = named()
        async with opened(name) as objects:

            async def broken(size: int) -> AsyncIterator[bytes]:
                for _ in range(size // PIECE):
                    yield os.urandom(PIECE)
                raise LookupError("the writer's own fault")

            for size in (FILE // 2, 4 * FILE):
                with pytest.raises(LookupError):
                    await objects.put("key", broken(size))
                with pytest.raises(BadArgument):
                    await objects.put("key", os.urandom(size), checksum="sha256:00")
                await objects.put("there", b"1")
                with pytest.raises(Conflict):
                    await objects.put("there", os.urandom(size), if_absent=True)
            gate = asyncio.Event()

            async def slow() -> AsyncIterator[bytes]:
                yield os.urandom(4 * FILE)
                gate.set()
                await asyncio.sleep(100)

            task = asyncio.create_task(objects.put("key", slow()))
            await gate.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert documents(name, *PARTS) == [1, 0, 0, 0, 0]
            assert await objects.get("key") is None

    asyncio.run(run())


@pytest.mark.usefixtures("small_files")
def test_a_conflict_is_told_before_the_bytes_are_sent() -> None:
    async def run() -> None:
        async with opened(named()) as objects:
            await objects.put("key", b"1")
            came = 0

            async def chunks() -> AsyncIterator[bytes]:
                nonlocal came
                for _ in range(30):
                    came += 1
                    yield os.urandom(PIECE)

            with pytest.raises(Conflict):
                await objects.put("key", chunks(), if_absent=True)
            assert came < 8

    asyncio.run(run())


def test_the_order_of_keys_and_positions() -> None:
    async def run() -> None:
        keys = ["a", "a!", "a/b", "a0", "ab", "b", "z", "é", "ﬀ", "\U0001f347", "\U0001f347/x", "\uffee", "퟿x"]
        async with opened(named()) as objects:
            for key in keys:
                for _ in range(2):
                    await objects.put(key, b"1")
            await objects.put("a00", b"1")
            await objects.remove("a00")
            expected = sorted(keys, key=str.encode)
            assert [about.key async for about in objects.list()] == expected
            for limit in (1, 2, 5):
                seen, position = [], ""
                while True:
                    page = await objects.page("", position, limit)
                    seen += [about.key for about in page.items]
                    position = page.position
                    if not position:
                        break
                assert seen == expected
            for prefix in ("a", "a/", "퟿", "\U0001f347"):
                assert [a.key async for a in objects.list(prefix)] == [k for k in expected if k.startswith(prefix)]

    asyncio.run(run())


@pytest.mark.usefixtures("small_files")
def test_several_at_once_are_one_request() -> None:
    async def run() -> None:
        name = named()
        async with opened(name) as objects:
            bodies = {f"k{i}": os.urandom(size) for i, size in enumerate((1, 0, INLINE, INLINE + 1, FILE + 1))}
            for key, body in bodies.items():
                await objects.put(key, body)
            found = await objects.get_many([*bodies, "none"])
            assert {key: one.data for key, one in found.items()} == bodies

    asyncio.run(run())


@pytest.mark.usefixtures("small_files")
def test_bytes_that_are_not_there_are_corrupt() -> None:
    async def run() -> None:
        name = named()
        async with opened(name) as objects:
            database = mongo.shared().database()
            await objects.put("one", os.urandom(INLINE + 1))
            await objects.put("file", os.urandom(2 * FILE))
            database[f"{name}.bodies"].delete_many({})
            database[f"{name}.chunks"].delete_one({"n": 5})
            for key in ("one", "file"):
                with pytest.raises(Corrupt, match=f"photos/{key}"):
                    await objects.get(key)
            await objects.put("small", b"123")
            database[name].update_one({"place": "photos/small"}, {"$set": {"data": b"124"}})
            with pytest.raises(Corrupt):
                await objects.get("small")
            database[name].insert_one({"_id": "x", "place": "photos/theirs", "number": 1})
            with pytest.raises(Corrupt, match="is none that Grape has written"):
                await objects.get("theirs")

    asyncio.run(run())


# ---------------------------------------------------------------------- what is left by who died


@pytest.mark.usefixtures("small_files")
def test_what_a_writer_that_died_has_left_is_swept() -> None:
    async def run() -> None:
        name = named()
        async with opened(name) as objects:
            heads, coming = (mongo.shared().database()[n] for n in (name, f"{name}.coming"))
            await objects.put("alive", os.urandom(FILE + 1))
            for key, size in (("file", FILE + 1), ("one", INLINE + 1)):
                about = await objects.put(key, os.urandom(size))
                # As if it had died before the document was there, and before it was said that all is done.
                document = heads.find_one({"_id": about.version})
                assert document is not None
                heads.delete_one({"_id": about.version})
                coming.insert_one({"_id": about.version, "place": f"photos/{key}", "at": document["written"]})
            alive = heads.find_one({"place": "photos/alive"})
            assert alive is not None
            coming.insert_one({"_id": alive["_id"], "place": "photos/alive", "at": alive["written"]})
            assert documents(name, *PARTS) == [1, 1, 2, 10, 3]
        async with opened(name):  # too young
            assert documents(name, *PARTS) == [1, 1, 2, 10, 3]
        await asyncio.sleep(0.2)
        async with opened(name, abandoned=0.1) as objects:
            assert documents(name, *PARTS) == [1, 0, 1, 5, 0]
            assert await objects.verify("alive") is not None

    asyncio.run(run())


@pytest.mark.usefixtures("small_files")
def test_a_write_whose_bytes_were_taken_for_abandoned_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grape.storage.mongodb.bodies._RENEWED", 0.0)

    async def run() -> None:
        name = named()
        async with opened(name) as objects:

            async def slow() -> AsyncIterator[bytes]:
                yield os.urandom(2 * FILE)
                await asyncio.sleep(0.3)
                async with opened(name, abandoned=0.1):
                    pass
                yield b"more"

            with pytest.raises(StorageFailed, match="it took so long that its bytes were removed"):
                await objects.put("key", slow())
            assert documents(name, *PARTS) == [0, 0, 0, 0, 0]

    asyncio.run(run())


def test_that_an_object_is_gone_is_forgotten_and_what_it_replaced_does_not_come_back() -> None:
    async def run() -> None:
        name = named()
        async with opened(name) as objects:
            heads = mongo.shared().database()[name]
            first = await objects.put("key", b"1")
            before = heads.find_one({"_id": first.version})
            assert before is not None
            await objects.remove("key")
            heads.insert_one(before)  # its writer died before it was removed
            assert await objects.get("key") is None
            assert await objects.page() == (await objects.page("none"))
        await asyncio.sleep(0.2)
        async with opened(name, abandoned=0.1) as objects:
            assert documents(name) == [0]
            second = await objects.put("key", b"2", if_absent=True)
            assert second.version != first.version
            assert await objects.stat("key") == second

    asyncio.run(run())


def test_who_lists_removes_what_was_replaced_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grape.storage.mongodb.heads.LEFT", 0.0)

    async def run() -> None:
        name = named()
        async with opened(name) as objects:
            heads = mongo.shared().database()[name]
            first = await objects.put("key", os.urandom(INLINE + 1))
            before = heads.find_one({"_id": first.version})
            assert before is not None
            second = await objects.put("key", b"2")
            heads.insert_one(before)
            assert documents(name) == [2]
            assert await objects.stat("key") == second
            assert [about async for about in objects.list()] == [second]
            assert documents(name) == [1]

    asyncio.run(run())


async def between(one: Objects, do: Callable[[], Awaitable[object]], write: Callable[[], Awaitable[object]]) -> None:
    """``write``, by ``one``, with ``do`` after it has looked what is there, and before it writes: it has to lose."""
    storage = one.storage
    assert isinstance(storage, MongoStorage)
    chain, looked = storage._heads.chain, []

    async def late(place: str, with_data: bool = False) -> Any:
        found = await chain(place, with_data)
        if not looked:
            looked.append(place)
            await do()
        return found

    storage._heads.chain = late  # type: ignore[method-assign]
    try:
        with pytest.raises(Conflict):
            await write()
    finally:
        storage._heads.chain = chain  # type: ignore[method-assign]
    assert looked == ["photos/key"]


@pytest.mark.parametrize("there", ["nothing", "one", "removed"])
def test_a_number_that_others_have_had_meanwhile_is_not_taken(there: str) -> None:
    """Somebody looks; others write twice, so that the number after what he has seen is free again; then he writes."""

    async def run() -> None:
        name = named()
        async with opened(name) as one, opened(name) as other:
            if there != "nothing":
                await one.put("key", b"0")
            if there == "removed":
                await one.remove("key")
            about = await one.stat("key")

            async def twice() -> None:
                await other.put("key", b"1")
                await other.put("key", b"theirs")

            condition: dict[str, Any] = {"if_version": about.version} if about is not None else {"if_absent": True}
            await between(one, twice, lambda: one.put("key", b"mine", **condition))
            found = await one.get("key")
            assert found is not None
            assert found.data == b"theirs"
            assert documents(name) == [1]

    asyncio.run(run())


def test_who_builds_on_what_is_being_forgotten_gives_way() -> None:
    """It looked, then it was forgotten that the object was gone, and another one made it anew: of both who want it to
    be absent one has it."""

    async def run() -> None:
        name = named()
        async with opened(name) as one, opened(name) as other:
            await one.put("key", b"0")
            await one.remove("key")

            async def forget() -> None:
                mongo.shared().database()[name].delete_many({"place": "photos/key"})
                await other.put("key", b"theirs", if_absent=True)

            await between(one, forget, lambda: one.put("key", b"mine", if_absent=True))
            found = await one.get("key")
            assert found is not None
            assert found.data == b"theirs"
            assert documents(name) == [1]

    asyncio.run(run())


def test_who_makes_and_removes_at_the_same_time() -> None:
    """As often as it was made it was removed, but for what is there at the end."""

    async def run() -> None:
        name = named()
        made = removed = 0

        async def both(url: str) -> None:
            nonlocal made, removed
            async with opened_url(url) as storage:
                objects = Objects(storage, "photos")
                for _ in range(6):
                    try:
                        await objects.put("key", b"1", if_absent=True)
                        made += 1
                    except Conflict:
                        pass
                    about = await objects.stat("key")
                    try:
                        done = about is not None and await objects.remove("key", if_version=about.version)
                        removed += done
                    except Conflict:
                        pass

        await asyncio.gather(*(both(mongo.shared().url(name)) for _ in range(5)))
        async with opened(name) as objects:
            assert made == removed + (await objects.stat("key") is not None)

    asyncio.run(run())


# ---------------------------------------------------------------------- what the server is


def test_what_is_told_of_this_server() -> None:
    async def run() -> None:
        server = mongo.shared()
        async with opened(named()) as objects:
            features = objects.storage.features
            assert (features.swaps, features.removes, features.in_order, features.tells_all) == (True,) * 4
            assert (features.tells_changes, features.of_others) == (server.is_mongod,) * 2

    asyncio.run(run())


def test_find_and_update_is_not_one_step_everywhere() -> None:
    """Why it is not used: FerretDB lets several through, sooner or later. A mongod lets one."""

    async def run() -> None:
        server = mongo.shared()
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(f"mongodb://{server.hosts}/?directConnection=true")
        collection = client[mongo.DATABASE][named()]
        let_through = 0
        for i in range(10 if server.is_mongod else 1_000):
            await collection.insert_one({"_id": f"{i}", "version": 0})
            done = await asyncio.gather(
                *(
                    collection.find_one_and_update({"_id": f"{i}", "version": 0}, {"$set": {"version": n}})
                    for n in range(1, 9)
                )
            )
            let_through = max(let_through, sum(each is not None for each in done))
            if let_through > 1:
                break
        await client.close()
        assert (let_through == 1) == server.is_mongod

    asyncio.run(run())


def test_a_server_without_unique_indexes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a collection is whose index somebody has made before, for other reasons."""

    async def run() -> None:
        name = named()
        heads = mongo.shared().database()[name]
        heads.create_index([("place", 1), ("number", 1)])
        with pytest.raises((UsageError, StorageFailed), match="open it"):
            async with opened(name):
                pass

    asyncio.run(run())


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("127.0.0.1:27017", "is followed by a database"),
        ("127.0.0.1:27017/", "is followed by a database"),
        ("127.0.0.1:27017/a/b", "is followed by a database"),
        ("/grape", "is followed by HOST:PORT/DATABASE"),
        ("user:s3cret/more@host/grape", "HOST:PORT/DATABASE|database"),
        ("user:s3cret@m@host/grape", "are written as %40"),
        (":s3cret@host/grape", "are written as %40"),
        ("host/grape?colection=x", "did you mean 'collection'"),
        ("host/grape?w=1", "w: "),
        ("host/grape?collection=$x", "collection: "),
    ],
)
def test_urls_that_cannot_be(place: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as found:
        storage_of(f"mongodb://{place}")
    assert "s3cret" not in str(found.value)


def test_who_one_is() -> None:
    settings = MongoStorage.settings_of("ann:p%40ss@h1:1,h2:2/grape")
    config = MongoConfig(**settings, timeout=7.0, auth_source="", replica_set="rs")
    assert "p@ss" not in repr(config)
    client = client_of(config)
    options = client.options
    assert (options.replica_set_name, options.server_selection_timeout) == ("rs", 7.0)
    assert options.write_concern.document == {"w": "majority", "j": True, "wtimeout": 7000}
    credentials = options.pool_options._credentials
    assert credentials is not None
    assert (credentials.username, credentials.password, credentials.source) == ("ann", "p@ss", "grape")
    plain = MongoConfig(hosts="h", database="grape", variables="LAB")
    found = client_of(plain, {"LAB_USERNAME": "bob", "LAB_PASSWORD": "secret"}).options.pool_options._credentials
    assert found is not None
    assert (found.username, found.source) == ("bob", "admin")
    assert client_of(plain, {}).options.pool_options._credentials is None
    with pytest.raises(UsageError, match="LAB_PASSWORD is not set"):
        client_of(plain, {"LAB_USERNAME": "bob"})
    assert storage_of("mongodb://h/grape?variables=LAB").variables == ("LAB_",)
    assert storage_of("mongodb+srv://u:p@cluster.example.net/grape?retryWrites=true&w=majority").name == "mongodb+srv"


def test_wrong_keys_are_told_without_them() -> None:
    async def run() -> None:
        server = mongo.shared()
        with pytest.raises(UsageError, match="does not take user and password") as found:
            async with opened_url(f"mongodb://ann:s3cret@{server.hosts}/grape?directConnection=true"):
                pass
        assert "s3cret" not in str(found.value)

    asyncio.run(run())


@pytest.mark.slow
def test_memory_stays_flat() -> None:
    """An object of many times of what may be in memory goes up and down."""

    async def run() -> None:
        size = 100 << 20
        process = psutil.Process()
        piece = os.urandom(1 << 20)
        seen: list[int] = []

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(size >> 20):
                yield piece

        async def watch() -> None:
            while True:
                seen.append(process.memory_info().rss)
                await asyncio.sleep(0.01)

        async with opened(named()) as objects:
            await objects.put("warm", os.urandom(LARGE))
            await objects.get("warm")
            before = process.memory_info().rss
            watcher = asyncio.create_task(watch())
            about = await objects.put("key", chunks())
            assert await objects.verify("key") == about
            watcher.cancel()
            assert len(seen) > 20
            print(f"{(max(seen) - before) >> 20} MB")
            assert max(seen) - before < 64 << 20, (max(seen) - before) >> 20

    asyncio.run(run())


def test_a_collection_with_an_order_of_its_own_is_refused() -> None:
    server = mongo.shared()
    if not server.is_mongod:
        pytest.skip("FerretDB has no collations")

    async def run() -> None:
        name = named()
        server.database().create_collection(name, collation=pymongo.collation.Collation("de"))
        with pytest.raises(UsageError, match="has a collation"):
            async with opened(name):
                pass

    asyncio.run(run())
