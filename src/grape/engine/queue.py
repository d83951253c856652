"""An output as a queue: its events are lent to consumers, one by one, until somebody says that they are done with.

What is done with is committed, event by event, in the head of its taker; what is lent is not: after a restart it is
lent again. What was not done with in time comes again before what is newer.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from msgspec import Struct

from grape.engine.outlet import DeadOutputs, Take, dead_key
from grape.errors import GrapeError
from grape.model import batch as codec
from grape.model.cursor import Progress
from grape.model.stored import DeadLetter
from grape.protocol.queues import Delivery, QueueNumbers

_READ: Final = 256 << 10
_MOST_BYTES: Final = 32 << 20
"""Bytes of batches of which something is lent or waits to be; no more are read before some are done with."""
_FEW: Final = 1_000
_UNDELIVERED: Final = "undelivered"
_UNREADABLE: Final = "unreadable-output"

_NOTHING: Final = Progress()
UNREADABLE_BATCH: Final = (GrapeError, ValueError, IndexError, RecursionError)
"""What is raised for a batch of an output that cannot be read: it is perhaps of an older version."""

Place = tuple[int, int, int]
"""Partition, position of the batch, index of the event."""


class OutputBatch:
    """One of an output, event by event.

    Raises:
        GrapeError, ValueError: it cannot be read.
    """

    def __init__(self, number: int, position: int, batch: bytes, progress: Progress = _NOTHING) -> None:
        self.header = codec.header_of(batch)
        self.number = number
        self.position = position
        self.size = len(batch)
        self.progress = progress
        self.names: list[str] = []
        self.keys: list[str | None] = []
        self.data: list[bytes] = []
        self.ids: dict[int, str] = {}
        for run in codec.runs_of(codec.body_of(batch, self.header)):
            at = len(self.names)
            self.names += codec.names_of(run)
            self.keys += codec.keys_of(run) or [None] * run.count
            self.data += [bytes(raw) for raw in codec.raw_data_of(run) or [msgspec.Raw(b"\xc0")] * run.count]
            self.ids |= {at + i: own for i, own in (run.meta.ids or {}).items()}

    def left(self) -> Iterator[int]:
        """Events that are not done with."""
        return (i for i in range(self.header.events) if not self.progress.is_done(i))

    def delivery(self, i: int, attempt: int = 1) -> Delivery:
        """Its event number ``i``."""
        return Delivery(
            token=f"{self.number}.{self.position}.{i}",
            id=self.ids.get(i) or f"{self.header.id_prefix}{i}",
            event=self.names[i],
            key=self.keys[i],
            data=self.data[i],
            attempt=attempt,
            created=self.header.created / 1e6,
        )


class _Lent(Struct):
    """``order``: among all that were ever lent. ``until``: when it comes again; 0: it waits to be lent."""

    order: int
    attempts: int = 0
    until: int = 0


class Queue:
    """One consumer's. Engine's thread only; times are microseconds.

    Args:
        take: its position in the output. dead: keeps what nobody can do.
        most: an event that was lent so often and never done with becomes a dead letter; 0: never.
    """

    def __init__(self, take: Take, dead: DeadOutputs, most: int) -> None:
        self.take = take
        self._dead = dead
        self._most = most
        self._batches: dict[tuple[int, int], OutputBatch] = {}
        self._bytes = 0
        self._fresh: Iterator[Place] = iter(())
        self._lent: dict[Place, _Lent] = {}
        self._again: list[tuple[int, Place]] = []
        self._due: list[tuple[int, Place]] = []
        self._order = 0
        self._next = 0
        self._acked = 0
        self._redelivered = 0
        self._buried = 0

    def lend(self, count: int, size: int, for_us: int, now: int) -> list[Delivery]:
        """Up to ``count`` events, of about ``size`` bytes, each until it is done with or ``for_us`` have passed."""
        self._take_back(now)
        found: list[Delivery] = []
        while len(found) < count and size > 0:
            place = self._pick()
            if place is None:
                break
            lent = self._lent[place]
            lent.attempts += 1
            lent.until = now + for_us
            heapq.heappush(self._due, (lent.until, place))
            self._tidy()
            number, position, i = place
            delivery = self._batches[number, position].delivery(i, lent.attempts)
            size -= len(delivery.data)
            found.append(delivery)
        return found

    def look(self, count: int, size: int, now: int) -> list[Delivery]:
        """What would be lent: it stays, and nobody has tried it."""
        redelivered = self._redelivered
        found = self.lend(count, size, 0, now)
        self._redelivered = redelivered
        for place in filter(None, (_place_of(delivery.token) for delivery in found)):
            lent = self._lent[place]
            lent.attempts -= 1
            lent.until = 0
            heapq.heappush(self._again, (lent.order, place))
        return found

    def _pick(self) -> Place | None:
        while self._again:
            _, waiting = heapq.heappop(self._again)
            if waiting in self._lent:
                self._redelivered += 1
                return waiting
        place = next(self._fresh, None)
        while place is None and self._bytes < _MOST_BYTES and self._read():
            place = next(self._fresh, None)
        if place is not None:
            self._order += 1
            self._lent[place] = _Lent(self._order)
        return place

    def _read(self) -> bool:
        """False: there is nothing more. What was read may all be unreadable, or done with."""
        taken = self.take.read(_READ, self._next)
        if taken is None:
            return False
        self._next = max(taken.logs) + 1
        places: list[Place] = []
        for item in taken.items:
            progress = self.take.progress_of(item.number, item.position)
            try:
                batch = OutputBatch(item.number, item.position, item.batch, progress)
            except UNREADABLE_BATCH as e:
                self._bury_batch(item.number, item.position, item.batch, str(e))
                continue
            self._batches[item.number, item.position] = batch
            self._bytes += batch.size
            places += [(item.number, item.position, i) for i in batch.left()]
        for number in taken.logs:
            self.take.touched(number)
        self._fresh = iter(places)
        return True

    # ------------------------------------------------------------------ what becomes of it

    def done(self, tokens: list[str]) -> int:
        """Somebody is done with these; how many of them were lent. What was never lent, or is done with already, is
        left as it is. To be committed."""
        found = 0
        for place in filter(None, map(_place_of, tokens)):
            if self._lent.pop(place, None) is not None:
                found += 1
                self._finish(place)
        self._acked += found
        return found

    def give_back(self, tokens: list[str]) -> int:
        """Somebody does not do these: they come again at once."""
        found = 0
        for place in filter(None, map(_place_of, tokens)):
            lent = self._lent.get(place)
            if lent is not None and lent.until:
                found += 1
                self._come_again(place, lent)
        return found

    def _finish(self, place: Place) -> None:
        number, position, i = place
        batch = self._batches[number, position]
        batch.progress = batch.progress.with_done(i)
        self.take.progress(number, position, batch.progress)
        if batch.progress.first >= batch.header.events:
            del self._batches[number, position]
            self._bytes -= batch.size

    def _tidy(self) -> None:
        """What is done with is not kept in mind until it would have come again."""
        if len(self._due) > _FEW + 2 * len(self._lent):
            self._due = [(lent.until, place) for place, lent in self._lent.items() if lent.until]
            heapq.heapify(self._due)

    def _take_back(self, now: int) -> None:
        while self._due and self._due[0][0] <= now:
            until, place = heapq.heappop(self._due)
            lent = self._lent.get(place)
            if lent is not None and lent.until == until:
                self._come_again(place, lent)

    def _come_again(self, place: Place, lent: _Lent) -> None:
        lent.until = 0
        if self._most and lent.attempts >= self._most:
            self._bury(place, lent)
        else:
            heapq.heappush(self._again, (lent.order, place))

    def _bury(self, place: Place, lent: _Lent) -> None:
        number, position, i = place
        batch = self._batches[number, position]
        text = (
            f"it was lent {lent.attempts} times to consumer {self.take.name.partition('/')[2]!r}, and never done with"
        )
        name = batch.names[i]
        body = codec.one(name, batch.keys[i], batch.data[i])
        self._keep(place, name, batch.keys[i], batch.header.created, body, _UNDELIVERED, text)
        del self._lent[place]
        self._buried += 1
        self._finish(place)

    def _bury_batch(self, number: int, position: int, batch: bytes, text: str) -> None:
        header = codec.header_of(batch)
        body = codec.one("", None, b"\xc0")
        many = f"{text[:500]} (all {header.events:,} events of a batch)"
        self._keep((number, position, 0), "", None, header.created, body, _UNREADABLE, many)
        self.take.progress(number, position, Progress(header.events))

    def _keep(self, place: Place, name: str, key: str | None, created: int, body: bytes, kind: str, text: str) -> None:
        number, position, i = place
        origin = f"queue {self.take.name.removeprefix(NAME)}, partition {number}, position {position}"
        letter = DeadLetter("", name, "", key, created, body, 0, created, kind, text, origin=origin)
        self._dead.bury([(dead_key(number, position, i), letter)], _nothing)

    def clear(self) -> int:
        """Some of what is there is done with, in whatever state; how many events: 0 when nothing is left."""
        for place in self._fresh:
            self._lent[place] = _Lent(0)
        while not self._lent and self._read():
            for place in self._fresh:
                self._lent[place] = _Lent(0)
        places = list(self._lent)
        for place in places:
            del self._lent[place]
            self._finish(place)
        self._again.clear()
        self._due.clear()
        return len(places)

    def due(self) -> int | None:
        """When something comes again."""
        return self._due[0][0] if self._due else None

    def numbers(self) -> QueueNumbers:
        lent = sum(1 for each in self._lent.values() if each.until)
        return QueueNumbers(
            consumer=self.take.name.partition("/")[2],
            lent=lent,
            again=len(self._lent) - lent,
            acked=self._acked,
            redelivered=self._redelivered,
            dead=self._buried,
        )

    def commit(self, then: Callable[[], None]) -> None:
        """What is done with becomes durable; ``then`` is called when it is. No commit may be under way."""
        self.take.submit(0, b"", then)

    @property
    def is_forgotten(self) -> bool:
        """Nobody wants it any more; whoever asks for it brings it back."""
        return self.take.head.tail == _FORGOTTEN

    def forget(self, then: Callable[[], None]) -> None:
        """Nothing is kept for it any more. As `commit`."""
        self.take.submit(0, _FORGOTTEN, then)
        self.take.leave()


NAME: Final = "queue="
"""What the names of its takers begin with; then come the output, "/", and the consumer."""
_FORGOTTEN: Final = b"forgotten"


def _place_of(token: str) -> Place | None:
    parts = token.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) < 16 for part in parts):
        return None
    number, position, index = map(int, parts)
    return number, position, index


def _nothing() -> None:
    pass
