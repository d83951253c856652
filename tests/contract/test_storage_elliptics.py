"""Elliptics as a storage: both ways to keep objects, in one group and in two, on a cluster of two nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from elliptics.server import Backend, cluster_of
from grape.abc.storage import Storage
from grape.storage.elliptics.storage import EllipticsConfig, EllipticsStorage
from grape.testing.contracts.storage import StorageContract


class TestPlain(StorageContract):
    options: ClassVar[dict[str, Any]] = {"groups": "1"}

    @asynccontextmanager
    async def opened(self, count: int = 1) -> AsyncIterator[list[Storage]]:
        cluster = await cluster_of(
            [Backend(1, 1, ("A1-0", "A1-1")), Backend(2, 2, ("A2-0", "A2-1"))],
            [Backend(0, 1, ("B1-0", "B1-1")), Backend(1, 2, ("B2-0", "B2-1"))],
        )
        seeds = f"127.0.0.1:{cluster.nodes[0].port}"
        storages: list[Storage] = [
            EllipticsStorage(EllipticsConfig(seeds=seeds, timeout=10.0, **self.options)) for _ in range(count)
        ]
        for storage in storages:
            await storage.open()
        yield storages
        for storage in storages:
            await storage.close()
        await cluster.stop()


class TestPlainTwoGroups(TestPlain):
    options: ClassVar[dict[str, Any]] = {"groups": "1,2"}


class TestAbout(TestPlain):
    """What is over 1 MiB in several messages."""

    options: ClassVar[dict[str, Any]] = {"groups": "1", "about": True, "whole": 1 << 20}


class TestAboutTwoGroups(TestPlain):
    options: ClassVar[dict[str, Any]] = {"groups": "1,2", "about": True}
    largest_written = 1 << 21


class TestAboutOneDecides(TestPlain):
    options: ClassVar[dict[str, Any]] = {"groups": "1,2", "about": True, "decides": 2}
    largest_written = 1 << 21


@pytest.mark.slow
class TestPlainAnyOfTwo(TestPlain):
    options: ClassVar[dict[str, Any]] = {"groups": "1,2", "success": "any"}


@pytest.mark.slow
class TestPlainForwarded(TestPlain):
    options: ClassVar[dict[str, Any]] = {"groups": "1", "forward": True}


@pytest.mark.slow
class TestPlainCached(TestPlain):
    options: ClassVar[dict[str, Any]] = {"groups": "1", "cache": "on", "lifetime": 60}


@pytest.mark.slow
class TestAboutAnyOfTwo(TestPlain):
    options: ClassVar[dict[str, Any]] = {"groups": "1,2", "about": True, "success": "any", "connections": 3}


@pytest.mark.slow
class TestAboutForwarded(TestPlain):
    options: ClassVar[dict[str, Any]] = {"groups": "1", "about": True, "forward": True, "inline": 0}
