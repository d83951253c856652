"""What becomes due by itself, and when: a heap, so that nobody has to walk over all that could. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T", bound=Hashable)

_EVER: Final = -1
_SLACK: Final = 16


class Dues(Generic[T]):
    """
    Args:
        when: when something is due next after a time; None: not before it is touched again. Times are microseconds
            of wall time.
    """

    def __init__(self, when: Callable[[T, int], int | None]) -> None:
        self._when = when
        self._touched: dict[T, int] = {}
        self._at: dict[T, int] = {}
        self._heap: list[tuple[int, int, T]] = []
        self._pushed = 0

    def touch(self, item: T) -> None:
        """It may be due at another time than before."""
        self._touched[item] = _EVER

    def forget(self, item: T) -> None:
        """Nothing of it is due any more."""
        self._touched.pop(item, None)
        self._at.pop(item, None)

    def take(self, now: int) -> list[T]:
        """What is due. If it is not touched while that is done, only what comes later counts."""
        self._look()
        found: list[T] = []
        while self._heap and self._heap[0][0] <= now:
            at, _, item = heapq.heappop(self._heap)
            if self._at.get(item) == at:
                del self._at[item]
                self._touched[item] = now
                found.append(item)
        return found

    def next(self) -> int | None:
        """When `take` will find something."""
        self._look()
        while self._heap and self._at.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _look(self) -> None:
        touched, self._touched = self._touched, {}
        for item, after in touched.items():
            at = self._when(item, after)
            if at is None:
                self._at.pop(item, None)
            elif self._at.get(item) != at:
                self._at[item] = at
                self._pushed += 1
                heapq.heappush(self._heap, (at, self._pushed, item))
        if len(self._heap) > 2 * len(self._at) + _SLACK:  # what counts no more is not left lying
            self._heap = [entry for entry in self._heap if self._at.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
