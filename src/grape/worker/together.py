"""A work that is run and handed in as a whole: what one of its events reads is good for all of them, as all of them
had come before any is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from grape.model.batch import Run, keys_of
from grape.protocol.messages import BatchItem, Work


class Together:
    """
    Args:
        runs_of: the runs of a batch. nodes_of: which nodes here get the events of one.
    """

    def __init__(
        self, work: Work, runs_of: Callable[[BatchItem], Iterable[Run]], nodes_of: Callable[[Run], Sequence[str]]
    ) -> None:
        self._work = work
        self._runs_of = runs_of
        self._nodes_of = nodes_of

    def keys_of(self, node: str) -> list[str]:
        """Of all events that it gets by itself, in order."""
        return [
            key
            for item in self._work.batches
            for run in self._runs_of(item)
            if node in self._nodes_of(run)
            for key in keys_of(run) or ()
            if key is not None
        ]
