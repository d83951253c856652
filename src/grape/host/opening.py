"""The data directory at the start of a run: its catalog, and what changed code means for what is stored."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from grape.abc.transport import Commit, Outcome, Transport
from grape.engine.app import App
from grape.engine.catalog import CatalogStore, update_record, with_logs
from grape.engine.clock import Clock
from grape.engine.migration import Migration, SourceSent, plan, refuse_drops
from grape.engine.partition.partition import Partition
from grape.errors import GrapeError
from grape.model.address import CATALOG, DEFAULT_PARTITIONS, PartitionId
from grape.model.stored import SOURCE, AppRecord, NodeRecord, decode_source
from grape.model.topology import Limits, TopologySpec


class Removals(Struct, frozen=True):
    """What may go that is gone from the topology: ``slots``, whose events become dead letters; ``discarded``: slots,
    without dead letters; ``nodes``, with their state."""

    slots: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()
    discarded: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        return self.slots | self.nodes | self.discarded


class Opening:
    """Makes the record of one app fit its topology. Until it is done, all outcomes of commits are its own.

    Args:
        transport: claimed by this process alone.
        rng: jitter, and the incarnation of a new app.

    Attributes:
        discarded: events that were given up without a dead letter. catalog: of the directory.
    """

    def __init__(
        self, transport: Transport, clock: Clock, limits: Limits, rng: random.Random, removals: Removals
    ) -> None:
        self.discarded = 0
        self._rng = rng
        self._transport = transport
        self._clock = clock
        self._limits = limits
        self._removals = removals
        self.catalog = CatalogStore(transport)
        self._partitions: dict[PartitionId, Partition] = {}
        self._changed = asyncio.Event()
        self._error: GrapeError | None = None

    # ------------------------------------------------------------------ callbacks of the transport

    def done(self, commit: Commit, outcome: Outcome) -> None:
        """A commit has ended."""
        try:
            if commit.partition == CATALOG:
                self.catalog.done(commit, outcome)
            else:
                self._partitions[commit.partition].done(commit, outcome)
        except GrapeError as e:
            self._error = e
        self._changed.set()

    def arrived(self) -> None:
        """Something that was committed before has come into a log."""
        self._changed.set()

    def failed(self, error: GrapeError) -> None:
        """The transport cannot go on."""
        self._error = error
        self._changed.set()

    # ------------------------------------------------------------------ the record

    async def record(self, topology: TopologySpec, partitions: int | None) -> AppRecord:
        """The app's record in the catalog, after everything stored has been adapted to ``topology``.

        Raises:
            UsageError: another number of partitions, or something would be lost that nobody allowed to be dropped.
            EngineError: the store is damaged, or the disk refused.
        """
        await self._migrate(topology)
        dropped = self._removals.all
        record = update_record(self.catalog.catalog, topology, partitions, DEFAULT_PARTITIONS, dropped, self._rng)
        await self._save(record)
        return record

    async def _migrate(self, topology: TopologySpec) -> None:
        record = self.catalog.catalog.apps.get(topology.name)
        if record is None:
            events = {slot.event for slot in topology.slots}
            refuse_drops("--drop-slot", self._removals.slots, events)
            refuse_drops("--discard-slot", self._removals.discarded, events)
            refuse_drops("--drop-node", self._removals.nodes, {node.name for node in topology.nodes})
            return
        record = with_logs(record, [pool.name for pool in topology.pools])
        if record.moving:  # an earlier start was killed while it did this
            await self._move(self._migration(record, topology), record, record.moving)
            record = self.catalog.catalog.apps[topology.name]
        migration = self._migration(record, topology)
        if migration.plan and not self._transport.features.exact_forwarding:
            sources = self._sources(record)
            while migration.awaits(sources):
                await self._next()
        migration.check(self._removals.slots, self._removals.nodes)
        await self._settle(migration.steps())
        self.discarded = migration.discarded
        if migration.plan.moved:
            await self._move(migration, record, migration.plan.moved)

    def _sources(self, record: AppRecord) -> list[SourceSent]:
        """All sources that there ever were; what they have committed is forwarded now."""
        found: list[SourceSent] = []
        for name, number in record.logs.items():
            if name.startswith(SOURCE):
                log = PartitionId(record.id, number, 0)
                head = self._transport.claim(log).head
                found.append(SourceSent(log, decode_source(head).sent if head else {}))
        return found

    def _migration(self, record: AppRecord, topology: TopologySpec) -> Migration:
        app = App(record, record.topology, self._limits)

        def partition(pool: str, number: int) -> Partition:
            found = Partition(app, pool, number, self._transport, self._clock, self._rng)
            self._partitions[found.id] = found
            return found

        partitions: list[Partition] = []
        if plan(record, topology) or record.moving:
            pools = dict.fromkeys([pool.name for pool in record.topology.pools])
            pools.update(dict.fromkeys(node.pool for node in record.nodes.values()))
            partitions = [partition(pool, n) for pool in pools for n in range(record.partitions)]
        return Migration(app, topology, partitions, partition, self._removals.discarded)

    async def _move(self, migration: Migration, record: AppRecord, moved: dict[str, str]) -> None:
        await self._save(msgspec.structs.replace(record, moving=moved))
        await self._settle(migration.moves(moved))
        nodes = {
            name: NodeRecord(node.id, moved.get(name, node.pool), node.states) for name, node in record.nodes.items()
        }
        await self._save(msgspec.structs.replace(record, nodes=nodes, moving={}))

    # ------------------------------------------------------------------ one commit after the other

    async def _save(self, record: AppRecord) -> None:
        if self.catalog.catalog.apps.get(record.name) != record:
            self.catalog.save(record)
            while not self.catalog.is_saved:
                await self._next()

    async def _settle(self, steps: Iterator[Partition]) -> None:
        for partition in steps:
            partition.flush()
            while not partition.settled:
                await self._next()

    async def _next(self) -> None:
        self._changed.clear()
        await self._changed.wait()
        if self._error is not None:
            raise self._error
