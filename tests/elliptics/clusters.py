"""Clusters for tests, and storages that are open on them."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from elliptics.server import HEADER, Backend, Cluster, cluster_of
from grape.storage.elliptics.storage import EllipticsConfig, EllipticsStorage
from grape.storage.objects import Objects


def two_nodes() -> list[list[Backend]]:
    """Groups 1 and 2, each on both nodes."""
    return [
        [Backend(1, 1, ("A1-0", "A1-1")), Backend(2, 2, ("A2-0", "A2-1"))],
        [Backend(0, 1, ("B1-0", "B1-1")), Backend(1, 2, ("B2-0", "B2-1"))],
    ]


def node_per_group(groups: int = 2) -> list[list[Backend]]:
    """Node 0 has group 1 and so on: so that a group can be away."""
    return [[Backend(0, group, (f"{group}-0", f"{group}-1"))] for group in range(1, groups + 1)]


@asynccontextmanager
async def clustered(nodes: list[list[Backend]]) -> AsyncIterator[Cluster]:
    cluster = await cluster_of(*nodes)
    try:
        yield cluster
    finally:
        await cluster.stop()


@asynccontextmanager
async def opened(
    cluster: Cluster, wrap: Callable[[tuple[str, int]], tuple[str, int]] | None = None, **options: Any
) -> AsyncIterator[EllipticsStorage]:
    options = {"groups": "1", "timeout": 5.0, "refresh": 5.0, **options}
    seeds = options.pop("seeds", ",".join(f"127.0.0.1:{node.port}" for node in cluster.alive))
    storage = EllipticsStorage(EllipticsConfig(seeds=seeds, **options))
    if wrap is not None:
        storage.client._wrap = wrap
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()


def objects_of(storage: EllipticsStorage, namespace: str = "ns") -> Objects:
    return Objects(storage, namespace)


async def until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.01)


class Chaos:
    """What stands between a client and the nodes, and does to messages what networks do.

    Args:
        piece: bytes, at most, that go on at once. delay: seconds, at most, before they do.
        drop: how probably a connection is cut before one of them. reorder: how many answers are held back, at most, to
            go on in another order.
    """

    def __init__(
        self, seed: int, piece: int = 1 << 16, delay: float = 0.0, drop: float = 0.0, reorder: int = 0
    ) -> None:
        self.random = random.Random(seed)
        self.piece, self.delay, self.drop, self.reorder = piece, delay, drop, reorder
        self.cut = 0
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def between(self, cluster: Cluster) -> Callable[[tuple[str, int]], tuple[str, int]]:
        for node in cluster.nodes:
            target = ("127.0.0.1", node.port)
            self._servers[target] = await asyncio.start_server(self._accept(target), "127.0.0.1", 0)
        return lambda target: self._servers[target].sockets[0].getsockname()

    async def stop(self) -> None:
        for server in self._servers.values():
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, target: tuple[str, int]) -> Any:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            others: list[asyncio.Task[Any]] = []
            try:
                back, forth = await asyncio.open_connection(*target)
                others = [
                    asyncio.ensure_future(self._pump(reader, forth, False)),
                    asyncio.ensure_future(self._pump(back, writer, self.reorder > 0)),
                ]
                await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
                forth.transport.abort()
            except (OSError, asyncio.CancelledError):  # of `stop`
                pass
            finally:
                for other in others:
                    other.cancel()
                await asyncio.gather(*others, return_exceptions=True)
                writer.transport.abort()
                self._tasks.discard(task)

        return accept

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reorders: bool) -> None:
        buffer = b""
        held: list[bytes] = []
        while data := await reader.read(1 << 16):
            if not reorders:
                await self._pass(data, writer)
                continue
            buffer += data
            while len(buffer) >= HEADER.size:
                size = HEADER.size + struct.unpack_from("<Q", buffer, 0x70)[0]
                if len(buffer) < size:
                    break
                held.append(buffer[:size])
                buffer = buffer[size:]
            while held:
                if any(each[0x60] & 2 for each in held):  # those of one transaction keep their order
                    some, held = held, []
                else:
                    self.random.shuffle(held)
                    some, held = held[: self.reorder], held[self.reorder :]
                for each in some:
                    await self._pass(each, writer)

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        while data:
            cut = self.random.randint(1, self.piece)
            piece, data = data[:cut], data[cut:]
            if self.delay:
                await asyncio.sleep(self.random.uniform(0, self.delay))
            if self.random.random() < self.drop:
                writer.write(piece[: len(piece) // 2])
                self.cut += 1
                raise ConnectionResetError
            writer.write(piece)
            await writer.drain()
