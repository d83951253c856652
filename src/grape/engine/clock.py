"""Time as the engine sees it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    def now(self) -> int:
        """Microseconds of wall time that only ever go forward by what really passed."""

    def boot_offset(self) -> int:
        """What another process of this machine adds to CLOCK_BOOTTIME (microseconds) to get the same time."""


class SystemClock:
    """Wall time at the start, advanced by CLOCK_BOOTTIME: a clock that is set, or a suspended machine, neither fires
    timers in masses nor freezes them."""

    def __init__(
        self,
        wall: Callable[[], int] = time.time_ns,
        elapsed: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        self._elapsed = elapsed
        self._offset = wall() - elapsed()

    def now(self) -> int:
        return (self._offset + self._elapsed()) // 1000

    def boot_offset(self) -> int:
        return self._offset // 1000


class FakeClock:
    """A clock that stands until it is told to go on. Microseconds."""

    def __init__(self, now: int = 1_600_000_000_000_000) -> None:
        self._now = now

    def now(self) -> int:
        return self._now

    def boot_offset(self) -> int:
        return 0  # nobody else can have this time

    def advance(self, seconds: float) -> None:
        self._now += int(seconds * 1e6)

    def advance_to(self, now: int) -> None:
        self._now = max(self._now, now)
