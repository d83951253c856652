"""Work that waits although nothing is in the way: it must never stay so, and never in silence. Pure; times are in
microseconds."""

from __future__ import annotations

from typing import Final

STANDSTILL: Final = 10_000_000


class Standstill:
    """Something that should move: since when it does not."""

    def __init__(self) -> None:
        self._since: int | None = None

    def moves(self) -> None:
        """It does, or has no reason to."""
        self._since = None

    def stands(self, now: int) -> bool:
        """It does not; returns whether that is too long. Then it begins anew."""
        if self._since is None:
            self._since = now
        if now - self._since < STANDSTILL:
            return False
        self._since = None
        return True
