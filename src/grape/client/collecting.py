"""Garbage while a run is all that a process does."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_THRESHOLD: Final = 20_000

_lock = threading.Lock()
_runs = 0
_before = gc.get_threshold()


@contextmanager
def rarely_collected() -> Iterator[None]:
    """What a source makes is no garbage cycle: look for those less often than every few hundred objects. A program that
    has chosen a threshold of its own above that, or none, keeps it; so does one that chooses another meanwhile."""
    global _runs, _before
    with _lock:
        _runs += 1
        if _runs == 1:
            _before = gc.get_threshold()
            if 0 < _before[0] < _THRESHOLD:
                gc.set_threshold(_THRESHOLD, *_before[1:])
    try:
        yield
    finally:
        with _lock:
            _runs -= 1
            if not _runs and gc.get_threshold() == (_THRESHOLD, *_before[1:]):
                gc.set_threshold(*_before)
