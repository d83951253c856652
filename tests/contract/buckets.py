"""What is asked of each cloud's storage beside the contract of storages."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, ClassVar

import psutil
import pytest

from contract import clouds
from contract.between import Between, Fault, answered, count_through, first
from grape.abc.storage import Place, Put, Storage
from grape.errors import BadArgument, Conflict, Corrupt, GrapeError, StorageFailed, TooLarge, Unsupported, UsageError
from grape.storage.objects import Object, Objects
from grape.storage.streams import chunks_of
from grape.testing.contracts.storage import StorageContract

PART = 5 << 20
AWAY = r"nobody answers at|the connection to .* broke"


class BucketContract(StorageContract):
    """
    Attributes:
        kind: the emulator that all tests share. lasting: one that has after a kill what it had.
        keys: how the variables of the environment begin that have the keys.
    """

    largest_written = 20 << 20
    kind: ClassVar[Callable[[], clouds.Emulator]]
    keys: ClassVar[str]
    kind_of: ClassVar[type[Storage]]

    @abstractmethod
    def storage(self, endpoint: str, bucket: str = clouds.BUCKET, **settings: Any) -> Storage: ...

    @abstractmethod
    def written_by_another(self, path: str, data: bytes, user: dict[str, str], content_type: str) -> int:
        """In the emulator that all share; the status."""

    @asynccontextmanager
    async def opened(self, count: int = 1) -> AsyncIterator[list[Storage]]:
        storages = [self.storage(self.shared().endpoint, prefix="contract") for _ in range(count)]
        for storage in storages:
            await storage.open()
        yield storages
        for storage in storages:
            await storage.close()

    def shared(self) -> clouds.Emulator:
        return clouds.shared(type(self).kind)

    def run(self, test: Callable[[Objects], Awaitable[None]], endpoint: str = "", **settings: Any) -> None:
        """On a bucket of its own as far as ``test`` sees."""

        async def run() -> None:
            given = {"prefix": f"own/{secrets.token_hex(6)}", "part": PART, **settings}
            storage = self.storage(endpoint or self.shared().endpoint, **given)
            await storage.open()
            try:
                await test(Objects(storage, "photos"))
            finally:
                await storage.close()

        asyncio.run(run())

    # ------------------------------------------------------------------ what lies there

    def test_what_is_told_of_it(self) -> None:
        async def test(objects: Objects) -> None:
            features = objects.storage.features
            assert (features.swaps, features.removes, features.lists, features.mixes) == (True, False, True, True)
            about = await objects.put("key", b"1")
            with pytest.raises(Unsupported):
                await objects.remove("key", if_version=about.version)

        self.run(test)

    def test_other_programs_write_the_same_objects(self) -> None:
        async def test(objects: Objects) -> None:
            begin = "others/photos/"
            for path in ("2026/100%.png", "folder/", "folder/in", "empty"):
                data = b"" if path in ("folder/", "empty") else b"theirs"
                assert self.written_by_another(begin + path, data, {"camera": "50% b"}, "image/png") in (200, 201)
            found = await objects.get("2026/100%.png")
            assert found is not None
            assert (found.data, found.about.content_type, found.about.checksum) == (b"theirs", "image/png", "")
            assert found.about.user == {"camera": "50% b"}
            assert found.about.time > 1_700_000_000_000_000
            assert [about.key async for about in objects.list()] == ["2026/100%.png", "empty", "folder/in"]
            before = await objects.put("a.txt", b"ours", content_type="text/plain", tags=["x"], user={"camera": "ä b"})
            assert self.written_by_another(f"{begin}a.txt", b"theirs", {}, "image/png") in (200, 201)
            after = await objects.stat("a.txt")
            assert after is not None
            assert (after.tags, after.user, after.content_type) == ((), {}, "image/png")
            with pytest.raises(Conflict):
                await objects.put("a.txt", b"lost", if_version=before.version)

        self.run(test, prefix="others")

    def test_a_name_that_no_key_can_be_is_told(self) -> None:
        async def test(objects: Objects) -> None:
            assert self.written_by_another("slashes/photos/a//b", b"1", {}, "image/png") in (200, 201)
            with pytest.raises(StorageFailed, match="another program has written what no key can be"):
                await objects.page()

        self.run(test, prefix="slashes")

    def test_pages_leave_nothing_out(self) -> None:
        """By any limit, by any prefix, whatever is held of a list meanwhile."""

        async def test(objects: Objects) -> None:
            random = Random(7)
            names = [
                "a",
                "b",
                "a b",
                "a.b",
                "ab",
                "é",
                "Z",
                "0",
                "a!",
                "a~",
                "%25",
                "%5C",
                "b\\",
                "%",
                "%2",
                "a.",
                "%2E",
            ]
            keys = {"/".join(random.choice(names) for _ in range(random.randint(1, 4))) for _ in range(250)}
            await asyncio.gather(*(objects.put(key, b"") for key in keys))
            for prefix in (
                "",
                "a",
                "a/",
                "a/a",
                "a b",
                "é",
                "b\\",
                "%",
                "%2",
                "%25",
                "%5",
                "a.",
                "a/a.",
                "0",
                "nothing",
            ):
                expected = {key for key in keys if key.startswith(prefix)}
                for limit in (7, 1000):
                    seen, position = [], ""
                    while True:
                        page = await objects.page(prefix, position, limit)
                        assert len(page.items) <= limit
                        seen += [about.key for about in page.items]
                        position = page.position
                        if not position:
                            break
                    assert len(seen) == len(set(seen))
                    assert set(seen) == expected, (prefix, limit)

        self.run(test)

    def test_a_position_is_good_for_another_process(self) -> None:
        async def test(objects: Objects) -> None:
            keys = [f"{i:02}" for i in range(20)]
            await asyncio.gather(*(objects.put(key, b"1") for key in keys))
            page = await objects.page("", "", 7)
            await objects.storage.close()  # what it held is forgotten
            rest = [about.key async for about in objects.list()]
            assert rest == keys
            again = await objects.page("", page.position, 100)
            assert [about.key for about in (*page.items, *again.items)] == keys

        self.run(test)

    def test_a_version_of_a_page_is_good_for_conditions(self) -> None:
        async def test(objects: Objects) -> None:
            await objects.put("key", b"1")
            (about,) = (await objects.page()).items
            await objects.put("key", b"2", if_version=about.version)
            with pytest.raises(Conflict):
                await objects.put("key", b"3", if_version=about.version)

        self.run(test)

    def test_the_same_bytes_written_again_are_another_version(self) -> None:
        async def test(objects: Objects) -> None:
            first = await objects.put("key", b"same", tags=["a"])
            second = await objects.put("key", b"same", tags=["b"])
            with pytest.raises(Conflict):
                await objects.put("key", b"other", if_version=first.version)
            about = await objects.put("key", b"same", if_version=second.version)
            assert await objects.stat("key") == about

        self.run(test)

    def test_what_lies_there_damaged_is_found_by_either_sum(self) -> None:
        async def test(objects: Objects) -> None:
            await objects.put("key", b"as it was", user={"a": "b"})
            store: Any = objects.storage._store  # type: ignore[attr-defined]
            key = objects.storage._key(Place("photos", "key"))  # type: ignore[attr-defined]
            found = await store.get_async(key)
            names = {name.replace("-", "").replace("_", ""): name for name in found.attributes}
            kept = dict(found.attributes)

            async def lies_there(data: bytes, **changed: str) -> None:
                told = kept | {names[name]: value for name, value in changed.items()}
                await store.put_async(key, data, attributes=told)

            await lies_there(b"as it was", grapesum="sha256:00")
            assert (await taken(objects)).data == b"as it was"  # the quick look is good enough
            with pytest.raises(Corrupt, match="photos/key"):
                await objects.verify("key")
            for crc in (
                None,
                "00000000",
                "no digits",
                "",
                "1234567",
                "ABCDEF01",
            ):  # its own, or none: the other is
                await lies_there(b"as it wax", **({} if crc is None else {"grapecrc": crc or "%"}))
                with pytest.raises(Corrupt, match="photos/key"):
                    await objects.get("key")
            await lies_there(b"as it was", grapecrc="no digits")
            assert (await taken(objects)).about.user == {"a": "b"}
            await lies_there(b"as it was", grapecrc="00000000")
            with pytest.raises(Corrupt, match="photos/key"):
                await objects.get("key")

        async def taken(objects: Objects) -> Object:
            found = await objects.get("key")
            assert found is not None
            return found

        self.run(test)

    def test_keys_and_metadata_that_do_not_fit(self) -> None:
        async def test(objects: Objects) -> None:
            with pytest.raises(BadArgument, match=r"a key has at most 1,024 bytes at"):
                await objects.put("\\" * 400, b"1")
            user = {"2026": "", "a_b.c-d": '  %41, "x"  y;ä', "grape": "1", "grape-tags": "mine", "a__b_2d": "x"}
            tags = [f"{i},%2C {'ä' * 50}" for i in range(20)]
            await objects.put("full", b"1", user=user, tags=tags)
            about = await objects.stat("full")
            assert about is not None
            assert (about.user, about.tags) == (user, tuple(sorted(tags)))

        self.run(test)

    # ------------------------------------------------------------------ what is large

    def test_what_is_large(self) -> None:
        async def test(objects: Objects) -> None:
            data = os.urandom(3 * PART + 7)
            place = Place("photos", "key")
            right = Put(size=len(data), checksum=f"sha256:{hashlib.sha256(data).hexdigest()}", tags=("x",))
            about = await objects.storage.write(place, chunks_of(data), right)
            assert await objects.verify("key") == about
            for wrong in (
                Put(size=len(data), checksum="sha256:00"),
                Put(size=len(data) + 1, checksum=right.checksum),
                Put(size=objects.storage.features.largest + 1, checksum=right.checksum),
            ):
                with pytest.raises((BadArgument, TooLarge)):
                    await objects.storage.write(place, chunks_of(data), wrong)

            async def broken() -> AsyncIterator[bytes]:
                yield data[: 2 * PART]
                raise LookupError("the writer's own fault")

            with pytest.raises(LookupError):
                await objects.storage.write(place, broken(), right)
            assert await objects.verify("key") == about
            other = await objects.put("key", data[::-1], if_version=about.version)
            for condition in ({"if_absent": True}, {"if_version": about.version}, {"if_checksum": "sha256:00"}):
                with pytest.raises(Conflict):
                    await objects.put("key", data, **condition)  # type: ignore[arg-type]
            assert await objects.verify("key") == other
            assert [about.key async for about in objects.list()] == ["key"]

        self.run(test)

    @pytest.mark.parametrize("how", ["in parts", "as it comes", "by one request"])
    def test_memory_stays_flat(self, how: str) -> None:
        async def test(objects: Objects) -> None:
            size = 100 << 20
            process = psutil.Process()
            piece = os.urandom(1 << 20)
            summed = hashlib.sha256()
            for _ in range(size >> 20):
                summed.update(piece)
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

            await objects.put("warm", os.urandom(PART + 1))
            await objects.get("warm")
            before = taken()
            watcher = asyncio.create_task(watch())
            put = Put(size=size, checksum=f"sha256:{summed.hexdigest()}")
            if how == "as it comes":
                about = await objects.storage.write(Place("photos", "key"), chunks(), put)
            else:
                about = await objects.put("key", chunks(), if_absent=how == "by one request")
            assert await objects.verify("key") == about
            watcher.cancel()
            assert len(seen) > 20
            assert max(seen) - before < 64 << 20, (max(seen) - before) >> 20
            await objects.remove("key")

        self.run(test)

    # ------------------------------------------------------------------ what is lost on its way

    def through(self, test: Callable[[Between, Objects], Awaitable[None]], **settings: Any) -> None:
        async def run() -> None:
            shared = self.shared()
            async with Between(shared.port).running() as between:
                endpoint = shared.endpoint.replace(f":{shared.port}", f":{between.port}")
                storage = self.storage(endpoint, prefix=f"own/{secrets.token_hex(6)}", part=PART, **settings)
                await storage.open()
                try:
                    between.asked.clear()
                    await test(between, Objects(storage, "photos"))
                finally:
                    await storage.close()

        asyncio.run(run())

    @pytest.mark.parametrize("fault", ["unheard", "unanswered", answered(503, "ServerBusy")])
    def test_a_write_that_was_not_answered_is_done_once(self, fault: Fault) -> None:
        async def test(between: Between, objects: Objects) -> None:
            between.faults = first(1, fault, "PUT")
            made = await objects.put("key", b"1", if_absent=True)
            assert await objects.stat("key") == made
            between.faults = first(1, fault, "PUT")
            changed = await objects.put("key", b"2", if_version=made.version)
            assert await objects.stat("key") == changed
            between.faults = first(1, fault, "PUT")
            again = await objects.put("key", b"3")
            assert await objects.stat("key") == again
            between.faults = first(1, fault, "PUT")
            with pytest.raises(StorageFailed, match="whether this was written before it is not known"):
                await objects.put("key", b"4", if_version=made.version)
            between.faults = first(2, fault, "PUT")
            large = await objects.put("large", os.urandom(2 * PART))
            assert await objects.verify("large") == large

        self.through(test)

    def test_who_counts_through_it_loses_nothing(self) -> None:
        """What is told as done is done once, and what is not known is told so."""

        async def test(between: Between, objects: Objects) -> None:
            await count_through(between, objects, 40)

        self.through(test)

    def test_what_is_cut_while_it_is_read_is_read_on(self) -> None:
        async def test(between: Between, objects: Objects) -> None:
            data = os.urandom(3 << 20)
            await objects.put("key", data)
            between.faults = first(1, "cut", "GET")
            found = await objects.get("key")
            assert found is not None
            assert found.data == data
            assert between.asked.count("GET") > 1

        self.through(test)

    def test_what_is_answered_again_and_again_is_told(self) -> None:
        async def test(between: Between, objects: Objects) -> None:
            for answer, kind, text in (
                (answered(503, "ServerBusy"), StorageFailed, "has answered 503 several times: try later"),
                (answered(403, "AccessDenied"), StorageFailed, "the keys may not do that in"),
                (answered(401, "InvalidAuthenticationInfo"), UsageError, "does not take the keys: look at"),
                (answered(404, "NoSuchBucket"), UsageError, "there is no (bucket|container) 'grape-tests' at"),
                (answered(400, "Strange"), StorageFailed, r"answers 400 \(Strange: Strange it is\)"),
            ):
                between.faults = lambda method, target, answer=answer: answer  # type: ignore[misc]
                for doing in (objects.get("key"), objects.put("key", b"1"), objects.page()):
                    with pytest.raises(kind, match=text) as found:
                        await doing
                    assert "\n" not in str(found.value)

        self.through(test)

    # ------------------------------------------------------------------ set up wrongly

    async def one_clear_error(self, storage: Storage, kind: type[GrapeError], text: str) -> None:
        begun = time.monotonic()
        with pytest.raises(kind, match=text) as found:
            await storage.open()
        await storage.close()
        said = str(found.value)
        assert "\n" not in said
        assert clouds.KEY not in said
        assert clouds.TOKEN not in said
        assert time.monotonic() - begun < 10

    def test_no_bucket(self) -> None:
        storage = self.storage(self.shared().endpoint, bucket="nobodys-bucket")
        text = (
            r"open it in .*: there is no (bucket|container) 'nobodys-bucket' at http://127.*: make it, or name another"
        )
        asyncio.run(self.one_clear_error(storage, UsageError, text))

    def test_nobody_is_there(self) -> None:
        for host in ("127.0.0.1:1", "grape.invalid"):
            storage = self.storage(f"http://{host}/x")
            asyncio.run(
                self.one_clear_error(storage, StorageFailed, f"nobody answers at http://{host}/x: look whether")
            )

    def test_keys_in_a_url_are_refused_and_not_told(self) -> None:
        name = self.kind_of.name
        for place in ("ann:secret@photos", "secret@photos/x", "photos:secret"):
            with pytest.raises(UsageError, match="never by keys: they are in the environment") as found:
                self.kind_of.settings_of(place)
            assert "secret" not in str(found.value)
        for endpoint in ("http://ann:secret@host", "http://host?sig=secret", "ftp://secret", "secret"):
            with pytest.raises(UsageError, match="endpoint is as in") as found:
                self.storage(endpoint)
            assert "secret" not in str(found.value)
        for place in ("", "A", "a", "a b", "ä"):
            with pytest.raises(UsageError, match=f"{name}:// is followed by"):
                self.kind_of.settings_of(place)
        with pytest.raises(UsageError, match="the prefix of"):
            self.storage("http://127.0.0.1:1", prefix="a//b")

    # ------------------------------------------------------------------ a server that goes

    def test_a_server_that_is_killed_and_comes_back(self) -> None:
        async def test(server: clouds.Emulator, objects: Objects) -> None:
            await objects.put("key", b"1")
            server.kill()
            for doing in (
                lambda: objects.get("key"),
                lambda: objects.put("key", b"2"),
                lambda: objects.put("key", b"2", if_absent=True),
                lambda: objects.put("large", b"2" * (PART + 1)),
                objects.page,
                lambda: objects.remove("key"),
            ):
                begun = time.monotonic()
                with pytest.raises(StorageFailed, match=AWAY):
                    await doing()
                assert time.monotonic() - begun < 20
            server.start()
            await self.is_back(objects)
            about = await objects.put("new", b"2", if_absent=True)
            assert await objects.verify("new") == about

        with clouds.own(type(self).kind) as server:
            self.run(lambda objects: test(server, objects), server.endpoint, timeout=1.0)

    async def is_back(self, objects: Objects) -> None:
        """What it had before it was killed."""

    def test_a_server_that_says_nothing_is_told_in_time(self) -> None:
        async def test(server: clouds.Emulator, objects: Objects) -> None:
            about = await objects.put("key", b"1")
            server.stall()
            for doing in (lambda: objects.get("key"), lambda: objects.put("key", b"2", if_version=about.version)):
                begun = time.monotonic()
                with pytest.raises(StorageFailed, match=rf"has not answered for 0\.5 s|{AWAY}"):
                    await doing()
                assert time.monotonic() - begun < 20
            server.go_on()
            there = await objects.stat("key")  # it may have been done all the same, and is seen whole
            assert there is not None
            await objects.swap("key", lambda data: (data or b"") + b"3")
            found = await objects.get("key")
            assert found is not None
            assert found.data in (b"13", b"23")

        with clouds.own(type(self).kind) as server:
            self.run(lambda objects: test(server, objects), server.endpoint, timeout=0.5)
