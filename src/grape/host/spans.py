"""What traced events did: kept for a while, in an output of its own, for whoever asks and for who exports it."""

from __future__ import annotations

from functools import partial
from typing import Final

from grape.engine.app import App
from grape.engine.clock import Clock
from grape.engine.engine import Engine
from grape.engine.retention import Retention
from grape.host.attaching import Attaching
from grape.host.host import Host
from grape.host.once import Once
from grape.model.retention import Keeping
from grape.model.tracing import SPANS, SPANS_LOG

_LOOK: Final = 5.0
"""Seconds between two looks at what is too old or too much, while there is something."""
_SOON: Final = 0.01


class Spans:
    """Of one engine."""

    def __init__(
        self, attaching: Attaching, app: App, engine: Engine, host: Host, clock: Clock, keeping: Keeping
    ) -> None:
        self._attaching = attaching
        self._app = app
        self._engine = engine
        self._clock = clock
        self._keeping = keeping
        self._retention: Retention | None = None
        self._look_soon = Once(partial(host.later, _SOON), self._look)
        self._look_later = Once(partial(host.later, _LOOK), self._look)

    def begin(self) -> None:
        """Keep what there is, and what comes."""
        app, engine = self._app, self._engine
        self._retention = self._attaching.keep(SPANS, self._keeping)
        for number in range(app.partitions):
            engine.on_arrival(app.log(SPANS_LOG, number), lambda _: self._look_later())
        self._look_soon()

    def _look(self) -> None:
        retention = self._retention
        assert retention is not None
        self._attaching.let_go(SPANS, retention.look(self._clock.now()))
        if retention.is_behind:
            self._look_soon()
        elif retention.size:
            self._look_later()
