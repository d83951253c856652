"""A worker as its engine sees it: its life, what it has, and what it said last."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from grape.engine.life import COMES, LEAVES, SERVES, Life, Step, after
from grape.engine.partition.partition import Partition
from grape.engine.standstill import Standstill
from grape.protocol.messages import Announce, Drain, Result, Revoke, ToWorker, Work


class Link(Protocol):
    """The way to one worker."""

    def send(self, message: ToWorker) -> None:
        """Put it on its way; never blocks."""

    @property
    def unread(self) -> int:
        """Bytes that were sent and have not left this process."""

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM)."""

    def kill(self) -> None:
        """End the worker at once, with all that it started. Its end is reported as any other."""


class Spawner(Protocol):
    def spawn(self, pool: str, index: int) -> Link:
        """Start a worker. Its messages and its end come through `Engine.received` and `Engine.gone`."""


class Worker:
    """Times are microseconds of wall time.

    Attributes:
        life: see `grape.engine.life`; ``since`` when.
        partitions: those that it owns. outstanding: works in the order in which it does them.
        announced: careful mode's last word (partition, event, node), until that event is over.
        explained: why it ends. is_named: it has said itself over which event.
        has_refused, has_served: it once was in that state.
        idle_since: None while it has work. busy_since: since when it is at what it will hand in next.
        processed: events.
        has_objects: its handlers read and write them. hears_peers: it is told which other apps there are.
        tells_spans: of traced events. hears_levels: it is told how much to log.
        standstill: it has work, and says that it runs none; or none although its partitions have.
    """

    def __init__(self, pool: str, index: int, now: int) -> None:
        self.pool = pool
        self.index = index
        self.name = f"{pool}.{index}"
        self.link: Link
        self.life: Life = "starting"
        self.born = now
        self.since = now
        self.heard = now
        self.partitions: dict[int, Partition] = {}
        self.outstanding: deque[tuple[int, int]] = deque()
        self.announced: tuple[int, str, str] | None = None
        self.explained = ""
        self.is_named = False
        self.has_refused = False
        self.has_served = False
        self.idle_since: int | None = None
        self.busy_since = now
        self.processed = 0
        self.has_objects = False
        self.hears_peers = False
        self.tells_spans = False
        self.hears_levels = False
        self.standstill = Standstill()
        self.queued: deque[int] = deque()
        self._is_queued: set[int] = set()

    # ------------------------------------------------------------------ life

    def step(self, step: Step, now: int) -> None:
        """
        Raises:
            ProtocolError: that does not happen in its life.
        """
        self.life, self.since = after(self.life, step), now
        if self.life == "ready":
            self.has_served, self.idle_since = True, now
        elif self.life == "refused":
            self.has_refused = True

    @property
    def is_heard(self) -> bool:
        """What it says counts."""
        return self.life not in ("broken", "gone")

    @property
    def comes(self) -> bool:
        return self.life in COMES

    @property
    def serves(self) -> bool:
        return self.life in SERVES

    @property
    def leaves(self) -> bool:
        return self.life in LEAVES

    def dismiss(self, now: int) -> None:
        """Ask it to end."""
        self.step("dismiss", now)
        self.link.send(Drain())

    def cut(self, why: str, now: int) -> None:
        """End it at once; what it says is no longer heard. ``why``: unless that is known already."""
        if self.is_heard:
            self.explained = self.explained if self.has_refused else why
            self.step("cut", now)
            self.link.kill()

    # ------------------------------------------------------------------ works

    def queue(self, partition: int) -> None:
        """The partition may have work."""
        if partition not in self._is_queued:
            self._is_queued.add(partition)
            self.queued.append(partition)

    def next_partition(self) -> Partition | None:
        """The next one that may have work."""
        while self.queued:
            number = self.queued.popleft()
            self._is_queued.discard(number)
            found = self.partitions.get(number)
            if found is not None:
                return found
        return None

    def hand_out(self, work: Work, now: int) -> None:
        if not self.outstanding:
            self.busy_since = now
        self.outstanding.append((work.partition, work.seq))
        self.idle_since = None
        self.standstill.moves()
        self.link.send(work)

    def handed_in(self, result: Result, now: int) -> int:
        """Returns how long it has worked on that."""
        elapsed, self.busy_since = max(0, now - self.busy_since), now
        if self.announced is not None and self.announced[0] == result.partition and result.is_progress:
            self.announced = None
        for seq in result.ended:
            self.outstanding.remove((result.partition, seq))
        if not self.outstanding:
            self.idle_since = now
        return elapsed

    def lose(self, partition: Partition, now: int) -> None:
        """It is no longer the worker's, at once: what the worker has of it counts no more."""
        number = partition.number
        self.partitions.pop(number, None)
        self.outstanding = deque(work for work in self.outstanding if work[0] != number)
        if self.announced is not None and self.announced[0] == number:
            self.announced = None
        if not self.outstanding and self.idle_since is None:
            self.idle_since = now
        if self.serves:
            self.link.send(Revoke(number, partition.epoch))

    def announces(self, message: Announce) -> None:
        self.announced = (message.partition, message.id, message.node)
