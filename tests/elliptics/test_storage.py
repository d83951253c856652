"""What is promised beside the contract: others see what is written here, groups that are away, repairs, crashes between
two writes, large objects.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from elliptics.clusters import clustered, node_per_group, objects_of, opened, until
from elliptics.server import BULK_READ, LOOKUP, READ, REMOVE, WRITE, Backend, Cluster, Record, sha
from grape.abc.storage import If, Place, Put
from grape.errors import BadArgument, Conflict, Corrupt, StorageFailed, TooLarge, Unsupported
from grape.storage.elliptics import about as with_heads
from grape.storage.elliptics import heads, marks, wire
from grape.storage.elliptics.client import Client
from grape.storage.elliptics.storage import EllipticsStorage
from grape.storage.elliptics.wire import Writing, id_of
from grape.storage.objects import Objects
from grape.storage.streams import chunks_of

ID = id_of("ns", "key")
PLACE = Place("ns", "key")
ABOUT: dict[str, Any] = {"about": True}
TWO: dict[str, Any] = {"groups": "1,2", "timeout": 2.0}


def disks(cluster: Cluster) -> list[dict[bytes, Record]]:
    """Of groups 1, 2 and so on, each of which is one backend."""
    return [node.backends[0].disk for node in cluster.nodes]


async def got(objects: Objects, key: str = "key") -> bytes | None:
    found = await objects.get(key)
    return None if found is None else found.data


# ---------------------------------------------------------------------- others


def test_others_read_what_is_written_here_and_the_other_way_round() -> None:
    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster) as storage:
            objects = objects_of(storage)
            about = await objects.put("key", b"ours", time=1_600_000_000_123_456)
            (disk,) = disks(cluster)
            assert disk.keys() == {sha(b"ns\0key")}
            record = disk[ID]
            assert (record.data, record.stamp) == (b"ours", (1_600_000_000, 123_456_000))
            assert about.time == 1_600_000_000_123_456
            # Somebody else: with a time of its own or none, and numbers of its own.
            await storage.client.write(1, ID, b"theirs", Writing(wire.Stamp(1_700_000_000, 5_000), 42))
            found = await objects.stat("key")
            assert found is not None
            assert (found.size, found.time) == (6, 1_700_000_000_000_005)
            assert found.checksum == f"sha512:{sha(b'theirs').hex()}"
            with pytest.raises(Conflict):
                await objects.put("key", b"lost", if_version=about.version)
            await objects.put("key", b"found", if_version=found.version)
            await storage.client.write(1, id_of("ns", "no time"), b"1", Writing())
            found = await objects.stat("no time")
            assert found is not None
            assert found.time == 0

    asyncio.run(run())


def test_a_namespace_that_is_none() -> None:
    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster, bare="plain") as storage:
            await storage.client.write(1, sha(b"key"), b"theirs", Writing())
            assert await got(objects_of(storage, "plain")) == b"theirs"
            await objects_of(storage, "other").put("key", b"1")
            assert sha(b"other\0key") in disks(cluster)[0]

    asyncio.run(run())


def test_what_has_no_place_is_refused() -> None:
    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster) as storage:
            objects = objects_of(storage)
            for option in ({"content_type": "a/b"}, {"tags": ["x"]}, {"user": {"a": "b"}}, {"ttl": 5}):
                with pytest.raises(Unsupported, match="about=true"):
                    await objects.put("key", b"1", **option)  # type: ignore[arg-type]
            with pytest.raises(Unsupported, match="about=true"):
                await objects.page()
            with pytest.raises(Unsupported):
                await storage.tidy()

    asyncio.run(run())


def test_marks_stand_for_what_elliptics_does_not_know() -> None:
    """An empty object; one that begins like a mark; one that was removed under a condition."""

    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster) as storage:
            objects = objects_of(storage)
            disk = disks(cluster)[0]
            for data in (b"", marks.BEGINS, marks.GONE, marks.GONE + b"more", marks.BEGINS + bytes(10_000)):
                about = await objects.put("key", data)
                assert disk[ID].data == marks.BEGINS + data
                found = await objects.get("key")
                assert found is not None
                assert found.data == data
                assert (await objects.stat("key")) == found.about
                assert (about.size, about.checksum) == (len(data), f"sha512:{sha(data).hex()}")
                ranged = await objects.get("key", 3, 20)
                assert ranged is not None
                assert ranged.data == data[3:20]
                assert (await objects.get_many(["key"]))["key"].data == data
                await objects.put("key", data, if_checksum=about.checksum)
            await objects.put("key", b"")
            await objects.append("key", b"one")
            assert await got(objects) == b"one"
            about = await objects.append("key", b",two")
            assert (about.size, about.checksum) == (7, f"sha512:{sha(b'one,two').hex()}")
            await objects.put("key", b"1", if_version=about.version)
            assert await objects.remove("key", if_checksum=f"sha512:{sha(b'1').hex()}") is True
            assert disk[ID].data == marks.GONE
            assert await got(objects) is None
            assert await objects.get_many(["key"]) == {}
            with pytest.raises(Conflict):
                await objects.put("key", b"2", if_checksum=f"sha512:{sha(b'1').hex()}")
            with pytest.raises(Conflict):
                await objects.remove("key", if_version="x")
            await objects.append("key", b"new")
            assert await got(objects) == b"new"
            there = await objects.stat("key")
            assert there is not None
            await objects.remove("key", if_version=there.version)
            await objects.put("key", b"3", if_absent=True)
            with pytest.raises(Conflict):
                await objects.put("key", b"4", if_absent=True)
            there = await objects.stat("key")
            assert there is not None
            await objects.remove("key", if_version=there.version)
            assert await objects.remove("key") is False, "there was none"
            assert ID not in disk, "and the mark has gone too"

    asyncio.run(run())


def test_guards_are_the_servers() -> None:
    """One message each, where one is enough."""

    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster) as storage:
            objects, seen = objects_of(storage), cluster.nodes[0].seen
            seen.clear()
            await objects.put("key", b"1", if_absent=True)
            await objects.put("key", b"2", if_newer=True, time=5_000_000_000_000_000)
            await objects.put("key", b"3", if_newer=True, time=5_000_000_000_000_000)
            assert (seen[WRITE], seen[READ]) == (3, 0)
            with pytest.raises(Conflict, match="is newer"):
                await objects.put("key", b"4", if_newer=True, time=4_999_999_999_999_999)
            there = await objects.stat("key")
            assert there is not None
            assert await objects.remove("key", if_version=there.version)
            # What was removed is not newer than anything.
            await objects.put("key", b"5", if_newer=True, time=1_000)

    asyncio.run(run())


def test_several_are_read_at_once() -> None:
    async def run() -> None:
        backends = [[Backend(1, 1, ("A1-0", "A1-1"))], [Backend(0, 1, ("B1-0", "B1-1"))]]
        for options in ({}, ABOUT):
            async with clustered(backends) as cluster, opened(cluster, **options) as storage:
                objects = objects_of(storage)
                contents = {f"{i}": bytes([i]) * i * 100 for i in range(1, 60)}
                await asyncio.gather(*(objects.put(key, data) for key, data in contents.items()))
                for node in cluster.nodes:
                    node.seen.clear()
                found = await objects.get_many([*contents, "missing"])
                assert {key: one.data for key, one in found.items()} == contents
                assert sum(node.seen[BULK_READ] for node in cluster.nodes) == 2
                if not options:
                    assert sum(node.seen[READ] for node in cluster.nodes) <= 1, "but for the one that is missing"
                for node in cluster.nodes:
                    for backend in node.backends:
                        backend.disk.clear()

    asyncio.run(run())


def test_the_cache_lets_go() -> None:
    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster, cache="only", lifetime=1) as storage:
            objects = objects_of(storage)
            await objects.put("key", b"for a second")
            assert await got(objects) == b"for a second"
            found = await objects.stat("key")
            assert found is not None
            assert found.size == 12
            await objects.put("key", b"another", if_version=found.version)
            assert not disks(cluster)[0]
            with pytest.raises(Unsupported):
                await storage.append(PLACE, chunks_of(b"1"), Put())
            await asyncio.sleep(1.1)
            assert await got(objects) is None

    asyncio.run(run())


def test_what_is_rotten_is_corrupt() -> None:
    async def run() -> None:
        for options in ({}, ABOUT, {**ABOUT, "inline": 0}):
            for size in (100, 3 << 20):
                async with clustered(node_per_group(1)) as cluster, opened(cluster, **options) as storage:
                    objects = objects_of(storage)
                    await objects.put("key", bytes(size))
                    backend = cluster.nodes[0].backends[0]
                    for id in backend.disk:
                        backend.rot(id)
                    for doing in (objects.get("key"), objects.verify("key"), objects.put("key", b"", if_checksum="x")):
                        with pytest.raises(Corrupt if options or size == 100 else (Corrupt, Conflict)):
                            await doing
                    await objects.put("key", b"new")  # who writes over it has it whole again
                    assert await got(objects) == b"new"
                    for id in backend.disk:
                        backend.rot(id)
                    assert await objects.storage.remove(PLACE) is True
                    assert await got(objects) is None

    asyncio.run(run())


# ---------------------------------------------------------------------- groups


@pytest.mark.parametrize("options", [{}, ABOUT], ids=["plain", "about"])
@pytest.mark.parametrize(("success", "away", "is_done"), [("any", 2, True), ("quorum", 1, True), ("quorum", 2, False)])
def test_so_many_groups_are_enough(options: dict[str, Any], success: str, away: int, is_done: bool) -> None:
    async def run() -> None:
        async with (
            clustered(node_per_group(3)) as cluster,
            opened(cluster, groups="1,2,3", success=success, timeout=2.0, **options) as storage,
        ):
            objects = objects_of(storage)
            await objects.put("key", b"before")
            for node in cluster.nodes[:away]:
                await node.stop()
            if not is_done:
                with pytest.raises(StorageFailed, match=r"in 1 of 3 groups, 2 are needed|group 1: "):
                    await objects.put("key", b"after")
                return
            await objects.put("key", b"after")
            assert await got(objects) == b"after"
            assert await got(objects, "never") is None
            for node in cluster.nodes[:away]:
                await node.start()
            await until(lambda: all(node.away_since is None for node in storage.client._nodes.values()))
            assert await got(objects) == b"after", "the older one is not believed"

    asyncio.run(run())


def test_all_groups_is_all() -> None:
    async def run() -> None:
        async with clustered(node_per_group(2)) as cluster, opened(cluster, **TWO, success="all") as storage:
            objects = objects_of(storage)
            await objects.put("key", b"1")
            await cluster.nodes[1].stop()
            await asyncio.sleep(0.05)
            with pytest.raises(StorageFailed, match="it is in 1 of 2 groups, 2 are needed"):
                await objects.put("key", b"2")
            assert await got(objects) == b"2", "it may have happened"
            with pytest.raises(StorageFailed, match="it would come back"):
                await objects.remove("key")

    asyncio.run(run())


@pytest.mark.parametrize("options", [{}, ABOUT, {**ABOUT, "inline": 0}], ids=["plain", "about", "about, not inline"])
@pytest.mark.parametrize("how", ["missing", "older", "rotten"])
def test_reads_repair_what_they_meet(options: dict[str, Any], how: str) -> None:
    """And do not wait for it."""

    async def run() -> None:
        async with (
            clustered(node_per_group(2)) as cluster,
            opened(cluster, **TWO, success="any", **options) as storage,
        ):
            objects = objects_of(storage)
            first, second = cluster.nodes
            await objects.put("key", b"old")
            await storage.settled()
            old = {id: _copied(record) for id, record in first.backends[0].disk.items()}
            await objects.put("key", b"new")
            await storage.settled()
            (expected,) = [{id: record.data for id, record in disk.items()} for disk in disks(cluster)[1:]]
            backend = first.backends[0]
            if how == "missing":
                backend.disk.clear()
            elif how == "older":
                backend.disk.clear()
                backend.disk.update(old)
            else:
                for id in backend.disk:
                    backend.rot(id)
            first.backends[0].delay = 0.05
            assert await got(objects) == b"new"
            await storage.settled()
            for _ in range(3):  # the head first, its bytes when they are read
                assert await got(objects) == b"new"
                await storage.settled()
            first.backends[0].delay = 0.0
            left = {id: record.data for id, record in backend.disk.items() if id in expected}
            assert left == expected
            assert not any(backend.disk[id].is_rotten for id in expected)
            assert [record.stamp for record in (backend.disk[id] for id in expected)] == [
                second.backends[0].disk[id].stamp for id in expected
            ] or options.get("inline") == 0

    asyncio.run(run())


@pytest.mark.parametrize("options", [{}, ABOUT], ids=["plain", "about"])
def test_groups_that_nobody_needs_are_looked_at_if_that_is_wanted(options: dict[str, Any]) -> None:
    async def run() -> None:
        for repairs, repaired in (("all", b"new"), ("seen", b"old")):
            async with (
                clustered(node_per_group(2)) as cluster,
                opened(cluster, **TWO, repairs=repairs, **options) as storage,
            ):
                objects = objects_of(storage)
                disk = cluster.nodes[0].backends[0].disk
                await objects.put("key", b"old")
                old = {id: _copied(record) for id, record in disk.items()}
                await objects.put("key", b"new")
                disk.clear()
                disk.update(old)  # restored from a backup, say
                assert await got(objects) == b"old"
                await storage.settled()
                assert await got(objects) == repaired

    asyncio.run(run())


def _copied(record: Record) -> Record:
    new = Record()
    for name in Record.__slots__:
        setattr(new, name, getattr(record, name))
    new.buffer = bytearray(record.buffer)
    return new


def test_repairs_are_bounded_and_switched_off() -> None:
    async def run() -> None:
        for repairs, repaired in (("seen", True), ("off", False)):
            async with clustered(node_per_group(2)) as cluster, opened(cluster, **TWO, repairs=repairs) as storage:
                objects = objects_of(storage)
                keys = [f"{i}" for i in range(200)]
                await asyncio.gather(*(objects.put(key, b"1") for key in keys))
                first = cluster.nodes[0].backends[0]
                first.disk.clear()
                await asyncio.gather(*(objects.get(key) for key in keys))
                later = storage._core.repairs
                assert len(later._jobs) <= 64
                await storage.settled()
                assert bool(first.disk) is repaired
                assert later.done + later.refused == (200 if repaired else 0)
                assert later.done == len(first.disk)

    asyncio.run(run())


def test_groups_that_are_late_are_waited_for_in_the_end() -> None:
    async def run() -> None:
        options = {**TWO, "success": "any", "timeout": 5.0}
        async with clustered(node_per_group(2)) as cluster, opened(cluster, **options) as storage:
            objects = objects_of(storage)
            cluster.nodes[1].backends[0].delay = 0.2
            most = 0

            async def some(n: int) -> None:
                nonlocal most
                for i in range(20):
                    await objects.put(f"{n}/{i}", b"1")
                    most = max(most, len(storage._groups._late))

            await asyncio.gather(*(some(n) for n in range(40)))
            assert 200 < most <= 256 + 40
            await storage.settled()
            assert disks(cluster)[0].keys() == disks(cluster)[1].keys()

    asyncio.run(run())


def test_what_is_removed_while_it_is_repaired_does_not_come_back() -> None:
    async def run() -> None:
        async with clustered(node_per_group(2)) as cluster, opened(cluster, **TWO) as storage:
            objects = objects_of(storage)
            first, second = (node.backends[0] for node in cluster.nodes)
            for delay in (0.0, 0.002, 0.01, 0.03):
                await objects.put("key", b"1")
                first.disk.clear()
                first.delay = 0.01
                assert await got(objects) == b"1"  # and a repair is under way
                await asyncio.sleep(delay)
                await objects.remove("key")
                await storage.settled()
                first.delay = 0.0
                assert (first.disk, second.disk) == ({}, {}), delay
                assert await got(objects) is None

    asyncio.run(run())


def test_writers_at_the_same_time_leave_the_same_in_all_groups() -> None:
    async def run() -> None:
        async with (
            clustered(node_per_group(2)) as cluster,
            opened(cluster, **TWO) as one,
            opened(cluster, **TWO) as other,
        ):
            first, second = (node.backends[0] for node in cluster.nodes)
            for i in range(20):
                first.delay, second.delay = (0.002, 0.0) if i % 2 else (0.0, 0.002)
                await asyncio.gather(
                    *(objects_of(each).put("key", f"{i} {n}".encode()) for n, each in enumerate((one, other, one)))
                )
                assert first.disk[ID].data == second.disk[ID].data

    asyncio.run(run())


def test_a_group_that_decides_decides_for_all() -> None:
    async def run() -> None:
        options = {**TWO, **ABOUT, "success": "any", "decides": 2}
        async with clustered(node_per_group(2)) as cluster, opened(cluster, **options) as storage:
            objects = objects_of(storage)
            first, second = cluster.nodes
            assert storage.features.swaps
            about = await objects.put("key", b"1")
            # The other one is away: it goes on. What it has then is older, and not believed.
            await first.stop()
            about = await objects.put("key", b"2", if_version=about.version)
            await first.start()
            await until(lambda: all(node.away_since is None for node in storage.client._nodes.values()))
            assert await got(objects) == b"2"
            # It is away itself: nothing can be decided, and so nothing is written; reads go on.
            await objects.put("other", b"1")
            await storage.settled()
            await second.stop()
            with pytest.raises(StorageFailed):
                await objects.put("key", b"3", if_version=about.version)
            with pytest.raises(StorageFailed):
                await objects.put("key", b"3")
            assert await got(objects, "other") == b"1"
            await second.start()
            await until(lambda: all(node.away_since is None for node in storage.client._nodes.values()))
            with pytest.raises(Conflict):
                await objects.put("key", b"3", if_absent=True)
            # It has lost what it had: it gets it back before it decides.
            for id in second.backends[0].disk:
                second.backends[0].rot(id)
            with pytest.raises(Conflict):
                await objects.put("other", b"3", if_absent=True)
            assert not second.backends[0].disk[heads.head_id(Place("ns", "other"))].is_rotten
            second.backends[0].disk.clear()
            with pytest.raises(Conflict):
                await objects.put("other", b"3", if_absent=True)
            assert await got(objects, "other") == b"1"

    asyncio.run(run())


# ---------------------------------------------------------------------- heads


class Killed(Exception):
    """What a process that dies at this place does not raise."""


@pytest.mark.parametrize("groups", ["1", "1,2"])
@pytest.mark.parametrize("survives", range(8))
def test_a_writer_that_dies_anywhere_leaves_the_old_or_the_new(groups: str, survives: int, monkeypatch: Any) -> None:
    """After each message to a server; and what is left over is found and removed."""

    async def run() -> None:
        async with clustered(node_per_group(2)) as cluster:
            options = {"groups": groups, **ABOUT, "inline": 0, "timeout": 2.0}
            async with opened(cluster, **options) as storage:
                await objects_of(storage).put("key", b"old")
                await storage.settled()
            async with opened(cluster, **options) as storage:
                left = [survives]
                ask = Client.ask

                async def dies(self: Client, *arguments: Any) -> Any:
                    if not left[0]:
                        raise Killed
                    left[0] -= 1
                    return await ask(self, *arguments)

                monkeypatch.setattr(Client, "ask", dies)
                try:
                    await objects_of(storage).put("key", b"new")
                except Killed:
                    pass
                await asyncio.gather(*storage._core.removals._jobs.values(), return_exceptions=True)
                monkeypatch.setattr(Client, "ask", ask)
            async with opened(cluster, **options, repairs="all") as storage:
                objects = objects_of(storage)
                data = await got(objects)
                assert data in (b"old", b"new")
                assert [about.size async for about in objects.list()] == [3]
                await objects.verify("key")
                await storage.settled()
                await storage.tidy(older=1e9)
                assert await got(objects) == data, "what is not old may belong to a writer that is alive"
                await storage.tidy(older=0)
                assert await got(objects) == data
                for node in cluster.nodes[: len(groups.split(","))]:
                    assert len(node.backends[0].disk) == 2, "a head, and its bytes"

    asyncio.run(run())


def test_what_was_removed_long_ago_is_forgotten() -> None:
    async def run() -> None:
        async with clustered(node_per_group(2)) as cluster, opened(cluster, **TWO, **ABOUT) as storage:
            objects = objects_of(storage)
            for key in ("a", "b", "c"):
                await objects.put(key, b"1" * 10_000)
            await objects.remove("a")
            await objects.remove("b")
            await storage.settled()
            assert len(disks(cluster)[0]) == 4
            assert await storage.tidy(removed=3600) == with_heads.Tidied(0, 0)
            assert await storage.tidy(removed=0) == with_heads.Tidied(0, 2)
            assert len(disks(cluster)[0]) == len(disks(cluster)[1]) == 2
            assert await got(objects, "c") == b"1" * 10_000
            await cluster.nodes[1].stop()
            await asyncio.sleep(0.05)
            with pytest.raises(StorageFailed):
                await storage.tidy(removed=0)

    asyncio.run(run())


def test_tidy_goes_on_where_its_memory_ends(monkeypatch: Any) -> None:
    monkeypatch.setattr(with_heads, "_BATCH", 7)

    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster, **ABOUT) as storage:
            objects = objects_of(storage)
            for i in range(40):
                place = Place("ns", f"{i}")
                how = Writing(user_flags=marks.flags_of(1_600_000_000_000_000, marks.Kind.DATA))
                await storage.client.write(1, heads.data_id(place, i), b"left over", how)
            await asyncio.gather(*(objects.put(f"{i}", b"1" * 5000) for i in range(20)))
            assert (await storage.tidy(older=3600)).bytes == 40
            assert len(disks(cluster)[0]) == 40
            assert len(await objects.get_many([f"{i}" for i in range(20)])) == 20

    asyncio.run(run())


def test_long_lists_are_found_in_parts(monkeypatch: Any) -> None:
    monkeypatch.setattr(with_heads, "_AHEAD", 30)

    async def run() -> None:
        backends = [[Backend(1, 1, ("A1-0", "A1-1"))], [Backend(0, 1, ("B1-0", "B1-1"))]]
        async with clustered(backends) as cluster, opened(cluster, **ABOUT) as storage:
            objects = objects_of(storage)
            keys = sorted(f"{'long/' * 8}{i % 3}/{i}" for i in range(200))
            await asyncio.gather(*(objects.put(key, b"1") for key in keys))
            await asyncio.gather(*(objects.remove(key) for key in keys[::4]))
            left = [key for key in keys if key not in keys[::4]]
            seen: list[str] = []
            position, pages = "", 0
            while True:
                page = await objects.page("", position, 13)
                assert len(page.items) <= 13
                seen += [about.key for about in page.items]
                pages += 1
                position = page.position
                assert sum(len(rest.heads) for rest in storage._objects._lists.values()) <= 30  # type: ignore[union-attr]
                if not position:
                    break
            assert seen == left
            prefix = f"{'long/' * 8}1/"
            assert [about.key async for about in objects.list(prefix)] == [
                key for key in left if key.startswith(prefix)
            ]
            again = await objects.page("", left[20], 5)
            assert [about.key for about in again.items] == left[21:26] or len(again.items) < 5

    asyncio.run(run())


def test_lists_go_on_without_a_group_if_others_have_it_all() -> None:
    async def run() -> None:
        async with clustered(node_per_group(2)) as cluster, opened(cluster, **TWO, **ABOUT) as storage:
            objects = objects_of(storage)
            for key in ("a", "b"):
                await objects.put(key, b"1")
            await cluster.nodes[0].stop()
            assert [about.key async for about in objects.list()] == ["a", "b"]
            await cluster.nodes[1].stop()
            await asyncio.sleep(0.05)
            with pytest.raises(StorageFailed, match="cannot be listed"):
                _ = [about async for about in objects.list()]

    asyncio.run(run())


def test_a_list_that_would_lack_some_is_none() -> None:
    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster, **ABOUT) as storage:
            objects = objects_of(storage)
            for key in ("a", "b"):
                await objects.put(key, b"1")
            cluster.nodes[0].backends[0].rot(heads.head_id(Place("ns", "a")))
            with pytest.raises(Corrupt, match="would lack"):
                _ = [about async for about in objects.list()]
            with pytest.raises(Corrupt):
                await objects.get("a")

    asyncio.run(run())


def test_what_is_written_over_while_it_is_read() -> None:
    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster, **ABOUT, whole=1 << 20) as storage:
            objects = objects_of(storage)
            await objects.put("key", b"1" * (5 << 20))
            async with objects.open("key") as found:
                assert found is not None
                await objects.put("key", b"2" * (5 << 20))
                await storage.settled()
                with pytest.raises(StorageFailed, match="read it again"):
                    await _drained(found.chunks, ord("1"))
            # Between the head and its bytes: then it is the new one.
            seen = storage._objects._seen  # type: ignore[union-attr]

            async def slowly(*arguments: Any) -> Any:
                found = await seen(*arguments)
                storage._objects._seen = seen  # type: ignore[union-attr, method-assign]
                await objects.put("key", b"3" * 5000)
                await storage.settled()
                return found

            storage._objects._seen = slowly  # type: ignore[union-attr, method-assign]
            assert await got(objects) == b"3" * 5000
            # Bytes that are gone for good are not taken for an object.
            (head,) = [record for id, record in disks(cluster)[0].items() if id == heads.head_id(PLACE)]
            disks(cluster)[0].clear()
            disks(cluster)[0][heads.head_id(PLACE)] = head
            with pytest.raises(Corrupt, match="its bytes are in none of the groups"):
                await objects.get("key")

    asyncio.run(run())


# ---------------------------------------------------------------------- large


async def _stream(size: int, piece: int = 1 << 18, breaks: bool = False) -> AsyncIterator[bytes]:
    for at in range(0, size, piece):
        if breaks and at > size // 2:
            raise LookupError("the writer's own fault")
        yield _part(at, min(piece, size - at))


def _part(at: int, size: int) -> bytes:
    return (at.to_bytes(8, "big") * (size // 8 + 1))[:size]


@pytest.mark.parametrize("options", [{}, {**ABOUT, "decides": 1}], ids=["plain", "about"])
@pytest.mark.parametrize("groups", ["1", "1,2"])
def test_large_objects_come_in_parts(options: dict[str, Any], groups: str) -> None:
    async def run() -> None:
        async with (
            clustered(node_per_group(2)) as cluster,
            opened(cluster, groups=groups, whole=4096, **options) as storage,
        ):
            objects = objects_of(storage)
            for size in (4097, 5000, (1 << 20) + 1, 3_500_000):
                about = await objects.put("key", _stream(size))
                assert about.size == size
                expected = b"".join([part async for part in _stream(size)])
                found = await objects.get("key")
                assert found is not None
                assert found.data == expected
                for start, end in ((0, 10), (size - 5, None), (1_000, 2_000_000)):
                    ranged = await objects.get("key", start, end)
                    assert ranged is not None
                    assert ranged.data == expected[start:end]
            with pytest.raises(LookupError):
                await objects.put("key", _stream(2_000_000, breaks=True))
            with pytest.raises(BadArgument):
                await storage.write(PLACE, _stream(2_000_000), Put(checksum="sha256:00"))
            found = await objects.get("key")
            assert found is not None
            assert found.data == expected, "nothing has happened"
            await storage.settled()
            for disk in disks(cluster)[: len(groups.split(","))]:
                assert len(disk) == (2 if options else 1)
            if options:
                there = await objects.stat("key")
                assert there is not None
                await objects.put("key", _stream(100_000), if_version=there.version)
                with pytest.raises(Conflict):
                    await objects.put("key", _stream(100_000), if_version=there.version)
            else:
                with pytest.raises(Unsupported, match="about=true"):
                    await storage.write(PLACE, _stream(100_000), Put(when=If(absent=True)))
                with pytest.raises(TooLarge if groups == "1" else Unsupported):
                    await storage.append(PLACE, _stream(100_000), Put())

    asyncio.run(run())


async def _drained(chunks: AsyncIterator[bytes], only: int) -> None:
    async for chunk in chunks:
        assert set(chunk) == {only}


def test_conditions_on_what_is_large() -> None:
    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster, whole=4096) as storage:
            objects = objects_of(storage)
            about = await objects.put("key", _stream(100_000))
            await objects.put("key", b"small", if_version=about.version)
            about = await objects.put("key", _stream(100_000))
            with pytest.raises(Conflict):
                await objects.put("key", b"small", if_version="other")
            assert await objects.remove("key", if_version=about.version) is True

    asyncio.run(run())


def test_there_is_no_room_for_a_large_one() -> None:
    async def run() -> None:
        async with (
            clustered(node_per_group(1)) as cluster,
            opened(cluster, whole=4096, folder="/proc/nowhere") as storage,
        ):
            with pytest.raises(StorageFailed, match="name another directory"):
                await objects_of(storage).put("key", _stream(100_000))

    asyncio.run(run())


def test_who_stops_reading_leaves_nothing_under_way() -> None:
    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster) as storage:
            objects = objects_of(storage)
            await objects.put("key", bytes(8 << 20))
            cluster.nodes[0].backends[0].delay = 0.05
            async with objects.open("key") as found:
                assert found is not None
                async for _ in found.chunks:
                    break
            (node,) = storage.client._nodes.values()
            assert node.links[0] is not None
            assert not node.links[0]._open

    asyncio.run(run())


def test_a_time_to_come_is_written_over() -> None:
    """By who gives none, in several groups; and nobody else's clock is put forward by it."""

    async def run() -> None:
        async with clustered(node_per_group(2)) as cluster, opened(cluster, **TWO) as storage:
            objects = objects_of(storage)
            await objects.put("key", b"1", time=4_000_000_000_000_000)
            about = await objects.put("key", b"2")
            assert await got(objects) == b"2"
            assert about.time < 3_000_000_000_000_000
            assert (await objects.put("other", b"1")).time < 3_000_000_000_000_000
            assert [disk[ID].data for disk in disks(cluster)] == [b"2", b"2"]

    asyncio.run(run())


def test_two_who_write_a_large_one_at_the_same_time_do_not_mix() -> None:
    """Two processes, in place: Elliptics would mix them. Who was last sees it, and writes again."""

    async def run() -> None:
        async with (
            clustered(node_per_group(1)) as cluster,
            opened(cluster, whole=4096) as one,
            opened(cluster, whole=4096) as other,
        ):
            size = 200_000
            for _ in range(10):
                done = await asyncio.gather(
                    *(objects_of(each).put("key", bytes([65 + n]) * size) for n, each in enumerate((one, other, one))),
                    return_exceptions=True,
                )
                assert any(not isinstance(each, BaseException) for each in done)
                assert all(not isinstance(each, BaseException) or isinstance(each, StorageFailed) for each in done)
                data = await got(objects_of(one))
                assert data is not None
                assert len(data) == size
                assert len(set(data)) == 1

    asyncio.run(run())


def test_a_large_object_in_the_cluster_is_looked_at_in_parts() -> None:
    """One that is changed while it is read in several requests is not put together of two."""

    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster) as storage:
            objects = objects_of(storage)
            await objects.put("key", b"1" * (5 << 20))
            async with objects.open("key") as found:
                assert found is not None
                chunks = aiter(found.chunks)
                assert set(await anext(chunks)) == {ord("1")}
                await objects.put("key", b"2" * (5 << 20))
                with pytest.raises(StorageFailed, match="read it again"):
                    await _drained(chunks, ord("1"))
            assert cluster.nodes[0].seen[LOOKUP] == 1
            assert cluster.nodes[0].seen[REMOVE] == 0

    asyncio.run(run())


@pytest.mark.parametrize("options", [{}, ABOUT], ids=["plain", "about"])
def test_memory_is_flat(options: dict[str, Any]) -> None:
    """64 MiB go there and back through a client that has not so much."""
    size = 64 << 20
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "elliptics.server", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())

        async def run() -> int:
            async with opened(Cluster(), seeds=f"127.0.0.1:{port}", whole=1 << 20, timeout=60.0, **options) as storage:
                objects = objects_of(storage)
                await objects.put("key", _stream(1 << 22))
                before = _memory()
                most = 0

                async def watched() -> AsyncIterator[bytes]:
                    nonlocal most
                    async for part in _stream(size):
                        most = max(most, _memory())
                        yield part

                await objects.put("key", watched())
                most = max(most, _memory())
                count = 0
                async with objects.open("key") as found:
                    assert found is not None
                    async for chunk in found.chunks:
                        count += len(chunk)
                        most = max(most, _memory())
                assert count == size
                return most - before

        try:
            assert asyncio.run(run()) < 24 << 20
        finally:
            server.kill()


def _memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_it_is_opened_again_after_it_was_closed() -> None:
    async def run() -> None:
        async with clustered(node_per_group(1)) as cluster, opened(cluster) as storage:
            assert isinstance(storage, EllipticsStorage)
            await objects_of(storage).put("key", b"1")
            await storage.close()
            with pytest.raises(StorageFailed):
                await objects_of(storage).get("key")
            await storage.open()
            assert await got(objects_of(storage)) == b"1"

    asyncio.run(run())
