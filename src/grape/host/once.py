"""What is to be done soon, however often somebody asks for it until then."""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[[Callable[[], None]], object]
"""Runs a function, not now."""


class Once:
    """Call it to have ``function`` run as ``schedule`` does, once for all calls before that."""

    def __init__(self, schedule: Schedule, function: Callable[[], None]) -> None:
        self._schedule = schedule
        self._function = function
        self._is_due = False

    def __call__(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._schedule(self._run)

    def _run(self) -> None:
        self._is_due = False
        self._function()
