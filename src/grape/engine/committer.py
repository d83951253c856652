"""One commit at a time for one partition of a transport, whatever its outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from grape.abc.transport import Claim, Commit, ObjectWrites, Outcome, Rows, Send, Table, Transport
from grape.errors import Corrupt
from grape.model.address import PartitionId


class Fenced(Corrupt):
    """Another engine owns the partition."""

    code = "fenced"


class Committer:
    """Owns a partition: numbers its commits, and settles the ones whose outcome is unknown.

    Args:
        what: names the partition in errors.
        claim: what was found when it was claimed.

    Attributes:
        claimed_head: the head that was found.
    """

    def __init__(self, transport: Transport, partition: PartitionId, what: str, claim: Claim) -> None:
        self.partition = partition
        self.claimed_head = claim.head
        self._head = claim.head
        self._transport = transport
        self._what = what
        self._term, self._number = claim.term, 0
        self._commit: Commit | None = None
        self._then: Callable[[], None] | None = None
        self._settles = False
        self._waiting: list[Callable[[], None]] = []
        self.reclaimed: Callable[[Claim], None] = _ignore
        """Called when an outcome was unknown and the partition was claimed again: what its log had until then is not
        told any more."""

    @property
    def is_busy(self) -> bool:
        """A commit is under way."""
        return self._commit is not None

    @property
    def head(self) -> bytes:
        """As it was committed last."""
        return self._head

    @property
    def term(self) -> int:
        """Of the claim: no two have the same."""
        return self._term

    def when_free(self, act: Callable[[], None]) -> None:
        """Act now, or when no commit is under way any more, after whoever has come before."""
        self._waiting.append(act)
        self._let_act()

    def _let_act(self) -> None:
        while self._waiting and not self.is_busy:
            self._waiting.pop(0)()

    def submit(
        self,
        head: bytes,
        sends: Sequence[Send] = (),
        rows: Sequence[tuple[Table, Rows]] = (),
        rows_size: int = -1,
        *,
        objects: ObjectWrites | None = None,
        then: Callable[[], None],
    ) -> None:
        """Submit the next commit; only when none is under way. ``then`` is called when it is durable.

        Raises:
            TooLarge, ValueError: the transport refuses it; nothing has changed then.
        """
        commit = Commit(self.partition, self._term, self._number + 1, head, sends, rows, rows_size, objects)
        self._transport.commit(commit)
        self._number += 1
        self._commit, self._then = commit, then

    def confirm(self, then: Callable[[], None]) -> None:
        """Submit a commit that changes nothing: its outcome tells whether the partition is still owned here."""
        self.submit(self._head, then=then)

    def done(self, commit: Commit, outcome: Outcome) -> None:
        """The outcome of the commit under way. Unknown: claim again, which tells whether it counts.

        Raises:
            Fenced: another engine owns the partition.
        """
        if commit is not self._commit:
            return
        if outcome == "fenced":
            raise self._fenced()
        if outcome == "committed":
            self._finish()
        elif not self._settles:
            self._settles = True
            self._transport.claim([self.partition])

    def claimed(self, claim: Claim) -> None:
        """The partition was claimed again. If the commit under way does not count, the same is submitted once more.

        Raises:
            Fenced: another engine has owned the partition meanwhile.
        """
        commit = self._commit
        if not self._settles or commit is None:
            return
        self._settles = False
        if claim.term != self._term + 1:  # what is known here of the partition is no longer so
            raise self._fenced()
        self._term, self._number = claim.term, 0
        self.reclaimed(claim)
        if (claim.number, claim.head) == (commit.number, commit.head):
            self._finish()
            return
        self._number = 1
        self._commit = msgspec.structs.replace(commit, term=self._term, number=1)
        self._transport.commit(self._commit)

    def _finish(self) -> None:
        if self._commit is not None:
            self._head = self._commit.head
        then, self._commit, self._then = self._then, None, None
        if then is not None:
            then()
        self._let_act()

    def _fenced(self) -> Fenced:
        return Fenced(f"{self._what} was taken over by another engine")


def _ignore(claim: Claim) -> None:
    pass
