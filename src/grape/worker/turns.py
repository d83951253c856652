"""Which events have to wait for their turn before they begin, as their slot has a rate."""

from __future__ import annotations

from collections.abc import Mapping

from grape.model.batch import runs_of
from grape.protocol.messages import Named, Work
from grape.worker.ground import Ground
from grape.worker.pacing import Pacer
from grape.worker.stage import Stage
from grape.worker.units.unit import Unit


class Turns:
    """Of the nodes of one worker. ``pacer`` None: nobody keeps rates."""

    def __init__(self, units: Mapping[str, Unit], ground: Ground, pacer: Pacer | None) -> None:
        self._ground = ground
        self._pacer = pacer
        rated = [] if pacer is None else [slot for unit in units.values() for slot in unit.slots.values() if slot.rate]
        self._events = {slot.event for slot in rated}
        self._nodes = {slot.node for slot in rated}

    def may_be_in(self, work: Work) -> bool:
        """Whether some of its events may have to wait."""
        if not self._nodes:
            return False
        if any(item.node in self._nodes for item in work.retries):
            return True
        return any(not self._events.isdisjoint(run.meta.names) for item in work.batches for run in runs_of(item.body))

    def needs(self, unit: Unit, stage: Stage, *, is_retry: bool = False) -> bool:
        """Whether the only event of ``stage`` counts to a rate: it has one, and nothing keeps the event from running.
        Its partition is entered."""
        slot = unit.slots.get(stage.name_of(0))
        if slot is None or not slot.rate or self._pacer is None:
            return False
        is_behind = not is_retry and slot.ordered and stage.key_of(0) in self._ground.locked(unit.node)
        return not is_behind and self._ground.lost(unit, stage, 0) is None

    def wait(
        self, stages: list[tuple[Unit, Stage]], named: Mapping[tuple[str, str], Named], *, is_retry: bool = False
    ) -> None:
        """Until an event may be handed to all of its nodes: before that none of them begins with it. ``named``: at
        which it must not start.

        Raises:
            GivenBack: see there.
        """
        for unit, stage in stages:
            if (stage.id_of(0), unit.node) not in named and self.needs(unit, stage, is_retry=is_retry):
                assert self._pacer is not None
                self._pacer.take((stage.name_of(0), unit.node))
