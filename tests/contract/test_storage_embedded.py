"""The objects of an app, from outside: while an engine runs, and on a directory at rest."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import grape
from grape.abc.storage import Storage
from grape.storage.embedded import EmbeddedConfig, EmbeddedStorage
from grape.testing.contracts.storage import StorageContract

APP = """
from grape import Topology
t = Topology("shop")

@t.slot("nothing", name="nothing")
def nothing(data): ...
"""


class _Embedded(StorageContract):
    is_running: bool

    @asynccontextmanager
    async def opened(self, count: int = 1) -> AsyncIterator[list[Storage]]:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "app.py").write_text(APP)
            data = str(Path(folder) / "data")
            engine = grape.open(f"{folder}/app.py", data=data, workers=1)
            if not self.is_running:
                engine.close()
            storages: list[Storage] = [EmbeddedStorage(EmbeddedConfig(directory=data)) for _ in range(count)]
            try:
                for storage in storages:
                    await storage.open()
                yield storages
            finally:
                for storage in storages:
                    await storage.close()
                if self.is_running:
                    engine.close()


class TestRunning(_Embedded):
    is_running = True


@pytest.mark.slow
class TestAtRest(_Embedded):
    is_running = False
    incrementers = 10
