"""An engine that hands out nothing for a while, at its operator's wish."""

from __future__ import annotations

from grape.engine.engine import Engine


class Pause:
    """What workers have is finished and committed; what comes waits in the log until that is full, as it would behind
    slow workers. All else goes on.

    Attributes:
        is_on: it is so.
    """

    def __init__(self, engine: Engine) -> None:
        self.is_on = False
        self._engine = engine

    def set(self, is_on: bool) -> None:
        """Hand out nothing, or go on."""
        self.is_on = is_on
        for pool in self._engine.pools.values():
            pool.is_paused = is_on
        if not is_on:
            self._engine.pump()
