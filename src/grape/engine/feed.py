"""Feeding: a stream is an origin whose committed state is its position. Engine's thread only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct, structs

from grape.abc.transport import Rows, Send, Table, Transport
from grape.engine.app import App
from grape.engine.check import BESIDE_DATA
from grape.engine.committer import Committer
from grape.engine.ids import Ids
from grape.errors import ProtocolError, TooLarge
from grape.hot import is_deeper
from grape.model import batch as codec
from grape.model.address import MAX_ID_BYTES, check_key, check_text, partition_of
from grape.model.foreign import AT
from grape.model.stored import ERROR, REPLIES, SOURCE, DeadLetter, SourceHead, decode_source, encode, row_key
from grape.protocol.door import Append, BadInput, Named, Part, Verdict, size_beside

_BESIDE_BATCH: Final = 200
"""Bytes of a batch in a commit beside its body, about."""
_LARGEST_INPUT: Final = 1 << 40
_PROMISED: Final = 1 << 22
_REPLIES: Final = {"part", "final", ERROR}


class Prepared(Struct, frozen=True):
    """A step of a stream as it will be committed. ``head`` is what holds when it and all before it are. ``size``: bytes
    of input; ``bytes``: that came; ``weight``: bytes in a commit. ``ids``: what is to be remembered. ``at_end``: see
    `Append`."""

    sends: list[Send]
    head: SourceHead
    dead: list[tuple[bytes, bytes]]
    counts: Counter[str]
    size: int
    bytes: int
    weight: int
    ids: Sequence[Named] = ()
    at_end: bool = False

    @property
    def events(self) -> int:
        """As they will wait, in the logs of all pools that listen."""
        return sum(send.events for send in self.sends)


class Feed:
    """One stream.

    Args:
        name: of the stream; one that begins with @ comes from another app.
        calls: its events are calls, each answered under its own id.
        ids: of all streams.
    """

    def __init__(
        self,
        app: App,
        name: str,
        transport: Transport,
        committer: Committer,
        ids: Ids,
        *,
        in_order: bool,
        calls: bool,
    ) -> None:
        self.name = name
        self.id = app.log(SOURCE + name, 0)
        self.calls = calls and not name.startswith(AT)
        self.is_of_other = name.startswith(AT)
        self._app = app
        self._ids = ids
        self._clock = ids.clock
        self._committer = committer
        self._most = transport.features.largest_commit // 2
        self._largest = transport.features.largest_commit * 7 // 8
        found = committer.claimed_head
        self.head = decode_source(found) if found else SourceHead()
        self._planned = self.head
        self.partition: int | None = None
        """That gets all of it."""
        self.set_order(in_order=in_order)
        self._parts: list[Part] = []
        """Of a step that has not come wholly."""
        self._begun = 0
        """Bytes of them in a commit."""
        self._promised: dict[str, Named] = {}
        """Ids that were said to be new, and are not durable."""

    @property
    def is_busy(self) -> bool:
        """A commit is under way."""
        return self._committer.is_busy

    def set_order(self, *, in_order: bool) -> None:
        """Whether all of it goes to one partition. Whoever opens it says so."""
        self.partition = partition_of(self.name, self._app.partitions) if in_order else None

    def lookup(self, ids: Sequence[Named]) -> list[Verdict]:
        """Which of them are to be fed; what is new is promised to this stream until it is durable, or forgotten.

        Raises:
            ProtocolError: one of them cannot be, or too many are promised.
        """
        if len(self._promised) + len(ids) > _PROMISED:
            raise ProtocolError(f"stream {self.name!r:.300}: over {_PROMISED:,} ids that were promised and not fed")
        for own in ids:
            self._check_named(own)
        verdicts = self._ids.check(ids)
        self._promised.update((own.id, own) for own, verdict in zip(ids, verdicts, strict=True) if verdict == "new")
        return verdicts

    def forget(self) -> None:
        """Whoever fed it is gone: go on from what is durable. Only while no commit is under way."""
        self._planned = self.head
        self._parts = []
        self._begun = 0
        self._ids.settled(self._promised.values())
        self._promised.clear()

    # ------------------------------------------------------------------ what comes

    def is_known(self, append: Append) -> bool:
        """It came before.

        Raises:
            ProtocolError: something before it did not.
        """
        expected = self._planned.number + 1
        if append.number > expected:
            raise ProtocolError(f"stream {self.name!r:.300}: append {append.number} comes after {expected - 1}")
        return append.number < expected

    def prepare(self, append: Append, *, is_ours: bool = False) -> Prepared | None:
        """Make the batches of what comes next, for every pool that listens: the work, without the commit. None: its
        step goes on with the next append. ``is_ours``: its bodies were made by this code, and are believed unread.

        Raises:
            ProtocolError: it is not what a client may send. Nothing has changed.
            TooLarge: no commit would hold its step. Nothing has changed.
        """
        for part in append.parts:
            self._check(part, is_ours=is_ours)
        self._check_rest(append)
        weight = self._begun + self._weight(append)
        if weight > self._largest:
            raise TooLarge(
                f"stream {self.name!r:.300}: a step of {weight:,} bytes, counted for each pool that listens; a commit "
                f"holds {self._largest:,}"
            )
        head = self._planned
        if append.more:
            self._planned = structs.replace(head, number=append.number)
            self._parts += append.parts
            self._begun = weight
            return None
        parts, self._parts, self._begun = [*self._parts, *append.parts], [], 0
        now = self._clock.now()
        sent = dict(head.sent)
        sends: list[Send] = []
        counts: Counter[str] = Counter()
        for part in parts:
            if not part.name.startswith(REPLIES):
                counts[part.name] += part.events
            self._seal(part, sent, sends, now)
        dead = [(row_key(head.next_dead + i), encode(letter)) for i, letter in enumerate(_letters(append.bad, now))]
        self._planned = new = SourceHead(
            append.position,
            sent,
            head.fed + (0 if append.at_end else sum(counts.values())),
            head.spread + len(parts),
            head.next_dead + len(dead),
            append.at_end,
            head.next_id + len(append.ids),
            append.number,
        )
        came = sum(len(part.body) for part in parts) + size_beside(append.position, append.bad, append.ids)
        return Prepared(sends, new, dead, counts, append.size, came, weight, append.ids, append.at_end)

    def _weight(self, append: Append) -> int:
        sent = sum((len(part.body) + _BESIDE_BATCH) * len(self._logs(part)) for part in append.parts)
        return sent + 2 * size_beside(append.position, append.bad, append.ids)

    def _logs(self, part: Part) -> list[str]:
        """Where it goes: the replies of another app to whoever waits for them, all else by its name."""
        if part.name.startswith(REPLIES):
            return [part.name] if part.name in self._app.record.logs else []
        return self._app.logs_of(part.name)

    def _check_rest(self, append: Append) -> None:
        what = f"stream {self.name!r:.300}: append {append.number}"
        if not 0 <= append.size <= _LARGEST_INPUT:
            raise ProtocolError(f"{what} says it has a size of {append.size} bytes of input")
        if append.more and (append.bad or append.ids):
            raise ProtocolError(f"{what} has dead letters or ids, which the last frame of a step has")
        for own in append.ids:
            if self._promised.get(own.id) != own:
                raise ProtocolError(f"{what} has the id {own.id!r:.300}, which was not promised like this")

    def _check_named(self, own: Named) -> None:
        try:
            check_text(own.id, "an id", MAX_ID_BYTES)
            if own.key is not None:
                check_key(own.key)
        except ValueError as e:
            raise ProtocolError(f"stream {self.name!r:.300}: {e}") from None
        if not 0 <= own.content < 1 << 32:
            raise ProtocolError(f"stream {self.name!r:.300}: an id with the content {own.content}")

    def _check(self, part: Part, *, is_ours: bool) -> None:
        what = f"stream {self.name!r:.300}: a part of {part.name!r:.300}"
        is_replies = self.is_of_other and part.name.startswith(REPLIES)
        if not is_replies and not self._app.logs_of(part.name):
            raise ProtocolError(f"{what}, to which no slot listens")
        if part.name in self._app.routing.outputs and (self.calls or self.is_of_other):
            raise ProtocolError(f"{what}, which is an output: it answers no calls, and is no slot for other apps")
        if not 0 <= part.partition < self._app.partitions:
            raise ProtocolError(f"{what} for partition {part.partition} of {self._app.partitions}")
        if self.partition not in (None, part.partition):
            raise ProtocolError(f"{what} for partition {part.partition}; all of it goes to {self.partition}")
        largest = self._app.limits.batch_max
        if len(part.body) > largest and part.events > 1:
            raise ProtocolError(f"{what} of {len(part.body)} bytes; the limit is {largest}")
        if is_ours:
            return
        largest = max(largest, self._app.limits.max_event + BESIDE_DATA)
        if len(part.body) > largest:
            raise ProtocolError(f"{what} of {len(part.body)} bytes; the limit is {largest}")
        for meta in codec.check_body(part.body, part.events, len(part.contexts), is_deeper=is_deeper):
            is_wrong = not set(meta.names) <= _REPLIES if is_replies else meta.names != [part.name]
            if is_wrong or meta.only is not None or not (self.is_of_other or _is_plain(meta)):
                raise ProtocolError(f"{what} with a run of {meta.names!r:.300}, or with what only an engine adds")

    def _seal(self, part: Part, sent: dict[bytes, int], sends: list[Send], now: int) -> None:
        app = self._app
        flags = codec.SELF_REPLY if self.calls else 0
        for log in self._logs(part):
            target = app.log(log, part.partition)
            packed = target.packed()
            sequence = sent.get(packed, 0)
            sent[packed] = sequence + 1
            sealed = codec.seal(
                part.body, part.events, self.id, target, app.record.incarnation, sequence, now, part.contexts, flags
            )
            sends.append(Send(target, sealed, part.events))

    # ------------------------------------------------------------------ what is committed

    def first(self, steps: list[Prepared]) -> list[Prepared]:
        """As many as one commit holds, at least one."""
        size = 0
        for i, step in enumerate(steps):
            size += step.weight
            if i and size > self._most:
                return steps[:i]
        return steps

    def commit(self, steps: list[Prepared], then: Callable[[], None]) -> None:
        """Commit prepared steps as one; ``then`` is called when they are durable."""
        sends = [send for step in steps for send in step.sends]
        dead = [row for step in steps for row in step.dead]
        rows: list[tuple[Table, Rows]] = [("dead", [*dead])] if dead else []
        head = steps[-1].head
        named = [named for step in steps for named in step.ids]
        if named:
            rows += self._ids.rows(self.id, named, self.head.next_id)

        def committed() -> None:
            self.head = head
            for step in steps:
                self._app.stats.fed.update(step.counts)
            self._app.stats.dead += len(dead)
            self._ids.settled(named)
            for own in named:
                self._promised.pop(own.id, None)
            then()

        self._committer.submit(encode(head), sends, rows, then=committed)


def _is_plain(meta: codec.RunMeta) -> bool:
    """It has nothing that only an engine gives an event."""
    return not meta.hops and meta.contexts is None


def _letters(bad: Sequence[BadInput], now: int) -> list[DeadLetter]:
    return [
        DeadLetter(
            "",
            one.name,
            "",
            None,
            now,
            codec.one(one.name, None, one.raw),
            0,
            now,
            one.kind,
            one.text,
            origin=one.place,
        )
        for one in bad
    ]
