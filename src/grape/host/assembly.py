"""An app is put together from given parts, in one way for all: a run on a disk with worker processes, and the simulator
in memory.

transport -> what is stored is made fit -> app -> engine -> a feed for each source, a take for each taker
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from msgspec import Struct

from grape.abc.source import Source
from grape.abc.transport import Arrival, Callbacks, Claim, Commit, Outcome
from grape.engine.app import App
from grape.engine.committer import Committer
from grape.engine.engine import Engine
from grape.engine.fitting import fit
from grape.engine.ids import Ids
from grape.engine.intake import Feed
from grape.engine.outlet import DeadOutputs, Take, dead_log
from grape.engine.surroundings import Sizes, Surroundings
from grape.errors import GrapeError, StorageFailed
from grape.host.feeding import opened
from grape.host.opening import Opening, Removals
from grape.model.address import PartitionId
from grape.model.stored import OUTPUT, REPLIES, SOURCE, TAKER
from grape.model.topology import Limits, TopologySpec

_REPLY: Final = "reply"


class TakenBy(NamedTuple):
    """``event``: an output, None: replies. ``name``: of who takes it, which tells it from all others for ever."""

    event: str | None
    name: str

    @property
    def log(self) -> str:
        return REPLIES if self.event is None else OUTPUT + self.event

    @property
    def dead_event(self) -> str:
        """By which the dead letters of what it takes are known."""
        return self.event or _REPLY


class Plan(Struct, frozen=True, kw_only=True):
    """What is to be put together.

    ``limits``: cut to what the transport holds. ``parts``: what workers of a pool describe, if that is not the whole.
    ``partitions``: of a new app, or those that there must be. ``reserve``: bytes of room at which nothing comes in any
    more. ``owned``: numbers of the partitions that this engine serves; None: all. ``taken_elsewhere``: what other
    engines take.
    """

    topology: TopologySpec
    limits: Limits
    sizes: Sizes
    sources: Sequence[Source] = ()
    taken: Sequence[TakenBy] = ()
    parts: dict[str, TopologySpec] = {}
    partitions: int | None = None
    removals: Removals = Removals()
    reserve: int = 0
    owned: frozenset[int] | None = None
    taken_elsewhere: Sequence[TakenBy] = ()

    def all_taken(self) -> list[TakenBy]:
        """Here or elsewhere."""
        return [*self.taken, *self.taken_elsewhere]

    def logs(self) -> list[str]:
        """All that it needs beside those of its pools."""
        own = [SOURCE + source.name for source in self.sources] + [TAKER + taken.name for taken in self.taken]
        return own + sorted(map(dead_log, self.dead_events()))

    def dead_events(self) -> list[str]:
        """Each `TakenBy.dead_event` once."""
        return list(dict.fromkeys(taken.dead_event for taken in self.taken))


class Assembled(Struct, frozen=True):
    """Feeds and takes stand in the order of the plan. ``dead_outputs``: by `TakenBy.dead_event`."""

    app: App
    engine: Engine
    feeds: list[Feed]
    takes: list[Take]
    dead_outputs: dict[str, DeadOutputs]


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
            UsageError: something stored does not fit, and nobody allowed it to go; a source that cannot be opened.
            EngineError: the store is damaged, or the disk refused.
        """
        self._around = around
        limits = fit(plan.limits, around.transport.features)
        opening = self._opening = Opening(around.transport, around.clock, limits, around.rng, plan.removals)
        record = await opening.record(plan.topology, plan.partitions, plan.logs())
        if opening.discarded:
            around.notice(f"{opening.discarded:,} events were given up without dead letters (--discard-slot)")
        taken = frozenset(taken.event for taken in plan.all_taken() if taken.event is not None)
        app = App(record, plan.topology, limits, taken, plan.parts)
        claims = await opening.claim(_owned(plan, app))
        engine = self._engine = Engine(app, around, plan.sizes, claims, plan.reserve)
        engine.arrived(opening.missed)

        def committer(log: str, what: str) -> Committer:
            own = app.log(log, 0)
            found = Committer(around.transport, own, what, claims[own])
            engine.own(found)
            return found

        feeds = _feeds(plan, app, around, committer)
        takes = _takes(plan, app, engine, around, committer)
        dead = {
            event: DeadOutputs(app, committer(dead_log(event), f"dead letters of output {event!r}"))
            for event in plan.dead_events()
        }
        return Assembled(app, engine, feeds, takes, dead)

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
        self._changed()

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
    """All that this engine commits to."""
    owned = range(app.partitions) if plan.owned is None else sorted(plan.owned)
    pools = [app.log(pool.name, number) for pool in plan.topology.pools for number in owned]
    return pools + [app.log(log, 0) for log in plan.logs()]


def _feeds(plan: Plan, app: App, around: Surroundings, committer: Callable[[str, str], Committer]) -> list[Feed]:
    calls = any(taken.event is None for taken in plan.all_taken())
    ids = Ids(app, around.transport, around.clock)
    feeds: list[Feed] = []
    for source in plan.sources:
        own = committer(SOURCE + source.name, f"source {source.name!r}")
        feed = Feed(app, source, around.transport, own, calls, around.clock, ids)
        opened(feed)
        feeds.append(feed)
    return feeds


def _takes(
    plan: Plan, app: App, engine: Engine, around: Surroundings, committer: Callable[[str, str], Committer]
) -> list[Take]:
    peers: dict[str, list[Take]] = {}
    takes: list[Take] = []
    for taken in plan.taken:
        own = committer(TAKER + taken.name, f"taker {taken.name!r}")
        take = Take(app, taken.name, taken.log, around.transport, own, around.clock)
        takes.append(take)
        peers.setdefault(taken.log, []).append(take)
        take.peers = peers[taken.log]
        for number in take.logs:
            engine.on_arrival(app.log(taken.log, number), partial(take.arrived, number))
    return takes
