"""How much of the reserve may be used. Pure; sizes are in bytes."""

from __future__ import annotations


class RoomWatch:
    """The reserve is what intake leaves of disk and map, so that work can go on when they are full. Half of it is for
    what is emitted; whoever eats into the rest is stopped. A start that finds less than that goes on as long as it does
    not eat on: mended code has to be able to work off what the broken one left.

    Args:
        reserve: 0: nothing is watched.
    """

    def __init__(self, reserve: int) -> None:
        self.reserve = reserve
        self._half = reserve // 2
        self._floor: int | None = None

    def is_full(self, room: int) -> bool:
        """Only the reserve is left: nothing may come in."""
        return room <= self.reserve

    def is_eaten(self, room: int) -> bool:
        """It has to stop."""
        if room >= self._half:
            self._floor = self._half
        elif self._floor is None:
            self._floor = room - room // 4
        return room < self._floor
