"""An app is put together from given parts, in one way for all: a run on a disk with worker processes, and the simulator
in memory.

transport -> what is stored is made fit -> app -> engine -> what streams and readers attach to
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from grape.abc.transport import Arrival, Callbacks, Claim, Commit, Outcome
from grape.engine.app import App
from grape.engine.engine import Engine
from grape.engine.fitting import fit
from grape.engine.surroundings import Sizes, Surroundings
from grape.errors import GrapeError, StorageFailed
from grape.host.attaching import Attaching
from grape.host.opening import Opening, Removals
from grape.model.address import PartitionId
from grape.model.foreign import Peers, logs_to
from grape.model.levels import Levels
from grape.model.objects import OBJECTS
from grape.model.topology import Limits, TopologySpec
from grape.model.tracing import SPANS_LOG


class Plan(Struct, frozen=True, kw_only=True):
    """What is to be put together.

    ``limits``: cut to what the transport holds. ``parts``: what workers of a pool describe, if that is not the whole.
    ``partitions``: of a new app, or those that there must be. ``reserve``: bytes of room at which nothing comes in any
    more. ``owned``: numbers of the partitions that this engine serves; None: all. ``peers``: other apps of its server.
    ``code``, ``traced``, ``namespaces`` (beside its own), ``elsewhere``, ``levels``: see `App`.
    """

    topology: TopologySpec
    limits: Limits
    sizes: Sizes
    parts: dict[str, TopologySpec] = {}
    partitions: int | None = None
    removals: Removals = Removals()
    reserve: int = 0
    owned: frozenset[int] | None = None
    peers: Peers = {}
    code: str = ""
    traced: float = 0.0
    namespaces: dict[str, str] = {}
    elsewhere: frozenset[str] = frozenset()
    levels: Levels = {}


class Assembled(Struct, frozen=True):
    """``attaching``: gives it streams and readers."""

    app: App
    engine: Engine
    attaching: Attaching


class Assembler:
    """Puts one app together, once.

    Args:
        changed: called whenever the transport has told something.

    Attributes:
        callbacks: of the transport. What that tells goes to the opening at first, and to the engine once there is one.
    """

    def __init__(self, changed: Callable[[], object] = lambda: None) -> None:
        self.callbacks = Callbacks(self._done, self._arrived, self._failed, self._claimed)
        self._changed = changed
        self._around: Surroundings | None = None
        self._opening: Opening | None = None
        self._engine: Engine | None = None

    async def assemble(self, plan: Plan, around: Surroundings) -> Assembled:
        """Nothing runs yet when it returns: `Engine.start` does that.

        Raises:
            UsageError: something stored does not fit, and nobody allowed it to go.
            EngineError: the store is damaged, or the disk refused.
        """
        self._around = around
        limits = fit(plan.limits, around.transport.features)
        opening = self._opening = Opening(around.transport, around.clock, limits, around.rng, plan.removals)
        record = await opening.record(
            plan.topology, plan.partitions, [SPANS_LOG, OBJECTS, *(log for app in plan.peers for log in logs_to(app))]
        )
        if opening.discarded:
            around.notice(f"{opening.discarded:,} events were given up without dead letters (--discard-slot)")
        app = App(record, plan.topology, limits, plan.parts)
        app.peers, app.code, app.traced = plan.peers, plan.code, plan.traced
        app.namespaces |= {name: right for name, right in plan.namespaces.items() if name not in app.namespaces}
        app.elsewhere, app.levels = plan.elsewhere, plan.levels
        claims = await opening.claim(_owned(plan, app))
        engine = self._engine = Engine(app, around, plan.sizes, claims, plan.reserve)
        engine.arrived(opening.missed)
        engine.own(opening.catalog.committer)
        return Assembled(app, engine, Attaching(app, engine, opening.catalog))

    # ------------------------------------------------------------------ what the transport tells

    def _done(self, outcomes: list[tuple[Commit, Outcome]]) -> None:
        if self._engine is not None:
            self._engine.done(outcomes)
        else:
            assert self._opening is not None
            for commit, outcome in outcomes:
                self._opening.done(commit, outcome)
        self._changed()

    def _arrived(self, arrivals: list[Arrival]) -> None:
        if self._engine is not None:
            self._engine.arrived(arrivals)
        elif self._opening is not None:
            self._opening.arrived(arrivals)

    def _claimed(self, claims: list[tuple[PartitionId, Claim]]) -> None:
        if self._engine is not None:
            self._engine.claimed(claims)
        else:
            assert self._opening is not None
            for partition, claim in claims:
                self._opening.claimed(partition, claim)
        self._changed()

    def _failed(self, error: BaseException) -> None:
        failure = error if isinstance(error, GrapeError) else StorageFailed(str(error))
        if self._engine is not None:
            self._engine.transport_failed(failure)
            return
        if self._around is not None:
            self._around.failed(failure)
        if self._opening is not None:
            self._opening.failed(failure)


def _owned(plan: Plan, app: App) -> list[PartitionId]:
    """The partitions that this engine serves."""
    owned = range(app.partitions) if plan.owned is None else sorted(plan.owned)
    return [app.log(pool.name, number) for pool in plan.topology.pools for number in owned]
