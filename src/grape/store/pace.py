"""Who writes: the engine's thread itself, or the store's."""

from __future__ import annotations

from typing import Final

LIGHT_BYTES: Final = 64 << 10
"""A larger write takes long whatever the disk does."""
_QUICK: Final = 0.004
_BUSY: Final = 0.6
_FORGETS: Final = 0.9
_WEIGHT: Final = 0.1


class Pace:
    """Whether writes are light: so quick, and so rare, that whoever wants one may as well wait for it. That saves two
    changes of threads each, and costs that nothing else is done meanwhile. Pure.

    A write is believed to take as long as the longest of late, and the first ones are not trusted.
    """

    def __init__(self) -> None:
        self._longest = 2 * _QUICK
        self._share = 0.0
        self._ended = 0.0

    def wrote(self, began: float, ended: float) -> None:
        """A transaction took from ``began`` to ``ended`` (seconds of a clock that goes on evenly)."""
        took = ended - began
        self._longest = max(took, self._longest * _FORGETS)
        since = max(ended - self._ended, took, 1e-9)
        self._share += (took / since - self._share) * _WEIGHT
        self._ended = ended

    @property
    def is_light(self) -> bool:
        return self._longest <= _QUICK and self._share <= _BUSY
