"""The held events of one work, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from grape.protocol.messages import RetryItem
from grape.worker.effects import Effects
from grape.worker.stage import RetryStage, Stage
from grape.worker.units import Unit


class Host(Protocol):
    """What it needs of the runtime."""

    retries: dict[tuple[str, str], RetryItem]

    @property
    def effects(self) -> Effects: ...

    def retry_stage(self, item: RetryItem, context: int) -> tuple[RetryStage, Unit | None]: ...

    def locked(self, node: str) -> set[str]: ...

    def run_stage(self, unit: Unit, stage: Stage) -> None: ...


class Retries:
    """Runs synchronous nodes' held events. One that fails again keeps those that stand behind it in its line."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._stuck: set[tuple[str, str]] = set()
        self._relock: set[tuple[str, str]] = set()

    def run(self, item: RetryItem, context: int, guard: Callable[[Unit, Stage], None] | None = None) -> None:
        """Try one more time. ``guard`` runs the stage instead, if given."""
        host = self._host
        stage, unit = host.retry_stage(item, context)
        key = stage.key_of(0)
        line = (item.node, key or "")
        if unit is None or (key is not None and line in self._stuck):
            return
        locks = host.locked(item.node)
        if key is not None:
            locks.discard(key)
        host.retries[item.id, item.node] = item
        try:
            (guard or host.run_stage)(unit, stage)
        finally:
            del host.retries[item.id, item.node]
        if not any(failure.hold == item.hold for failure in host.effects.failures):
            host.effects.retried.append(item.hold)
        if key is not None:
            if key in host.locked(item.node):
                self._stuck.add(line)
                self._relock.discard(line)
            elif item.rest:
                self._relock.add(line)

    def finish(self) -> None:
        """The last one is done: a line of which more waits in the engine stays locked."""
        for node, key in self._relock:
            self._host.locked(node).add(key)
