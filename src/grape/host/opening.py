"""The data directory at the start of a run: its catalog, and what changed code means for what is stored."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Struct

from grape.abc.transport import Arrival, Claim, Commit, Outcome, Transport
from grape.engine.app import App
from grape.engine.catalog import CatalogStore, update_record, with_logs
from grape.engine.clock import Clock
from grape.engine.committer import Committer
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
    """Makes the record of one app fit its topology, and claims what the app needs. Until that is done, all that the
    transport tells is its own.

    Args:
        rng: jitter, and the incarnation of a new app.

    Attributes:
        discarded: events that were given up without a dead letter. catalog: of the directory.
        missed: what has come into logs after they were claimed.
    """

    def __init__(
        self, transport: Transport, clock: Clock, limits: Limits, rng: random.Random, removals: Removals
    ) -> None:
        self.discarded = 0
        self.missed: list[Arrival] = []
        self._rng = rng
        self._transport = transport
        self._clock = clock
        self._limits = limits
        self._removals = removals
        self.catalog: CatalogStore
        self._asked: set[PartitionId] = set()
        self._claims: dict[PartitionId, Claim] = {}
        self._partitions: dict[PartitionId, Partition] = {}
        self._changed = asyncio.Event()
        self._error: GrapeError | None = None

    # ------------------------------------------------------------------ callbacks of the transport

    def done(self, commit: Commit, outcome: Outcome) -> None:
        """A commit has ended."""
        try:
            self._owner(commit.partition).done(commit, outcome)
        except GrapeError as e:
            self._error = e
        self._changed.set()

    def claimed(self, partition: PartitionId, claim: Claim) -> None:
        """It was asked for, or a commit of it has ended unknown."""
        try:
            if partition in self._asked:
                self._asked.discard(partition)
                self._claims[partition] = claim
            else:
                self._owner(partition).claimed(claim)
        except GrapeError as e:
            self._error = e
        self._changed.set()

    def _owner(self, partition: PartitionId) -> Committer | Partition:
        return self.catalog.committer if partition == CATALOG else self._partitions[partition]

    def arrived(self, arrivals: list[Arrival]) -> None:
        """Something that was committed before has come into a log."""
        self.missed += [arrival for arrival in arrivals if arrival.partition in self._claims]
        self._changed.set()

    def failed(self, error: GrapeError) -> None:
        """The transport cannot go on."""
        self._error = error
        self._changed.set()

    # ------------------------------------------------------------------ claims

    async def claim(self, partitions: Iterable[PartitionId]) -> dict[PartitionId, Claim]:
        """Claim all of them, in one round.

        Raises:
            EngineError: the store is damaged, or the disk refused.
        """
        wanted = dict.fromkeys(partitions)
        self._claims = {}
        self.missed = []
        self._asked = set(wanted)
        self._transport.claim(list(wanted))
        while self._asked:
            await self._next()
        return self._claims

    # ------------------------------------------------------------------ the record

    async def record(self, topology: TopologySpec, partitions: int | None, others: Iterable[str] = ()) -> AppRecord:
        """The app's record in the catalog, after everything stored has been adapted to ``topology``. ``others``: logs
        for what goes to other apps.

        Raises:
            UsageError: another number of partitions, or something would be lost that nobody allowed to be dropped.
            EngineError: the store is damaged, or the disk refused.
        """
        claims = await self.claim([CATALOG])
        self.catalog = CatalogStore(self._transport, claims[CATALOG])
        await self._migrate(topology)
        dropped = self._removals.all
        record = update_record(
            self.catalog.catalog, topology, partitions, DEFAULT_PARTITIONS, dropped, self._rng, others
        )
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
        if record.moving or record.emptied:  # an earlier start was killed while it did this
            await self._move(await self._migration(record, topology), record, record.moving, record.emptied)
            record = self.catalog.catalog.apps[topology.name]
        migration = await self._migration(record, topology)
        if migration.plan and not self._transport.features.exact_forwarding:
            sources = await self._sources(record)
            while migration.awaits(sources):
                await self._next()
        migration.check(self._removals.slots, self._removals.nodes)
        await self._settle(migration.steps())
        self.discarded = migration.discarded
        if migration.plan.moved or migration.plan.emptied:
            await self._move(migration, record, migration.plan.moved, migration.plan.emptied)

    async def _sources(self, record: AppRecord) -> list[SourceSent]:
        """All sources that there ever were; what they have committed is forwarded now."""
        logs = [PartitionId(record.id, number, 0) for name, number in record.logs.items() if name.startswith(SOURCE)]
        claims = await self.claim(logs)
        return [SourceSent(log, decode_source(claim.head).sent if claim.head else {}) for log, claim in claims.items()]

    async def _migration(self, record: AppRecord, topology: TopologySpec) -> Migration:
        """It owns all partitions of all pools, whoever will serve them: what is stored changes everywhere at once."""
        app = App(record, record.topology, self._limits)
        pools = dict.fromkeys([pool.name for pool in record.topology.pools])
        pools.update(dict.fromkeys(node.pool for node in record.nodes.values()))
        coming = dict.fromkeys(pool.name for pool in topology.pools)
        is_needed = bool(plan(record, topology) or record.moving or record.emptied)
        claims: dict[PartitionId, Claim] = {}
        if is_needed:
            numbers = range(record.partitions)
            claims = await self.claim(app.log(pool, n) for pool in {**pools, **coming} for n in numbers)

        def partition(pool: str, number: int) -> Partition:
            claim = claims[app.log(pool, number)]
            found = Partition(app, pool, number, self._transport, self._clock, self._rng, claim)
            self._partitions[found.id] = found
            return found

        partitions = [partition(pool, n) for pool in pools for n in range(record.partitions)] if is_needed else []
        return Migration(app, topology, partitions, partition, self._removals.discarded)

    async def _move(
        self, migration: Migration, record: AppRecord, moved: dict[str, str], emptied: dict[str, str]
    ) -> None:
        await self._save(msgspec.structs.replace(record, moving=moved, emptied=emptied))
        await self._settle(migration.moves(moved, emptied))
        nodes = {
            name: NodeRecord(node.id, moved.get(name, node.pool), node.states) for name, node in record.nodes.items()
        }
        await self._save(msgspec.structs.replace(record, nodes=nodes, moving={}, emptied={}))

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
