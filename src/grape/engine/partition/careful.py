"""After a worker has died: what is to be done carefully, who was named, and what no worker gets through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from grape.protocol.messages import Named

_DEATHS_BESIDE: Final = 2
"""Deaths of careful workers over one root beside those that a named event may cost."""


class Root(Struct, frozen=True):
    """An event that a worker is handed: ``index`` in the batch at ``position``, or the held one ``number``."""

    position: int = -1
    index: int = 0
    number: int = -1


class Careful:
    """Pure bookkeeping. Nobody knows at which event a worker died, so whatever it had is *suspected*: it is done again
    event by event, each announced. Who dies then has named one, which is handed in as failed next time.

    Attributes:
        named: by (id, node).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit + _DEATHS_BESIDE
        self.named: dict[tuple[str, str], Named] = {}
        self._batches: set[int] = set()
        self._held: set[int] = set()
        self._deaths: dict[Root, int] = {}

    def __bool__(self) -> bool:
        """Something is suspected."""
        return bool(self._batches or self._held)

    @property
    def is_needed(self) -> bool:
        """The next work has to be done carefully."""
        return bool(self.named or self)

    def suspect(self, batches: Iterable[int], held: Iterable[int]) -> None:
        self._batches.update(batches)
        self._held.update(held)

    def batch_is_over(self, position: int) -> None:
        self._batches.discard(position)

    def held_is_over(self, numbers: Iterable[int]) -> None:
        self._held.difference_update(numbers)

    def name(self, named: Named) -> None:
        """A worker died, or got stuck, over this event. One that has not been named yet is a step on, however many of
        its root have been: only deaths over what is named already tell of no way out."""
        if (named.id, named.node) not in self.named:
            self._deaths.clear()
        self.named[named.id, named.node] = named

    def handed_in(self, event_id: str, node: str) -> None:
        """It is no longer to be handed in as failed."""
        self.named.pop((event_id, node), None)

    def moved_on(self) -> None:
        """A worker got through a root."""
        self._deaths.clear()

    def work_is_over(self) -> None:
        if not self:
            self.named.clear()

    def died_over(self, root: Root) -> bool:
        """Whether so many careful workers have died over it, without it being handed in, that no worker seems to be
        able to."""
        self._deaths[root] = self._deaths.get(root, 0) + 1
        return self._deaths[root] >= self._limit

    def forget(self, root: Root) -> None:
        self._deaths.pop(root, None)

    def describe(self) -> str:
        return f"suspected batches {sorted(self._batches)[:20]}, held {sorted(self._held)[:20]}"
