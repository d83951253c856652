"""By whom something is said: asked only when something is."""

from __future__ import annotations

from grape.protocol.messages import DERIVED
from grape.worker.output import FIELD
from grape.worker.runtime import Runtime


class Speaking:
    """Of one worker."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def node(self) -> str:
        """The node that runs right now, "" for none."""
        running = self._runtime.handling()
        return "" if running is None else running.unit.node

    def who(self) -> str:
        """A `grape.worker.output.Speaker`."""
        running = self._runtime.handling()
        if running is None:
            return ""
        unit, stage, part = running
        index = unit.event_at(stage)
        if index is None:
            return unit.node
        event_id = stage.id_of(index)
        said = f"{unit.node}{FIELD}{event_id if event_id.isprintable() else ascii(event_id)}"
        context = stage.context_of(index) if part.traced else -1
        carried = (self._runtime.ground.effects if context >= DERIVED else part).traced.get(context)
        return said if carried is None else f"{said}{FIELD}{carried.partition('-')[0]}"
