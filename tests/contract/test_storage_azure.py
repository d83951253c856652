"""Objects in Azure's storage, as its emulator is it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from contract import clouds
from grape.abc.storage import Storage
from grape.storage.buckets import AzureConfig, AzureStorage
from grape.testing.contracts.storage import StorageContract


class TestAzure(StorageContract):
    largest_written = 20 << 20

    @asynccontextmanager
    async def opened(self, count: int = 1) -> AsyncIterator[list[Storage]]:
        endpoint = clouds.shared(clouds.Azure).endpoint
        config = AzureConfig(container=clouds.BUCKET, prefix="contract", endpoint=endpoint)
        storages: list[Storage] = [AzureStorage(config) for _ in range(count)]
        for storage in storages:
            await storage.open()
        yield storages
        for storage in storages:
            await storage.close()
