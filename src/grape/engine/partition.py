"""One partition of a pool: what waits, what is in work, and the next commit.

    log --Inbox--> Work --worker--> Result --apply--> draft --Commit--> transport --done--> (next Work)

Everything that changes the partition goes into its *draft*: results, timers that became due, events from outside.
Whenever no commit is under way and the draft holds something, it becomes the next commit. So there is one commit at a
time, and what comes in meanwhile is grouped by itself.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import Struct

from grape.abc.transport import Rows, Send, Stored, Table, Transport, Trim
from grape.engine.app import App
from grape.engine.check import Checker, check_progress, once
from grape.engine.clock import Clock
from grape.engine.committer import Committer
from grape.engine.hold import HoldList
from grape.engine.inbox import Inbox, OpenBatch, own_origin
from grape.engine.walk import walk
from grape.errors import Corrupt, ProtocolError
from grape.model import batch as codec
from grape.model.batch import Context
from grape.model.cursor import Progress
from grape.model.policy import after_failure, backoff, locks_key
from grape.model.stored import (
    CLIENT_ID,
    REPLIES,
    DeadLetter,
    Expiry,
    Head,
    HoldEntry,
    TimerEntry,
    decode_expiry,
    decode_head,
    decode_hold,
    decode_timer,
    encode,
    expiry_of,
    row_key,
    state_key,
    timer_key,
)
from grape.protocol.messages import BatchItem, Failure, Named, Result, RetryItem, StateChanges, Work

T = TypeVar("T")

_TIMER_WINDOW: Final = 2_000
"""Timers of a partition that are kept in memory; the rest stays in its rows."""
_TIMERS_AT_ONCE: Final = 500
_RETRIES_AT_ONCE: Final = 500
_EXPIRIES_AT_ONCE: Final = 500
_NEVER: Final = 1 << 62
_HELD: Final = -1
_DEATHS_BESIDE: Final = 2
"""Deaths of careful workers over one root beside those that a named event may cost."""
_CAREFUL_EVENTS: Final = 256
_FIRST_WINDOW: Final = 1_024
_MIN_WINDOW: Final = 64
_MAX_KIND: Final = 255
_MAX_TEXT: Final = 16_000
_REPLY_DEAD: Final = "the event that should have answered became a dead letter"


class Dispatched(Struct):
    """A work that a worker has. ``positions``: its batches, and how many of their events are left. ``holds``: its
    retried entries, and (event, node) of each."""

    seq: int
    positions: dict[int, int]
    holds: dict[int, tuple[str, str]]
    careful: bool
    events: int


class _Draft:
    """What the next commit will hold."""

    def __init__(self) -> None:
        self.sends: list[Send] = []
        self.rows: dict[Table, dict[bytes, bytes | None]] = {}
        self.new_timers: list[tuple[int, bytes]] = []
        self.then: list[Callable[[], None]] = []
        self.changed = False
        self.finished_events = 0
        self.finished_bytes = 0
        """Of the batches that were finished as a whole: until the commit counts they stand in the log."""

    def put(self, table: Table, key: bytes, value: bytes | None) -> None:
        self.rows.setdefault(table, {})[key] = value
        self.changed = True


class Partition:
    """See the module. ``number`` is its number, ``id`` its address; ``pool`` the pool's name.

    Every method is called from the engine's thread.
    """

    def __init__(
        self, app: App, pool: str, number: int, transport: Transport, clock: Clock, rng: random.Random
    ) -> None:
        self.app = app
        self.pool = pool
        self.number = number
        self.id = app.log(pool, number)
        self.transport = transport
        self.clock = clock
        self.rng = rng
        self.epoch = 0
        self.seq = 0
        self.works: dict[int, Dispatched] = {}
        self.contexts: list[Context] = []
        """Of all works that are out, by number; results name them so."""
        self.chains = True
        """Whether the worker that has it may chain all pairs."""
        self.careful: set[int] = set()
        self.named: dict[tuple[str, str], Named] = {}
        self.deaths: dict[tuple[int, int], int] = {}
        """Roots over which careful workers have died one after the other: (position, index), or (`_HELD`, entry)."""
        self._deadlines: dict[int, int] = {}
        self.window = _FIRST_WINDOW
        self.is_long = False
        """One event at a time, also of those that are tried again."""
        self.is_moving = False
        """It is to go to another worker: nothing more of it is handed out."""
        self.top_up = any(node.is_async for node in app.topology.nodes if node.pool == pool)
        self._checker = Checker(app, pool)
        self._stats = app.stats.pools[pool]
        self._draft = _Draft()
        self._committing: _Draft | None = None
        self._claim()

    # ------------------------------------------------------------------ start

    def _claim(self) -> None:
        self._committer = Committer(self.transport, self.id, f"partition {self.pool}/{self.number}")
        self.done = self._committer.done
        self._committer.reclaimed = self._recount
        found = self._committer.claimed_head
        try:
            self.head: Head = decode_head(found) if found else Head()
        except (msgspec.MsgspecError, ValueError) as e:
            raise Corrupt(f"the head of partition {self.pool}/{self.number} cannot be read: {e}") from None
        self.inbox = Inbox(self.head)
        waiting = self.transport.waiting(self.id, self.head.cursor.position)
        finished = sum(p.finished() for p in self.head.cursor.partial.values())
        self.waiting_events = waiting.events - finished
        self.waiting_bytes = waiting.size
        self.app.backlog_events += self.waiting_events
        self.app.backlog_bytes += self.waiting_bytes
        self._load_holds()
        self._load_timers()
        self.app.timers += len(self._timers) if self._timers_end is None else sum(1 for _ in self.rows("timer"))
        self._next_expiry = self._first_expiry(0)

    def _load_holds(self) -> None:
        self.holds = HoldList()
        for key, value in self.rows("hold"):
            entry = _decoded(decode_hold, value, "hold entry")
            self.holds.add(int.from_bytes(key, "big"), entry, len(value))
        self.app.holds += len(self.holds)

    def rows(self, table: Table, after: bytes = b"", before: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Committed rows with ``after`` <= key (< ``before``), in order."""
        while rows := self.transport.scan(self.id, table, after, 1000, before):
            yield from rows
            after = rows[-1][0] + b"\0"

    def _load_timers(self) -> None:
        rows = self.transport.scan(self.id, "timer", b"", _TIMER_WINDOW)
        self._timers = [(int.from_bytes(key[:8], "big"), key) for key, _ in rows]
        heapq.heapify(self._timers)
        self._timers_end = self._timers[-1][0] if len(rows) == _TIMER_WINDOW else None
        if self._timers_end is not None:
            self._timers_end = max(due for due, _ in self._timers)

    # ------------------------------------------------------------------ arrivals and questions

    def arrived(self, events: int, size: int) -> None:
        """Batches came into the log."""
        self.waiting_events += events
        self.waiting_bytes += size
        self.app.backlog_events += events
        self.app.backlog_bytes += size

    def _recount(self, counts: bool) -> None:
        """How much waits, after a claim: arrivals from before it are not told any more. ``counts``: the commit under
        way has taken effect."""
        waiting = self.transport.waiting(self.id, 0)
        drafts = [self._draft] + ([] if counts or self._committing is None else [self._committing])
        begun = sum(p.finished() for p in self.head.cursor.partial.values())
        events = waiting.events - begun - sum(draft.finished_events for draft in drafts)
        size = waiting.size - sum(draft.finished_bytes for draft in drafts)
        self.arrived(events - self.waiting_events, size - self.waiting_bytes)

    @property
    def quiet(self) -> bool:
        """Nothing is in work, being committed, or waiting to be."""
        return not self.works and self._committing is None and not self._draft.changed

    @property
    def settled(self) -> bool:
        """Nothing is being committed or waiting to be."""
        return self._committing is None and not self._draft.changed

    @property
    def finished(self) -> bool:
        """Nothing is left to do now or later, but for what an operator has to decide: stopped entries, and what waits
        behind them."""
        return self.quiet and self.waiting_events == 0 and not self._timers and self.holds.next_due() is None

    @property
    def hold_is_full(self) -> bool:
        limits = self.app.limits
        return len(self.holds) >= limits.hold_events or self.holds.size >= limits.hold_bytes

    def describe(self, now: int) -> str:
        """In a line: what waits, what is out, what is being committed."""
        works = [
            f"{w.seq}: {w.events} events of {len(w.positions)} batches, {len(w.holds)} held"
            for w in self.works.values()
        ]
        state = "committing" if self._committing is not None else "draft" if self._draft.changed else "settled"
        return (
            f"partition {self.pool}/{self.number}: epoch {self.epoch}, {state}, {self.waiting_events} events wait from "
            f"{self.head.cursor.position} on, read to {self.inbox.read_to}, open {sorted(self.inbox.open)[:20]}, "
            f"{len(self.holds)} held, works {works[:20]}, careful {sorted(self.careful)[:20]}, "
            f"{'moving, ' if self.is_moving else ''}{'full hold list, ' if self.hold_is_full else ''}"
            f"{'has' if self.has_work(now) else 'no'} work to hand out"
        )

    def next_due(self) -> int | None:
        """When something becomes due by itself: a retry or a timer (microseconds of wall time)."""
        dues = (self.next_timer(), self.holds.next_due())
        return min((due for due in dues if due is not None), default=None)

    def next_timer(self) -> int | None:
        """When the next timer is due (microseconds of wall time)."""
        return self._timers[0][0] if self._timers else None

    def has_work(self, now: int) -> bool:
        """Whether `make_work` would find something."""
        if not self.settled or self.is_moving or (self.works and not self.top_up):
            return False
        due = self.holds.next_due()
        if due is not None and due <= now:
            return True
        if self.hold_is_full:
            return False
        in_work = sum(w.events for w in self.works.values())
        return (
            self.waiting_events > in_work
            and in_work < self.app.limits.dispatch_events
            and not (self.works and self.careful)
        )

    def waiting_since(self, now: int) -> int | None:
        """When the oldest event was made, or became due, that no worker has; None: there is none."""
        times = [due for due in (self.holds.next_due(),) if due is not None and due <= now]
        times += [self.inbox.open[p].header.created for p in self.inbox.idle() if p in self.inbox.open]
        found = self.transport.read(self.id, self.inbox.read_to, 1)
        times += [codec.header_of(stored.batch).created for stored in found[:1]]
        return min(times, default=None)

    # ------------------------------------------------------------------ dispatch

    def make_work(self, now: int) -> Work | None:
        """What the worker should do next; None: nothing (all that waits is in work already, or parked).

        Raises:
            Corrupt: a stored batch or entry is not what was written.
        """
        self.inbox.unpark()
        if not self.works:
            self.contexts = []
        base = len(self.contexts)
        retries = self._retries(now, self.contexts)
        careful = bool(self.named) or any(r.named_deaths for r in retries) or bool(self.careful)
        batches: list[BatchItem] = []
        positions: dict[int, int] = {}
        events = 0
        alone = retries and (self.is_long or (careful and not self.careful and not self.named))
        if not self.hold_is_full and not alone:
            batches, positions, events = self._batches(self.contexts, careful)
        if not batches and not retries:
            return None
        holds = {r.hold: (codec.name_of(r.body), r.node) for r in retries}
        self.seq += 1
        self.works[self.seq] = Dispatched(self.seq, positions, holds, careful, events)
        named = list(self.named.values())
        deadlines, self._deadlines = self._deadlines, {}
        return Work(self.number, self.epoch, self.seq, batches, retries, careful, named, base, deadlines)

    def _note_deadlines(self, contexts: list[Context], base: int) -> None:
        """Those of ``contexts``, whose first one has the number ``base``, for the work that is being made."""
        for i, context in enumerate(contexts):
            if context.deadline:
                self._deadlines[base + i] = context.deadline

    def _retries(self, now: int, contexts: list[Context]) -> list[RetryItem]:
        taken = self.holds.take_due(now, 1 if self.named or self.is_long else _RETRIES_AT_ONCE)
        if not taken:
            return []
        rows = self.transport.get(self.id, "hold", [row_key(held.number) for held, _ in taken])
        items: list[RetryItem] = []
        for (held, rest), value in zip(taken, rows, strict=True):
            if value is None:
                raise Corrupt(f"hold entry {held.number} of partition {self.pool}/{self.number} is missing")
            entry: HoldEntry = _decoded(decode_hold, value, "hold entry")
            context = entry.context or Context()
            self._note_deadlines([context], len(contexts))
            contexts.append(context)
            items.append(
                RetryItem(
                    held.number,
                    entry.node,
                    entry.id,
                    entry.attempts + 1,
                    entry.named_deaths,
                    entry.created,
                    entry.body,
                    rest,
                    -1 if entry.context is None else len(contexts) - 1,
                )
            )
        return items

    def _batches(self, contexts: list[Context], careful: bool) -> tuple[list[BatchItem], dict[int, int], int]:
        limits = self.app.limits
        in_work = sum(w.events for w in self.works.values())
        room = min(self.window, limits.dispatch_events) - in_work
        if careful:
            room = min(room, _CAREFUL_EVENTS)
        items: list[BatchItem] = []
        positions: dict[int, int] = {}
        events = 0
        budget = limits.dispatch_bytes
        for stored in self._readable():
            if events >= room or budget <= 0:
                break
            try:
                header = codec.header_of(stored.batch) if stored.known else codec.check(stored.batch)
            except Corrupt as e:
                raise Corrupt(f"{self.pool}/{self.number} at {stored.position}: {e}") from None
            batch = self.inbox.offer(stored.position, header, len(stored.batch))
            if batch is None or batch.in_work:
                continue
            batch.in_work = True
            progress = self.head.cursor.progress(stored.position)
            left = header.events - progress.finished()
            calls = bool(header.flags & codec.SELF_REPLY)
            table = codec.contexts_of(stored.batch, header)
            body = codec.body_of(stored.batch, header)
            if calls:
                contexts.extend(Context(event_id, self.number) for event_id in codec.ids_of(header, body))
            else:
                self._note_deadlines(table, len(contexts))
                contexts.extend(table)
            items.append(
                BatchItem(
                    stored.position,
                    header.id_prefix,
                    header.created,
                    header.events,
                    body,
                    progress,
                    header.events if calls else len(table),
                    calls,
                )
            )
            positions[stored.position] = left
            events += left
            budget -= len(stored.batch)
        self._note_duplicates()
        return items, positions, events

    def _readable(self) -> Iterator[Stored]:
        """What may be worked on: first what was accepted before, in that order, then what follows in the log."""
        for position in self.inbox.idle():
            found = self.transport.read(self.id, position, 1)
            if not found or found[0].position != position:
                raise Corrupt(f"{self.pool}/{self.number}: the batch at {position} is not finished, and is gone")
            yield found[0]
        at = self.inbox.read_to
        while batches := self.transport.read(self.id, at, 2 * self.app.limits.batch_max):
            for stored in batches:
                yield stored
                self.inbox.passed(stored.position)
            at = batches[-1].position + 1

    def _note_duplicates(self) -> None:
        for _, events, size in self.inbox.dropped:
            self._stats.duplicates += 1
            self._draft.finished_events += events
            self._draft.finished_bytes += size
            self._forget(events, size)
            self._draft.changed = True
        self.inbox.dropped.clear()
        if self._draft.changed:
            self.flush()

    def _forget(self, events: int, size: int) -> None:
        self.waiting_events -= events
        self.waiting_bytes -= size
        self.app.backlog_events -= events
        self.app.backlog_bytes -= size

    # ------------------------------------------------------------------ workers come and go

    def reassign(self) -> int:
        """A new epoch: whatever a worker had is to be done again. Returns the epoch."""
        self.epoch += 1
        self.chains = self.may_chain
        if self.chains:
            self.head.catching_up = False  # stored with the next commit; until then a start looks again
        self.works.clear()
        self.inbox.give_back()
        self.holds.give_back(self.holds.numbers())
        return self.epoch

    @property
    def may_chain(self) -> bool:
        """Nothing waits in its log that it has emitted itself, by older code in which fewer pairs chained or since.
        What chains from now on is done at once, and must not overtake any of it."""
        return not self.head.catching_up or self._has_caught_up()

    def _has_caught_up(self) -> bool:
        own = self.id
        if self.head.sent.get(own.packed(), 0) != self.head.seen.get(own_origin(own, self.app.record.incarnation), 0):
            return False
        begun = self.head.cursor.partial
        return all(p in self.inbox.open and self.inbox.open[p].header.origin != own for p in begun)

    def suspect(self, work: Dispatched) -> None:
        """The worker died over this work, nobody knows at which event: go carefully through it."""
        self.careful.update(p for p in work.positions if p in self.inbox.open)
        for number in work.holds:
            if number in self.holds:
                self.careful.add(-1 - number)

    def died_carefully(self, work: Dispatched) -> tuple[int, int] | None:
        """A worker died over this work, root by root: over the first root of it that is not handed in. Returns that
        root once so many have died over it, without it being handed in, that no worker seems to be able to."""
        root = self._first_root(work)
        if root is None:
            return None
        self.deaths[root] = self.deaths.get(root, 0) + 1
        return root if self.deaths[root] >= self.app.limits.named_deaths + _DEATHS_BESIDE else None

    def _first_root(self, work: Dispatched) -> tuple[int, int] | None:
        for number in work.holds:
            if number in self.holds:
                return _HELD, number
        for position in work.positions:
            batch = self.inbox.open.get(position)
            if batch is not None:
                progress = self.head.cursor.progress(position)
                return position, next(i for i in range(batch.header.events) if not progress.is_done(i))
        return None

    def give_up_root(self, root: tuple[int, int], text: str) -> None:
        """Workers cannot even hand it in as failed: the engine does, for all of its nodes."""
        self.deaths.pop(root, None)
        now = self.clock.now()
        position, index = root
        if position == _HELD:
            (value,) = self.transport.get(self.id, "hold", [row_key(index)])
            assert value is not None
            self._end_root(_decoded(decode_hold, value, "hold entry"), text, index, now)
        elif position in self.inbox.open:
            (stored,) = self.transport.read(self.id, position, 1)[:1]
            header = self.inbox.open[position].header
            single = next(one for one in walk(stored.batch, header, self.number) if one.at == index)
            for node in single.only or self._listeners(single.entry.event):
                self._end_root(msgspec.structs.replace(single.entry, node=node), text, -1, now)
            self.finish_unstarted(position, index)
        self._draft.changed = True

    def _listeners(self, event: str) -> tuple[str, ...]:
        found = [each.nodes for each in self.app.routing.listeners.get(event, ()) if each.pool == self.pool]
        return found[0] if found else ()

    def _end_root(self, entry: HoldEntry, text: str, number: int, now: int) -> None:
        slot = self.app.slot(entry.event, entry.node)
        entry.attempts += 1
        entry.kind, entry.text = "worker-died", text[:_MAX_TEXT]
        if slot is None or slot.on_fail == "dead":
            self._bury(entry, now)
            if number >= 0:
                self._release(number, now)
            return
        entry.stopped, entry.locks = True, locks_key(slot, entry.key, "stop")
        if number >= 0:
            packed = encode(entry)
            self._draft.put("hold", row_key(number), packed)
            self.holds.change(number, entry, len(packed))
        else:
            self._hold(entry)

    def name(self, event_id: str, node: str, kind: str, text: str, death: bool, trace: str = "") -> None:
        """A worker died, or got stuck, over this event: hand it in as failed next time. One that has not been named yet
        is a step on, however many of its root have been: only deaths over what is named already tell of no way out."""
        if (event_id, node) not in self.named:
            self.deaths.clear()
        self.named[event_id, node] = Named(event_id, node, kind, text, death, trace)

    @property
    def is_empty(self) -> bool:
        """No state is stored, nor about to be."""
        return self.settled and not self.transport.scan(self.id, "state", b"", 1)

    # ------------------------------------------------------------------ results

    def apply(self, result: Result) -> None:
        """Take a worker's result into the draft.

        Raises:
            ProtocolError: something in it cannot be true; nothing has been taken then.
        """
        self._check(result)
        now = self.clock.now()
        stats = self.app.stats
        if result.done or result.retried or result.failures:
            self.deaths.clear()
        for position, progress in result.done:
            work = self._work_on(position)
            batch = self.inbox.open[position]
            newly = self.inbox.progress(position, progress)
            ended = position not in self.inbox.open
            self._forget(newly, batch.size if ended else 0)
            self._stats.finished += newly
            self._stats.latencies.add(now - batch.header.created, newly)
            work.positions[position] -= newly
            work.events -= newly
            if ended:
                self._draft.finished_events += batch.header.events
                self._draft.finished_bytes += batch.size
                self.careful.discard(position)
        for number in result.retried:
            self._tried(number)
            self._release(number, now)
        for emitted in result.emitted:
            contexts = [self.contexts[i] for i in emitted.contexts]
            self.send(emitted.target, emitted.partition, emitted.body, emitted.events, contexts, now)
        for changes in result.states:
            self._change_state(changes)
        for timer in result.timers:
            context = self.contexts[timer.emitted.contexts[0]] if timer.emitted.contexts else None
            self._add_timer(
                now + timer.delay,
                TimerEntry(timer.emitted.target, timer.emitted.partition, timer.emitted.body, context),
            )
        for failure in result.failures:
            if failure.hold >= 0:
                self._tried(failure.hold)
            self._fail(failure, now)
        replies = [(self.contexts[r.context], r.data, r.final) for r in result.replies]
        self._reply([r for r in replies if r[0].request], now)
        stats.processed.update(result.counts)
        stats.emitted.update(result.emits)
        for seq in result.ended:
            self._end_work(self.works[seq])
        self._draft.changed = True

    def _tried(self, number: int) -> None:
        """The entry is no longer the work's: another one may get it before this one ends."""
        for work in self.works.values():
            if work.holds.pop(number, None) is not None:
                self.careful.discard(-1 - number)

    def _work_on(self, position: int) -> Dispatched:
        """The work that has the batch at ``position``.

        Raises:
            ProtocolError: none has.
        """
        for work in self.works.values():
            if position in work.positions:
                return work
        raise ProtocolError(f"progress of batch {position}, which is not in work")

    def _end_work(self, work: Dispatched) -> None:
        del self.works[work.seq]
        left = 0
        for position, events in work.positions.items():
            batch = self.inbox.open.get(position)
            if batch is not None:
                batch.in_work = False
                left += events
        for number in work.holds:
            self.careful.discard(-1 - number)
        self.holds.give_back(work.holds)
        if not self.careful:
            self.named.clear()
        if left:
            done = max(1, sum(work.positions.values()) - left)
            self.window = max(_MIN_WINDOW, min(self.window // 2, 2 * done))
        elif not work.careful:
            self.window = min(self.app.limits.dispatch_events, self.window * 2)

    def _check(self, result: Result) -> None:
        check, contexts = self._checker, len(self.contexts)
        held = {n: slot for work in self.works.values() for n, slot in work.holds.items() if n in self.holds}
        once(result.ended, "the end of work")
        once((position for position, _ in result.done), "progress of batch")
        once((*result.retried, *(f.hold for f in result.failures if f.hold >= 0)), "entry")
        for seq in result.ended:
            if seq not in self.works:
                raise ProtocolError(f"the end of work {seq} of partition {self.number}, which is not in work")
        for position, progress in result.done:
            self._work_on(position)
            batch = self.inbox.open.get(position)
            if batch is None:
                raise ProtocolError(f"progress of batch {position}, which is finished")
            check_progress(position, batch.header.events, self.head.cursor.progress(position), progress)
        for number in result.retried:
            if number not in held:
                raise ProtocolError(f"retried entry {number}, which is not in this work")
        for emitted in result.emitted:
            check.emitted(emitted, contexts)
        for timer in result.timers:
            check.timer(timer, contexts)
        for changes in result.states:
            check.state(changes)
        for failure in result.failures:
            check.failure(failure, contexts, held)
        for reply in result.replies:
            check.reply(reply, contexts)
        check.counts(result.counts, result.emits)

    def _change_state(self, changes: StateChanges) -> None:
        prefix = state_key(self.app.node_id(changes.node), b"")
        rows = self._draft.rows.setdefault("state", {})
        rows.update(zip([prefix + key for key in changes.keys], changes.values, strict=True))
        if changes.expires is not None:
            for key, due in zip(changes.keys, changes.expires, strict=True):
                if due:
                    self.add_expiry(due, "state", prefix + key)

    # ------------------------------------------------------------------ sending

    def send(
        self, log: str, number: int, body: bytes, events: int, contexts: list[Context], now: int, flags: int = 0
    ) -> None:
        """A batch of this partition for a log, under the next number for it."""
        target = self.app.log(log, number)
        packed = target.packed()
        sequence = self.head.sent.get(packed, 0)
        self.head.sent[packed] = sequence + 1
        sealed = codec.seal(body, events, self.id, target, self.app.record.incarnation, sequence, now, contexts, flags)
        self._draft.sends.append(Send(target, sealed, events))
        self._draft.changed = True

    def _reply(self, replies: list[tuple[Context, bytes, bool]], now: int) -> None:
        homes: dict[int, list[tuple[Context, bytes, bool]]] = {}
        for reply in replies:
            homes.setdefault(reply[0].home, []).append(reply)
        groups = [
            (home, group)
            for home, parts in homes.items()
            for group in _grouped(parts, lambda part: len(part[1]), self.app.limits.batch_max)
        ]
        for home, parts in groups:
            meta = codec.RunMeta(["part", "final"], bytes(final for _, _, final in parts))
            body = codec.encode_run(
                meta, len(parts), [c.request for c, _, _ in parts], [msgspec.Raw(data) for _, data, _ in parts]
            )
            self.send(REPLIES, home, body, len(parts), [], now)
            self.app.stats.replies += len(parts)

    # ------------------------------------------------------------------ failures

    def _fail(self, failure: Failure, now: int) -> None:
        """Hold, retry later, or give up."""
        slot = self.app.slot(failure.event, failure.node)
        assert slot is not None
        context = self.contexts[failure.context] if failure.context >= 0 else None
        self.named.pop((failure.id, failure.node), None)
        entry = HoldEntry(
            failure.node,
            failure.event,
            failure.id,
            failure.key,
            failure.created,
            failure.body,
            context=context,
            due=now,
        )
        if failure.hold >= 0:
            (value,) = self.transport.get(self.id, "hold", [row_key(failure.hold)])
            assert value is not None
            entry = _decoded(decode_hold, value, "hold entry")
        if failure.behind:
            if failure.hold < 0:  # else it stays where it stands in its line
                entry.behind = True
                self._hold(entry)
            return
        entry.attempts += 1
        entry.behind = False
        if failure.named:
            entry.named_deaths += 1
            entry.careful = True
        entry.kind, entry.text = failure.kind[:_MAX_KIND], failure.text[:_MAX_TEXT]
        entry.trace = self._keep_text(failure.trace[:_MAX_TEXT])
        self.app.stats.failures[f"{failure.event}>{failure.node}"] += 1
        verdict = (
            "dead"
            if failure.final
            else after_failure(
                slot,
                entry.attempts,
                entry.named_deaths if failure.named else 0,
                self.app.limits.named_deaths,
            )
        )
        if verdict == "dead":
            self._bury(entry, now)
            if failure.hold >= 0:
                self._release(failure.hold, now)
            return
        entry.locks = locks_key(slot, failure.key, verdict)
        entry.stopped = verdict == "stop"
        entry.due = now + int(1e6 * backoff(slot, entry.attempts, self.rng))
        if failure.hold >= 0:
            packed = encode(entry)
            self._draft.put("hold", row_key(failure.hold), packed)
            self.holds.change(failure.hold, entry, len(packed))
        else:
            self._hold(entry)

    def _hold(self, entry: HoldEntry) -> None:
        number = self.head.next_hold
        self.head.next_hold += 1
        packed = encode(entry)
        self._draft.put("hold", row_key(number), packed)
        self.holds.add(number, entry, len(packed))
        self.app.holds += 1

    def _release(self, number: int, now: int) -> None:
        self._draft.put("hold", row_key(number), None)
        self.holds.remove(number, now)
        self.app.holds -= 1

    def _keep_text(self, text: str) -> bytes:
        """Store a traceback once; returns its key."""
        if not text:
            return b""
        packed = text.encode("utf-8", "replace")
        key = hashlib.blake2b(packed, digest_size=8).digest()
        self._draft.put("text", key, packed)
        return key

    def _bury(self, entry: HoldEntry, now: int) -> None:
        letter = DeadLetter(
            entry.node,
            entry.event,
            entry.id,
            entry.key,
            entry.created,
            entry.body,
            entry.attempts,
            now,
            entry.kind,
            entry.text,
            entry.trace,
            entry.context,
        )
        self.bury(letter)
        if entry.context is not None and entry.context.request:
            error = {"error": {"code": entry.kind, "text": entry.text, "node": entry.node, "note": _REPLY_DEAD}}
            self._reply([(entry.context, encode(error), True)], now)

    def bury(self, letter: DeadLetter) -> None:
        """Add a dead letter."""
        self._draft.put("dead", row_key(self.head.next_dead), encode(letter))
        self.head.next_dead += 1
        self.app.stats.dead += 1

    # ------------------------------------------------------------------ timers

    def _add_timer(self, due: int, entry: TimerEntry) -> None:
        key = timer_key(due, self.head.next_timer)
        self.head.next_timer += 1
        self._draft.put("timer", key, encode(entry))
        self._draft.new_timers.append((due, key))
        self.app.timers += 1

    def fire(self, now: int) -> bool:
        """Let timers that are due go off, a bounded number at once, in due order."""
        if not self.settled or not self._timers or self._timers[0][0] > now:
            return False
        bodies: dict[tuple[str, int], list[bytes]] = {}
        for key, entry in self._take_timers(now):
            self._draft.put("timer", key, None)
            self.app.timers -= 1
            if entry.context is not None:
                self.send(entry.log, entry.partition, entry.body, 1, [entry.context], now)
            elif self.app.names_of(entry.log) is not None:
                bodies.setdefault((entry.log, entry.partition), []).append(entry.body)
        for (log, number), parts in bodies.items():
            for group in _grouped(parts, len, self.app.limits.batch_max):
                self.send(log, number, b"".join(group), len(group), [], now)
        if not self._timers and self._timers_end is not None:
            self._draft.then.append(self._load_timers)
        self.flush()
        return True

    def _take_timers(self, now: int) -> Iterator[tuple[bytes, TimerEntry]]:
        """Those that are due, as many as one commit should hold."""
        left = self.app.limits.dispatch_bytes
        for _ in range(_TIMERS_AT_ONCE):
            if left <= 0 or not self._timers or self._timers[0][0] > now:
                return
            _, key = heapq.heappop(self._timers)
            (value,) = self.transport.get(self.id, "timer", [key])
            if value is None:
                raise Corrupt(f"a timer of partition {self.pool}/{self.number} is missing")
            left -= len(value)
            yield key, _decoded(decode_timer, value, "timer")

    # ------------------------------------------------------------------ expiry

    def add_expiry(self, due: int, table: Literal["state", "text"], key: bytes) -> None:
        """The row may go when it is ``due`` (microseconds of wall time)."""
        self._draft.put("expiry", timer_key(due, self.head.next_timer), encode(Expiry(table, key)))
        self.head.next_timer += 1
        self._next_expiry = min(self._next_expiry, due)

    def expire(self, now: int) -> None:
        """Remove what has expired, a bounded number at once; nobody waits for it."""
        if now < self._next_expiry or not self.settled:
            return
        due = self.transport.scan(self.id, "expiry", b"", _EXPIRIES_AT_ONCE, timer_key(now + 1, 0))
        self._next_expiry = self._first_expiry(now + 1 if len(due) < _EXPIRIES_AT_ONCE else 0)
        for place, value in due:
            self._draft.put("expiry", place, None)
            entry: Expiry = _decoded(decode_expiry, value, "expiry")
            if entry.table == "text":
                self._draft.put("text", entry.key, None)
                continue
            (record,) = self.transport.get(self.id, "state", [entry.key])
            last = 0 if record is None else expiry_of(record)
            if last > now:
                self.add_expiry(last, "state", entry.key)  # it was written again since
            elif last:
                self._draft.put("state", entry.key, None)
        self.flush()

    def next_expiry(self) -> int | None:
        """When `expire` has something to do (microseconds of wall time)."""
        return self._next_expiry if self._next_expiry < _NEVER and self.settled else None

    def _first_expiry(self, after: int) -> int:
        rows = self.transport.scan(self.id, "expiry", timer_key(after, 0), 1)
        return int.from_bytes(rows[0][0][:8], "big") if rows else _NEVER

    # ------------------------------------------------------------------ from outside

    def take_in(
        self, pool: str, name: str, key: str | None, data: bytes, event_id: str, context: Context, now: int
    ) -> None:
        """An event from a client (without a number of its own), for one of the pools that listen to it."""
        ids = {0: event_id} if event_id else None
        contexts = [context] if context != Context() else []
        body = codec.one(name, key, msgspec.Raw(data), ids=ids, contexts=[0] if contexts else None)
        self.send(pool, self.number, body, 1, contexts, now)

    def remember(self, event_id: str, content: int, now: int) -> None:
        """A client's id, to recognise it when it comes again within the dedup-horizon."""
        key = CLIENT_ID + event_id.encode()
        self._draft.put("text", key, now.to_bytes(8, "big") + content.to_bytes(4, "big"))
        self.add_expiry(now + int(self.app.limits.dedup_horizon * 1e6), "text", key)

    def pending_text(self, key: bytes) -> bytes | None:
        """A text that is about to be committed."""
        for draft in (self._draft, self._committing):
            value = None if draft is None else draft.rows.get("text", {}).get(key)
            if value is not None:
                return value
        return None

    def pending_state(self, key: bytes, committed: bytes | None) -> bytes | None:
        """A state record as the draft or the commit under way has it, else ``committed``."""
        for draft in (self._draft, self._committing):
            if draft is not None and key in draft.rows.get("state", {}):
                return draft.rows["state"][key]
        return committed

    def then(self, callback: Callable[[], None]) -> None:
        """Call when what is in the draft now has been committed."""
        self._draft.then.append(callback)
        self._draft.changed = True

    # ------------------------------------------------------------------ when the code has changed

    def stored(self) -> Iterator[Stored]:
        """Every batch in the log that is not finished.

        Raises:
            Corrupt: one is not what was written.
        """
        at = self.head.cursor.position
        while found := self.transport.read(self.id, at, self.app.limits.dispatch_bytes):
            for stored in found:
                codec.check(stored.batch)
                at = stored.position + 1
                if not self.head.cursor.is_finished(stored.position):
                    yield stored

    def unfinished(self) -> Iterator[tuple[OpenBatch, Progress, bytes]]:
        """Batches that are to be worked on, how far each is, and its bytes. Those of one origin may lie there in
        another order than that of their numbers."""
        found: set[int] = set()
        is_more = True
        while is_more:
            for stored in self.stored():
                if stored.position not in found:
                    batch = self.inbox.offer(stored.position, codec.header_of(stored.batch), len(stored.batch))
                    if batch is not None:
                        found.add(stored.position)
                        yield batch, self.head.cursor.progress(stored.position), stored.batch
            is_more = self.inbox.unpark()

    def finish_unstarted(self, position: int, index: int) -> None:
        """One event of an open batch is finished without having been handed out."""
        batch = self.inbox.open[position]
        newly = self.inbox.progress(position, self.head.cursor.progress(position).with_done(index))
        self._forget(newly, 0 if position in self.inbox.open else batch.size)
        self._draft.changed = True

    def give_up(self, entry: HoldEntry, kind: str, text: str) -> None:
        """The event becomes a dead letter."""
        self._bury(msgspec.structs.replace(entry, kind=kind, text=text), self.clock.now())

    def release(self, number: int) -> None:
        """A hold entry is done with."""
        self._release(number, self.clock.now())

    def catch_up(self) -> None:
        """Pairs that did not chain in older code chain once `may_chain` says so."""
        self.head.catching_up = True
        self._draft.changed = True

    def put_row(self, table: Table, key: bytes, value: bytes | None) -> None:
        """Write or remove a row with the next commit."""
        self._draft.put(table, key, value)

    # ------------------------------------------------------------------ commit

    def flush(self) -> None:
        """Submit the draft if there is something in it and no commit is under way.

        Raises:
            TooLarge: the transport refuses it; it is still the draft then.
        """
        if self._committing is not None or not self._draft.changed:
            return
        position, above = self.inbox.advance()
        draft = self._draft
        rows: list[tuple[Table, Rows]] = [(table, list(rows.items())) for table, rows in draft.rows.items()]
        self._committer.submit(
            encode(self.head),
            draft.sends,
            rows,
            (Trim(self.id, position),),
            tuple((self.id, at) for at in above),
            then=partial(self._committed, draft),
        )
        self._draft, self._committing = _Draft(), draft

    def _committed(self, draft: _Draft) -> None:
        self._committing = None
        self.app.stats.commits += 1
        for due, key in draft.new_timers:
            if self._timers_end is None or due < self._timers_end:
                heapq.heappush(self._timers, (due, key))
        for then in draft.then:
            then()
        self.flush()


def _grouped(items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
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


def _decoded(decode: Callable[[bytes], T], value: bytes, what: str) -> T:
    try:
        return decode(value)
    except (msgspec.MsgspecError, ValueError) as e:
        raise Corrupt(f"a stored {what} cannot be read: {e}") from None
