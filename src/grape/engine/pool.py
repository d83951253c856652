"""The workers of one pool: how many there are, which has which partition, how they come and go.

Three numbers are brought together at every tick: ``size`` (how many there should be: `Scaler`), how many there are, and
when the next may start (`Backoff`). Partitions follow: every one has a worker, evenly (`balance`). A partition leaves a
worker by *revoke* and comes to another by *assign*, when nothing of it is in work; one that only moves to even things
out does so once in ten seconds at most. A worker that is to end is *sealed*: it gives up its partitions, and then ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from grape.engine.app import App
from grape.engine.balance import balance
from grape.engine.grouping import Paces
from grape.engine.partition.partition import Partition
from grape.engine.questions import UNREAD_BYTES
from grape.engine.scaling import Backoff, Load, Scaler
from grape.engine.surroundings import Surroundings
from grape.engine.worker import Worker
from grape.errors import UserError
from grape.model.numbers import PoolNumbers
from grape.model.profile import Profile
from grape.model.topology import PoolSpec
from grape.protocol.messages import Assign, Revoke

_STARTS: Final = 3
"""Failures in a row after which a pool that never started gives up."""
_MOVE_AGAIN: Final = 10_000_000
_LOOK: Final = 200_000
_QUANTILES: Final = (0.5, 0.9, 0.99, 0.999)
_KILL_AFTER: Final = 2_000_000
"""SIGKILL follows SIGTERM."""


class Pool:
    """See the module.

    Args:
        spec, profile: what it is, and how it is kept.
        default_size: workers if the profile does not say.
        partitions: those that this engine has of it, by their numbers.
        pump: gives a worker what it can take.
        may_start: whether another worker of the engine may start now; many at once would all be slow. One always may.

    Attributes:
        is_paused: its workers are given nothing.
        rested: told when somebody waits for a partition to rest and a worker has less of it, or it has left the engine.
    """

    def __init__(
        self,
        spec: PoolSpec,
        profile: Profile,
        default_size: int,
        partitions: dict[int, Partition],
        app: App,
        around: Surroundings,
        pump: Callable[[Worker], None],
        may_start: Callable[[], bool],
    ) -> None:
        self.name = spec.name
        self.is_long = spec.long
        self.paces = Paces()
        self.profile = profile
        self.partitions = partitions
        self.workers: dict[int, Worker] = {}
        self.backoff = Backoff()
        self.size = min(profile.at_start(default_size), len(partitions))
        self.spawned = 0
        self.crashed = 0
        most = min(profile.limit(default_size), len(partitions))
        self.scaler = Scaler(
            min(profile.pool_min or 0, most), most, _us(profile.grow_threshold), _us(profile.idle_timeout)
        )
        self._stats = app.stats.pools[spec.name]
        self._around = around
        self._clock = around.clock
        self._notice = around.notice
        self._pump = pump
        self._may_start = may_start
        self.rested: Callable[[Partition], None] = _nobody
        self._owners: dict[int, Worker] = {}
        self._moving: dict[int, Worker | None] = {}
        self._moved_at: dict[int, int] = {}
        self._looked = 0
        self.was_ready = False
        self._has_worked = False
        self._was_complete = False
        self._is_closed = False
        self.is_paused = False

    # ------------------------------------------------------------------ questions

    def owner(self, partition: int) -> Worker | None:
        """The worker that has it."""
        return self._owners.get(partition)

    @property
    def members(self) -> list[Worker]:
        """Workers that may have partitions."""
        return [w for w in self.workers.values() if w.life == "ready"]

    @property
    def starting(self) -> int:
        return sum(w.comes for w in self.workers.values())

    @property
    def alive(self) -> int:
        """Workers that are there or on their way, and are to stay."""
        return sum(w.comes or w.life == "ready" for w in self.workers.values())

    @property
    def is_degraded(self) -> bool:
        """Its workers end without having done anything; the reason stands in ``backoff``."""
        return self.backoff.is_degraded

    def oldest(self, now: int) -> int:
        """How long the oldest event has waited for a worker (microseconds)."""
        times = [p.waiting_since(now) for p in self.partitions.values() if p.has_work(now)]
        return max(0, now - min((time for time in times if time is not None), default=now))

    def _load(self, now: int) -> Load:
        size = self.alive
        if self.is_paused:  # more workers would not help
            return Load(size, self.starting, 0, 0)
        waiting = sum(p.has_work(now) for p in self.partitions.values())
        return Load(size, self.starting, waiting, self.oldest(now) if 0 < size < self.scaler.most else 0)

    def may_be_eager(self, partition: Partition) -> bool:
        """Whether an event that comes now may run before it is accepted: its worker would begin with it at once."""
        worker = self._owners.get(partition.number)
        if worker is None or not worker.serves or worker.link.unread > UNREAD_BYTES or self.is_paused:
            return False
        return (not worker.outstanding or partition.dispatch.top_up) and partition.may_be_eager

    def hand_out_eagerly(self, partition: Partition, now: int) -> None:
        """What was just taken in; only where it may be."""
        work = partition.make_work(now, eager=True)
        if work is not None:
            self._owners[partition.number].hand_out(work, now)

    # ------------------------------------------------------------------ coming

    def reconcile(self) -> None:
        """Start what is missing, as far as it may start now."""
        if self._is_closed:
            return
        now = self._clock.now()
        while self.alive < self.size and now >= self.backoff.until and (not self.starting or self._may_start()):
            index = next(i for i in range(len(self.workers) + 1) if i not in self.workers)
            worker = self.workers[index] = Worker(self.name, index, now)
            self.spawned += 1
            worker.link = self._around.spawner.spawn(self.name, index)

    def joined(self, worker: Worker) -> None:
        """It has loaded the app and set it up."""
        worker.step("set up", self._clock.now())
        self.was_ready = True
        self.rebalance()
        self._was_complete = self._was_complete or (not self.starting and self.alive >= self.size)

    # ------------------------------------------------------------------ partitions

    def rebalance(self) -> None:
        """Give every partition a worker, evenly."""
        now = self._clock.now()
        owners: dict[int, int | None] = {}
        for partition in self.partitions.values():
            heir = self._moving.get(partition.number) or self._owners.get(partition.number)
            owners[partition.number] = None if heir is None else heir.index
        members = {worker.index: worker for worker in self.members}
        for number, index in balance(owners, list(members), lambda n: self._may_move(n, now)).items():
            self._move(number, members[index])

    def _may_move(self, number: int, now: int) -> bool:
        return number not in self._moving and now - self._moved_at.get(number, -_MOVE_AGAIN) >= _MOVE_AGAIN

    def _move(self, number: int, to: Worker | None) -> None:
        partition = self.partitions[number]
        if number not in self._owners:
            if to is not None:
                self.give(partition, to)
        elif self._owners[number] is to:
            self._moving.pop(number, None)
            partition.dispatch.is_moving = False
        else:
            self._moving[number] = to
            partition.dispatch.is_moving = True
            self.work_ended(partition)

    def work_ended(self, partition: Partition) -> None:
        """If the partition is to move, and nothing of it is in work any more, it does."""
        number = partition.number
        if partition.dispatch.is_resting:
            self.rested(partition)
        if number not in self._moving or partition.works:
            return
        to = self._moving.pop(number)
        partition.dispatch.is_moving = False
        owner = self._owners.pop(number)
        del owner.partitions[number]
        if owner.serves:
            owner.link.send(Revoke(number, partition.epoch))
        if to is not None and to.serves:
            if self._was_complete:  # while a run starts, each worker that comes gets its share
                self._moved_at[number] = self._clock.now()
            self.give(partition, to)
        else:
            partition.reassign()
            self.rebalance()
        self._dismiss_if_empty(owner)

    def lose(self, partition: Partition) -> None:
        """Another engine has it: it leaves its worker at once, whatever that has of it."""
        number = partition.number
        del self.partitions[number]
        self._moving.pop(number, None)
        self._moved_at.pop(number, None)
        self.scaler.most = min(self.scaler.most, len(self.partitions))
        self.scaler.least = min(self.scaler.least, self.scaler.most)
        self.rested(partition)
        worker = self._owners.pop(number, None)
        if worker is not None:
            worker.lose(partition, self._clock.now())
            self._pump(worker)
            self._dismiss_if_empty(worker)

    def give(self, partition: Partition, worker: Worker) -> None:
        """The partition is the worker's, in a new epoch."""
        epoch = partition.reassign()
        spans = partition.spans
        spans.worker, spans.are_told, spans.are_logged = worker.name, worker.tells_spans, worker.hears_levels
        self._owners[partition.number] = worker
        worker.partitions[partition.number] = partition
        worker.link.send(
            Assign(partition.number, epoch, partition.holds.locked(), partition.is_empty, partition.chains)
        )
        worker.queue(partition.number)
        self._pump(worker)

    def renew(self, partition: Partition) -> None:
        """Nothing of it is in work, and what its worker remembers of it has changed: it is given to it anew."""
        worker = self._owners.get(partition.number)
        if worker is not None and worker.serves:
            worker.link.send(Revoke(partition.number, partition.epoch))
            self.give(partition, worker)

    def go_on(self, partition: Partition) -> None:
        """It may be handed out again."""
        worker = self._owners.get(partition.number)
        if worker is not None:
            worker.queue(partition.number)
            self._pump(worker)

    def _relieve(self, now: int) -> None:
        """Hand what has waited too long behind a busy worker to one that has nothing to do."""
        threshold = _us(self.profile.grow_threshold)
        idle = [
            w for w in self.members if not w.outstanding and not any(p.has_work(now) for p in w.partitions.values())
        ]
        if not idle:
            return
        waiting = [
            (since, number)
            for number, owner in self._owners.items()
            if owner.outstanding
            and self._may_move(number, now)
            and not self.partitions[number].works
            and self.partitions[number].has_work(now)
            and (since := self.partitions[number].waiting_since(now)) is not None
            and now - since > threshold
        ]
        for worker, (_, number) in zip(idle, sorted(waiting), strict=False):
            self._move(number, worker)

    # ------------------------------------------------------------------ going

    def seal(self, worker: Worker) -> None:
        """It is to end, once others have its partitions."""
        if worker.life != "ready":
            return
        worker.step("seal", self._clock.now())
        self.rebalance()
        self.reconcile()
        self._dismiss_if_empty(worker)

    def _dismiss_if_empty(self, worker: Worker) -> None:
        if worker.life == "sealed" and not worker.partitions and not worker.outstanding:
            worker.dismiss(self._clock.now())

    def freeze(self) -> None:
        """No worker starts any more."""
        self._is_closed = True

    def close(self) -> None:
        """All workers are asked to end."""
        self.freeze()
        for worker in list(self.workers.values()):
            if worker.comes or worker.serves:
                worker.dismiss(self._clock.now())

    def progressed(self, worker: Worker, counts: Mapping[str, int], elapsed: int) -> None:
        """It has handed in results of so many events ("event>node" -> how many), which took it so many microseconds."""
        worker.processed += sum(counts.values())
        self.paces.took(counts, elapsed)
        self._has_worked = True
        if self.backoff.crashes:
            was_degraded = self.is_degraded
            self.backoff.recovered(worker.born)
            if was_degraded and not self.is_degraded:
                self._notice(f"pool {self.name!r} works again")
        if 0 < self.profile.max_events <= worker.processed:
            self.seal(worker)

    def ended(self, worker: Worker, why: str, is_crash: bool) -> None:
        """The process has ended. ``is_crash``: nothing that it was asked to do, or an event was named for."""
        if self.workers.get(worker.index) is worker:
            del self.workers[worker.index]
        for number, partition in worker.partitions.items():
            partition.reassign()
            partition.dispatch.is_moving = False
            if partition.dispatch.is_resting:
                self.rested(partition)
            self._owners.pop(number, None)
            self._moving.pop(number, None)
        worker.partitions = {}
        for number, to in self._moving.items():
            if to is worker:
                self._moving[number] = None
        if self._is_closed:
            return
        if is_crash:
            self._crashed(worker, why)
            failed = (not worker.has_served and not self.was_ready) or (worker.has_refused and not self._has_worked)
            if failed and self.backoff.crashes >= _STARTS:
                self._around.failed(
                    UserError(f"pool {self.name!r}: a worker failed at its start {_STARTS} times in a row\n{why}")
                )
                return
        self.rebalance()
        self.reconcile()

    def _crashed(self, worker: Worker, why: str) -> None:
        self.crashed += 1
        before = self.backoff.crashes
        wait = self.backoff.crashed(self._clock.now(), why, worker.born)
        if self.is_degraded and self.backoff.crashes > before:
            first = what_says_most(why)
            self._notice(
                f"pool {self.name!r} is degraded: {self.backoff.crashes} workers in a row ended without having done "
                f"anything, the last one as {first}. The next one starts in {wait // 1_000_000} s"
            )

    # ------------------------------------------------------------------ time

    def tick(self, now: int) -> int | None:
        """Do what is due; returns when something will be due by itself (microseconds of wall time)."""
        self.check_lives(now)
        if now - self._looked >= _LOOK or not self.alive:
            self._looked = now
            self._scale(now)
        self.reconcile()
        return self._next_wake(now)

    def numbers(self, now: int) -> PoolNumbers:
        """The pool as it is now."""
        stats, profile = self._stats, self.profile
        ready = [w for w in self.workers.values() if w.serves]
        active = sum(w.idle_since is None for w in ready)
        state = "running" if active else "paused" if self.is_paused else "idle" if ready else "empty"
        return PoolNumbers(
            state="degraded" if self.is_degraded else state,
            reason=self.backoff.reason if self.is_degraded else "",
            queue_events=sum(p.backlog.events for p in self.partitions.values()),
            queue_bytes=sum(p.backlog.size for p in self.partitions.values()),
            queue_limit=profile.queue_limit,
            queue_limit_bytes=int(profile.queue_bytes),
            oldest_seconds=self.oldest(now) / 1e6,
            held=sum(len(p.holds) for p in self.partitions.values()),
            workers_active=active,
            workers_idle=len(ready) - active,
            workers_starting=self.starting,
            workers_leaving=sum(w.leaves for w in self.workers.values()),
            workers_limit=self.scaler.most,
            workers_spawned=self.spawned,
            workers_crashed=self.crashed,
            load=stats.load,
            finished=stats.finished,
            rate=stats.rate.rates(now, stats.finished),
            latency=stats.latencies.quantiles(_QUANTILES),
        )

    def _scale(self, now: int) -> None:
        ready = [w for w in self.workers.values() if w.serves]
        self._stats.look(now, sum(w.idle_since is None for w in ready), len(ready))
        load = self._load(now)
        self.size = max(self.size, self.scaler.grow(now, load))
        if self.size == load.size and not load.starting:
            self._shrink(now)
        if self.workers:
            self.rebalance()
            self._relieve(now)

    def _shrink(self, now: int) -> None:
        """One worker that has had nothing to do for long ends."""
        idle = [w for w in self.members if w.idle_since is not None]
        if not idle:
            return
        longest = min(idle, key=lambda w: (w.idle_since, -w.index))
        if not self.scaler.may_leave(now, self.size, longest.idle_since):
            return
        if any(p.has_work(now) for p in longest.partitions.values()):
            return
        self.size -= 1
        self.seal(longest)
        for number in list(longest.partitions) if not self.members else ():
            self._move(number, None)

    def check_lives(self, now: int) -> None:
        """End who is late: with its start, with a sign of life, or with its end."""
        profile = self.profile
        for worker in list(self.workers.values()):
            if worker.comes and now - worker.born > _us(profile.startup_timeout):
                worker.cut(f"it was not ready within {profile.startup_timeout:g} s (startup-timeout)", now)
            elif worker.serves and now - worker.heard > _us(profile.heartbeat_timeout):
                worker.cut(f"it was silent for {profile.heartbeat_timeout:g} s (heartbeat-timeout)", now)
            elif worker.life == "leaving" and now - worker.since > _us(profile.termination_timeout):
                worker.step("terminate", now)
                worker.link.terminate()
            elif worker.life == "asked" and now - worker.since > _KILL_AFTER:
                worker.link.kill()

    def _next_wake(self, now: int) -> int | None:
        wakes: list[float] = []
        if self.alive < self.size and self.backoff.until > now:
            wakes.append(self.backoff.until)
        if self.size > self.scaler.least:
            next_look = self._looked + _LOOK
            wakes += [max(next_look, self.scaler.leaves_at(worker.idle_since)) for worker in self.members]
        wake = min(wakes, default=float("inf"))
        return None if wake == float("inf") else int(wake)


def what_says_most(text: str) -> str:
    """The line that says what happened; a stack goes with the event."""
    lines = text.strip().split("\n")
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def _nobody(partition: Partition) -> None:
    """Waits."""


def _us(seconds: float) -> int:
    return int(seconds * 1e6)
