"""Taking: a taker reads the logs of an output, and its position is committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Final

from msgspec import Struct, structs

from grape.abc.transport import Rows, Table, Transport
from grape.engine.app import App
from grape.engine.clock import Clock
from grape.engine.committer import Committer
from grape.engine.inbox import Inbox
from grape.engine.letting import LetGo
from grape.engine.retention import Retention
from grape.model import batch as codec
from grape.model.cursor import Progress
from grape.model.stored import (
    KEPT,
    KEPT_BRIEFLY,
    SOURCE,
    TAKER,
    DeadLetter,
    Expiry,
    Reading,
    SourceHead,
    TakerHead,
    decode_expiry,
    decode_source,
    decode_taker,
    encode,
    row_key,
    timer_key,
)

UNREADABLE: Final = "=@unreadable"
"""How the names of logs of dead letters end."""
_FINAL = b"final:"
_ANSWER = b"answer:"
_EXPIRIES_AT_ONCE = 10_000
_KEEPING: Final = (KEPT, KEPT_BRIEFLY)
_BRIEF: Final = 60_000_000
_MOST_REPLIES: Final = 100_000


def _calls(batch: bytes) -> Iterator[tuple[str, bool]]:
    """(request id, final) of every reply in a batch."""
    for run in codec.runs_of(codec.body_of(batch, codec.header_of(batch))):
        for name, key in zip(codec.names_of(run), codec.keys_of(run) or [], strict=True):
            yield key or "", name == "final"


def _data(batch: bytes) -> list[bytes]:
    """The data of every reply in a batch."""
    return [
        bytes(raw)
        for run in codec.runs_of(codec.body_of(batch, codec.header_of(batch)))
        for raw in codec.raw_data_of(run) or []
    ]


def _answer(request: str) -> bytes:
    """How the rows of the replies that are kept for a call begin."""
    return _ANSWER + blake2b(request.encode(), digest_size=16).digest()


class TakenBatch(Struct, frozen=True):
    """A batch of partition ``number``. ``first``: events before it were taken by an earlier read."""

    number: int
    position: int
    batch: bytes
    events: int
    first: int = 0


class Taken(Struct, frozen=True):
    """What was read from an output, partition by partition. ``logs``: the partitions that were read on."""

    items: list[TakenBatch]
    logs: frozenset[int]

    @property
    def batches(self) -> list[bytes]:
        return [item.batch for item in self.items]

    @property
    def events(self) -> int:
        return sum(item.events - item.first for item in self.items)

    def split(self, done: int) -> tuple[list[TakenBatch], list[TakenBatch]]:
        """What belongs to its first ``done`` events, and the rest; an item that is cut is in both."""
        for i, item in enumerate(self.items):
            left = item.events - item.first
            if done < left:
                cut = structs.replace(item, first=item.first + done)
                return [*self.items[:i], *([item] if done else [])], [cut, *self.items[i + 1 :]]
            done -= left
        return self.items, []


class Take:
    """One taker of the output log ``log`` (all its partitions). Engine's thread only."""

    def __init__(self, app: App, name: str, log: str, transport: Transport, committer: Committer, clock: Clock) -> None:
        self.name = name
        self.id = app.log(TAKER + name, 0)
        self._app = app
        self._log = log
        self._transport = transport
        self._clock = clock
        self._committer = committer
        found = self._committer.claimed_head
        self.head = decode_taker(found) if found else TakerHead()
        self._readings = {number: self.head.logs.get(number) or Reading() for number in self.logs}
        self._inboxes = {number: Inbox(reading) for number, reading in self._readings.items()}
        self.peers: list[Take] = [self]
        """All takers of this output in this run: what all of them have is let go of."""
        self.retention: Retention | None = None
        """What is let go of whoever has not had it."""
        self.keeps = False
        """What was taken stays, for others, until the retention lets go of it."""
        self._durable: dict[int, tuple[int, set[int]]] = {
            number: (reading.cursor.position, set(reading.cursor.finished))
            for number, reading in self._readings.items()
        }
        """Up to where it has taken, and what above that."""
        self._let_go = {number: LetGo(transport, app.log(log, number)) for number in self.logs}
        self._untold = set(self.logs)
        """Partitions of which more may be let go of than the transport was told."""
        self._fresh = set(range(app.partitions))
        """Partitions that may have something to take."""
        self._rest: list[TakenBatch] = []
        """What was read and not taken."""
        self._settled: set[int] = set()
        """Partitions of which something was taken since the last commit, and how many events of all."""
        self._count = 0
        self.changed: Callable[[], None] = _nothing
        """Called when there may be something to take."""
        self.took: Callable[[int], None] = _ignore
        """Called when so many more events have been taken, durably."""

    @property
    def logs(self) -> list[int]:
        return list(range(self._app.partitions))

    def committed(self, partition: int) -> int:
        """Up to where it has taken a partition's log, durably."""
        return self._durable[partition][0]

    def let_go(self) -> None:
        """Of what the takers have, as their heads were found: an earlier run was perhaps not heard. All takers of the
        output have to be there."""
        numbers, self._untold = self._untold, set()
        for number in numbers:
            above = self._durable[number][1] if len(self.peers) == 1 and not self.keeps else ()
            floor = 0 if self.retention is None else self.retention.floor[number]
            taken = 0 if self.keeps else min((peer.committed(number) for peer in self.peers), default=0)
            self._let_go[number](max(floor, taken), above)

    def leave(self) -> None:
        """It takes nothing any more: what the others have may go."""
        if self in self.peers:
            self.peers.remove(self)

    def come_back(self) -> None:
        """After `leave`."""
        if self not in self.peers:
            self.peers.append(self)

    def arrived(self, partition: int) -> None:
        self._fresh.add(partition)
        self.changed()

    @property
    def is_busy(self) -> bool:
        """A commit is under way."""
        return self._committer.is_busy

    def when_free(self, act: Callable[[], None]) -> None:
        """As `Committer.when_free`."""
        self._committer.when_free(act)

    @property
    def is_idle(self) -> bool:
        """Everything there is has been taken and committed."""
        return not (self._fresh or self._rest or self._settled or self._committer.is_busy)

    def read(self, max_bytes: int, begin: int = 0) -> Taken | None:
        """What can be taken now, each batch once and those of one origin in order; None: nothing. What was read must be
        settled before the next read, or later, batch by batch, by `progress`. ``begin``: the partition to begin
        with."""
        if self._rest:
            rest, self._rest = self._rest, []
            return Taken(rest, frozenset(item.number for item in rest))
        items: list[TakenBatch] = []
        logs: set[int] = set()
        size = 0
        for number in sorted(self._fresh, key=lambda number: (number < begin, number)):
            inbox = self._inboxes[number]
            while size < max_bytes:
                found = self._transport.read(self._app.log(self._log, number), inbox.read_to, max_bytes - size)
                if not found and not inbox.unpark():
                    if number not in logs and not inbox.dropped:  # else it is fresh until that is committed
                        self._fresh.discard(number)
                    break
                for stored in found:
                    header = codec.header_of(stored.batch) if stored.known else codec.check(stored.batch)
                    if self._transport.features.exact_forwarding:
                        inbox.catch_up(header)  # there are no gaps but of what went to an earlier taker
                    batch = inbox.offer(stored.position, header, len(stored.batch))
                    inbox.passed(stored.position)
                    if (
                        batch is not None and not batch.in_work
                    ):  # what was parked is read again, with what lies behind it
                        batch.in_work = True
                        first = inbox.cursor.progress(batch.position).first
                        size += len(stored.batch)
                        items.append(TakenBatch(number, batch.position, stored.batch, header.events, first))
                        logs.add(number)
            if inbox.dropped:
                inbox.dropped.clear()
                logs.add(number)
        return Taken(items, frozenset(logs)) if logs else None

    def after_final(self, batches: list[bytes]) -> tuple[list[set[int]], list[tuple[Table, Rows]]]:
        """For batches of the reply home: which replies come after the final one of their call (per batch, indexes), and
        the rows that remember, for the reply-ttl, the finals among the others, and the replies that are to be kept."""
        calls = [list(_calls(batch)) for batch in batches]
        keys = list(dict.fromkeys(_FINAL + request.encode() for batch in calls for request, _ in batch))
        ended = {
            key
            for key, found in zip(keys, self._transport.get(self.id, "text", keys), strict=True)
            if found is not None
        }
        late: list[set[int]] = []
        texts: dict[bytes, bytes | None] = {}
        brief: set[bytes] = set()
        number = self.head.taken + self._count << 16
        for batch, packed in zip(calls, batches, strict=True):
            late.append(set())
            data = _data(packed) if any(request.startswith(_KEEPING) for request, _ in batch) else []
            for i, (request, final) in enumerate(batch):
                key = _FINAL + request.encode()
                if key in ended:
                    late[-1].add(i)
                    continue
                if final:
                    ended.add(key)
                    texts[key] = b""
                if request.startswith(_KEEPING):
                    place = _answer(request) + (number | len(texts)).to_bytes(8, "big")
                    texts[place] = (b"\1" if final else b"\0") + data[i]
                    if request.startswith(KEPT_BRIEFLY):
                        brief.add(place)
        self._app.stats.late_replies += sum(map(len, late))
        now = self._clock.now()
        due = now + int(self._app.limits.reply_ttl * 1e6)
        expiries: dict[bytes, bytes | None] = {}
        for i, key in enumerate(texts):
            expiries[timer_key(min(due, now + _BRIEF) if key in brief else due, number | i)] = encode(
                Expiry("text", key)
            )
        for place, value in self._transport.scan(self.id, "expiry", b"", _EXPIRIES_AT_ONCE, timer_key(now, 0)):
            expiries[place] = None
            texts.setdefault(decode_expiry(value).key, None)
        return late, [("text", list(texts.items())), ("expiry", list(expiries.items()))]

    def kept(self, request: str, coming: list[tuple[Table, Rows]]) -> list[tuple[bytes, bool]]:
        """The replies to a call that are kept, in order: (packed data, final). ``coming``: rows that are not durable
        yet."""
        begin = _answer(request)
        rows = dict(self._transport.scan(self.id, "text", begin, _MOST_REPLIES, begin + b"\xff" * 9))
        for table, more in coming:
            if table == "text":
                rows |= {key: value for key, value in more if value is not None and key.startswith(begin)}
        return [(value[1:], value[:1] == b"\1") for _, value in sorted(rows.items())]

    def progress_of(self, number: int, position: int) -> Progress:
        """How far a batch that was read has been taken."""
        return self._inboxes[number].cursor.progress(position)

    def progress(self, number: int, position: int, progress: Progress) -> None:
        """A batch that was read has been taken so far: to be committed."""
        self._count += self._inboxes[number].progress(position, progress)
        self._settled.add(number)

    def touched(self, number: int) -> None:
        """That a partition was read on is to be committed, with whatever comes next."""
        self._settled.add(number)

    def give_back(self, taken: Taken) -> None:
        """Nothing of it was taken: the next read gives it again."""
        self._rest = taken.items

    def commit(
        self,
        taken: Taken,
        length: int,
        tail: bytes,
        then: Callable[[], None],
        rows: list[tuple[Table, Rows]] | None = None,
        done: int | None = None,
    ) -> None:
        """``taken`` is where it belongs (of it the first ``done`` events, None: all): move on. ``then`` is called when
        that is durable."""
        self.settle(taken, done)
        self.submit(length, tail, then, rows)

    def settle(self, taken: Taken, done: int | None = None) -> None:
        """As `commit`, which is still to come: more may be read before."""
        count = taken.events if done is None else done
        items, self._rest = taken.split(count)
        for item in items:
            cut = self._rest[0] if self._rest and self._rest[0].position == item.position else None
            cut = cut if cut is not None and cut.number == item.number else None
            self._inboxes[item.number].progress(item.position, Progress(item.events if cut is None else cut.first))
        self._settled.update(taken.logs)
        self._count += count

    @property
    def is_settled(self) -> bool:
        """Something is to be committed."""
        return bool(self._settled)

    def submit(
        self, length: int, tail: bytes, then: Callable[[], None], rows: list[tuple[Table, Rows]] | None = None
    ) -> None:
        """Commit what has been settled."""
        settled, self._settled = self._settled, set()
        count, self._count = self._count, 0
        done = {number: self._inboxes[number].advance() for number in settled}
        logs = {number: reading for number, reading in self._readings.items() if reading.seen}
        head = TakerHead(logs, length, tail, self.head.taken + count, self._app.record.logs[self._log])

        def committed() -> None:
            self.head = head
            self._durable.update(done)
            self._untold |= settled
            self.let_go()
            self._app.stats.taken[self._log[1:]] += count
            self.took(count)
            then()

        self._committer.submit(encode(head), (), rows or (), then=committed)


class DeadOutputs:
    """Dead letters of what stands in an output and cannot be read. They lie in a log of their own, which is one of bad
    input to whoever looks at it. Engine's thread only."""

    def __init__(self, app: App, committer: Committer) -> None:
        self.log = committer.partition
        self._app = app
        self._committer = committer
        found = committer.claimed_head
        self._head = decode_source(found) if found else SourceHead()
        self._waiting: list[tuple[list[tuple[bytes, bytes]], Callable[[], None]]] = []

    def bury(self, letters: list[tuple[bytes, DeadLetter]], then: Callable[[], None]) -> None:
        """Keep them, each under its key: the same one again is the same letter. ``then`` is called when that is
        durable."""
        self._waiting.append(([(key, encode(letter)) for key, letter in letters], then))
        self.go_on()

    def go_on(self) -> None:
        """Commit what waits, if nothing is under way."""
        if self._committer.is_busy or not self._waiting:
            return
        rows, then = self._waiting.pop(0)
        self._head = structs.replace(self._head, next_dead=self._head.next_dead + len(rows))

        def committed() -> None:
            self._app.stats.dead += len(rows)
            then()
            self.go_on()

        self._committer.submit(encode(self._head), (), [("dead", [*rows])], then=committed)


def dead_log(event: str) -> str:
    """The log of an output's dead letters."""
    return f"{SOURCE}{event}{UNREADABLE}"


def dead_key(number: int, position: int, index: int) -> bytes:
    """The row of the letter of an event that stands there."""
    return row_key(number << 48 | (position & 0xFFFFFFFF) << 16 | min(index, 0xFFFF))


def _nothing() -> None:
    pass


def _ignore(_: int) -> None:
    pass
