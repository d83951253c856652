"""What is stored of a partition, and the draft of what will be: the one place through which its parts change it.

Whenever no commit is under way and the draft holds something, it becomes the next commit. So there is one commit at a
time, and what comes in meanwhile is grouped by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, TypeVar

import msgspec

from grape.abc.transport import Claim, ObjectWrites, Rows, Send, Table, Transport
from grape.engine.app import App
from grape.engine.clock import Clock
from grape.engine.committer import Committer
from grape.engine.inbox import Inbox
from grape.engine.letting import LetGo
from grape.errors import Corrupt
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.batch import Context
from grape.model.foreign import ReplyName, caller_of, replies_to
from grape.model.objects import ObjectWrite, waiting
from grape.model.stored import ERROR, OUTPUT, REPLIES, DeadLetter, Head, decode_head, encode, row_key
from grape.model.tracing import SPAN, SPANS_LOG, Span

T = TypeVar("T")

_PAGE: Final = 1_000
"""Rows that are read at once."""


class Draft:
    """What the next commit will hold. ``timers``: new ones, as (due, key of the row). ``size``: at least how many bytes
    it is, the head not counted. ``waits_until``: it is committed then if nothing else has it committed before; None:
    it waits for nothing."""

    def __init__(self) -> None:
        self.sends: list[Send] = []
        self.rows: dict[Table, dict[bytes, bytes | None]] = {}
        self.timers: list[tuple[int, bytes]] = []
        self.objects: dict[bytes, ObjectWrite] = {}
        self.then: list[Callable[[], None]] = []
        self.changed = False
        self.waits_until: int | None = None
        self.rows_size = 0
        self.sends_size = 0

    def put(self, table: Table, key: bytes, value: bytes | None) -> None:
        self.rows.setdefault(table, {})[key] = value
        self.rows_size += len(key) + len(value or b"")
        self.changed = True

    def put_object(self, write: ObjectWrite) -> None:
        """The last one of a key counts: those before it in the same commit nobody would ever see."""
        place = write.place
        before = self.objects.pop(place, None)
        self.objects[place] = write
        self.rows_size += write.weight - (0 if before is None else before.weight)
        self.changed = True

    @property
    def size(self) -> int:
        return self.rows_size + self.sends_size


class Ledger:
    """``head`` and ``inbox`` are what its claim found, and what the next commit stores.

    Attributes:
        tail: of its log, when it was claimed.
        reclaimed: called when it was claimed again, as the outcome of a commit was unknown.
        committed: called with what a commit stored, before those who waited for it.
    """

    def __init__(self, app: App, pool: str, number: int, transport: Transport, clock: Clock, claim: Claim) -> None:
        self.app = app
        self.pool = pool
        self.number = number
        self.name = f"{pool}/{number}"
        self.id = app.log(pool, number)
        self.transport = transport
        self.clock = clock
        self.draft = Draft()
        self.committing: Draft | None = None
        self.is_lost = False
        """Another engine has the partition: nothing is committed any more."""
        self.error: Corrupt | None = None
        """Why it is doubted that it has not."""
        self.most = transport.features.largest_commit * 7 // 8
        """Bytes of a draft; the rest is for the head."""
        self.tail = claim.tail
        self.reclaimed: Callable[[], None] = _nothing
        self.committed: Callable[[Draft], None] = _ignore
        self._committer = Committer(transport, self.id, f"partition {self.name}", claim)
        self._committer.reclaimed = self._reclaimed
        self.done = self._committer.done
        self.claimed = self._committer.claimed
        found = self._committer.claimed_head
        try:
            self.head: Head = decode_head(found) if found else Head()
        except (msgspec.MsgspecError, ValueError) as e:
            raise Corrupt(f"the head of partition {self.name} cannot be read: {e}") from None
        self.inbox = Inbox(self.head)
        self._logs: list[tuple[Inbox, LetGo]] = []
        self.reads(self.id, self.inbox)

    def reads(self, log: PartitionId, inbox: Inbox) -> None:
        """What is finished of ``log`` stands in the head, and is let go of when that is durable."""
        self._logs.append((inbox, LetGo(self.transport, log)))

    def let_go(self) -> None:
        """Of what the claim has found finished: an earlier owner was perhaps not heard."""
        for inbox, let_go in self._logs:
            let_go(inbox.cursor.position, set(inbox.cursor.finished))

    @property
    def settled(self) -> bool:
        """Nothing is being committed or waiting to be, nor in doubt."""
        return self.committing is None and not self.draft.changed and self.error is None

    def is_committed(self, table: Table) -> bool:
        """What is stored in it is all there is: no commit is under way, and the next one does not change it."""
        return self.committing is None and self.error is None and not self.draft.rows.get(table)

    @property
    def term(self) -> int:
        """Of the claim by which the partition is owned."""
        return self._committer.term

    @property
    def origin(self) -> str:
        """What the ids of its own begin with."""
        return f"{self.app.record.incarnation:08x}-{self.id.pool}.{self.id.number}"

    def has_room(self, size: int) -> bool:
        """So much may still go into the draft; into an empty one anything may."""
        return not self.draft.size or self.draft.size + size <= self.most

    # ------------------------------------------------------------------ what is stored

    def row(self, table: Table, key: bytes, decode: Callable[[bytes], T], what: str) -> T:
        """A row that has to be there, as it is or is about to be.

        Raises:
            Corrupt: it is not, or cannot be read.
        """
        value = self.stored(table, key)
        if value is None:
            raise Corrupt(f"a {what} of partition {self.name} is missing")
        return decoded(decode, value, what)

    def stored(self, table: Table, key: bytes) -> bytes | None:
        """A row as it is, or is about to be; None: there is none.

        Raises:
            Corrupt: it fails its checksum.
        """
        (value,) = self.transport.get(self.id, table, [key])
        return self.pending(table, key, value)

    def rows(self, table: Table, after: bytes = b"", before: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Committed rows with ``after`` <= key (< ``before``), in order."""
        while rows := self.transport.scan(self.id, table, after, _PAGE, before):
            yield from rows
            after = rows[-1][0] + b"\0"

    def pending(self, table: Table, key: bytes, committed: bytes | None) -> bytes | None:
        """A row as the draft or the commit under way has it, else ``committed``."""
        for draft in (self.draft, self.committing):
            if draft is not None and key in draft.rows.get(table, {}):
                return draft.rows[table][key]
        return committed

    # ------------------------------------------------------------------ what will be

    def put(self, table: Table, key: bytes, value: bytes | None) -> None:
        """Write a row with the next commit; None removes it."""
        self.draft.put(table, key, value)

    def put_object(self, write: ObjectWrite) -> None:
        """Write an object with the next commit, or remove it."""
        self.draft.put_object(write)

    def put_text(self, text: str) -> bytes:
        """Store a traceback once; returns its key."""
        if not text:
            return b""
        packed = text.encode("utf-8", "replace")
        key = hashlib.blake2b(packed, digest_size=8).digest()
        self.put("text", key, packed)
        return key

    def bury(self, letter: DeadLetter) -> None:
        """Add a dead letter."""
        self.put("dead", row_key(self.head.next_dead), encode(letter))
        self.head.next_dead += 1
        self.app.stats.dead += 1

    def send(
        self, log: str, number: int, body: bytes, events: int, contexts: list[Context], now: int, flags: int = 0
    ) -> None:
        """A batch of this partition for a log, under the next number for it."""
        target = self.app.log(log, number)
        packed = target.packed()
        sequence = self.head.sent.get(packed, 0)
        self.head.sent[packed] = sequence + 1
        sealed = codec.seal(body, events, self.id, target, self.app.record.incarnation, sequence, now, contexts, flags)
        self.draft.sends.append(Send(target, sealed, events))
        self.draft.sends_size += len(sealed)
        self.draft.changed = True

    def reply(self, replies: list[tuple[Context, bytes, bool]], now: int, *, are_errors: bool = False) -> None:
        """Answers, as (to whom, data, whether it is the last one), each to the home of its call. A handler that waits
        gets the last one alone."""
        homes: dict[tuple[str, str, int], list[tuple[Context, bytes, bool]]] = {}
        for reply in replies:
            context, _, is_final = reply
            if not context.request:
                continue
            caller = caller_of(context.pool)
            pool = context.pool if caller is None else caller[1]
            log = REPLIES + pool if caller is None else OUTPUT + replies_to(caller[0])
            if log in self.app.record.logs and (is_final or not pool):
                homes.setdefault((log, pool, context.home), []).append(reply)
            else:
                self.app.stats.late_replies += 1
        for (log, pool, home), answers in homes.items():
            for parts in grouped(answers, lambda part: len(part[1]), self.app.limits.batch_max):
                names = ["part", ERROR if are_errors and pool else "final"]
                number = home
                if log.startswith(OUTPUT):
                    names, number = [str(ReplyName(name, home, pool)) for name in names], self.id.number
                meta = codec.RunMeta(names, bytes(final for _, _, final in parts))
                requests: list[str | None] = [context.request for context, _, _ in parts]
                body = codec.encode_run(meta, len(parts), requests, [msgspec.Raw(data) for _, data, _ in parts])
                self.send(log, number, body, len(parts), [], now)
                self.app.stats.replies += len(parts)

    def trace(self, spans: list[Span], now: int) -> None:
        """Keep what is known of traced events."""
        if SPANS_LOG not in self.app.record.logs:
            return
        packed = [codec.encode(msgspec.structs.replace(span, code=self.app.code)) for span in spans]
        for part in grouped(packed, len, self.app.limits.batch_target):
            body = codec.encode_run(codec.RunMeta([SPAN]), len(part), None, [msgspec.Raw(one) for one in part])
            self.send(SPANS_LOG, self.number, body, len(part), [], now)

    def then(self, callback: Callable[[], None]) -> None:
        """Call when what is in the draft now has been committed."""
        self.draft.then.append(callback)
        self.draft.changed = True

    def flush(self) -> None:
        """Submit the draft if there is something in it and no commit is under way.

        Raises:
            TooLarge: the transport refuses it; it is still the draft then.
        """
        if self.committing is not None or not self.draft.changed or self.is_lost or self.error is not None:
            return
        done = [inbox.advance() for inbox, _ in self._logs]
        draft = self.draft
        rows: list[tuple[Table, Rows]] = [(table, list(rows.items())) for table, rows in draft.rows.items()]
        self._committer.submit(
            encode(self.head),
            draft.sends,
            rows,
            draft.rows_size,
            objects=self._objects(draft),
            then=partial(self._committed, draft, done),
        )
        self.draft, self.committing = Draft(), draft

    def _objects(self, draft: Draft) -> ObjectWrites | None:
        if not draft.objects:
            return None
        elsewhere = self.app.elsewhere
        writes = [waiting(each) if each.namespace in elsewhere else each for each in draft.objects.values()]
        return ObjectWrites(self.app.objects, writes)

    def _committed(self, draft: Draft, done: list[tuple[int, set[int]]]) -> None:
        self.committing = None
        self.app.stats.commits += 1
        for (_, let_go), (position, above) in zip(self._logs, done, strict=True):
            let_go(position, above)
        self.committed(draft)
        for then in draft.then:
            then()
        self._confirmed()
        self.flush()

    def doubt(self, error: Corrupt) -> None:
        """What is stored is not as it should be. It may be damaged, or another engine has the partition by now: the
        commit under way tells, or one that changes nothing. Until then nothing else happens; then ``error`` is raised,
        or the commit is fenced."""
        if self.error is None:
            self.error = error
            if self.committing is None:
                self._committer.confirm(self._confirmed)

    def _confirmed(self) -> None:
        if self.error is not None:
            raise self.error

    def _reclaimed(self, claim: Claim) -> None:
        self.tail = claim.tail
        self.reclaimed()

    def uncommitted(self) -> list[Draft]:
        """Drafts of which nobody knows that they have taken effect."""
        return [self.draft] + ([] if self.committing is None else [self.committing])


def decoded(decode: Callable[[bytes], T], value: bytes, what: str) -> T:
    """
    Raises:
        Corrupt: it cannot be read.
    """
    try:
        return decode(value)
    except (msgspec.MsgspecError, ValueError) as e:
        raise Corrupt(f"a stored {what} cannot be read: {e}") from None


def grouped(items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """``items`` in order, in groups of at most ``limit`` (but for one larger item)."""
    group: list[T] = []
    total = 0
    for item in items:
        if group and total + size(item) > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += size(item)
    if group:
        yield group


def _ignore(_: object) -> None:
    pass


def _nothing() -> None:
    pass
