"""One commit at a time for one partition of a transport, whatever its outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from grape.abc.transport import Commit, Outcome, Rows, Send, Table, Transport, Trim
from grape.errors import Corrupt
from grape.model.address import PartitionId


class Fenced(Corrupt):
    """Another engine owns the partition."""

    code = "fenced"


class Committer:
    """Owns a partition: claims it, numbers its commits, and settles the ones whose outcome is unknown.

    Args:
        what: names the partition in errors.

    Attributes:
        claimed_head: the head that was found.
    """

    def __init__(self, transport: Transport, partition: PartitionId, what: str) -> None:
        self._transport = transport
        self._partition = partition
        self._what = what
        self._commit: Commit | None = None
        self._then: Callable[[], None] | None = None
        self.reclaimed: Callable[[bool], None] = _ignore
        """Called when an outcome was unknown, with whether the commit counts: what has arrived in the log of the
        partition until now is not told any more."""
        self.claimed_head = self._claim()[1]

    def _claim(self) -> tuple[int, bytes]:
        claim = self._transport.claim(self._partition)
        self._term, self._number = claim.term, 0
        return claim.number, claim.head

    @property
    def is_busy(self) -> bool:
        """A commit is under way."""
        return self._commit is not None

    def submit(
        self,
        head: bytes,
        sends: Sequence[Send] = (),
        rows: Sequence[tuple[Table, Rows]] = (),
        trims: Sequence[Trim] = (),
        drops: Sequence[tuple[PartitionId, int]] = (),
        rows_size: int = -1,
        *,
        then: Callable[[], None],
    ) -> None:
        """Submit the next commit; only when none is under way. ``then`` is called when it is durable.

        Raises:
            TooLarge, ValueError: the transport refuses it; nothing has changed then.
        """
        commit = Commit(self._partition, self._term, self._number + 1, head, sends, rows, trims, drops, rows_size)
        self._transport.commit(commit)
        self._number += 1
        self._commit, self._then = commit, then

    def done(self, commit: Commit, outcome: Outcome) -> None:
        """The outcome of the commit under way. Unknown: read back whether it counts; if not, submit the same once more.

        Raises:
            Fenced: another engine owns the partition.
        """
        if commit is not self._commit or self._then is None:
            return
        if outcome == "fenced":
            raise Fenced(f"{self._what} was taken over by another engine")
        if outcome == "unknown":
            counts = self._claim() == (commit.number, commit.head)
            self.reclaimed(counts)
            if not counts:
                self._number = 1
                self._commit = msgspec.structs.replace(commit, term=self._term, number=1)
                self._transport.commit(self._commit)
                return
        then, self._commit, self._then = self._then, None, None
        then()


def _ignore(counts: bool) -> None:
    pass
