"""What leaves an engine: readers of outputs get batches, and say when they are where they belong. Then that is
committed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from grape.abc.transport import Rows, Table
from grape.engine.clock import Clock
from grape.engine.outlet import DeadOutputs, Take, Taken, dead_key
from grape.errors import ProtocolError
from grape.host.attaching import TakenBy
from grape.host.once import Once, Schedule
from grape.model import batch as codec
from grape.model.stored import DeadLetter
from grape.protocol.door import Batch, Batches, FromEngine, Replies, Took, Unread

_TAKE_BYTES: Final = 4 << 20
_LAZY: Final = 0.02
"""Seconds after which the position of what writes nowhere is committed, together with what came meanwhile."""
_UNREADABLE: Final = "unreadable-output"
_LONGEST: Final = (1 << 63) - 1


class Around(NamedTuple):
    """What a reader has around it. ``say``: to its client. ``notice``: a line for people. ``idle``: everything there is
    has been taken. ``has_begun``: whether the engine has: what is taken earlier could not be committed if it ends then.
    ``soon``, ``later``: run a function when what is being done is done, or in so many seconds."""

    say: Callable[[FromEngine], None]
    notice: Callable[[str], None]
    idle: Callable[[], None]
    has_begun: Callable[[], bool]
    soon: Schedule
    later: Callable[[float, Callable[[], None]], object]
    clock: Clock


class Reader:
    """One reader of one client.

    Args:
        number: by which the client knows it. ``dead``: keeps what it cannot read.

    Attributes:
        wake: something came into the output, or what was given is durable. What comes together is given together.
    """

    def __init__(self, number: int, taken_by: TakenBy, take: Take, dead: DeadOutputs, around: Around) -> None:
        self.take = take
        self.taken_by = taken_by
        self.wake = Once(around.soon, self._give)
        self._around = around
        self._number = number
        self._dead = dead
        self._commit_soon = Once(partial(around.later, _LAZY), self.flush)
        self._wake_when_free = Once(take.when_free, self.wake)
        self._given: tuple[Taken, list[tuple[Table, Rows]]] | None = None
        self._batches = 0
        self._has_sink = False
        self._has_told = False
        self._is_started = False
        self._is_cut = False

    def start(self, length: int, tail: bytes) -> None:
        """Its sink is as it says, which has to stand before anything is written.

        Raises:
            ProtocolError: it has said so before, or that cannot be.
        """
        if self._has_sink:
            raise ProtocolError(f"reader {self.take.name!r:.300}: it was started before")
        self._check_length(length)
        self._has_sink = True
        self.take.changed = self.wake
        self.take.when_free(lambda: self._start(length, tail))  # the reader before it may have left something under way

    def _start(self, length: int, tail: bytes) -> None:
        if self._is_cut:
            return
        head = self.take.head
        if (length, tail) == (head.length, head.tail):
            self._started()
        else:
            self.take.commit(Taken([], frozenset()), length, tail, self._started)

    def _started(self) -> None:
        self._is_started = True
        self.wake()

    def _check_length(self, length: int) -> None:
        if not 0 <= length <= _LONGEST:
            raise ProtocolError(f"reader {self.take.name!r:.300}: it writes to what has a length of {length}")

    def cut(self) -> None:
        """Its client is gone: what it has not said of is given to whoever comes next."""
        self._is_cut = True
        self.take.changed = _nothing
        if self._given is not None:
            self.take.give_back(self._given[0])
            self._given = None

    @property
    def _writes_nowhere(self) -> bool:
        head = self.take.head
        return not (head.length or head.tail or self.taken_by.event is None)

    @property
    def is_idle(self) -> bool:
        """Everything there is has been taken and committed."""
        return self._given is None and self.take.is_idle

    def _give(self) -> None:
        if not self._is_started or self._is_cut or self._given is not None or not self._around.has_begun():
            return
        if self.take.is_busy and not self._writes_nowhere:
            self._wake_when_free()
            return
        taken = self.take.read(_TAKE_BYTES)
        if taken is None:
            self._around.idle()
            return
        late: list[set[int]] = [set()] * len(taken.items)
        rows: list[tuple[Table, Rows]] = []
        if self.taken_by.event is None:
            late, rows = self.take.after_final(taken.batches)
        self._batches += 1
        self._has_told = False
        self._given = taken, rows
        if not taken.items:  # nothing but what had been dropped
            self._commit(taken, self.take.head.length, self.take.head.tail, taken.events)
            return
        self._around.say(
            Batches(
                self._number,
                self._batches,
                [
                    Batch(item.number, item.position, memoryview(item.batch), item.events, item.first, sorted(skip))
                    for item, skip in zip(taken.items, late, strict=True)
                ],
            )
        )

    def took(self, message: Took) -> None:
        """
        Raises:
            ProtocolError: that was not given.
        """
        if self._given is None or self._has_told or message.number != self._batches:
            raise ProtocolError(f"reader {self.take.name!r:.300}: it took {message.number}, which it was not given")
        taken = self._given[0]
        if not 0 <= message.done <= taken.events or not all(_is_in(one, taken) for one in message.unread):
            raise ProtocolError(f"reader {self.take.name!r:.300}: it took more than it was given")
        self._check_length(message.length)
        self._has_told = True
        if not message.unread:
            self._commit(taken, message.length, message.tail, message.done)
            return
        now = self._around.clock.now()
        letters = [
            (dead_key(taken.items[one.item].number, taken.items[one.item].position, one.at), self._letter(one, now))
            for one in message.unread
        ]
        self._dead.bury(letters, lambda: self._commit(taken, message.length, message.tail, message.done))
        events = sum(one.events for one in message.unread)
        what = self.taken_by.event or "replies"
        self._around.notice(
            f"output {what!r}: {events:,} events cannot be read and are dead letters: {message.unread[0].text}"
        )

    def _letter(self, one: Unread, now: int) -> DeadLetter:
        assert self._given is not None
        item = self._given[0].items[one.item]
        header = codec.header_of(item.batch)
        what = self.taken_by.event or "replies"
        name = one.name or self.taken_by.dead_event
        many = f" (all {one.events:,} events from here on)" if one.events > 1 else ""
        origin = f"output {what}, partition {item.number}, event {header.id_prefix}{one.at}"
        body = codec.one(name, None, one.raw)
        return DeadLetter(
            "", name, "", one.key, header.created, body, 0, now, _UNREADABLE, f"{one.text}{many}", origin=origin
        )

    def _commit(self, taken: Taken, length: int, tail: bytes, done: int) -> None:
        if self._given is None:  # it was cut while dead letters were written
            return
        rows = self._given[1] if done == taken.events else None
        if (length or tail or rows) and self.take.is_busy:  # of what was taken while it wrote nowhere
            self.take.when_free(lambda: self._commit(taken, length, tail, done))
            return
        self._given = None
        if length or tail or rows:
            self.take.commit(taken, length, tail, self.wake, rows, done)
            return
        # It writes nowhere: how far it is may be committed with what comes next, and that need not wait for it.
        self.take.settle(taken, done)
        self._commit_soon()
        self.wake()

    def flush(self) -> None:
        """Commit what is not."""
        if self.take.is_settled and not self.take.is_busy:
            self.take.submit(0, b"", self._flushed)

    def _flushed(self) -> None:
        self.flush()
        self._around.idle()


def _is_in(one: Unread, taken: Taken) -> bool:
    if not 0 <= one.item < len(taken.items):
        return False
    events = taken.items[one.item].events
    return 0 <= one.at < events and 1 <= one.events <= events


class ReplyFan:
    """Hands replies to all who wait for some. Of calls whose id says so they are kept for whoever asks; all others
    are dropped if nobody is there.

    Attributes:
        listeners: who gets them. wake: replies have come.
    """

    def __init__(self, soon: Schedule, later: Callable[[float, Callable[[], None]], object]) -> None:
        self.wake = Once(soon, self._give)
        self._commit_soon = Once(partial(later, _LAZY), self.flush)
        self._later = later
        self._rows: list[tuple[Table, Rows]] = []
        self._submitted: list[tuple[Table, Rows]] = []
        self._is_patient = False
        self.listeners: list[Callable[[FromEngine], None]] = []
        self.take: Take | None = None

    def begin(self, take: Take, patience: float = 0.0) -> None:
        """``patience``: so many seconds nothing is handed out while nobody is there, who may be about to come back."""
        self.take = take
        take.changed = self.wake
        self._is_patient = patience > 0
        if patience:
            self._later(patience, self._wait_no_longer)
        self.wake()

    def _wait_no_longer(self) -> None:
        self._is_patient = False
        self.wake()

    def kept(self, request: str, then: Callable[[list[tuple[bytes, bool]]], None]) -> None:
        """``then`` gets all replies to a call that were handed out, if they are kept."""
        then([] if self.take is None else self.take.kept(request, [*self._submitted, *self._rows]))

    @property
    def is_idle(self) -> bool:
        return self.take is None or self.take.is_idle

    def _give(self) -> None:
        take = self.take
        if self._is_patient and not self.listeners:
            return
        taken = None if take is None else take.read(_TAKE_BYTES)
        if take is None or taken is None:
            return
        _, rows = take.after_final(taken.batches)
        if taken.items:
            for say in self.listeners:
                say(Replies(taken.batches))
        take.settle(taken)
        self._rows += rows
        self._commit_soon()
        self.wake()

    def flush(self) -> None:
        """Commit what is not."""
        take = self.take
        if take is not None and take.is_settled and not take.is_busy:
            self._submitted, self._rows = self._rows, []
            take.submit(0, b"", self._flushed, self._submitted)

    def _flushed(self) -> None:
        self._submitted = []
        self.flush()


def _nothing() -> None:
    pass
