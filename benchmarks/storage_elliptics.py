"""Reads of 1 KB from Elliptics, beside what asyncio can at most: the same frames, echoed by nobody who looks at them.

    python -m benchmarks.storage_elliptics [--reads 20000] [--at HOST:PORT --groups 1] [--uvloop]

Without ``--at`` against the server of the tests, in a process of its own. All numbers are of the same run; what counts
is how much of the bare echo is left.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import uvloop

from grape.storage.elliptics.storage import EllipticsConfig, EllipticsStorage
from grape.storage.elliptics.wire import HEADER, IO, To, id_of, read
from grape.storage.objects import Objects

TESTS = Path(__file__).parents[1] / "tests"
KEYS = 500
OPEN = 256
SIZE = 1024


class _Echo(asyncio.Protocol):
    """A server that answers each 328 bytes with a frame as long as the answer to a read of 1 KB."""

    ANSWER = bytes(HEADER + IO + SIZE)
    REQUEST = HEADER + IO

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._left = cast(asyncio.Transport, transport), 0

    def data_received(self, data: bytes) -> None:
        count, self._left = divmod(self._left + len(data), self.REQUEST)
        self._transport.write(self.ANSWER * count)


class _Bare(asyncio.Protocol):
    """A client that keeps so many requests under way, and only counts."""

    def __init__(self, reads: int) -> None:
        self._todo, self._due, self._left = reads, reads, 0
        self._request = read(To(1, bytes(64)), 0, SIZE).head(0)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send(OPEN)

    def _send(self, count: int) -> None:
        for _ in range(min(count, self._todo)):
            self._todo -= 1
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        count, self._left = divmod(self._left + len(data), len(_Echo.ANSWER))
        self._due -= count
        self._send(count)
        if self._due <= 0 and not self.done.done():
            self.done.set_result(None)


async def _rate(name: str, reads: int, do: Callable[[int], Awaitable[object]], each: int = 1) -> float:
    """Reads per second of ``OPEN`` tasks, each of whose calls is ``each`` reads."""
    left = reads // each

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await do(left)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(max(1, OPEN // each))))
    took, spent = time.perf_counter() - began, time.process_time() - cpu
    print(f"{name:44} {reads / took:9,.0f}/s   {spent / reads * 1e6:6.1f} us of this process")
    return reads / took


async def _echo(reads: int, port: int) -> float:
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    transport, bare = await loop.create_connection(lambda: _Bare(reads), "127.0.0.1", port)
    await bare.done
    took = time.perf_counter() - began
    transport.close()
    print(f"{'the same frames, echoed':44} {reads / took:9,.0f}/s")
    return reads / took


async def _run(at: str, groups: str, echo: int, reads: int) -> None:
    storage = EllipticsStorage(EllipticsConfig(seeds=at, groups=groups))
    await storage.open()
    objects = Objects(storage, "bench")
    data = os.urandom(SIZE)
    keys = [f"key{i}" for i in range(KEYS)]
    await asyncio.gather(*(objects.put(key, data) for key in keys))
    ids = [id_of("bench", key) for key in keys]
    group = int(groups.split(",")[0])
    bare = await _echo(reads, echo)

    async def one(i: int) -> None:
        found = await storage.client.read(group, ids[i % KEYS], 0, SIZE)
        assert len(found.data) == SIZE

    async def summed(i: int) -> None:
        found = await storage.client.read(group, ids[i % KEYS], 0, SIZE, 0x4000)
        assert len(found.data) == SIZE

    async def get(i: int) -> None:
        found = await objects.get(keys[i % KEYS])
        assert found is not None
        assert len(found.data) == SIZE

    async def many(i: int) -> None:
        found = await objects.get_many(keys[i * 100 % KEYS :][:100])
        assert len(found) == 100

    for name, do, each in (
        ("client.read", one, 1),
        ("client.read, checksum verified", summed, 1),
        ("objects.get", get, 1),
        ("objects.get_many, 100 at a time", many, 100),
    ):
        rate = await _rate(name, reads, do, each)
        print(f"{'':44} {rate / bare:9.0%} of the echo")
    await storage.close()


async def _serve_echo() -> None:
    server = await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--at", default="")
    parser.add_argument("--groups", default="1")
    parser.add_argument("--uvloop", action="store_true", help="all of them with uvloop")
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.uvloop:
        uvloop.install()
    if options.echo:
        asyncio.run(_serve_echo())
        return
    started = []

    def start(*command: str) -> int:
        environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"}
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        assert process.stdout is not None
        return int(process.stdout.readline())

    try:
        at = options.at or f"127.0.0.1:{start('-m', 'elliptics.server', '0')}"
        echo = start("-m", "benchmarks.storage_elliptics", "--echo", *(["--uvloop"] if options.uvloop else []))
        print(f"{SIZE} bytes, {OPEN} under way, SHA-512 of them takes {_sum():.1f} us")
        asyncio.run(_run(at, options.groups, echo, options.reads))
    finally:
        for process in started:
            process.kill()
            process.wait()


def _sum() -> float:
    data, began = bytes(SIZE), time.perf_counter()
    for _ in range(10_000):
        hashlib.sha512(data).digest()
    return (time.perf_counter() - began) * 100


if __name__ == "__main__":
    main()
