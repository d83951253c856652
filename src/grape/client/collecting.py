"""Garbage while a run is all that a process does."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_THRESHOLD: Final = 20_000


@contextmanager
def rarely_collected() -> Iterator[None]:
    """What a source makes is no garbage cycle: look for those less often than every few hundred objects. A program that
    has chosen a threshold of its own above that, or none, keeps it."""
    before = gc.get_threshold()
    if 0 < before[0] < _THRESHOLD:
        gc.set_threshold(_THRESHOLD, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
