"""The worker processes of one pool, as the engine sees them."""

from __future__ import annotations

from collections import deque
from typing import Literal, Protocol

from grape.engine.partition import Partition
from grape.protocol.messages import ToWorker


class Link(Protocol):
    """The way to one worker."""

    def send(self, message: ToWorker) -> None:
        """Put it on its way; never blocks."""

    def kill(self) -> None:
        """End the worker at once. Its end is reported as any other."""


class Spawner(Protocol):
    def spawn(self, pool: str, index: int) -> Link:
        """Start a worker. Its messages and its end come through `Engine.received` and `Engine.gone`."""


class Worker:
    """``outstanding``: works in the order in which the worker does them. ``announced``: careful mode's last word."""

    def __init__(self, pool: str, index: int, now: int) -> None:
        self.pool = pool
        self.index = index
        self.name = f"{pool}.{index}"
        self.link: Link | None = None
        self.state: Literal["starting", "ready", "gone"] = "starting"
        self.heard = now
        self.partitions: dict[int, Partition] = {}
        self.outstanding: deque[tuple[int, int]] = deque()
        self.ready: deque[int] = deque()
        self.is_queued: set[int] = set()
        self.announced: tuple[int, str, str] | None = None
        self.explained = ""
        self.named = False
        """It has said itself which event it ends over."""

    def queue(self, partition: int) -> None:
        """The partition may have work."""
        if partition not in self.is_queued:
            self.is_queued.add(partition)
            self.ready.append(partition)

    def next_partition(self) -> Partition | None:
        while self.ready:
            number = self.ready.popleft()
            self.is_queued.discard(number)
            found = self.partitions.get(number)
            if found is not None:
                return found
        return None


class Pool:
    """``size`` workers; partition n belongs to worker n % size."""

    def __init__(self, name: str, size: int, partitions: list[Partition]) -> None:
        self.name = name
        self.size = size
        self.partitions = partitions
        self.workers: dict[int, Worker] = {}
        self.failed_starts = 0
        self.respawn_at: dict[int, int] = {}

    def owner(self, partition: int) -> Worker | None:
        worker = self.workers.get(partition % self.size)
        return worker if worker is not None and worker.state == "ready" else None

    def owned_by(self, index: int) -> list[Partition]:
        return [p for p in self.partitions if p.number % self.size == index]
