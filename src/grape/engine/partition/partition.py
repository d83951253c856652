"""One partition of a pool: what waits, what is in work, and the next commit.

    log --Inbox--> Work --worker--> Result --apply--> draft --Commit--> transport --done--> (next Work)

Everything that changes the partition goes into the draft of its ledger: results, timers that became due, events from
outside.
"""

from __future__ import annotations

import random
from collections import deque

from grape.abc.transport import Claim, Transport
from grape.engine.app import App
from grape.engine.clock import Clock
from grape.engine.first import Failed
from grape.engine.inbox import own_origin
from grape.engine.partition import log
from grape.engine.partition.answers import Answers
from grape.engine.partition.backlog import Backlog
from grape.engine.partition.careful import Careful, Root
from grape.engine.partition.dispatch import Dispatch, Dispatched
from grape.engine.partition.eager import Eager
from grape.engine.partition.expiry import Expiries
from grape.engine.partition.failures import Failures
from grape.engine.partition.ledger import Ledger
from grape.engine.partition.memory import Memory
from grape.engine.partition.results import Results, size_of
from grape.engine.partition.spans import Spans
from grape.engine.partition.timers import Timers
from grape.model import batch as codec
from grape.model.objects import ObjectWrite
from grape.protocol.messages import Result, Work


class Partition:
    """Puts the parts together, and answers what concerns several of them.

    ``claim``: what was found when it was claimed. ``epoch`` counts who has had it; ``chains``: whether the worker that
    has it may chain all pairs. Every method, also of the parts, is called from the engine's thread.
    """

    def __init__(
        self, app: App, pool: str, number: int, transport: Transport, clock: Clock, rng: random.Random, claim: Claim
    ) -> None:
        self.app = app
        self.pool = pool
        self.number = number
        self.ledger = ledger = Ledger(app, pool, number, transport, clock, claim)
        self.id = ledger.id
        self.head = ledger.head
        self.inbox = ledger.inbox
        self.done = ledger.done
        self.claimed = ledger.claimed
        self.flush = ledger.flush
        self.backlog = Backlog(ledger)
        self.failures = Failures(ledger, rng)
        self.holds = self.failures.list
        self.answers = Answers(ledger, self.failures)
        self.eager = Eager(ledger, self.failures)
        self.timers = Timers(ledger)
        self.expiries = Expiries(ledger)
        self.memory = Memory(ledger, self.expiries)
        self.careful = Careful(app.limits.named_deaths)
        top_up = any(node.is_async for node in app.topology.nodes if node.pool == pool)
        self.spans = Spans(ledger)
        self.dispatch = Dispatch(ledger, self.backlog, self.failures, self.careful, self.spans, top_up)
        self._results = Results(
            ledger, self.backlog, self.dispatch, self.careful, self.failures, self.eager, self.timers, self.expiries
        )
        self.works = self.dispatch.works
        self._later: deque[Result] = deque()
        self.epoch = 0
        self.chains = True
        ledger.committed = self.timers.committed
        ledger.let_go()

    # ------------------------------------------------------------------ questions

    @property
    def settled(self) -> bool:
        """Nothing is being committed or waiting to be."""
        return self.ledger.settled

    @property
    def has_all_state(self) -> bool:
        """What is stored of state is all there is: nothing that changes it is being committed or waiting to be."""
        return not self._later and self.ledger.is_committed("state")

    @property
    def quiet(self) -> bool:
        """Nothing is in work, being committed, or waiting to be."""
        return not self.works and self.settled

    @property
    def finished(self) -> bool:
        """Nothing is left to do now or later, but for what an operator has to decide: stopped entries, and what waits
        behind them."""
        return self.quiet and not self.backlog.events and self.next_due() is None

    @property
    def is_empty(self) -> bool:
        """No state is stored, nor about to be."""
        return self.settled and not self.ledger.transport.scan(self.id, "state", b"", 1)

    def next_due(self) -> int | None:
        """When something becomes due by itself: a retry or a timer (microseconds of wall time)."""
        dues = (self.timers.next_due(), self.holds.next_due())
        return min((due for due in dues if due is not None), default=None)

    def waiting_since(self, now: int) -> int | None:
        """When the oldest event was made, or became due, that no worker has; None: there is none."""
        times = [due for due in (self.holds.next_due(),) if due is not None and due <= now]
        times += [self.inbox.open[p].header.created for p in self.inbox.idle() if p in self.inbox.open]
        found = self.ledger.transport.read(self.id, self.inbox.read_to, 1)
        times += [codec.header_of(stored.batch).created for stored in found[:1]]
        return min(times, default=None)

    def describe(self, now: int) -> str:
        """In a line: what waits, what is out, what is being committed."""
        works = [
            f"{w.seq}: {w.events} events of {len(w.positions)} batches, {len(w.holds)} held"
            for w in self.works.values()
        ]
        ledger = self.ledger
        state = "committing" if ledger.committing is not None else "draft" if ledger.draft.changed else "settled"
        return (
            f"partition {ledger.name}: epoch {self.epoch}, {state}, {self.backlog.events} events wait from "
            f"{self.head.cursor.position} on, read to {self.inbox.read_to}, open {sorted(self.inbox.open)[:20]}, "
            f"{len(self.holds)} held, works {works[:20]}, {self.careful.describe()}, "
            f"{'moving, ' if self.dispatch.is_moving else ''}{'full hold list, ' if self.failures.is_full else ''}"
            f"{'has' if self.has_work(now) else 'no'} work to hand out"
        )

    # ------------------------------------------------------------------ works

    def has_work(self, now: int) -> bool:
        """Whether `make_work` would find something."""
        return self.dispatch.has_work(now)

    def fire(self, now: int) -> bool:
        """Let go off what is due: a draft that has waited for its handler, timers, state that has expired. Returns
        whether a held event is due."""
        if (due := self.ledger.draft.waits_until) is not None and due <= now:
            self.flush()
        while self.timers.fire(now):
            pass
        self.expiries.expire(now)
        due = self.holds.next_due()
        return due is not None and due <= now

    def make_work(self, now: int, *, eager: bool = False) -> Work | None:
        """What the worker should do next; None: nothing (all that waits is in work already, or parked). ``eager``: what
        was just taken in.

        Raises:
            Corrupt: a stored batch or entry is not what was written.
        """
        return self.dispatch.make(self.epoch, now, eager=eager)

    @property
    def may_be_eager(self) -> bool:
        """Whether an event that comes now may run before it is accepted: nothing is before it, nor on its way."""
        return self.chains and self.settled and self.dispatch.may_be_eager and self._has_caught_up()

    def defers(self, result: Result) -> bool:
        """Whether it has to wait, as the next commit has no room for it; `next_result` gives it after that."""
        if not self._later and (not self.ledger.draft.size or self.ledger.has_room(size_of(result))):
            return False
        self._later.append(result)
        return True

    def object_write(self, place: bytes) -> ObjectWrite | None:
        """The last one of an object that was handed in and is not committed; None: there is none."""
        for result in reversed(self._later):
            for write in reversed(result.objects):
                if write.place == place:
                    return write
        for draft in self.ledger.uncommitted():
            if place in draft.objects:
                return draft.objects[place]
        return None

    def next_result(self) -> Result | None:
        """One that had to wait, and can be applied now."""
        if self._later and self.ledger.has_room(size_of(self._later[0])):
            return self._later.popleft()
        return None

    def apply(self, result: Result) -> list[Failed]:
        """Take a worker's result into the draft; returns which events have failed.

        Raises:
            ProtocolError: something in it cannot be true; nothing has been taken then.
        """
        return self._results.apply(result)

    # ------------------------------------------------------------------ workers come and go

    def reassign(self) -> int:
        """A new epoch: whatever a worker had is to be done again. Returns the epoch."""
        self.epoch += 1
        self.chains = self.may_chain
        if self.chains:
            self.head.catching_up = False  # stored with the next commit; until then a start looks again
        self._later.clear()
        self.dispatch.give_back()
        return self.epoch

    def leave(self) -> None:
        """Another engine has it: nothing of it is committed here any more, and nothing of it waits here."""
        self.ledger.is_lost = True
        self.backlog.add(-self.backlog.events, -self.backlog.size)
        self.failures.leave()
        self.timers.leave()
        self.works.clear()

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

    def died_carefully(self, work: Dispatched) -> Root | None:
        """A worker died over this work, root by root. Returns the first root of it that is not handed in once so many
        have died over that one that no worker seems to be able to."""
        root = self.dispatch.first_root(work)
        return root if root is not None and self.careful.died_over(root) else None

    def give_up_root(self, root: Root, text: str) -> None:
        """No worker can handle it, nor hand it in as failed."""
        self.careful.forget(root)
        log.give_up_root(self.ledger, self.backlog, self.failures, root, text)
