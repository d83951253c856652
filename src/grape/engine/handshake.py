"""How a worker comes: it describes the app, is welcomed, and says when its nodes are set up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from grape.engine.app import App
from grape.engine.clock import Clock
from grape.engine.pool import Pool
from grape.engine.worker import Worker
from grape.errors import GrapeError, ProtocolError, TopologyError
from grape.model.foreign import Peers
from grape.model.levels import Levels
from grape.model.topology import without_schemas
from grape.protocol.messages import VERSION, Hello, LevelsChanged, PeersChanged, Refusal, Welcome

NEEDED: Final = frozenset({"partition", "cache"})
"""Capabilities that a worker has to have."""
RATES: Final = "rates"
TRACES: Final = "traces"
"""It tells spans of traced events."""
OBJECTS: Final = "objects"
"""Its handlers read and write them."""
PEERS: Final = "peers"
"""It emits to other apps, and hears which there are."""
LOGS: Final = "logs"
"""It logs as much as it is told, and with ids."""
MAX_TEXT: Final = 16_000
"""Characters of what a worker says of its end."""


class Handshake:
    """A first worker that does not fit ends the engine, as all would be like it; a later one only itself."""

    def __init__(self, app: App, pools: Mapping[str, Pool], clock: Clock) -> None:
        self._app = app
        self._pools = pools
        self._clock = clock

    def hello(self, worker: Worker, message: Hello) -> None:
        """
        Raises:
            ProtocolError: it is not what the workers before it were.
            TopologyError: no worker can be used.
        """
        worker.step("hello", self._clock.now())
        problem = self._problem(worker, message)
        if problem and self._pools[worker.pool].was_ready:
            raise ProtocolError(f"it is not as the workers before it were: {problem}")
        if problem:
            raise TopologyError(problem)
        worker.hears_peers = PEERS in message.capabilities
        worker.tells_spans = TRACES in message.capabilities
        worker.hears_levels = LOGS in message.capabilities
        worker.has_objects = OBJECTS in message.capabilities
        self._welcome(worker)

    def _problem(self, worker: Worker, message: Hello) -> str:
        if message.version != VERSION:
            return f"worker {worker.name} speaks protocol {message.version}; this engine speaks {VERSION}"
        lacks = sorted(NEEDED - set(message.capabilities))
        if lacks:
            return f"worker {worker.name} lacks what this engine needs: {', '.join(lacks)}"
        if RATES not in message.capabilities and (slots := self._rated(worker.pool)):
            return f"slot {slots[0]!r} has a rate, which workers of pool {worker.pool!r} cannot keep"
        if without_schemas(message.topology) != without_schemas(self._app.described(worker.pool)):
            return (
                f"worker {worker.name} built another topology than the first one did; "
                f"a topology must come out the same every time (no time, no chance in it)"
            )
        return ""

    def _rated(self, pool: str) -> list[str]:
        topology = self._app.topology
        nodes = {node.name for node in topology.nodes if node.pool == pool}
        return [f"{slot.event}>{slot.node}" for slot in topology.slots if slot.rate and slot.node in nodes]

    def _welcome(self, worker: Worker) -> None:
        app, profile = self._app, self._pools[worker.pool].profile
        worker.link.send(
            Welcome(
                VERSION,
                worker.pool,
                worker.name,
                app.partitions,
                app.limits,
                app.taken,
                app.record.unchained,
                self._clock.boot_offset(),
                float(profile.heartbeat_timeout),
                profile.concurrency,
                app.topology,
                app.peers,
                app.namespaces if worker.has_objects else {},
                app.levels,
            )
        )

    def change_peers(self, peers: Peers) -> None:
        """The other apps of the server are these from now on. Their logs have numbers."""
        self._app.peers = peers
        for pool in self._pools.values():
            for worker in pool.workers.values():
                if worker.hears_peers:
                    worker.link.send(PeersChanged(peers))

    def change_levels(self, levels: Levels) -> None:
        """Handlers log as much as this from now on."""
        self._app.levels = levels
        for pool in self._pools.values():
            for worker in pool.workers.values():
                if worker.hears_levels:
                    worker.link.send(LevelsChanged(levels))

    def set_up(self, worker: Worker) -> None:
        """Its nodes are; until then it has no partition, for which others would have to wait."""
        self._pools[worker.pool].joined(worker)
        for pool in self._pools.values():
            pool.reconcile()  # one less is on its way

    def refused(self, worker: Worker, message: Refusal) -> GrapeError | None:
        """The app cannot be loaded. Returns why, if no worker could."""
        was_coming = worker.comes
        worker.step("refuse", self._clock.now())
        worker.explained = message.text[:MAX_TEXT]
        is_first = was_coming and not self._pools[worker.pool].was_ready
        return TopologyError(message.text) if is_first and message.kind in ("topology", "usage") else None
