"""Objects in Google's storage, as its emulator is it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from contract import clouds
from grape.abc.storage import Storage
from grape.storage.buckets import GoogleConfig, GoogleStorage
from grape.testing.contracts.storage import StorageContract


class TestGoogle(StorageContract):
    largest_written = 20 << 20

    @asynccontextmanager
    async def opened(self, count: int = 1) -> AsyncIterator[list[Storage]]:
        endpoint = clouds.shared(clouds.GoogleInMemory).endpoint
        config = GoogleConfig(bucket=clouds.BUCKET, prefix="contract", endpoint=endpoint)
        storages: list[Storage] = [GoogleStorage(config) for _ in range(count)]
        for storage in storages:
            await storage.open()
        yield storages
        for storage in storages:
            await storage.close()
