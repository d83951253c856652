"""Which events of clients that have no key go to one partition.

Each in a partition of its own would be a batch, a commit and a work of its own, which takes more than most handlers do;
all in one would leave the other workers idle. So as many of those that come close together share a partition as its
worker does in a moment, by how long it has taken for such events so far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

_MOMENT: Final = 6_000
"""Microseconds that those that share a partition take their worker, if nothing keeps it."""
_LONGEST: Final = 20_000
"""The same as it is on average."""
_MOST: Final = 64
_TOGETHER: Final = 2_000
"""Microseconds within which they come."""
_NEWEST: Final = 0.125
"""What the newest figure counts for."""
_FORGOTTEN: Final = 1.02
"""By how much the least is taken to be more after every other figure."""


class _Pace(Struct):
    """Microseconds an event takes, at most: what passes until a result is there, as the share of each event in it. So
    the least of several is nearest to what a handler takes."""

    least: float
    mean: float


class Paces:
    """How long a pool's workers take for an event, by its name."""

    def __init__(self) -> None:
        self._paces: dict[str, _Pace] = {}

    def took(self, counts: Mapping[str, int], elapsed: int) -> None:
        """``counts``: of a result, "event>node" -> processed. ``elapsed``: microseconds since the worker had nothing
        else to do."""
        for slot, count in counts.items():
            if count > 0:
                event, new = slot.partition(">")[0], max(1.0, elapsed / count)
                pace = self._paces.get(event)
                if pace is None:
                    self._paces[event] = _Pace(new, new)
                else:
                    pace.least = min(new, pace.least * _FORGOTTEN)
                    pace.mean += _NEWEST * (new - pace.mean)

    def most(self, event: str) -> int:
        """How many of these a worker does in a moment; 1 at least, and while it is not known."""
        pace = self._paces.get(event)
        return 1 if pace is None else max(1, min(int(_MOMENT / pace.least), int(_LONGEST / pace.mean), _MOST))


class Grouping:
    """
    Args:
        spread: the next partition, for those that begin a group.
    """

    def __init__(self, spread: Callable[[], int]) -> None:
        self._spread = spread
        self._number = 0
        self._left = 0
        self._until = 0

    def next(self, most: int, now: int) -> int:
        """The partition of an event, of whose kind ``most`` may share one."""
        self._left = min(self._left, most) - 1
        if self._left < 0 or now >= self._until:
            self._number, self._left, self._until = self._spread(), most - 1, now + _TOGETHER
        return self._number
