"""Where the workers of a run are started: as processes, or in this one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from grape.engine.clock import Clock
from grape.engine.engine import Engine
from grape.host.describe import OwnCode
from grape.inline import InlineLink
from grape.processes.link import ProcessLink
from grape.processes.workers import Workers
from grape.protocol.messages import Ask, FromWorker, Values


class Spawning:
    """`grape.engine.worker.Spawner`.

    Args:
        changed: called when an inline worker has said something.

    Attributes:
        inline: the pools that run in this process.
        engine: whom inline workers talk to.
    """

    def __init__(self, workers: Workers, code: OwnCode, clock: Clock, changed: Callable[[], None]) -> None:
        self.inline: frozenset[str] = frozenset()
        self.engine: Engine | None = None
        self._workers = workers
        self._code = code
        self._clock = clock
        self._changed = changed

    def spawn(self, pool: str, index: int) -> ProcessLink | InlineLink:
        return self._spawn_inline(pool, index) if pool in self.inline else self._workers.spawn(pool, index)

    def _spawn_inline(self, pool: str, index: int) -> InlineLink:
        engine = self.engine
        assert engine is not None

        def received(link: InlineLink, message: FromWorker) -> None:
            if isinstance(message, Ask):
                partition = engine.pools[pool].partitions.get(message.partition)
                if partition is None:  # another engine has it
                    link.send(Values([None] * len(message.keys)))
                else:
                    link.send(Values(engine.questions.at_once(partition, message.node, message.keys)))
                return
            engine.received(pool, index, link, message)
            self._changed()

        def gone(link: InlineLink, how: str) -> None:
            engine.gone(pool, index, link, how)
            self._changed()

        soon = asyncio.get_running_loop().call_soon
        return InlineLink(self._code.topology(), received, soon, gone, time.monotonic, self._clock.now)
