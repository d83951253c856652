"""An app as its engine knows it: the topology, what its names are numbered, and its counters."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable

from grape.engine.pins import Pins
from grape.engine.telemetry import PoolStats
from grape.model.address import PartitionId
from grape.model.foreign import Foreign, Peers, log_of, log_to
from grape.model.levels import Levels
from grape.model.names import own_namespace
from grape.model.objects import OBJECTS
from grape.model.routing import Routing, eager_events, route
from grape.model.stored import OUTPUT, REPLIES, AppRecord
from grape.model.topology import Limits, NodeSpec, SlotSpec, TopologySpec


class Stats:
    """Counters of one run; for people and summaries, never for decisions."""

    def __init__(self) -> None:
        self.fed: Counter[str] = Counter()
        self.emitted: Counter[str] = Counter()
        self.processed: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.dead = 0
        self.revived = 0
        """Of `dead`, and of those before: what orders took out, or an operator has buried, which has not failed."""
        self.replies = 0
        self.late_replies = 0
        self.stale_frames = 0
        self.commits = 0
        self.worker_deaths = 0
        self.pools: defaultdict[str, PoolStats] = defaultdict(PoolStats)

    @property
    def finished(self) -> int:
        """Events that are done with, in all pools."""
        return sum(pool.finished for pool in self.pools.values())


class App:
    """``backlog_*``: what waits in the logs of its pools. ``outgoing_*``: what waits for other apps. ``unshipped_*``:
    objects that wait for other storages. ``taken``: outputs
    that have a taker. ``parts``: what workers of a pool describe, where that is not the whole of it. ``eager``: events
    that may run before they are accepted. ``peers``: the other apps of a server. ``code``: which version of it runs,
    for people. ``traced``: share of events of clients that are traced although nobody has said so. ``levels``: of what
    handlers log."""

    def __init__(
        self,
        record: AppRecord,
        topology: TopologySpec,
        limits: Limits,
        parts: dict[str, TopologySpec] | None = None,
    ) -> None:
        self.record = record
        self.topology = topology
        self.limits = limits
        self.routing: Routing = route(topology)
        self.eager = eager_events(topology)
        self.stats = Stats()
        self.taken: frozenset[str] = frozenset()
        self.peers: Peers = {}
        self.code = ""
        self.traced = 0.0
        self.levels: Levels = {}
        self.outgoing_events = 0
        self.outgoing_replies = 0
        self.outgoing_bytes = 0
        self.pins = Pins()
        self.namespaces: dict[str, str] = {own_namespace(topology.name): "write"}
        """Of objects: what its workers may do there. Its own is the first."""
        self.elsewhere: frozenset[str] = frozenset()
        """Namespaces that are in other storages."""
        self.unshipped_objects = 0
        self.unshipped_bytes = 0
        self.stuck_objects = 0
        self.backlog_events = 0
        self.backlog_bytes = 0
        self.holds = 0
        self.timers = 0
        self._parts = parts or {}
        self._slots = {(slot.event, slot.node): slot for slot in topology.slots}
        self._nodes = {node.name: node for node in topology.nodes}
        self._names: dict[str, frozenset[str]] = {
            pool.name: frozenset(
                event
                for event, listeners in self.routing.listeners.items()
                if any(listener.pool == pool.name for listener in listeners)
            )
            for pool in topology.pools
        }

    @property
    def partitions(self) -> int:
        return self.record.partitions

    @property
    def waiting_events(self) -> int:
        """In this app, or for others; an object that waits for another storage counts as one."""
        return self.backlog_events + self.outgoing_events + self.unshipped_objects

    @property
    def waiting_bytes(self) -> int:
        return self.backlog_bytes + self.outgoing_bytes + self.unshipped_bytes

    def described(self, pool: str) -> TopologySpec:
        """What a worker of ``pool`` has to say of the app."""
        return self._parts.get(pool, self.topology)

    def slot(self, event: str, node: str) -> SlotSpec | None:
        return self._slots.get((event, node))

    def node(self, name: str) -> NodeSpec | None:
        return self._nodes.get(name)

    def node_id(self, name: str) -> int:
        return self.record.nodes[name].id

    def log(self, name: str, number: int) -> PartitionId:
        """The log ``name`` (a pool, or an output, source, taker with its mark) of partition ``number``."""
        return PartitionId(self.record.id, self.record.logs[name], number)

    @property
    def objects(self) -> PartitionId:
        """Where the rows of its objects lie."""
        return self.log(OBJECTS, 0)

    def logs_of(self, event: str) -> list[str]:
        """Where it goes that comes in from outside; empty: nowhere. An output that nobody takes takes nothing."""
        is_idle = event in self.routing.outputs and event not in self.taken
        return [] if is_idle else self.routing.logs_of(event)

    def pools_of(self, events: Iterable[str]) -> set[str]:
        """The pools with a listener to one of these events."""
        return {listener.pool for event in events for listener in self.routing.listeners.get(event, ())}

    def knows_other(self, app: str) -> bool:
        """Events may go there."""
        return log_to(app) in self.record.logs

    def names_of(self, log: str) -> Container[str] | None:
        """Event names that may stand in ``log``; None if there is no such log to emit to."""
        other = log_of(log)
        if other is not None:
            return Foreign(other) if log in self.record.logs else None
        if log.startswith(OUTPUT):
            name = log[1:]
            return frozenset((name,)) if name in self.routing.outputs else None
        if log == REPLIES:
            return None
        return self._names.get(log)
