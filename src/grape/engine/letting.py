"""What nobody needs any more of a log is let go of: the transport is told, once a head that says so is durable."""

from __future__ import annotations

from collections.abc import Collection

from grape.abc.transport import Transport
from grape.model.address import PartitionId


class LetGo:
    """Of one log, by one reader. Says nothing twice: what a transport loses of it is said by the next start, or is
    covered by what is let go of later."""

    def __init__(self, transport: Transport, log: PartitionId) -> None:
        self._transport = transport
        self._log = log
        self._position = 0
        self._above: Collection[int] = frozenset()

    def __call__(self, position: int, above: Collection[int] = ()) -> None:
        """Everything below ``position``, and these batches above it."""
        drops = [at for at in above if at not in self._above] if above else ()
        self._above = above
        if drops or position > self._position:
            self._position = max(position, self._position)
            self._transport.trim(self._log, self._position, drops)
