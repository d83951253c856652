"""The engine: owns the log, hands batches to workers, commits results. A state machine driven by calls.

It does no I/O of its own: workers are behind `Link`s, the log behind a `Transport`, time behind a `Clock`. So the same
code runs under asyncio with processes and LMDB, and under the simulator with a fake clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from grape.abc.transport import Arrival, Commit, Outcome, Transport
from grape.engine.app import App
from grape.engine.clock import Clock
from grape.engine.partition import Partition
from grape.engine.pool import Pool, Spawner, Worker
from grape.errors import Corrupt, GrapeError, ProtocolError, Runaway, StorageFailed, TopologyError, UserError
from grape.model.address import MAX_KEY_BYTES, PartitionId
from grape.model.stored import state_key
from grape.protocol.messages import (
    VERSION,
    Announce,
    Ask,
    Assign,
    Beat,
    Drain,
    FromWorker,
    Hello,
    Refusal,
    Result,
    Stuck,
    Values,
    Welcome,
)

_CREDIT: Final = 3
"""Works a synchronous worker may have: one that runs, and what keeps it busy while that one is committed. With async
slots any number of works run at once, within what a partition may have in work."""
_NEEDED: Final = {"partition", "cache"}
_MAX_TEXT: Final = 16_000
_ANSWER_BYTES: Final = 16 << 20
_STARTS: Final = 3
"""Failures in a row after which a pool that never started gives up."""

Owner = Callable[[Commit, Outcome], None]


class Engine:
    """One app on one transport.

    Args:
        app: as the catalog has it.
        sizes: workers per pool.
        failed: called once when the engine has to stop; nothing is committed afterwards.
        notice: called with what an operator should know, a line each.
    """

    def __init__(
        self,
        app: App,
        transport: Transport,
        spawner: Spawner,
        clock: Clock,
        rng: random.Random,
        sizes: dict[str, int],
        failed: Callable[[GrapeError], None],
        reserve: int = 0,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.app = app
        self.transport = transport
        self.clock = clock
        self._spawner = spawner
        self._failed = failed
        self._reserve = reserve
        self._notice = notice
        self.failure: GrapeError | None = None
        self.draining = False
        self._owners: dict[PartitionId, Partition] = {}
        self._others: dict[PartitionId, Owner] = {}
        self._arrivals: dict[PartitionId, list[Callable[[], None]]] = {}
        self._deferred: dict[PartitionId, list[tuple[Worker, Ask]]] = {}
        self._due: dict[PartitionId, int] = {}
        self.pools: dict[str, Pool] = {}
        for pool in app.topology.pools:
            partitions = [Partition(app, pool.name, n, transport, clock, rng) for n in range(app.record.partitions)]
            self.pools[pool.name] = Pool(pool.name, sizes.get(pool.name, 1), partitions)
            self._owners.update((p.id, p) for p in partitions)

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Start the workers."""
        for pool in self.pools.values():
            for index in range(pool.size):
                self._spawn(pool, index)

    def _spawn(self, pool: Pool, index: int) -> None:
        worker = pool.workers[index] = Worker(pool.name, index, self.clock.now())
        worker.link = self._spawner.spawn(pool.name, index)

    def drain(self) -> None:
        """Hand out nothing more; what is running is still committed."""
        self.draining = True

    @property
    def in_flight(self) -> bool:
        """Works or commits are under way."""
        return any(not p.quiet for p in self._owners.values())

    @property
    def finished(self) -> bool:
        """Nothing is left to do, now or later."""
        return all(p.finished for p in self._owners.values())

    @property
    def waits_only_for_time(self) -> bool:
        """Whatever is left becomes due later."""
        now = self.clock.now()
        return all(p.quiet and p.waiting_events == 0 and (p.next_due() or now + 1) > now for p in self._owners.values())

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
            self._failed(error)

    # ------------------------------------------------------------------ transport

    def own(self, partition: PartitionId, done: Owner) -> None:
        """Outcomes of commits of ``partition`` (a source or taker) go to ``done``."""
        self._others[partition] = done

    def on_arrival(self, log: PartitionId, call: Callable[[], None]) -> None:
        """Call when something arrived in ``log`` (an output)."""
        self._arrivals.setdefault(log, []).append(call)

    def done(self, outcomes: list[tuple[Commit, Outcome]]) -> None:
        """`Callbacks.done`."""
        for commit, outcome in outcomes:
            if self.failure is not None:
                return
            partition = self._owners.get(commit.partition)
            try:
                if partition is None:
                    self._others[commit.partition](commit, outcome)
                else:
                    partition.done(commit, outcome)
                    self._settled(partition)
            except GrapeError as e:
                self.stop_with(e)

    def arrived(self, arrivals: list[Arrival]) -> None:
        """`Callbacks.arrived`."""
        for arrival in arrivals:
            partition = self._owners.get(arrival.partition)
            if partition is None:
                for call in self._arrivals.get(arrival.partition, ()):
                    call()
                continue
            partition.arrived(arrival.events, arrival.size)
            self._offer(partition)
        self.pump()

    def transport_failed(self, error: BaseException) -> None:
        """`Callbacks.failed`."""
        self.stop_with(error if isinstance(error, GrapeError) else Corrupt(str(error)))

    def _settled(self, partition: Partition) -> None:
        if partition.settled:
            for worker, ask in self._deferred.pop(partition.id, ()):
                self._answer(worker, partition, ask)
            owner = self.pools[partition.pool].owner(partition.number)
            if owner is not None and not partition.chains and not partition.works and partition.may_chain:
                self._assign(owner, partition)
            self._offer(partition)
            self._pump_owner(partition)

    # ------------------------------------------------------------------ dispatch

    def _offer(self, partition: Partition) -> None:
        worker = self.pools[partition.pool].owner(partition.number)
        if worker is not None:
            worker.queue(partition.number)

    def _pump_owner(self, partition: Partition) -> None:
        worker = self.pools[partition.pool].owner(partition.number)
        if worker is not None:
            self._pump(worker)

    def pump(self) -> None:
        """Give every worker what it can take."""
        for pool in self.pools.values():
            for worker in list(pool.workers.values()):
                if worker.state == "ready":
                    self._pump(worker)

    def _pump(self, worker: Worker) -> None:
        if self.draining or self.failure is not None:
            return
        now = self.clock.now()
        assert worker.link is not None
        while partition := worker.next_partition():
            if len(worker.outstanding) >= _CREDIT and not partition.top_up:
                worker.queue(partition.number)
                return
            if not partition.has_work(now):
                continue
            try:
                work = partition.make_work(now)
            except GrapeError as e:
                self.stop_with(e)
                return
            if work is not None:
                worker.outstanding.append((partition.number, work.seq))
                worker.link.send(work)

    # ------------------------------------------------------------------ workers

    def received(self, pool: str, index: int, link: object, message: FromWorker) -> None:
        """A worker said something."""
        worker = self.pools[pool].workers.get(index)
        if worker is None or worker.link is not link or worker.state == "gone" or self.failure is not None:
            return
        worker.heard = self.clock.now()
        try:
            match message:
                case Result():
                    self._result(worker, message)
                case Ask():
                    self._ask(worker, message)
                case Announce():
                    self._announced(worker, message)
                case Stuck():
                    self._stuck(worker, message)
                case Beat():
                    pass
                case Hello():
                    self._hello(worker, message)
                case Refusal():
                    self._refused(worker, message)
        except ProtocolError as e:
            self.broken(pool, index, link, e)
        except GrapeError as e:
            self.stop_with(e)

    def broken(self, pool: str, index: int, link: object, error: ProtocolError) -> None:
        """What a worker sent is no protocol: replace it."""
        worker = self.pools[pool].workers.get(index)
        if worker is not None and worker.link is link and worker.link is not None:
            worker.explained = f"it broke the protocol: {error}"
            worker.link.kill()

    def _hello(self, worker: Worker, message: Hello) -> None:
        if worker.state != "starting":
            raise ProtocolError("a second hello")
        if message.version != VERSION:
            self.stop_with(
                TopologyError(f"worker {worker.name} speaks protocol {message.version}; this engine speaks {VERSION}")
            )
            return
        lacks = sorted(_NEEDED - set(message.capabilities))
        if lacks:
            self.stop_with(TopologyError(f"worker {worker.name} lacks what this engine needs: {', '.join(lacks)}"))
            return
        if message.topology != self.app.topology:
            self.stop_with(
                TopologyError(
                    f"worker {worker.name} built another topology than the first one did; "
                    f"a topology must come out the same every time (no time, no chance in it)"
                )
            )
            return
        pool = self.pools[worker.pool]
        pool.failed_starts = 0
        worker.state = "ready"
        assert worker.link is not None
        worker.link.send(
            Welcome(
                VERSION,
                worker.pool,
                worker.name,
                self.app.partitions,
                self.app.limits,
                self.app.taken,
                self.app.record.unchained,
                self.clock.boot_offset(),
            )
        )
        for partition in pool.owned_by(worker.index):
            worker.partitions[partition.number] = partition
            self._assign(worker, partition)
        self._pump(worker)

    def _assign(self, worker: Worker, partition: Partition) -> None:
        """The partition is the worker's, in a new epoch."""
        assert worker.link is not None
        epoch = partition.reassign()
        worker.link.send(
            Assign(partition.number, epoch, partition.holds.locked(), partition.is_empty, partition.chains)
        )
        worker.queue(partition.number)

    def _refused(self, worker: Worker, message: Refusal) -> None:
        """The app cannot be loaded."""
        worker.explained = message.text[:_MAX_TEXT]
        if message.kind in ("topology", "usage") and worker.state == "starting":
            self.stop_with(TopologyError(message.text))

    def _assigned(self, worker: Worker, message: Result | Ask | Announce | Stuck) -> Partition | None:
        """The partition that a message is about; None, counted: it is no longer the worker's."""
        partition = worker.partitions.get(message.partition)
        if partition is None or partition.epoch != message.epoch:
            self.app.stats.stale_frames += 1
            return None
        return partition

    def _check_node(self, worker: Worker, message: Ask | Announce | Stuck) -> None:
        node = self.app.node(message.node)
        if node is None or node.pool != worker.pool:
            raise ProtocolError(f"a word about node {message.node!r:.300}, which is not in pool {worker.pool!r}")

    def _announced(self, worker: Worker, message: Announce) -> None:
        if self._assigned(worker, message) is not None:
            self._check_node(worker, message)
            worker.announced = (message.partition, message.id, message.node)

    def _result(self, worker: Worker, result: Result) -> None:
        partition = self._assigned(worker, result)
        if partition is None:
            return
        partition.apply(result)
        worker.announced = None
        for seq in result.ended:
            worker.outstanding.remove((result.partition, seq))
        partition.flush()
        self._pump(worker)

    def _ask(self, worker: Worker, ask: Ask) -> None:
        partition = self._assigned(worker, ask)
        assert worker.link is not None
        if partition is None:
            worker.link.send(Values([None] * len(ask.keys)))
            return
        self._check_node(worker, ask)
        node = self.app.node(ask.node)
        if node is None or not node.states:
            raise ProtocolError(f"a question for the state of {ask.node!r}, which has none")
        if not all(1 <= len(key) <= MAX_KEY_BYTES for key in ask.keys):
            raise ProtocolError(f"a question for a key of 0 or over {MAX_KEY_BYTES} bytes")
        if any(asking is worker for asking, _ in self._deferred.get(partition.id, ())):
            raise ProtocolError("a question before the last one was answered")
        if partition.settled:
            self._answer(worker, partition, ask)
        else:
            self._deferred.setdefault(partition.id, []).append((worker, ask))

    def _answer(self, worker: Worker, partition: Partition, ask: Ask) -> None:
        if worker.state != "ready" or worker.link is None:
            return
        worker.link.send(Values(_first_of(self.state_of(partition, ask.node, ask.keys))))

    def state_of(self, partition: Partition, node: str, keys: list[bytes]) -> list[bytes | None]:
        """Committed state records of ``node``, None where there is none."""
        prefix = state_key(self.app.node_id(node), b"")
        return self.transport.get(partition.id, "state", [prefix + key for key in keys])

    def state_at_once(self, partition: Partition, node: str, keys: list[bytes]) -> list[bytes | None]:
        """As `state_of`, with what is yet to be committed: for a worker in this process, which cannot wait for it."""
        prefix = state_key(self.app.node_id(node), b"")
        found = self.state_of(partition, node, keys)
        return [partition.pending_state(prefix + key, value) for key, value in zip(keys, found, strict=True)]

    def _stuck(self, worker: Worker, message: Stuck) -> None:
        partition = self._assigned(worker, message)
        worker.explained, worker.named = message.text[:_MAX_TEXT], True
        if partition is None:
            return
        self._check_node(worker, message)
        for number, seq in worker.outstanding:
            if number == message.partition and seq in partition.works:
                partition.suspect(partition.works[seq])
        trace = message.trace[:_MAX_TEXT]
        partition.name(message.id, message.node, "timeout", worker.explained, death=False, trace=trace)

    def gone(self, pool: str, index: int, link: object, how: str) -> None:
        """The worker process has ended; ``how`` says so ("killed by signal 9 (SIGKILL)")."""
        here = self.pools[pool]
        worker = here.workers.get(index)
        if worker is None or worker.link is not link or worker.state == "gone":
            return
        was_ready = worker.state == "ready"
        worker.state = "gone"
        if self.failure is not None:
            return
        if not self.draining:
            why, _, _ = (worker.explained or how).partition("\n")  # a stack goes with the event, not here
            self._notice(f"worker {worker.name} is replaced: {why}")
        if not was_ready:
            self._failed_start(here, worker, how)
        else:
            if not self.draining:
                self.app.stats.worker_deaths += 1
            if not worker.named:
                self._blame(worker, worker.explained or how)
        for partition in worker.partitions.values():
            partition.reassign()
            self._deferred.pop(partition.id, None)
        worker.partitions = {}
        if not self.draining and self.failure is None:
            delay = 0 if was_ready else 200_000
            here.respawn_at[index] = self.clock.now() + delay
            if not delay:
                self._respawn(here)

    def _failed_start(self, pool: Pool, worker: Worker, how: str) -> None:
        pool.failed_starts += 1
        if pool.failed_starts >= _STARTS:
            why = worker.explained or how
            self.stop_with(
                UserError(f"pool {pool.name!r}: a worker failed at its start {_STARTS} times in a row\n{why}")
            )

    def _blame(self, worker: Worker, how: str) -> None:
        """Find out what the worker died of: with careful mode, it is the event that it announced last."""
        text = f"the worker died: {how}"
        first = True
        for number, seq in worker.outstanding:
            partition = worker.partitions.get(number)
            work = partition.works.get(seq) if partition is not None else None
            if partition is None or work is None:
                continue
            if not (first or partition.top_up):
                break
            first = False
            if work.careful and worker.announced is not None and worker.announced[0] == number:
                partition.name(worker.announced[1], worker.announced[2], "worker-died", text, death=True)
            partition.suspect(work)

    def _respawn(self, pool: Pool) -> None:
        now = self.clock.now()
        for index, at in list(pool.respawn_at.items()):
            if at <= now:
                del pool.respawn_at[index]
                self._spawn(pool, index)

    # ------------------------------------------------------------------ time

    def tick(self) -> int | None:
        """Do what is due; returns when to call again at the latest (microseconds of wall time)."""
        if self.failure is not None:
            return None
        now = self.clock.now()
        try:
            if not self.draining:
                self._fire(now)
        except GrapeError as e:
            self.stop_with(e)
            return None
        for pool in self.pools.values():
            self._respawn(pool)
            self._check_hearts(pool, now)
        self.pump()
        wakes = [at for pool in self.pools.values() for at in pool.respawn_at.values()]
        wakes += [due for p in self._owners.values() if (due := self._next_due_here(p)) is not None]
        wakes += [expiry for p in self._owners.values() if (expiry := p.next_expiry()) is not None]
        return max(min(wakes), now) if wakes else None

    def _next_due_here(self, partition: Partition) -> int | None:
        """When something of it can be done by itself. A retry waits for a worker, which gets it when it is there."""
        has_worker = self.pools[partition.pool].owner(partition.number) is not None
        return partition.next_due() if has_worker else partition.next_timer()

    def _fire(self, now: int) -> None:
        for partition in self._owners.values():
            while partition.fire(now):
                pass
            partition.expire(now)
            due = partition.holds.next_due()
            if due is not None and due <= now:
                self._offer(partition)

    def _check_hearts(self, pool: Pool, now: int) -> None:
        limit = int(self.app.limits.heartbeat_timeout * 1e6)
        for worker in pool.workers.values():
            if worker.state == "ready" and now - worker.heard > limit and worker.link is not None:
                worker.heard = now
                worker.link.kill()

    # ------------------------------------------------------------------ intake

    @property
    def intake_is_open(self) -> bool:
        """Whether anything may come in from outside."""
        app, limits = self.app, self.app.limits
        return (
            self.failure is None
            and not self.draining
            and app.backlog_events < limits.backlog_events
            and app.backlog_bytes < limits.backlog_bytes
            and not self.is_full
        )

    @property
    def is_full(self) -> bool:
        """Only the reserve is left of what disk and map can take."""
        return self.transport.room() <= self._reserve

    def stalled(self) -> StorageFailed:
        """Why a run has to end that is full although nothing is left to be worked off."""
        room, reserve = self.transport.room() >> 20, self._reserve >> 20
        return StorageFailed(
            f"there is room for {room:,} MiB, and {reserve:,} MiB are kept in reserve: nothing can be taken in, and "
            f"nothing is left to be worked off. Free disk space (or raise max-size) and start the same command again: "
            f"it goes on where it was"
        )

    def check_room(self) -> None:
        """Stop a run that has eaten half of the reserve: commits must always have pages."""
        if self._reserve and self.failure is None and self.transport.room() < self._reserve // 2:
            self.stop_with(Runaway(self._runaway()))

    def _runaway(self) -> str:
        most = max(self._owners.values(), key=lambda p: p.waiting_bytes)
        events = ", ".join(sorted(self.app.names_of(most.pool) or ()))
        return (
            f"app {self.app.record.name!r} has eaten the reserve of the disk: {self.app.backlog_events} events wait, "
            f"most in pool {most.pool!r} ({events}). Does it emit more than it can process? "
            f"Make room or raise max-size; nothing accepted is lost"
        )

    def partition(self, pool: str, number: int) -> Partition:
        return self.pools[pool].partitions[number]

    def stop_workers(self) -> None:
        """Ask all to end."""
        for pool in self.pools.values():
            for worker in pool.workers.values():
                if worker.state != "gone" and worker.link is not None:
                    worker.link.send(Drain())


def _first_of(values: list[bytes | None]) -> list[bytes | None]:
    """As many as make a frame of a good size, at least one: the worker asks again for the rest."""
    size = 0
    for i, value in enumerate(values):
        size += len(value or b"")
        if i and size > _ANSWER_BYTES:
            return values[:i]
    return values
