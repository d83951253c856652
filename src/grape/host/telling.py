"""What people are told while a run goes on."""

from __future__ import annotations

import os
import sys

from grape.engine.clock import Clock
from grape.engine.first import Failed, FirstFailures
from grape.processes.hints import hint_for
from grape.processes.output import Line
from grape.processes.workers import Printed


class Teller:
    """
    Args:
        printed: gets every line.
    """

    def __init__(self, printed: Printed, clock: Clock) -> None:
        self._printed = printed
        self._clock = clock
        self._failures = FirstFailures()

    def notice(self, text: str) -> None:
        """A line of the engine's."""
        self._printed("engine", Line("stderr", "", text))

    def failed(self, worker: str, failed: Failed) -> None:
        """An event has failed: the first of its kind is shown."""
        lines = self._failures.tell(failed, self._clock.now())
        if len(lines) > 1:
            hint = hint_for(failed.trace, os.environ, sys.path)
            lines += [hint] if hint else []
        event = failed.id if len(lines) > 1 else ""  # else it is about many
        for line in lines:
            self._printed(worker, Line("error", failed.node, line, event))

    def finish(self) -> None:
        """How many more there were of each kind."""
        for line in self._failures.rest():
            self.notice(line)
