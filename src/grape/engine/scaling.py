"""How many workers a pool should have, and when one that ended may be replaced: state machines without I/O.

Times are microseconds; ``now`` never goes back within a run.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

LONGEST_BACKOFF: Final = 32_000_000
_SECOND: Final = 1_000_000


class Load(Struct, frozen=True):
    """A pool at one moment.

    ``size``: workers that are there or on their way; ``starting``: those on their way. ``waiting``: partitions with
    something that no worker has, or that is due. ``oldest``: how long the oldest such event has waited.
    """

    size: int
    starting: int
    waiting: int
    oldest: int


class Scaler:
    """Grows with the age of what waits, by doubling; shrinks by idleness, one worker at a time.

    Args:
        least, most: bounds of the size. From 0 the first worker starts as soon as something waits.
        threshold: so old may the oldest waiting event become.
        idle: so long may a worker have nothing to do; 0: for ever.
    """

    def __init__(self, least: int, most: int, threshold: int, idle: int) -> None:
        self.least = least
        self.most = most
        self._threshold = threshold
        self._idle = idle
        self._grown = -threshold

    def grow(self, now: int, load: Load) -> int:
        """The size that the pool should have now; at least what it has."""
        if load.size < self.least:
            return self.least
        if not load.waiting or load.size >= self.most:
            return load.size
        if load.size == 0:
            self._grown = now
            return 1
        if load.starting or load.oldest <= self._threshold or now - self._grown < self._threshold:
            return load.size
        # More workers than partitions with work would idle.
        size = min(self.most, 2 * load.size, max(load.size, load.waiting))
        if size > load.size:
            self._grown = now
        return size

    def may_leave(self, now: int, size: int, idle_since: int | None) -> bool:
        """Whether a worker that is idle since then may end."""
        return size > self.least and self.leaves_at(idle_since) <= now

    def leaves_at(self, idle_since: int | None) -> float:
        """When such a worker may end."""
        return float("inf") if idle_since is None or not self._idle else idle_since + self._idle


class Backoff:
    """Waits longer before each replacement while workers end without having done anything: 0, 1, 2, 4 .. 32 s."""

    def __init__(self) -> None:
        self.crashes = 0
        """In a row: each of a worker that was started after the one before."""
        self.at = -1
        """When the last one was counted."""
        self.until = 0
        """No worker starts before."""
        self.reason = ""
        """Of the last crash."""

    def crashed(self, now: int, reason: str, born: int | None = None) -> int:
        """A worker that was started when ``born`` says has ended; returns how long to wait."""
        if born is not None and born < self.at:
            return max(0, self.until - now)
        self.at = now
        self.crashes += 1
        self.reason = reason
        wait = 0 if self.crashes == 1 else min(LONGEST_BACKOFF, _SECOND << min(self.crashes - 2, 20))
        self.until = now + wait
        return wait

    def recovered(self, born: int | None = None) -> None:
        """A worker has done something. One that was there before the last crash proves nothing."""
        if born is not None and born < self.at:
            return
        self.crashes = 0
        self.until = 0
        self.reason = ""

    @property
    def is_degraded(self) -> bool:
        return self.crashes > 1
