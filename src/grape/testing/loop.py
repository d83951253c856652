"""An asyncio loop that lives on a fake clock: ``asyncio.sleep(5)`` takes no time, but moves the clock by five seconds.

It does nothing by itself. Whoever owns it runs it one round at a time, and moves the clock to its next timer.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final, TypeVarTuple, Unpack

from grape.engine.clock import FakeClock

Ts = TypeVarTuple("Ts")

_RESOLUTION: Final = 1e-9
"""Seconds; as asyncio's own."""
_MOST_ROUNDS: Final = 10_000


class FakeLoop(asyncio.SelectorEventLoop):
    """
    Args:
        clock: the time of ``call_later``, ``asyncio.sleep`` and timeouts.

    Attributes:
        has_work: something is ready to run; `run_round` runs it.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.has_work = False
        self._clock = clock
        self._begin = clock.now()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbered = 0
        self._error: BaseException | None = None
        self._readers: dict[int, Callable[..., object]] = {}
        super().__init__()
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return (self._clock.now() - self._begin) / 1e6

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        self.has_work = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        self._numbered += 1
        heapq.heappush(self._timers, (when, self._numbered, handle))
        return handle

    def add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        """``fd``: any number; `readable` says that something has come. (asyncio's own pipe has a real one.)"""
        if fd >= 0:
            super().add_reader(fd, callback, *args)
        else:
            self._readers[fd] = callback
            self.readable(fd)  # what came before waits for its reader

    def remove_reader(self, fd: Any) -> bool:
        return super().remove_reader(fd) if fd >= 0 else self._readers.pop(fd, None) is not None

    def readable(self, fd: int) -> None:
        """Something has come: who reads it is called with the next round, as if a selector had said so. Whether it is
        still there by then is not asked."""
        if fd in self._readers:
            self.call_soon(self._readers[fd])

    def next_due(self) -> int | None:
        """When the next timer is due, microseconds of the clock; None: there is none."""
        while self._timers:
            when, _, handle = self._timers[0]
            if not handle.cancelled() and when > self.time() + _RESOLUTION:
                return self._begin + math.ceil(when * 1e6)
            heapq.heappop(self._timers)
            # One that is due now runs with the next round; asyncio itself remembers it.
            self.has_work = self.has_work or not handle.cancelled()
        return None

    def run_round(self) -> None:
        """Run what is ready now; what that makes ready runs in the next round. Also from within another such loop, one
        of whose callbacks waits (as worker processes wait, which share nothing).

        Raises:
            BaseException: what a callback raised, or a task to which nobody listens.
        """
        self.has_work = False
        self._run_once_alone()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def fail(self, error: BaseException) -> None:
        """Let ``error`` come out of the next `run_round`, or of this one."""
        self._error = self._error or error

    def abandon(self) -> None:
        """Cancel everything and close."""
        for _ in range(_MOST_ROUNDS):  # one that ends lets another start; a handler may await in its ``finally``
            tasks = asyncio.all_tasks(self)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            self._run_once_alone()
        self.close()

    def _run_once_alone(self) -> None:
        """One round without waiting; a loop that runs further up in this thread does not count, nor its task (which is
        the loop's own until Python 3.13, and the thread's from 3.14 on)."""
        outer = asyncio._get_running_loop()
        task = None if outer is None else asyncio.current_task(outer)
        if outer is not None and task is not None:
            asyncio.tasks._leave_task(outer, task)
        asyncio._set_running_loop(None)
        try:
            self.stop()  # asyncio: stopped before it runs, a loop does one round
            self.run_forever()
        finally:
            asyncio._set_running_loop(outer)
            if outer is not None and task is not None:
                asyncio.tasks._enter_task(outer, task)

    def _note(self, _: object, context: dict[str, Any]) -> None:
        self.fail(context.get("exception") or RuntimeError(context.get("message")))
