"""Objects in S3, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from contract import weed
from grape.abc.storage import Storage
from grape.storage.s3 import S3Config, S3Storage
from grape.testing.contracts.storage import StorageContract


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
