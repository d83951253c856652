"""The reference of what a storage does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from grape.abc.storage import Storage
from grape.storage.memory import MemoryConfig, MemoryStorage
from grape.testing.contracts.storage import StorageContract


class TestMemory(StorageContract):
    @asynccontextmanager
    async def opened(self, count: int = 1) -> AsyncIterator[list[Storage]]:
        storage = MemoryStorage(MemoryConfig())
        await storage.open()
        yield [storage] * count
        await storage.close()
