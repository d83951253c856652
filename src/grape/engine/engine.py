"""The engine: owns the log, hands batches to workers, commits results. A state machine driven by calls.

It does no I/O of its own: workers are behind `Link`s, the log behind a `Transport`, time behind a `Clock`. So the same
code runs under asyncio with processes and LMDB, and under the simulator with a fake clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from grape.abc.transport import Arrival, Claim, Commit, Outcome
from grape.engine.app import App
from grape.engine.blame import blame, hopeless, stuck
from grape.engine.committer import Committer, Fenced
from grape.engine.dues import Dues
from grape.engine.first import Failed
from grape.engine.gate import Gate
from grape.engine.handshake import Handshake
from grape.engine.numbers import numbers_of
from grape.engine.objects import AppObjects
from grape.engine.partition.partition import Partition
from grape.engine.pool import Pool, what_says_most
from grape.engine.questions import UNREAD_BYTES, Questions
from grape.engine.rates import Rates
from grape.engine.standstill import STANDSTILL
from grape.engine.surroundings import Sizes, Surroundings
from grape.engine.worker import Worker
from grape.errors import Corrupt, GrapeError, ProtocolError, Runaway
from grape.model.address import PartitionId
from grape.model.numbers import AppNumbers
from grape.model.profile import Profile
from grape.model.stored import CLIENT_ID
from grape.protocol.messages import (
    Announce,
    Ask,
    Beat,
    Fetch,
    FromWorker,
    Hello,
    Keep,
    Lease,
    Refusal,
    Result,
    Stuck,
)

_CREDIT: Final = 3
"""Works a synchronous worker may have: one that runs, and what keeps it busy while that one is committed. With async
slots any number of works run at once, within what a partition may have in work."""
_DUMPED: Final = 40
"""Lines, and numbers in one, of a dump."""
_CATCH_UP: Final = 10_000_000
"""So long sources wait for what older code left (microseconds); a cycle may never end."""


class Engine:
    """One app in its surroundings.

    Args:
        app: as the catalog has it.
        claims: of the partitions of its pools that are to be served here; other engines may have the others.
        reserve: bytes of room at which nothing is taken in any more.

    Attributes:
        tell: told of every event that fails, with the name of its worker.
        holds_back: asked before anything is handed out; then nothing more is.
        gate: whether anything may come in. handshake: what workers hear first. questions: what they asked for.
    """

    def __init__(
        self, app: App, around: Surroundings, sizes: Sizes, claims: Mapping[PartitionId, Claim], reserve: int = 0
    ) -> None:
        self.app = app
        self.transport = around.transport
        self.clock = around.clock
        self._around = around
        self.tell: Callable[[str, Failed], None] | None = None
        self.holds_back: Callable[[], bool] = lambda: False
        self.failure: GrapeError | None = None
        self.draining = False
        self._catch_up_until = self.clock.now() + _CATCH_UP
        self._owners: dict[PartitionId, Partition] = {}
        self._others: dict[PartitionId, Committer] = {}
        self._joining: dict[PartitionId, Callable[[Claim], None]] = {}
        self._arrivals: dict[PartitionId, list[Callable[[Arrival], None]]] = {}
        self._dues: Dues[Partition] = Dues(_due)
        self.questions = Questions(app)
        self.objects = AppObjects(app, around)
        self.pools: dict[str, Pool] = {}

        def may_start() -> bool:
            return sum(pool.starting for pool in self.pools.values()) < sizes.starts_at_once

        for_pools = around._replace(failed=self.stop_with)
        for spec in app.topology.pools:
            profile = sizes.profiles.get(spec.name, Profile())
            partitions = {
                n: self._partition(spec.name, n, claims[log], is_long=spec.long)
                for n in range(app.partitions)
                if (log := app.log(spec.name, n)) in claims
            }
            pool = Pool(spec, profile, sizes.workers, partitions, app, for_pools, self._pump, may_start)
            self.pools[spec.name] = pool
        self.gate = Gate(app, {name: pool.profile for name, pool in self.pools.items()}, self.transport.room, reserve)
        self._rates = Rates(app, self.clock.now())
        self.handshake = Handshake(app, self.pools, self.clock)

    def _partition(self, pool: str, number: int, claim: Claim, *, is_long: bool) -> Partition:
        partition = Partition(self.app, pool, number, self.transport, self.clock, self._around.rng, claim)
        partition.dispatch.is_long = is_long
        self._owners[partition.id] = partition
        self._dues.touch(partition)
        if partition.answers.log is not None:
            self.on_arrival(partition.answers.log, lambda _: self._take_answers(partition))
        return partition

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Read what has come meanwhile, and start the workers."""
        self.objects.start()
        for partition in self._owners.values():
            self._take_answers(partition)
        for pool in self.pools.values():
            pool.reconcile()

    def _take_answers(self, partition: Partition) -> None:
        if self.failure is None:
            try:
                partition.answers.take()
                partition.flush()
            except GrapeError as e:
                self.trouble(partition, e)

    def drain(self) -> None:
        """Hand out nothing more; what is running is still committed."""
        self.draining = True
        self._rates.end(self.clock.now())
        for partition in self._owners.values():
            partition.flush()  # what waits in a draft for its handler does so no longer
        for pool in self.pools.values():
            pool.freeze()

    @property
    def in_flight(self) -> bool:
        """Works or commits are under way."""
        return any(not p.quiet for p in self._owners.values())

    @property
    def finished(self) -> bool:
        """Nothing is left to do, now or later."""
        return self.objects.is_shipped and all(p.finished for p in self._owners.values())

    @property
    def waits_only_for_time(self) -> bool:
        """Whatever is left becomes due later."""
        now = self.clock.now()
        quiet = (p.quiet and not p.backlog.events and (p.next_due() or now + 1) > now for p in self._owners.values())
        return all(quiet) and self.objects.is_shipped

    @property
    def stopped_events(self) -> int:
        """Failed events with ``on_fail="stop"`` that wait for an operator."""
        return sum(p.holds.stopped for p in self._owners.values())

    def next_due(self) -> int | None:
        """When the next timer or retry is due (microseconds of wall time)."""
        return min((d for p in self._owners.values() if (d := p.next_due()) is not None), default=None)

    def stop_with(self, error: GrapeError) -> None:
        """Something that cannot be gone on from."""
        if self.failure is None:
            self.failure = error
            self._around.failed(error)

    # ------------------------------------------------------------------ transport

    def own(self, committer: Committer) -> None:
        """It is told of what becomes of its commits, as partitions are: it is a source's or a taker's."""
        self._others[committer.partition] = committer

    def claim(
        self, partitions: Mapping[PartitionId, str], then: Callable[[dict[PartitionId, Committer]], None]
    ) -> None:
        """Have these, which nobody here has yet (of a source or taker), from now on; the value names each in errors.
        ``then`` gets their committers."""
        found: dict[PartitionId, Committer] = {}

        def joined(partition: PartitionId, claim: Claim) -> None:
            committer = found[partition] = Committer(self.transport, partition, partitions[partition], claim)
            self.own(committer)
            if len(found) == len(partitions):
                then(found)

        self._joining.update((partition, partial(joined, partition)) for partition in partitions)
        self.transport.claim(list(partitions))

    def on_arrival(self, log: PartitionId, call: Callable[[Arrival], None]) -> None:
        """Call when something arrived in ``log`` (an output)."""
        self._arrivals.setdefault(log, []).append(call)

    def done(self, outcomes: list[tuple[Commit, Outcome]]) -> None:
        """`Callbacks.done`."""
        for commit, outcome in outcomes:
            owner = self._owners.get(commit.partition) or self._others.get(commit.partition)
            if owner is not None:  # else it was lost
                self._told(owner, partial(owner.done, commit, outcome))
            self.objects.done(commit, outcome)

    def claimed(self, claims: list[tuple[PartitionId, Claim]]) -> None:
        """`Callbacks.claimed`: of those whose commits ended unknown, and of new ones."""
        for partition, claim in claims:
            if (joined := self._joining.pop(partition, None)) is not None:
                joined(claim)
                continue
            owner = self._owners.get(partition) or self._others.get(partition)
            if owner is not None:
                self._told(owner, partial(owner.claimed, claim))
        self.objects.claimed()

    def _told(self, owner: Partition | Committer, tell: Callable[[], None]) -> None:
        """The transport has something for it."""
        if self.failure is not None:
            return
        try:
            tell()
            if isinstance(owner, Partition):
                self._dues.touch(owner)
                self._settled(owner)
        except GrapeError as e:
            if isinstance(owner, Partition):
                self.trouble(owner, e)
            else:
                self.stop_with(e)

    def trouble(self, partition: Partition, error: GrapeError) -> bool:
        """It cannot go on; returns whether the rest can. If what is stored of it seems damaged, it may be that another
        engine has it by now."""
        if isinstance(error, Fenced):
            self._lose(partition, error)
        elif isinstance(error, Corrupt) and error is not partition.ledger.error:
            partition.ledger.doubt(error)
        else:
            self.stop_with(error)
            return False
        return True

    def _lose(self, partition: Partition, why: Fenced) -> None:
        """It leaves this engine; whatever else there is goes on."""
        del self._owners[partition.id]
        if partition.answers.log is not None:
            del self._arrivals[partition.answers.log]
        self._dues.forget(partition)
        self.questions.lose(partition)
        partition.leave()
        self.pools[partition.pool].lose(partition)
        self._around.notice(f"{why}: its events are processed there, all others here as before")

    def arrived(self, arrivals: list[Arrival]) -> None:
        """`Callbacks.arrived`."""
        for arrival in arrivals:
            partition = self._owners.get(arrival.partition)
            if partition is None:
                for call in self._arrivals.get(arrival.partition, ()):
                    call(arrival)
                continue
            partition.backlog.add(arrival.events, arrival.size)
            self._offer(partition)
            self._pump_owner(partition)

    def transport_failed(self, error: BaseException) -> None:
        """`Callbacks.failed`."""
        self.stop_with(error if isinstance(error, GrapeError) else Corrupt(str(error)))

    def _settled(self, partition: Partition) -> None:
        """A commit of it is done with."""
        owner = self.pools[partition.pool].owner(partition.number)
        while owner is not None and owner.is_heard and (result := partition.next_result()) is not None:
            self._apply_later(owner, partition, result)
        if partition.answers.has_more:
            partition.answers.take()
            partition.flush()
        if partition.settled:
            self.questions.settled(partition)
            if owner is not None and not partition.chains and not partition.works and partition.may_chain:
                self.pools[partition.pool].give(partition, owner)
            self._offer(partition)
            self._pump_owner(partition)

    def _apply_later(self, worker: Worker, partition: Partition, result: Result) -> None:
        try:
            self._apply(worker, partition, result)
        except ProtocolError as e:
            worker.cut(f"it broke the protocol: {e}", self.clock.now())

    # ------------------------------------------------------------------ dispatch

    def _offer(self, partition: Partition) -> None:
        worker = self.pools[partition.pool].owner(partition.number)
        if worker is not None:
            worker.queue(partition.number)

    def _pump_owner(self, partition: Partition) -> None:
        if (worker := self.pools[partition.pool].owner(partition.number)) is not None:
            self._pump(worker)

    def pump(self) -> None:
        """Give every worker what it can take."""
        for pool in self.pools.values():
            for worker in list(pool.workers.values()):
                if worker.serves:
                    self._pump(worker)

    def _pump(self, worker: Worker) -> None:
        if not worker.queued or not worker.serves or self.draining or self.failure or self.holds_back():
            return
        now = self.clock.now()
        credit = 1 if self.pools[worker.pool].is_long else _CREDIT
        while partition := worker.next_partition():
            has_enough = len(worker.outstanding) >= credit and not partition.dispatch.top_up
            if has_enough or worker.link.unread > UNREAD_BYTES:
                worker.queue(partition.number)
                return
            if not partition.has_work(now):
                continue
            try:
                work = partition.make_work(now)
            except GrapeError as e:
                if self.trouble(partition, e):
                    continue
                return
            if work is not None:
                worker.hand_out(work, now)

    def hand_out_eagerly(self, partition: Partition, now: int) -> None:
        """What was just taken in; only where it may be."""
        self.pools[partition.pool].hand_out_eagerly(partition, now)
        self._dues.touch(partition)

    # ------------------------------------------------------------------ workers

    def received(self, pool: str, index: int, link: object, message: FromWorker) -> None:
        """A worker said something."""
        worker = self._worker(pool, index, link)
        if worker is None or not worker.is_heard or self.failure is not None:
            return
        worker.heard = self.clock.now()
        if not isinstance(message, Beat):
            worker.standstill.moves()
        try:
            self._take(worker, message)
        except ProtocolError as e:
            self.broken(pool, index, link, e)
        except GrapeError as e:
            self.stop_with(e)

    def _take(self, worker: Worker, message: FromWorker) -> None:
        match message:
            case Result():
                self._result(worker, message)
            case Ask():
                self.questions.ask(worker, self._named(worker, message), message)
            case Fetch() | Keep():
                self.objects.ask(worker, self._assigned(worker, message), message)
            case Announce():
                if self._named(worker, message) is not None:
                    worker.announces(message)
            case Lease():
                self._rates.ask(worker, message, self.clock.now())
            case Stuck():
                if (partition := self._named(worker, message)) is not None:
                    stuck(worker, partition, message)
                    worker.cut(worker.explained, self.clock.now())  # it ends itself; not every runtime can, everywhere
            case Beat():
                if worker.life == "welcome":
                    self.handshake.set_up(worker)
                else:
                    self._look_at(worker, message)
            case Hello():
                self.handshake.hello(worker, message)
            case Refusal():
                if (error := self.handshake.refused(worker, message)) is not None:
                    self.stop_with(error)

    def _worker(self, pool: str, index: int, link: object) -> Worker | None:
        worker = self.pools[pool].workers.get(index)
        return worker if worker is not None and worker.link is link else None

    def broken(self, pool: str, index: int, link: object, error: ProtocolError) -> None:
        """What a worker sent is no protocol: replace it."""
        if (worker := self._worker(pool, index, link)) is not None:
            worker.cut(f"it broke the protocol: {error}", self.clock.now())

    def _look_at(self, worker: Worker, beat: Beat) -> None:
        """Whether it, or the engine, has lost something: that is a bug, and no reason to stand still."""
        now = self.clock.now()
        lies = not self.holds_back() and any(p.has_work(now) for p in worker.partitions.values())
        if beat.running or not worker.serves or self.draining or not (worker.outstanding or lies):
            worker.standstill.moves()
        elif worker.standstill.stands(now):
            what = f"worker {worker.name} has stood still for {STANDSTILL // 1_000_000} s although work waits"
            self._around.notice("\n".join([what, *(f"  {line}" for line in dump(worker, now))]))
            if worker.outstanding:
                worker.cut(what, now)  # what it had is handed out again
            else:
                for number in worker.partitions:
                    worker.queue(number)
                self._pump(worker)

    def _assigned(self, worker: Worker, message: Result | Ask | Announce | Stuck | Fetch | Keep) -> Partition | None:
        """The partition that a message is about; None, counted: it is no longer the worker's."""
        partition = worker.partitions.get(message.partition)
        if partition is None or partition.epoch != message.epoch:
            self.app.stats.stale_frames += 1
            return None
        return partition

    def _named(self, worker: Worker, message: Ask | Announce | Stuck) -> Partition | None:
        """As `_assigned`, of a message that names a node."""
        partition = self._assigned(worker, message)
        node = self.app.node(message.node)
        if partition is not None and (node is None or node.pool != worker.pool):
            raise ProtocolError(f"a word about node {message.node!r:.300}, which is not in pool {worker.pool!r}")
        return partition

    def _result(self, worker: Worker, result: Result) -> None:
        partition = self._assigned(worker, result)
        if partition is not None and not partition.defers(result):
            self._apply(worker, partition, result)

    def _apply(self, worker: Worker, partition: Partition, result: Result) -> None:
        try:
            failed = partition.apply(result)
        except Corrupt as e:
            self.trouble(partition, e)
            return
        if self.tell is not None:
            for failure in failed:
                self.tell(worker.name, failure)
        elapsed = worker.handed_in(result, self.clock.now())
        partition.flush()
        self._dues.touch(partition)
        pool = self.pools[worker.pool]
        pool.progressed(worker, result.counts, elapsed)
        pool.work_ended(partition)
        self._pump(worker)

    def gone(self, pool: str, index: int, link: object, how: str) -> str:
        """The worker process has ended; ``how`` says so ("killed by signal 9 (SIGKILL)"). Returns why, if it should not
        have, else ""."""
        worker = self._worker(pool, index, link)
        if worker is None or worker.life == "gone":
            return ""
        is_expected = worker.leaves or self.draining
        served = worker.has_served and not worker.leaves
        worker.step("end", self.clock.now())
        if self.failure is not None:
            return ""
        why = worker.explained or how
        was_named, lost = worker.is_named, None
        if not is_expected:
            fate = " is replaced" if served else ""  # else it never was one
            self._around.notice(f"worker {worker.name}{fate}: {what_says_most(why)}")
            if served:
                self.app.stats.worker_deaths += 1
                was_named = worker.is_named or blame(worker, why)
            lost = hopeless(worker)
        self.objects.gone(worker)
        for partition in worker.partitions.values():
            self.questions.forget(partition)
            partition.flush()  # what it had of a draft is done again once that is committed
            self._dues.touch(partition)
        self.pools[pool].ended(worker, why, not is_expected and not was_named)
        if lost is not None:
            try:
                lost.partition.give_up_root(lost.root, f"no worker can handle it, nor hand it in as failed: {why}")
                lost.partition.flush()
            except GrapeError as e:
                self.trouble(lost.partition, e)
        return "" if is_expected else why

    # ------------------------------------------------------------------ time

    def tick(self) -> int | None:
        """Do what is due; returns when to call again at the latest (microseconds of wall time)."""
        if self.failure is not None:
            return None
        now = self.clock.now()
        for partition in self._dues.take(now) if not self.draining else ():
            try:
                if partition.fire(now):
                    self._offer(partition)
            except GrapeError as e:
                if not self.trouble(partition, e):
                    return None
        wakes = [at for pool in self.pools.values() if (at := pool.tick(now)) is not None]
        self.pump()
        if not self.draining and (due := self._dues.next()) is not None:
            wakes.append(due)
        wakes += [at for at in (self._rates.give(now), self.objects.tick(now)) if at is not None]
        if self._is_catching_up():
            wakes.append(self._catch_up_until)
        return max(min(wakes), now) if wakes else None

    # ------------------------------------------------------------------ intake

    def feeding_is_open(self, pools: Iterable[str], *, is_of_other: bool = False) -> bool:
        """Whether sources, or another app, may feed these pools: after a change of code that lets more pairs chain not
        until nothing of before waits. Only then can the pairs chain."""
        return self.intake_is_open(pools, is_of_other=is_of_other) and not self._is_catching_up()

    def _is_catching_up(self) -> bool:
        if self._catch_up_until:
            behind = any(p.head.catching_up for p in self._owners.values())
            if not behind or self.clock.now() >= self._catch_up_until:
                self._catch_up_until = 0
        return self._catch_up_until > 0

    def remembered(self, pool: str, number: int, event_id: str) -> tuple[int, bool] | None:
        """What tells the content of the event that was accepted under this id, and whether that was a call (see
        `Memory.remember`), also if its commit is under way. ``pool`` may be one that the topology has no more."""
        key = CLIENT_ID + event_id.encode()
        partition = self._owners.get(self.app.log(pool, number))
        value = None if partition is None else partition.ledger.pending("text", key, None)
        if value is None:
            (value,) = self.transport.get(self.app.log(pool, number), "text", [key])
        return None if value is None else (int.from_bytes(value[8:12], "big"), value[12:] != b"\0")

    def intake_is_open(self, pools: Iterable[str], *, is_of_other: bool = False) -> bool:
        """Whether anything may come into these pools from outside."""
        return self.failure is None and not self.draining and self.gate.is_open(pools, is_of_other=is_of_other)

    def check_room(self) -> None:
        """Stop a run that eats the reserve."""
        try:
            self.gate.check_room()
        except Runaway as e:
            self.stop_with(e)

    def numbers(self) -> AppNumbers:
        """Everything that is measured, as it is now."""
        return numbers_of(self.app, self.pools, self.clock.now())

    def partition(self, pool: str, number: int) -> Partition:
        return self.pools[pool].partitions[number]

    def check_ends(self) -> None:
        """End those that were asked to, and do not."""
        for pool in self.pools.values():
            pool.check_lives(self.clock.now())

    def stop_workers(self) -> None:
        """Ask all to end."""
        for pool in self.pools.values():
            pool.close()


def dump(worker: Worker, now: int) -> list[str]:
    """A worker and its partitions as they stand, for whoever has to find out why nothing moves."""
    lines = [
        f"{worker.name}: {worker.life}, works {list(worker.outstanding)[:_DUMPED]}, queue "
        f"{list(worker.queued)[:_DUMPED]}, heard {(now - worker.heard) / 1e6:.1f} s ago, "
        f"{worker.link.unread} bytes unread"
    ]
    for partition in worker.partitions.values():
        if partition.works or partition.backlog.events or not partition.quiet:
            lines.append(partition.describe(now))
    return lines[:_DUMPED]


def _due(partition: Partition, after: int) -> int | None:
    """When something of it is due that no other call will find. While a commit is under way nothing is; a retry that
    was due then waits for a worker that can take it."""
    if not partition.settled:
        due = partition.ledger.draft.waits_until
        return due if due is not None and due > after else None
    dues = (partition.timers.next_due(), partition.expiries.next_due(), partition.holds.next_due())
    return min((due for due in dues if due is not None and due > after), default=None)
