"""A server that lies, a network that breaks: the client waits no longer than it should, takes no wrong answer, and
keeps nothing of what it did not ask for.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from elliptics.clusters import Chaos, clustered, node_per_group, objects_of, opened, two_nodes, until
from elliptics.server import BULK_READ, HEADER, IO, ITERATE, MORE, READ, WRITE, Cluster, Node
from grape.abc.storage import Place
from grape.errors import Conflict, Corrupt, GrapeError, StorageFailed, Unsupported
from grape.storage.elliptics import heads, wire
from grape.storage.elliptics.failures import Nonsense
from grape.storage.elliptics.storage import EllipticsStorage

TIMEOUT = 0.4
DATA = b"the very bytes" * 20


def changed(message: bytes, offset: int, new: bytes) -> bytes:
    return message[:offset] + new + message[offset + len(new) :]


def command_of(message: bytes) -> int:
    return int(struct.unpack_from("<i", message, 0x50)[0])


def flagged(message: bytes, flags: int) -> bytes:
    return changed(message, 0x60, struct.pack("<Q", struct.unpack_from("<Q", message, 0x60)[0] | flags))


def sized(message: bytes, size: int) -> bytes:
    return changed(message, 0x70, struct.pack("<Q", size))


Lie = Callable[[bytes], list[bytes]]
LIES: dict[str, Lie] = {
    "another key in the header": lambda m: [changed(m, 0, b"\x99" * 64)],
    "another key in the record": lambda m: [changed(m, HEADER.size + 64, b"\x99" * 64)],
    "another group": lambda m: [changed(m, 0x40, b"\x07\0\0\0")],
    "another command": lambda m: [changed(m, 0x50, b"\x01\0\0\0")],
    "another transaction": lambda m: [changed(m, 0x68, b"\xff" * 8)],
    "a status above zero": lambda m: [changed(m, 0x4C, b"\x07\0\0\0")],
    "a status that nobody knows": lambda m: [changed(m, 0x4C, struct.pack("<i", -12345))],
    "no reply at all": lambda m: [],
    "not flagged as a reply": lambda m: [changed(m, 0x61, b"\0")],
    "half a message": lambda m: [m[: len(m) // 2]],
    "half a header": lambda m: [m[:60]],
    "a size of 2^60": lambda m: [sized(m, 1 << 60)],
    "a size one larger than can be": lambda m: [sized(m, (1 << 20) + IO.size + 1)],
    "a payload that is cut, and says so": lambda m: [sized(m, len(m) - HEADER.size - 5)[:-5]],
    "no payload": lambda m: [sized(m, 0)[: HEADER.size]],
    "a size in the record that is larger": lambda m: [changed(m, HEADER.size + 200, struct.pack("<Q", 5000))],
    "a size in the record that is smaller": lambda m: [changed(m, HEADER.size + 200, struct.pack("<Q", 5))],
    "a total that is larger": lambda m: [changed(m, HEADER.size + 168, struct.pack("<Q", 5000))],
    "a total that is smaller": lambda m: [changed(m, HEADER.size + 168, struct.pack("<Q", 5))],
    "another offset": lambda m: [changed(m, HEADER.size + 192, struct.pack("<Q", 5))],
    "other bytes": lambda m: [m[:-1] + b"?"],
    "another checksum": lambda m: [changed(m, HEADER.size, b"\x99" * 64)],
    "more, once": lambda m: [flagged(m, MORE)],
    "more, for ever": lambda m: [flagged(m, MORE)] * 500,
    "rubbish": lambda m: [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20],
}


@asynccontextmanager
async def lying(**options: Any) -> AsyncIterator[tuple[Cluster, Node, EllipticsStorage]]:
    async with (
        clustered(node_per_group(1)) as cluster,
        opened(cluster, **{"timeout": TIMEOUT, **options}) as storage,
    ):
        yield cluster, cluster.nodes[0], storage


async def speaks_again(storage: EllipticsStorage) -> None:
    await until(lambda: all(node.away_since is None for node in storage.client._nodes.values()))


@pytest.mark.parametrize("name", LIES)
def test_a_read_that_is_a_lie_is_an_error_in_time(name: str) -> None:
    async def run() -> None:
        async with lying() as (_, node, storage):
            objects = objects_of(storage)
            await objects.put("key", DATA)
            lie = LIES[name]
            node.lie = lambda message: lie(message) if command_of(message) == READ else [message]
            began = time.monotonic()
            with pytest.raises((StorageFailed, Corrupt)):
                await objects.get("key")
            assert time.monotonic() - began < 20 * TIMEOUT
            node.lie = None
            await speaks_again(storage)
            found = await objects.get("key")
            assert found is not None
            assert found.data == DATA

    asyncio.run(run())


@pytest.mark.parametrize("name", [name for name in LIES if "record" not in name and "total" not in name])
@pytest.mark.parametrize("about", [False, True])
def test_a_write_that_is_answered_by_a_lie_is_an_error_or_done(name: str, about: bool) -> None:
    async def run() -> None:
        async with lying(about=about) as (_, node, storage):
            objects = objects_of(storage)
            await objects.put("key", DATA)
            lie = LIES[name]
            node.lie = lambda message: lie(message) if command_of(message) == WRITE else [message]
            began = time.monotonic()
            try:
                await objects.put("key", b"new")
            except StorageFailed:
                pass
            assert time.monotonic() - began < 20 * TIMEOUT
            node.lie = None
            await speaks_again(storage)
            found = await objects.get("key")
            assert found is not None
            assert found.data == b"new", "it was done, whatever was said"

    asyncio.run(run())


ITERATIONS: dict[str, Lie] = {
    "for ever": lambda m: [flagged(m, MORE)] * 300,
    "a size that lies": lambda m: [sized(m, 1 << 40)],
    "too short": lambda m: [sized(m, 20)[: HEADER.size + 20]],
    "alive for ever": lambda m: [
        flagged(
            changed(changed(sized(m, 140)[: HEADER.size + 140], HEADER.size + 8, bytes(64)), 0xC0, b"\x01\0\0\0"), 2
        )
    ],
    "a total that grows": lambda m: [changed(m, HEADER.size + 116, b"\xff" * 7 + b"\0")] * 300,
    "the head of nobody": lambda m: [m[:260] + b"?" * (len(m) - 260)] if len(m) > 260 else [m],
    "never the end": lambda m: [m] if len(m) > HEADER.size else [],
    "nothing": lambda m: [],
}


@pytest.mark.parametrize("name", ITERATIONS)
def test_a_list_that_is_a_lie_is_an_error_in_time(name: str) -> None:
    async def run() -> None:
        async with lying(about=True) as (_, node, storage):
            objects = objects_of(storage)
            await asyncio.gather(*(objects.put(f"{i}", b"1") for i in range(5)))
            lie = ITERATIONS[name]
            node.lie = lambda message: lie(message) if command_of(message) == ITERATE else [message]
            began = time.monotonic()
            try:
                found = {about.key async for about in objects.list()}
            except (StorageFailed, Corrupt):
                pass
            else:
                assert found == {f"{i}" for i in range(5)}
            assert time.monotonic() - began < 40 * TIMEOUT
            node.lie = None
            assert len([about async for about in objects.list()]) == 5

    asyncio.run(run())


def test_an_iterator_without_an_end_is_left() -> None:
    """One that is alive for ever, and says so, and nothing else."""

    async def run() -> None:
        async with lying(about=True, timeout=0.1) as (_, node, storage):
            objects = objects_of(storage)
            await objects.put("key", b"1")
            beating: list[asyncio.Task[None]] = []

            async def beat(message: bytes) -> None:
                sign = ITERATIONS["alive for ever"](message)[0]
                while True:
                    for link in list(node.links):
                        link.send(sign)
                    await asyncio.sleep(0.02)

            def lie(message: bytes) -> list[bytes]:
                if command_of(message) != ITERATE:
                    return [message]
                if not beating and len(message) > HEADER.size:
                    beating.append(asyncio.ensure_future(beat(message)))
                return []

            node.lie = lie
            began = time.monotonic()
            with pytest.raises(StorageFailed, match="no answer from"):
                _ = [about async for about in objects.list()]
            assert 1.0 < time.monotonic() - began < 4.0
            beating[0].cancel()

    asyncio.run(run())


BULKS: dict[str, Lie] = {
    "in another order": lambda m: [changed(m, 0, b"\x99" * 64)],
    "one too many": lambda m: [flagged(m, MORE)] * 2,
    "for ever": lambda m: [flagged(m, MORE)] * 300,
    "the end at once": lambda m: [] if struct.unpack_from("<Q", m, 0x60)[0] & MORE else [m],
    "never the end": lambda m: [m] if struct.unpack_from("<Q", m, 0x60)[0] & MORE else [],
    "all are missing": lambda m: (
        [sized(changed(m, 0x4C, struct.pack("<i", -2)), 0)[: HEADER.size]]
        if struct.unpack_from("<Q", m, 0x60)[0] & MORE
        else [m]
    ),
    "larger than it may be": lambda m: (
        [sized(m, 2 << 20) + bytes((2 << 20) - len(m) + HEADER.size)]
        if struct.unpack_from("<Q", m, 0x60)[0] & MORE
        else [m]
    ),
}


@pytest.mark.parametrize("name", BULKS)
def test_bulk_reads_that_lie_are_read_one_by_one(name: str) -> None:
    async def run() -> None:
        async with lying() as (_, node, storage):
            objects = objects_of(storage)
            for i in range(5):
                await objects.put(f"{i}", bytes([i]))
            bulk = BULKS[name]
            is_bulk = True

            def lie(message: bytes) -> list[bytes]:
                many = struct.unpack_from("<Q", message, 0x60)[0] & MORE or command_of(message) == BULK_READ
                return bulk(message) if many and is_bulk else [message]

            node.lie = lie
            found = await objects.get_many([f"{i}" for i in range(5)])
            assert {key: one.data for key, one in found.items()} == {f"{i}": bytes([i]) for i in range(5)}

    asyncio.run(run())


def test_what_nobody_asked_for_is_not_kept() -> None:
    """Answers to nothing, commands, answers twice: a hundred megabytes of them."""

    async def run() -> None:
        async with lying(timeout=10.0) as (_, node, storage):
            objects = objects_of(storage)
            await objects.put("key", DATA)
            (link,) = node.links
            (ours,) = storage.client._nodes.values()
            (connection,) = ours.links
            assert connection is not None
            payload = os.urandom(1 << 20)
            before = _memory()
            for i in range(50):
                fields = (bytes(64), 1, 0, 0, READ, 0, 0, 0x200, 1 << 40 | i, len(payload))
                link.send(HEADER.pack(*fields) + payload)
                link.send(HEADER.pack(*fields[:7], 0, *fields[8:]) + payload)
                await asyncio.sleep(0.01)
            node.lie = lambda message: [message, message]
            found = await objects.get("key")
            assert found is not None
            assert found.data == DATA
            await until(lambda: connection.dropped >= 50)
            assert _memory() - before < 30 << 20
            assert not connection._open

    asyncio.run(run())


def _memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_routes_that_are_rubbish_end_the_connection() -> None:
    async def run() -> None:
        async with lying() as (_, node, storage):
            objects = objects_of(storage)
            await objects.put("key", DATA)
            for payload in (b"\xff" * 20, b"", struct.pack("<i", 1 << 30), bytes(3)):
                (link,) = node.links
                link.send(HEADER.pack(bytes(64), 0, 0, 0, 24, 0, 0, 0x18, 0, len(payload)) + payload)
                await until(lambda link=link: link not in node.links)  # type: ignore[misc]
                await until(lambda: len(node.links) == 1)
                await speaks_again(storage)
            found = await objects.get("key")
            assert found is not None

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["silent", "http", "endless", "closes", "another version", "no addresses"])
def test_what_is_no_server_is_not_taken_for_one(kind: str) -> None:
    async def run() -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readexactly(120)
                hello = HEADER.pack(struct.pack("<iiii48x", 3, 0, 0, 1), 0, 0, 0, 2, 0, 0, 0x210, 0, 12)
                if kind == "silent":
                    await asyncio.sleep(30)
                elif kind == "http":
                    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 5)
                elif kind == "endless":
                    while True:
                        writer.write(changed(hello, 0x70, struct.pack("<Q", 1 << 23)) + bytes(1 << 16))
                        await writer.drain()
                        await asyncio.sleep(0.01)
                elif kind == "another version":
                    writer.write(changed(hello, 0, b"\x02\0\0\0") + struct.pack("<iii", 1, 0, 0))
                elif kind == "no addresses":
                    writer.write(hello + struct.pack("<iii", 1, 0, 0))
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        began = time.monotonic()
        with pytest.raises(Exception, match="none of the addresses is a node that can be spoken to"):
            async with opened(Cluster(), seeds=f"127.0.0.1:{port}", timeout=0.5):
                pass
        assert time.monotonic() - began < 3
        server.close()

    asyncio.run(run())


# ---------------------------------------------------------------------- networks that break

WEATHER: dict[str, dict[str, Any]] = {
    "crumbs": {"piece": 7},
    "slow": {"piece": 3000, "delay": 0.003},
    "shuffled": {"reorder": 5},
    "cut": {"piece": 3000, "drop": 0.01},
    "all of it": {"piece": 2000, "delay": 0.002, "drop": 0.005, "reorder": 3},
}


@pytest.mark.parametrize("weather", WEATHER)
@pytest.mark.parametrize(
    "options",
    [
        {"groups": "1"},
        {"groups": "1,2"},
        {"groups": "1,2", "about": True, "inline": 100},
        {"groups": "1,2", "about": True, "decides": 1, "inline": 100},
    ],
    ids=["plain", "plain in two", "about in two", "about, one decides"],
)
def test_in_any_weather_what_is_read_was_written(weather: str, options: dict[str, Any]) -> None:
    """Four writers, each with keys of its own. What failed may have happened; what did not fail has."""
    seed = int(os.environ.get("GRAPE_ELLIPTICS_SEED", "0")) or random.getrandbits(30)

    async def run() -> None:
        chaos = Chaos(seed, **WEATHER[weather])
        async with clustered(two_nodes()) as cluster:
            wrap = await chaos.between(cluster)
            while True:
                try:
                    async with opened(cluster, wrap, timeout=2.0, **options) as storage:
                        await asyncio.gather(*(_work(storage, n, seed) for n in range(4)))
                    break
                except StorageFailed:
                    pass
                except Exception as e:
                    if "none of the addresses" not in str(e):
                        raise
            await chaos.stop()

    try:
        asyncio.run(run())
    except BaseException:
        print(f"GRAPE_ELLIPTICS_SEED={seed}")
        raise


@pytest.mark.parametrize("weather", ["shuffled", "cut", "all of it"])
@pytest.mark.parametrize(
    "options",
    [{"groups": "1"}, {"groups": "1,2", "about": True, "decides": 1}],
    ids=["plain", "about, one decides"],
)
def test_in_any_weather_swaps_lose_nothing(weather: str, options: dict[str, Any]) -> None:
    """Twelve who count, by storages of their own. In the end all groups have the same."""
    seed = int(os.environ.get("GRAPE_ELLIPTICS_SEED", "0")) or random.getrandbits(30)

    async def count(storage: EllipticsStorage, counted: Counter[str]) -> None:
        for _ in range(4):
            try:
                await objects_of(storage).swap("count", lambda there: str(int(there or b"0") + 1).encode())
                counted["done"] += 1
            except StorageFailed:
                counted["unknown"] += 1

    async def run() -> None:
        chaos = Chaos(seed, **WEATHER[weather])
        counted: Counter[str] = Counter()
        async with clustered(two_nodes()) as cluster:
            wrap = await chaos.between(cluster)
            async with AsyncExitStack() as stack:
                storages = []
                while len(storages) < 3:
                    try:
                        storages.append(await stack.enter_async_context(opened(cluster, wrap, timeout=2.0, **options)))
                    except GrapeError:  # it was cut while it was opened
                        pass
                await asyncio.gather(*(count(storages[n % 3], counted) for n in range(12)))
            await chaos.stop()
            async with opened(cluster, repairs="all", **options) as storage:
                found = await objects_of(storage).get("count")
                assert found is not None
                assert counted["done"] <= int(found.data) <= 48
                await storage.settled()
                if "about" in options:
                    id = heads.head_id(Place("ns", "count"))
                    first, second = (
                        [each.disk[id].data for each in cluster.backends(g) if id in each.disk] for g in (1, 2)
                    )
                    assert first == second

    try:
        asyncio.run(run())
    except BaseException:
        print(f"GRAPE_ELLIPTICS_SEED={seed}")
        raise


async def _work(storage: EllipticsStorage, number: int, seed: int) -> None:
    objects = objects_of(storage)
    chance = random.Random(seed + number)
    can_be: dict[str, set[bytes | None]] = {}
    for step in range(25):
        key = f"{number}/{chance.randrange(3)}"
        possible = can_be.setdefault(key, {None})
        data = f"{number} {step} ".encode() * chance.choice([1, 10, 2000])
        try:
            match chance.randrange(6):
                case 0 | 1:
                    possible.add(data)
                    await objects.put(key, data)
                    can_be[key] = {data}
                case 2:
                    possible.add(None)
                    await objects.remove(key)
                    can_be[key] = {None}
                case 3:
                    possible.add(data)
                    try:
                        await objects.put(key, data, if_absent=True)
                    except Conflict:
                        continue
                    except Unsupported:
                        possible -= {data} - {None}
                        continue
                    can_be[key] = {data}
                case 4:
                    found = await objects.get(key)
                    seen = None if found is None else found.data
                    assert seen in possible, (key, step, seen, possible)
                case 5:
                    many = await objects.get_many([key, f"{number}/never"])
                    assert many.keys() <= {key}
                    seen = many[key].data if key in many else None
                    assert seen in possible, (key, step, seen, possible)
        except (StorageFailed, Nonsense):
            await asyncio.sleep(0.05)
    assert HEADER.size == wire.HEADER
