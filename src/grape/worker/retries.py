"""The held events of one work, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from grape.protocol.messages import RetryItem
from grape.worker.ground import Ground
from grape.worker.stage import RetryStage, Stage
from grape.worker.units.unit import Unit


class Host(Protocol):
    """What it needs of the runtime."""

    @property
    def ground(self) -> Ground: ...

    def retry_stage(self, item: RetryItem, context: int) -> tuple[RetryStage, Unit | None]: ...

    def run_stage(self, unit: Unit, stage: Stage) -> None: ...


class Retries:
    """Lets held events pass the locks of their keys. One that fails again keeps those that stand behind it in its line,
    and the lock stays as long as another event of the line is held, also one of which the engine does not know yet."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ground = host.ground
        self._stuck: set[tuple[str, str]] = set()

    def run(self, item: RetryItem, context: int, guard: Callable[[Unit, Stage], None] | None = None) -> None:
        """Try one of a synchronous node once more. ``guard`` runs the stage instead, if given."""
        stage, unit = self._host.retry_stage(item, context)
        if unit is not None:
            self.run_stage(item, unit, stage, guard)

    def run_stage(
        self, item: RetryItem, unit: Unit, stage: Stage, guard: Callable[[Unit, Stage], None] | None = None
    ) -> None:
        """The same, by whoever has its stage."""
        ground = self._ground
        if not self.begin(item, unit, stage):
            return
        try:
            (guard or self._host.run_stage)(unit, stage)
        except BaseException:
            del ground.retries[item.id, item.node]
            raise
        failed = any(failure.hold == item.hold for failure in ground.effects.failures)
        self.end(item, unit, stage, failed)

    def begin(self, item: RetryItem, unit: Unit, stage: Stage) -> bool:
        """The event is about to run; False: it may not, as one before it has failed again."""
        line = _line(unit, stage)
        if line is not None:
            if line in self._stuck:
                return False
            self._ground.locked(unit.node).discard(line[1])
        self._ground.retries[item.id, item.node] = item
        return True

    def end(self, item: RetryItem, unit: Unit, stage: Stage, failed: bool) -> None:
        """The event has run."""
        ground = self._ground
        del ground.retries[item.id, item.node]
        if not failed:
            ground.effects.retried.append(item.hold)
        line = _line(unit, stage)
        if line is None:
            return
        locked = ground.locked(unit.node)
        if line[1] in locked:
            self._stuck.add(line)
            return
        held = ground.part.lines.get(line)
        if held is not None:
            held.discard(item.id)
            if not held:
                del ground.part.lines[line]
        if held or item.rest:
            locked.add(line[1])


def _line(unit: Unit, stage: Stage) -> tuple[str, str] | None:
    """The (node, key) in whose line the held event stands; None: it is on its own."""
    key = stage.key_of(0)
    return (unit.node, key) if key is not None and unit.slots[stage.name_of(0)].ordered else None
