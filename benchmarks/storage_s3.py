"""Objects in S3 through Grape, beside the library alone: ``python -m benchmarks.storage_s3 [ROUNDS]``.

Both do the same on the same server (SeaweedFS, started for it) in turns: the library puts bytes and gets them, Grape
also sums and checks them, and keeps what is known of them. The median of all rounds is told, and its ratio.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

import obstore
from obstore.store import S3Store
from tests.contract import weed

from grape.storage.objects import Objects
from grape.storage.s3 import S3Config, S3Storage

GOAL: Final = 0.8
SIZES: Final = (("1 KB", 1 << 10, 300, 16), ("8 MB", 8 << 20, 6, 2))
"""Name, bytes, objects of a round, how many at once."""


async def main(rounds: int) -> None:
    server = weed.shared()
    storage = S3Storage(S3Config(bucket=weed.BUCKET, endpoint=server.endpoint, variables=weed.VARIABLES))
    await storage.open()
    objects = Objects(storage, "bench")
    store = S3Store(
        weed.BUCKET,
        config={
            "endpoint": server.endpoint,
            "region": "us-east-1",
            "access_key_id": weed.KEY,
            "secret_access_key": weed.SECRET,
        },
        client_options={"allow_http": True},
    )
    print(f"{'':10}{'obstore':>12}{'Grape':>12}{'ratio':>8}   objects a second, median of {rounds} rounds")
    for name, size, count, at_once in SIZES:
        body = os.urandom(size)

        async def put(i: int, body: bytes = body) -> None:
            await objects.put(f"grape{i}", body)

        async def put_bare(i: int, body: bytes = body) -> None:
            await obstore.put_async(store, f"bare{i}", body, use_multipart=False)

        async def get(i: int, size: int = size) -> None:
            found = await objects.get(f"grape{i}")
            assert found is not None
            assert len(found.data) == size

        async def get_bare(i: int, size: int = size) -> None:
            found = await obstore.get_async(store, f"bare{i}")
            assert len(bytes(await found.bytes_async())) == size

        for what, ours, bare in (("put", put, put_bare), ("get", get, get_bare)):
            times: dict[bool, list[float]] = {True: [], False: []}
            for i in range(rounds + 1):
                for is_ours in (True, False) if i % 2 else (False, True):
                    taken = await timed(ours if is_ours else bare, count, at_once)
                    if i:  # the first is to get warm
                        times[is_ours].append(taken)
            grape, alone = (count / statistics.median(times[is_ours]) for is_ours in (True, False))
            mark = "" if grape >= GOAL * alone else f"   below {GOAL}"
            print(f"{what} {name:6}{alone:12.1f}{grape:12.1f}{grape / alone:8.2f}{mark}", flush=True)
    await storage.close()


async def timed(do: Callable[[int], Awaitable[None]], count: int, at_once: int) -> float:
    limit = asyncio.Semaphore(at_once)

    async def one(i: int) -> None:
        async with limit:
            await do(i)

    begun = time.perf_counter()
    await asyncio.gather(*map(one, range(count)))
    return time.perf_counter() - begun


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7))
