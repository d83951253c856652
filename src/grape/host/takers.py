"""All takers of a run, each a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from grape.engine.clock import Clock
from grape.host.assembly import Assembled, TakenBy
from grape.host.taking import Taker, Taking, Told

_MAX_TAKING: Final = 1_000
"""A sink may wait as long as it likes, and no other one for it: a thread for each write that waits."""


def taken_by(takers: Sequence[Taker]) -> list[TakenBy]:
    """What they take."""
    return [TakenBy(taker.event, taker.sink.name) for taker in takers]


class Takers:
    """
    Args:
        takers: in the order in which they were assembled.

    Raises:
        UsageError: a sink is not what was written before.
    """

    def __init__(self, takers: Sequence[Taker], assembled: Assembled, clock: Clock, told: Told) -> None:
        self._executor = ThreadPoolExecutor(_MAX_TAKING, thread_name_prefix="grape-take")
        self._takings: list[Taking] = []
        self._tasks: list[asyncio.Task[None]] = []
        app, engine = assembled.app, assembled.engine
        for taker, taken, take in zip(takers, taken_by(takers), assembled.takes, strict=True):
            taking = Taking(taker, take, self._executor, assembled.dead_outputs[taken.dead_event], clock, told)
            self._takings.append(taking)
            for number in take.logs:
                engine.on_arrival(app.log(taken.log, number), taking.wake)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(taking.run()) for taking in self._takings]

    def stop(self) -> None:
        """What is not committed is taken again by the next run."""
        for task in self._tasks:
            task.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def are_idle(self) -> bool:
        """Everything there is has been taken and committed."""
        return all(taking.take.is_idle for taking in self._takings)


def close_sinks(takers: Sequence[Taker]) -> None:
    for taker in takers:
        with contextlib.suppress(BaseException):
            taker.sink.close()
