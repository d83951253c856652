"""The contract of `grape.abc.storage.Storage`, as tests.

A storage's test file is a constructor and little more::

    class TestMine(StorageContract):
        @asynccontextmanager
        async def opened(self, count: int) -> AsyncIterator[list[Storage]]:
            ...

The methods named ``test_...`` need nothing but an `assert` that raises. An ability that `Features` deny is not skipped:
the refusal is asserted.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import Any, Final, TypeVar

from grape.abc.storage import ALWAYS, If, Place, Put, Storage
from grape.errors import BadArgument, Conflict, Corrupt, GrapeError, StorageFailed, Unsupported
from grape.storage.objects import Objects
from grape.storage.streams import chunks_of, collected

T = TypeVar("T")

NASTY: Final = (
    "a b",
    "ä/ö/ü",
    "%41",
    "a+b?c#d&e=f",
    ".hidden",
    "~",
    "日本語/文書",
    "UPPER/lower",
    "x" * 200,
    "-dash",
    "a\\b",
    "quote'\"`$(x)",
    "trailing.",
    "con/aux.txt",
    "a:b|c*d<e>f",
)
"""Keys that one storage or other could take for something else."""
LONG: Final = "/".join(["k" * 59] * 15)
"""As long as a key may be."""
_INCREMENTS: Final = 50


class StorageContract:
    """``largest_written``: bytes of the largest object that is written here. ``incrementers``: at the same time."""

    largest_written: int = 5 << 20
    incrementers: int = _INCREMENTS

    def opened(self, count: int = 1) -> AbstractAsyncContextManager[list[Storage]]:
        """So many storages, open, of the same objects, each as of another process."""
        raise NotImplementedError

    def check(self, test: Callable[[Objects], Awaitable[None]]) -> None:
        """Run a test in a namespace of its own."""
        self.check_several(1, lambda all_of_them: test(all_of_them[0]))

    def check_several(self, count: int, test: Callable[[list[Objects]], Awaitable[None]]) -> None:
        async def run() -> None:
            namespace = f"t{secrets.token_hex(6)}"
            async with self.opened(count) as storages:
                await test([Objects(storage, namespace) for storage in storages])

        asyncio.run(run())

    # ------------------------------------------------------------------ bytes

    def test_what_was_written_is_read(self) -> None:
        async def test(objects: Objects) -> None:
            random = Random(1)
            for size in (1, 2, 1000, 70_000, (1 << 20) - 1, (1 << 20) + 1, self.largest_written):
                data = random.randbytes(size)
                about = await objects.put("some/key", data)
                assert (about.key, about.size) == ("some/key", size)
                found = await objects.get("some/key")
                assert found is not None
                assert found.data == data
                assert (await objects.stat("some/key")) == found.about
                assert found.about.version == about.version

        self.check(test)

    def test_an_empty_object_is_one(self) -> None:
        async def test(objects: Objects) -> None:
            assert (await objects.put("empty", b"")).size == 0
            found = await objects.get("empty")
            assert found is not None
            assert found.data == b""
            assert [about.key async for about in self.all_of(objects)] == (
                ["empty"] if objects.storage.features.lists else []
            )

        self.check(test)

    def test_what_is_not_there_is_none(self) -> None:
        async def test(objects: Objects) -> None:
            assert await objects.get("nothing") is None
            assert await objects.stat("nothing") is None
            assert await objects.remove("nothing") is False
            await objects.put("thing", b"1")
            assert await objects.remove("thing") is True
            assert await objects.get("thing") is None
            assert await objects.remove("thing") is False

        self.check(test)

    def test_ranges(self) -> None:
        async def test(objects: Objects) -> None:
            data = Random(2).randbytes(300_000)
            await objects.put("data", data)
            for start, end in ((0, 10), (5, 5), (100_000, 200_000), (299_999, None), (0, None), (7, 1 << 40)):
                found = await objects.get("data", start, end)
                assert found is not None
                assert found.data == data[start:end], (start, end)
                assert found.about.size == len(data)
            past = await objects.get("data", 300_000, 300_010)
            assert past is not None
            assert past.data == b""
            for start, end in ((-1, 3), (5, 4)):
                await refused(BadArgument, objects.get("data", start, end))

        self.check(test)

    def test_keys_of_all_kinds(self) -> None:
        async def test(objects: Objects) -> None:
            for key in (*NASTY, LONG):
                await objects.put(key, key.encode())
            for key in (*NASTY, LONG):
                found = await objects.get(key)
                assert found is not None, key
                assert found.data == key.encode()
            if objects.storage.features.lists:
                assert sorted([about.key async for about in objects.list()]) == sorted((*NASTY, LONG))
            cannot: list[Any] = ["", "/", "a//b", "../a", "a/./b", "a\0b", "a\nb", "k" * 901, "\ud800", 7, None]
            for key in cannot:
                await refused(BadArgument, objects.get(key))

        self.check(test)

    def test_namespaces_do_not_see_one_another(self) -> None:
        async def test(objects: Objects) -> None:
            other = Objects(objects.storage, f"{objects.namespace}.o")
            await objects.put("key", b"one")
            await other.put("key", b"two")
            await objects.remove("key")
            found = await other.get("key")
            assert found is not None
            assert found.data == b"two"
            if objects.storage.features.lists:
                assert [about.key async for about in objects.list()] == []
            await other.remove("key")
            for name in ("", "A", "a/b", "..", "a" * 64, "ä"):
                try:
                    Objects(objects.storage, name)
                except BadArgument:
                    continue
                raise AssertionError(name)

        self.check(test)

    def test_a_key_may_be_the_directory_of_another_one(self) -> None:
        async def test(objects: Objects) -> None:
            await objects.put("a", b"1")
            if objects.storage.features.mixes:
                await objects.put("a/b", b"2")
                one, two = await objects.get("a"), await objects.get("a/b")
                assert one is not None
                assert two is not None
                assert (one.data, two.data) == (b"1", b"2")
            else:
                await refused(Conflict, objects.put("a/b", b"2"))
                await objects.put("c/d", b"2")
                await refused(Conflict, objects.put("c", b"1"))

        self.check(test)

    # ------------------------------------------------------------------ what is known of them

    def test_what_is_known_beside_the_bytes(self) -> None:
        async def test(objects: Objects) -> None:
            features = objects.storage.features
            user = {"camera": "b", "place": 'München, "here" %41'}
            put = objects.put(
                "photo",
                b"bytes",
                content_type="image/png",
                tags=["raw", "new", "ä b"],
                user=user,
                time=1_600_000_000_123_456,
            )
            if not features.keeps_about:
                await refused(Unsupported, put)
                return
            await put
            about = await objects.stat("photo")
            assert about is not None
            assert about.content_type == "image/png"
            assert about.tags == ("new", "raw", "ä b")
            assert about.user == user
            assert about.time == 1_600_000_000_123_456
            found = await objects.get("photo")
            assert found is not None
            assert found.about == about
            await objects.put("photo", b"bytes")  # a write is a whole one: nothing of the former stays
            about = await objects.stat("photo")
            assert about is not None
            assert (about.tags, about.user, about.content_type) == ((), {}, "application/octet-stream")

        self.check(test)

    def test_versions_and_checksums(self) -> None:
        async def test(objects: Objects) -> None:
            first = await objects.put("key", b"same")
            second = await objects.put("key", b"same")
            assert first.version != second.version
            kind = objects.storage.features.checksum
            if kind:
                expected = f"{kind}:{hashlib.new(kind, b'same').hexdigest()}"
                assert first.checksum == second.checksum == expected
                about = await objects.verify("key")
                assert about is not None
                assert about.checksum == expected
            await objects.put("key", b"right", checksum=f"sha256:{hashlib.sha256(b'right').hexdigest()}")
            await refused(
                BadArgument, objects.put("key", b"wrong", checksum=f"sha256:{hashlib.sha256(b'x').hexdigest()}")
            )
            found = await objects.get("key")
            assert found is not None
            assert found.data == b"right"

        self.check(test)

    def test_a_write_that_fails_has_not_happened(self) -> None:
        async def test(objects: Objects) -> None:
            async def broken() -> AsyncIterator[bytes]:
                yield b"x" * 100_000
                raise LookupError("the writer's own fault")

            for key in ("new", "old"):
                if key == "old":
                    await objects.put(key, b"was there")
                await refused(LookupError, objects.put(key, broken()))
                found = await objects.get(key)
                assert (None if found is None else found.data) == (None if key == "new" else b"was there")

        self.check(test)

    def test_time_to_live(self) -> None:
        async def test(objects: Objects) -> None:
            if not objects.storage.features.keeps_about:
                await refused(Unsupported, objects.put("short", b"1", ttl=1))
                return
            clock = [objects._now()]
            objects = Objects(objects.storage, objects.namespace, lambda: clock[0])
            await objects.put("short", b"1", ttl=60)
            await objects.put("long", b"2")
            if objects.storage.features.lists:
                assert await objects.count() == (2, 2)
            clock[0] += 59_000_000
            assert await objects.get("short") is not None
            clock[0] += 2_000_000
            assert await objects.get("short") is None
            assert await objects.stat("short") is None
            if objects.storage.features.lists and objects.storage.features.tells_all:
                assert await objects.count() == (1, 1)
            assert await objects.remove("short") is False
            await objects.put("short", b"1", ttl=60)
            clock[0] += 61_000_000
            if objects.storage.features.swaps:
                await objects.put("short", b"3", if_absent=True)
                await objects.put("short", b"1", ttl=60)
                clock[0] += 61_000_000
                await objects.put("short", _once(b"4"), if_absent=True)
                await refused(Conflict, objects.put("short", _once(b"5"), if_absent=True))
                assert await objects.get("short") is not None
                await objects.put("short", b"1", ttl=60)
                clock[0] += 61_000_000
            if objects.storage.features.lists:
                await objects.sweep()
                assert await objects.storage.stat(Place(objects.namespace, "short")) is None
            assert await objects.get("long") is not None

        self.check(test)

    # ------------------------------------------------------------------ conditions

    def test_conditions(self) -> None:
        async def test(objects: Objects) -> None:
            features = objects.storage.features
            first = await objects.put("key", b"1", time=1_000)
            checks: list[tuple[dict[str, Any], bool]] = [
                ({"if_absent": True}, False),
                ({"if_version": "never"}, False),
                ({"if_newer": True, "time": 999}, False),
                ({"if_newer": True, "time": 1_000}, True),
            ]
            if features.checksum:
                checks += [({"if_checksum": f"{features.checksum}:00"}, False), ({"if_checksum": first.checksum}, True)]
            for condition, holds in checks:
                when = objects._when(
                    condition.get("if_version"),
                    condition.get("if_checksum"),
                    condition.get("if_absent", False),
                    condition.get("time") if "if_newer" in condition else None,
                    "if_newer" in condition,
                )
                before = await objects.get("key")
                assert before is not None
                condition = {"time": 1_000, **condition}
                if not features.looks_at(when):
                    await refused(Unsupported, objects.put("key", b"other", **condition))
                elif holds:
                    await objects.put("key", b"1", **condition)
                else:
                    await refused(Conflict, objects.put("key", b"other", **condition))
                    after = await objects.get("key")
                    assert after == before
            there = await objects.stat("key")
            assert there is not None
            if features.looks_at(If(version="x")):
                await objects.put("key", b"2", if_version=there.version)
                await refused(Conflict, objects.put("key", b"3", if_version=there.version))
                if features.removes:
                    await refused(Conflict, objects.remove("key", if_version=there.version))
                    there = await objects.stat("key")
                    assert there is not None
                    assert await objects.remove("key", if_version=there.version) is True
                else:
                    await refused(Unsupported, objects.remove("key", if_version=there.version))
                    assert await objects.remove("key") is True
                await refused(Conflict, objects.put("key", b"4", if_version=there.version))
                await objects.put("key", b"5", if_absent=True)

        self.check(test)

    def test_concurrent_swaps_lose_nothing(self) -> None:
        """Fifty who count, by storages of their own."""

        async def test(several: list[Objects]) -> None:
            if not several[0].storage.features.swaps:
                await refused(Unsupported, several[0].swap("count", _incremented))
                return
            await asyncio.gather(
                *(several[i % len(several)].swap("count", _incremented) for i in range(self.incrementers))
            )
            found = await several[0].get("count")
            assert found is not None
            assert found.data == str(self.incrementers).encode()
            if several[0].storage.features.removes:
                await several[0].swap("count", lambda there: None)
                assert await several[1].get("count") is None
            else:
                await refused(Unsupported, several[0].swap("count", lambda there: None))

        self.check_several(5, test)

    def test_of_two_who_make_it_one_does(self) -> None:
        async def test(several: list[Objects]) -> None:
            if not several[0].storage.features.looks_at(If(absent=True)):
                return
            for i in range(10):
                done = await asyncio.gather(
                    *(each.put(f"key{i}", str(n).encode(), if_absent=True) for n, each in enumerate(several)),
                    return_exceptions=True,
                )
                made = [n for n, one in enumerate(done) if not isinstance(one, BaseException)]
                assert len(made) == 1, done
                assert all(isinstance(one, Conflict) for n, one in enumerate(done) if n not in made)
                found = await several[-1].get(f"key{i}")
                assert found is not None
                assert found.data == str(made[0]).encode()

        self.check_several(4, test)

    def test_writers_at_the_same_time_do_not_mix(self) -> None:
        async def test(several: list[Objects]) -> None:
            size = min(300_000, self.largest_written)
            bodies = [bytes([65 + n]) * size for n in range(len(several))]
            for _ in range(3):
                await asyncio.gather(*(each.put("key", body) for each, body in zip(several, bodies, strict=True)))
                for each in several:
                    found = await each.get("key")
                    assert found is not None
                    assert found.data in bodies

        self.check_several(4, test)

    def test_who_reads_while_another_writes_gets_one_of_them_whole(self) -> None:
        async def test(several: list[Objects]) -> None:
            writer, reader = several
            size = min(2_000_000, self.largest_written)
            await writer.put("key", b"0" * size)
            done = asyncio.Event()

            async def write() -> None:
                for i in range(20):
                    await writer.put("key", str(i % 10).encode() * size)
                done.set()

            async def read() -> None:
                while not done.is_set():
                    try:
                        found = await reader.get("key")
                    except (Corrupt, StorageFailed):  # it was changed meanwhile
                        continue
                    assert found is not None
                    assert len(found.data) == size
                    assert len(set(found.data)) == 1

            async with asyncio.TaskGroup() as group:
                group.create_task(write())
                group.create_task(read())

        self.check_several(2, test)

    def test_append(self) -> None:
        async def test(objects: Objects) -> None:
            try:
                await objects.append("log", b"one\n")
            except Unsupported:
                assert not objects.storage.features.swaps
                return
            await objects.append("log", b"two\n")
            found = await objects.get("log")
            assert found is not None
            assert found.data == b"one\ntwo\n"
            await asyncio.gather(*(objects.append("log", b"more\n") for _ in range(10)))
            found = await objects.get("log")
            assert found is not None
            assert found.data == b"one\ntwo\n" + b"more\n" * 10
            await objects.verify("log")

        self.check(test)

    # ------------------------------------------------------------------ lists

    def all_of(self, objects: Objects) -> AsyncIterator[Any]:
        return objects.list() if objects.storage.features.lists else _none()

    def test_lists(self) -> None:
        async def test(objects: Objects) -> None:
            features = objects.storage.features
            keys = [f"p/{i:03}" for i in range(25)] + ["p.x", "q", "z/1", "z/2", "ä"]
            await asyncio.gather(*(objects.put(key, key.encode()) for key in keys))
            if not features.lists:
                await refused(Unsupported, objects.page())
                return
            seen: list[str] = []
            position = ""
            while True:
                page = await objects.page("", position, 7)
                assert len(page.items) <= 7
                seen += [about.key for about in page.items]
                position = page.position
                if not position:
                    break
            assert sorted(seen) == sorted(keys)
            if features.in_order:
                assert seen == sorted(keys, key=str.encode)
            for prefix in ("p/", "p/01", "z", "nothing", "ä"):
                found = [about async for about in objects.list(prefix)]
                assert sorted(about.key for about in found) == [key for key in sorted(keys) if key.startswith(prefix)]
                assert all(about.size == len(about.key.encode()) for about in found)
                assert await objects.count(prefix) == (len(found), sum(about.size for about in found))
            await objects.remove("z/1")
            assert await objects.count("z/") == (1, 3)

        self.check(test)

    def test_a_position_is_good_after_what_it_was_made_of_has_gone(self) -> None:
        async def test(objects: Objects) -> None:
            if not objects.storage.features.lists:
                return
            keys = [f"{i:02}" for i in range(12)]
            await asyncio.gather(*(objects.put(key, b"1") for key in keys))
            page = await objects.page("", "", 4)
            for about in page.items:
                await objects.remove(about.key)
            seen = [about.key for about in page.items]
            position = page.position
            while position:
                page = await objects.page("", position, 4)
                seen += [about.key for about in page.items]
                position = page.position
            assert sorted(seen) == keys

        self.check(test)

    def test_lists_by_tags(self) -> None:
        async def test(objects: Objects) -> None:
            features = objects.storage.features
            if not (features.lists and features.keeps_about):
                return
            await objects.put("a", b"1", tags=["x"])
            await objects.put("b", b"1", tags=["x", "y"])
            await objects.put("c", b"1", tags=["z"])
            await objects.put("d", b"1")

            async def keys(**asked: list[str]) -> list[str]:
                return sorted([about.key async for about in objects.list(**asked)])  # type: ignore[arg-type]

            assert await keys(tags=["x"]) == ["a", "b"]
            assert await keys(tags=["x", "y"]) == ["b"]
            assert await keys(any_tag=["y", "z"]) == ["b", "c"]
            assert await keys(tags=["x"], any_tag=["y", "z"]) == ["b"]
            assert await objects.count(tags=["x"]) == (2, 2)

        self.check(test)

    def test_many_at_once_and_the_oldest_go(self) -> None:
        async def test(objects: Objects) -> None:
            await asyncio.gather(*(objects.put(f"{i}", f"{i}".encode(), time=1_000 + i) for i in range(20)))
            found = await objects.get_many([f"{i}" for i in range(0, 40, 2)])
            assert {key: one.data for key, one in found.items()} == {f"{i}": f"{i}".encode() for i in range(0, 20, 2)}
            if objects.storage.features.lists:
                assert await objects.cap(objects=5) == 15
                assert sorted([about.key async for about in objects.list()]) == ["15", "16", "17", "18", "19"]

        self.check(test)

    # ------------------------------------------------------------------ changes

    def test_changes(self) -> None:
        async def test(several: list[Objects]) -> None:
            objects, other = several
            storage, features = objects.storage, objects.storage.features
            if not features.tells_changes:
                await refused(Unsupported, storage.changes(objects.namespace, "", None))
                return
            writer = other if features.of_others else objects
            await writer.put("before", b"1")
            start = (await storage.changes(objects.namespace, "", None)).position
            await writer.put("a/1", b"1")
            await writer.put("a/2", b"1")
            await writer.put("b/1", b"1")
            await writer.remove("a/1")
            await writer.put("a/2", b"22")
            last: dict[str, int | None] = {}
            position = start
            for _ in range(200):
                found = await storage.changes(objects.namespace, "a/", position, 2)
                position = found.position
                for change in found.items:
                    last[change.key] = None if change.about is None else change.about.size
                if last == {"a/1": None, "a/2": 2} and not found.items:
                    break
                await asyncio.sleep(0.02)
            assert last == {"a/1": None, "a/2": 2}

        self.check_several(2, test)

    # ------------------------------------------------------------------ the storage itself

    def test_what_is_written_is_there_for_others(self) -> None:
        async def test(several: list[Objects]) -> None:
            await several[0].put("key", b"1")
            found = await several[1].get("key")
            assert found is not None
            assert found.data == b"1"
            await several[1].remove("key")
            assert await several[0].get("key") is None

        self.check_several(2, test)

    def test_it_is_closed_twice(self) -> None:
        async def run() -> None:
            async with self.opened(1) as (storage,):
                await storage.close()
                await storage.close()

        asyncio.run(run())

    def test_the_largest(self) -> None:
        """What is announced as larger is refused before anything comes."""

        async def test(objects: Objects) -> None:
            async def nothing() -> AsyncIterator[bytes]:
                yield b""
                raise AssertionError("asked for more bytes")

            most = objects.storage.features.largest
            place = Place(objects.namespace, "large")
            await refused(GrapeError, objects.storage.write(place, nothing(), Put(size=most + 1)))
            assert await objects.get("large") is None

        self.check(test)


async def refused(kind: type[BaseException], doing: Awaitable[object]) -> BaseException:
    """It raises an error of this kind."""
    try:
        await doing
    except kind as e:
        return e
    raise AssertionError(f"no {kind.__name__}")


async def write(storage: Storage, place: Place, data: bytes, when: If = ALWAYS) -> None:
    await storage.write(place, chunks_of(data), Put(when=when, size=len(data)))


async def read(storage: Storage, place: Place) -> bytes | None:
    async with storage.read(place) as found:
        return None if found is None else await collected(found.chunks)


def _incremented(there: bytes | None) -> bytes:
    return str(int(there or b"0") + 1).encode()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    """Which cannot be gone through again."""
    yield data


async def _none() -> AsyncIterator[Any]:
    for _ in ():
        yield
