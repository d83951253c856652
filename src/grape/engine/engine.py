"""The engine: owns the log, hands batches to workers, commits results. A state machine driven by calls.

It does no I/O of its own: workers are behind `Link`s, the log behind a `Transport`, time behind a `Clock`. So the same
code runs under asyncio with processes and LMDB, and under the simulator with a fake clock.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from grape.abc.transport import Arrival, Commit, Outcome, Transport
from grape.engine.app import App
from grape.engine.clock import Clock
from grape.engine.first import Failed
from grape.engine.partition.careful import Root
from grape.engine.partition.partition import Partition
from grape.engine.pool import Pool, Spawner, Worker, what_says_most
from grape.engine.room import RoomWatch
from grape.engine.standstill import STANDSTILL
from grape.engine.telemetry import AppNumbers
from grape.errors import Corrupt, GrapeError, ProtocolError, Runaway, StorageFailed, TopologyError
from grape.model.address import MAX_KEY_BYTES, PartitionId
from grape.model.policy import after_failure
from grape.model.profile import Profile
from grape.model.section import show_size
from grape.model.stored import CLIENT_ID, state_key
from grape.protocol.messages import (
    VERSION,
    Announce,
    Ask,
    Beat,
    Failure,
    FromWorker,
    Hello,
    Named,
    Refusal,
    Result,
    Stuck,
    Values,
    Welcome,
)

_CREDIT: Final = 3
"""Works a synchronous worker may have: one that runs, and what keeps it busy while that one is committed. With async
slots any number of works run at once, within what a partition may have in work."""
NEEDED: Final = frozenset({"partition", "cache"})
"""Capabilities that a worker has to have."""
_MAX_TEXT: Final = 16_000
_ANSWER_BYTES: Final = 16 << 20
_DUMPED: Final = 40
"""Lines, and numbers in one, of a dump."""
_UNREAD_BYTES: Final = 2 * _ANSWER_BYTES
"""So much may lie on the way to a worker before it asks for more, or gets more work."""
_STARTS_AT_ONCE: Final = 64
_CATCH_UP: Final = 10_000_000
"""So long sources wait for what older code left (microseconds); a cycle may never end."""

Owner = Callable[[Commit, Outcome], None]


class Engine:
    """One app on one transport.

    Args:
        app: as the catalog has it.
        profiles: how pools are kept that are not kept as usual.
        default_size: workers of a pool whose profile does not say.
        failed: called once when the engine has to stop; nothing is committed afterwards.
        reserve: bytes of room at which nothing is taken in any more.
        notice: called with what an operator should know, a line each.
        starts_at_once: workers that may be on their way.
    """

    def __init__(
        self,
        app: App,
        transport: Transport,
        spawner: Spawner,
        clock: Clock,
        rng: random.Random,
        profiles: dict[str, Profile],
        default_size: int,
        failed: Callable[[GrapeError], None],
        reserve: int = 0,
        notice: Callable[[str], None] = lambda text: None,
        starts_at_once: int = _STARTS_AT_ONCE,
    ) -> None:
        self.app = app
        self.transport = transport
        self.clock = clock
        self._failed = failed
        self._room = RoomWatch(reserve)
        self._notice = notice
        self.tell: Callable[[str, Failed], None] | None = None
        """Told of every event that fails, with the name of its worker."""
        self.failure: GrapeError | None = None
        self.draining = False
        self._catch_up_until = clock.now() + _CATCH_UP
        self._owners: dict[PartitionId, Partition] = {}
        self._others: dict[PartitionId, Owner] = {}
        self._arrivals: dict[PartitionId, list[Callable[[], None]]] = {}
        self._deferred: dict[PartitionId, list[tuple[Worker, Ask]]] = {}
        self.pools: dict[str, Pool] = {}

        def may_start() -> bool:
            return sum(pool.starting for pool in self.pools.values()) < starts_at_once

        for spec in app.topology.pools:
            partitions = [Partition(app, spec.name, n, transport, clock, rng) for n in range(app.record.partitions)]
            self._owners.update((p.id, p) for p in partitions)
            for partition in partitions:
                partition.dispatch.is_long = spec.long
            self.pools[spec.name] = Pool(
                spec,
                profiles.get(spec.name, Profile()),
                default_size,
                partitions,
                app,
                clock,
                spawner,
                self._pump,
                may_start,
                notice,
                self.stop_with,
            )

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Start the workers."""
        for pool in self.pools.values():
            pool.reconcile()

    def drain(self) -> None:
        """Hand out nothing more; what is running is still committed."""
        self.draining = True
        for pool in self.pools.values():
            pool.freeze()

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
        return all(p.quiet and p.backlog.events == 0 and (p.next_due() or now + 1) > now for p in self._owners.values())

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
            partition.backlog.add(arrival.events, arrival.size)
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
                self.pools[partition.pool].give(partition, owner)
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
        credit = 1 if self.pools[worker.pool].is_long else _CREDIT
        assert worker.link is not None
        while partition := worker.next_partition():
            has_enough = len(worker.outstanding) >= credit and not partition.dispatch.top_up
            if has_enough or worker.link.unread > _UNREAD_BYTES:
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
                worker.idle_since = None
                worker.standstill.moves()
                worker.link.send(work)

    # ------------------------------------------------------------------ workers

    def received(self, pool: str, index: int, link: object, message: FromWorker) -> None:
        """A worker said something."""
        worker = self.pools[pool].workers.get(index)
        if worker is None or worker.link is not link or worker.state == "gone" or self.failure is not None:
            return
        if worker.is_broken:
            return
        worker.heard = self.clock.now()
        if not isinstance(message, Beat):
            worker.standstill.moves()
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
                    if worker.state == "starting" and worker.is_welcome:
                        self._set_up(worker)
                    else:
                        self._look_at(worker, message)
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
            worker.explained, worker.is_broken = f"it broke the protocol: {error}", True
            worker.link.kill()

    def _hello(self, worker: Worker, message: Hello) -> None:
        if worker.state != "starting" or worker.is_welcome:
            raise ProtocolError("a second hello")
        lacks = sorted(NEEDED - set(message.capabilities))
        is_other = message.topology != self.app.described(worker.pool)
        if self._was_ready(worker) and (message.version != VERSION or is_other or lacks):
            raise ProtocolError("it describes another app, or speaks another version, than the workers before it")
        if message.version != VERSION:
            self.stop_with(
                TopologyError(f"worker {worker.name} speaks protocol {message.version}; this engine speaks {VERSION}")
            )
            return
        if lacks:
            self.stop_with(TopologyError(f"worker {worker.name} lacks what this engine needs: {', '.join(lacks)}"))
            return
        if is_other:
            self.stop_with(
                TopologyError(
                    f"worker {worker.name} built another topology than the first one did; "
                    f"a topology must come out the same every time (no time, no chance in it)"
                )
            )
            return
        pool = self.pools[worker.pool]
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
                float(pool.profile.heartbeat_timeout),
                pool.profile.concurrency,
                self.app.topology,
            )
        )
        worker.is_welcome = True

    def _look_at(self, worker: Worker, beat: Beat) -> None:
        """Whether it, or the engine, has lost something: that is a bug, and no reason to stand still."""
        now = self.clock.now()
        lies = any(p.has_work(now) for p in worker.partitions.values())
        if beat.running or worker.state != "ready" or self.draining or not (worker.outstanding or lies):
            worker.standstill.moves()
        elif worker.standstill.stands(now):
            lines = [f"worker {worker.name} has stood still for {STANDSTILL // 1_000_000} s although work waits"]
            self._notice("\n".join(lines + [f"  {line}" for line in dump(worker, now)]))
            if worker.outstanding:
                worker.explained = lines[0]
                assert worker.link is not None
                worker.link.kill()  # what it had is handed out again
            else:
                for number in worker.partitions:
                    worker.queue(number)
                self._pump(worker)

    def _set_up(self, worker: Worker) -> None:
        """Its nodes are; until then it has no partition, for which others would have to wait."""
        self.pools[worker.pool].joined(worker)
        for other in self.pools.values():
            other.reconcile()  # one less is on its way

    def _refused(self, worker: Worker, message: Refusal) -> None:
        """The app cannot be loaded."""
        worker.explained, worker.refused = message.text[:_MAX_TEXT], True
        if message.kind in ("topology", "usage") and worker.state == "starting" and not self._was_ready(worker):
            self.stop_with(TopologyError(message.text))

    def _was_ready(self, worker: Worker) -> bool:
        """Its pool has had workers that were: what this one does is its own affair."""
        return self.pools[worker.pool].was_ready

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
        number = partition.head.next_hold
        partition.apply(result)
        if self.tell is not None and result.failures:
            self._tell(worker, partition, result.failures, number)
        if worker.announced is not None and worker.announced[0] == result.partition and result.is_progress:
            worker.announced = None
        for seq in result.ended:
            worker.outstanding.remove((result.partition, seq))
        if not worker.outstanding:
            worker.idle_since = self.clock.now()
        partition.flush()
        pool = self.pools[worker.pool]
        pool.progressed(worker, sum(result.counts.values()))
        pool.work_ended(partition)
        self._pump(worker)

    def _tell(self, worker: Worker, partition: Partition, failures: list[Failure], number: int) -> None:
        """Tell of failures that were applied. ``number``: of the first hold entry that came of them."""
        assert self.tell is not None
        for failure in failures:
            held = partition.holds.held(failure.hold)
            if failure.hold < 0:
                slot = self.app.slot(failure.event, failure.node)
                assert slot is not None
                deaths = int(failure.named)
                is_dead = failure.final or after_failure(slot, 1, deaths, self.app.limits.named_deaths) == "dead"
                if failure.behind or not is_dead:
                    held = partition.holds.held(number)
                    number += 1
            if not failure.behind:
                due, stopped = (0, False) if held is None else (held.due, held.stopped)
                words = (failure.kind, failure.text, failure.trace)
                self.tell(worker.name, Failed(failure.node, failure.event, failure.id, *words, due, stopped))

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
        if worker.link.unread > _UNREAD_BYTES:
            raise ProtocolError(f"questions whose answers it does not read: {worker.link.unread >> 20} MiB wait for it")
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
        return [partition.ledger.pending("state", prefix + key, value) for key, value in zip(keys, found, strict=True)]

    def _stuck(self, worker: Worker, message: Stuck) -> None:
        partition = self._assigned(worker, message)
        if partition is None:
            return
        self._check_node(worker, message)
        worker.explained, worker.named = message.text[:_MAX_TEXT], True
        for number, seq in worker.outstanding:
            if number == message.partition and seq in partition.works:
                partition.dispatch.suspect(partition.works[seq])
        trace = message.trace[:_MAX_TEXT]
        partition.careful.name(Named(message.id, message.node, "timeout", worker.explained, False, trace))
        if worker.link is not None:  # it ends itself; not every runtime can, in every jail
            worker.link.kill()

    def gone(self, pool: str, index: int, link: object, how: str) -> str:
        """The worker process has ended; ``how`` says so ("killed by signal 9 (SIGKILL)"). Returns why, if it should not
        have, else ""."""
        here = self.pools[pool]
        worker = here.workers.get(index)
        if worker is None or worker.link is not link or worker.state == "gone":
            return ""
        if self.failure is not None:
            worker.state = "gone"
            return ""
        why = worker.explained or how
        is_expected = worker.state == "leaving" or self.draining
        if not is_expected:
            fate = " is replaced" if worker.state == "ready" else ""  # else it never was one
            self._notice(f"worker {worker.name}{fate}: {what_says_most(why)}")
        was_named = worker.named
        if worker.state == "ready":
            if not is_expected:
                self.app.stats.worker_deaths += 1
            was_named = was_named or self._blame(worker, why)
        for number in worker.partitions:
            self._deferred.pop(here.partitions[number].id, None)
        hopeless = [] if is_expected else self._hopeless(worker)
        here.ended(worker, why, not is_expected and not was_named)
        for partition, root in hopeless:
            partition.give_up_root(root, f"no worker can handle it, nor hand it in as failed: {why}")
            partition.flush()
        return "" if is_expected else why

    def _hopeless(self, worker: Worker) -> list[tuple[Partition, Root]]:
        """Events over which careful workers die again and again, although they should be handed in as failed."""
        found: list[tuple[Partition, Root]] = []
        for number, seq in worker.outstanding:
            partition = worker.partitions.get(number)
            work = None if partition is None else partition.works.get(seq)
            if partition is not None and work is not None:
                if work.careful and (root := partition.died_carefully(work)) is not None:
                    found.append((partition, root))
                break
        return found

    def _blame(self, worker: Worker, how: str) -> bool:
        """Find out what the worker died of: in careful mode it is the event that it announced last, then True."""
        text = f"the worker died: {how}"
        was_named = False
        first = True
        for number, seq in worker.outstanding:
            partition = worker.partitions.get(number)
            work = partition.works.get(seq) if partition is not None else None
            if partition is None or work is None:
                continue
            if not (first or partition.dispatch.top_up):
                break
            first = False
            if work.careful and worker.announced is not None and worker.announced[0] == number:
                partition.careful.name(Named(*worker.announced[1:], "worker-died", text, True))
                was_named = True
            partition.dispatch.suspect(work)
        return was_named

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
        wakes = [at for pool in self.pools.values() if (at := pool.tick(now)) is not None]
        self.pump()
        wakes += [due for p in self._owners.values() if (due := _next_due(p, now)) is not None]
        wakes += [expiry for p in self._owners.values() if (expiry := p.expiries.next_due()) is not None]
        if self._is_catching_up():
            wakes.append(self._catch_up_until)
        return max(min(wakes), now) if wakes else None

    def _fire(self, now: int) -> None:
        for partition in self._owners.values():
            while partition.timers.fire(now):
                pass
            partition.expiries.expire(now)
            due = partition.holds.next_due()
            if due is not None and due <= now:
                self._offer(partition)

    # ------------------------------------------------------------------ intake

    def feeding_is_open(self, pools: Iterable[str]) -> bool:
        """Whether sources may feed these pools. After a change of code that lets more pairs chain they wait until
        nothing of before waits any more: only then can the pairs chain, and with a steady input that is never."""
        return self.intake_is_open(pools) and not self._is_catching_up()

    def _is_catching_up(self) -> bool:
        if self._catch_up_until:
            behind = any(p.head.catching_up for p in self._owners.values())
            if not behind or self.clock.now() >= self._catch_up_until:
                self._catch_up_until = 0
        return self._catch_up_until > 0

    def remembered(self, pool: str, number: int, event_id: str) -> int | None:
        """What tells the content of the event that was accepted under this id (`Memory.remember`), if any was, also
        if its commit is under way. ``pool`` may be one that the topology has no more."""
        key = CLIENT_ID + event_id.encode()
        partition = self._owners.get(self.app.log(pool, number))
        value = None if partition is None else partition.ledger.pending("text", key, None)
        if value is None:
            (value,) = self.transport.get(self.app.log(pool, number), "text", [key])
        return None if value is None else int.from_bytes(value[8:12], "big")

    def intake_is_open(self, pools: Iterable[str]) -> bool:
        """Whether anything may come into these pools from outside."""
        return self.failure is None and not self.draining and not self.is_full and self.over_limit(pools) is None

    def over_limit(self, pools: Iterable[str]) -> str | None:
        """In words, what keeps these pools from taking more: the app's backlog is over the limit of one of them."""
        app = self.app
        for name in pools:
            profile = self.pools[name].profile
            if app.backlog_events >= profile.queue_limit:
                return f"{app.backlog_events:,} events wait; pool {name!r} takes none over {profile.queue_limit:,}"
            if app.backlog_bytes >= profile.queue_bytes:
                waiting, limit = show_size(app.backlog_bytes), show_size(profile.queue_bytes)
                return f"{waiting} of events wait; pool {name!r} takes none over {limit}"
        return None

    @property
    def is_full(self) -> bool:
        """Only the reserve is left of what disk and map can take."""
        return self._room.is_full(self.transport.room())

    def stalled(self) -> StorageFailed:
        """Why a run has to end that is full although nothing is left to be worked off."""
        room, reserve = self.transport.room() >> 20, self._room.reserve >> 20
        return StorageFailed(
            f"there is room for {room:,} MiB, and {reserve:,} MiB are kept in reserve: nothing can be taken in, and "
            f"nothing is left to be worked off. Free disk space (or raise max-size) and start the same command again: "
            f"it goes on where it was"
        )

    def check_room(self) -> None:
        """Stop a run that eats the reserve: commits must always have pages."""
        if self.failure is None and self._room.is_eaten(self.transport.room()):
            self.stop_with(Runaway(self._runaway()))

    def _runaway(self) -> str:
        """Names the event that has become more and more."""
        app, stats = self.app, self.app.stats
        handled: Counter[str] = Counter()
        for slot, count in stats.processed.items():
            handled[slot.partition(">")[0]] += count
        waiting = {
            name: count - handled[name] for name, count in stats.emitted.items() if name in app.routing.listeners
        }
        text = f"app {app.record.name!r} eats the reserve of the disk: {app.backlog_events:,} events wait"
        if waiting and max(waiting.values()) > 0:
            name = max(waiting, key=waiting.__getitem__)
            nodes = ", ".join(node for each in app.routing.listeners[name] for node in each.nodes)
            text += (
                f". Event {name!r} was emitted {stats.emitted[name]:,} times in this run and handled {handled[name]:,} "
                f"times (by {nodes}): does its slot, or whoever emits it, emit more than it gets"
            )
        return (
            f"{text}. Nothing accepted is lost. With mended code start the same command again: what waits is worked "
            f"off in what is left. Or give more room (a larger disk, --max-size), or give a slot up: --discard-slot "
            f"(which needs none)"
        )

    def numbers(self) -> AppNumbers:
        """Everything that is measured, as it is now."""
        app, stats, now = self.app, self.app.stats, self.clock.now()
        return AppNumbers(
            fed=dict(stats.fed),
            emitted=dict(stats.emitted),
            processed=dict(stats.processed),
            taken=dict(stats.taken),
            failures=dict(stats.failures),
            dead=stats.dead,
            replies=stats.replies,
            late_replies=stats.late_replies,
            stale_frames=stats.stale_frames,
            duplicates=sum(pool.duplicates for pool in stats.pools.values()),
            commits=stats.commits,
            worker_deaths=stats.worker_deaths,
            backlog_events=app.backlog_events,
            backlog_bytes=app.backlog_bytes,
            timers=app.timers,
            pools={name: pool.numbers(now) for name, pool in self.pools.items()},
        )

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
    link = worker.link
    unread = 0 if link is None else link.unread
    lines = [
        f"{worker.name}: {worker.state}, works {list(worker.outstanding)[:_DUMPED]}, queue "
        f"{list(worker.ready)[:_DUMPED]}, heard {(now - worker.heard) / 1e6:.1f} s ago, {unread} bytes unread"
    ]
    for partition in worker.partitions.values():
        if partition.works or partition.backlog.events or not partition.quiet:
            lines.append(partition.describe(now))
    return lines[:_DUMPED]


def _next_due(partition: Partition, now: int) -> int | None:
    """When something of it is due that no other call will find: a retry that is due waits for a worker that can take
    it, and goes out when there is one."""
    due = partition.next_due()
    return due if due is None or due > now else partition.timers.next_due()


def _first_of(values: list[bytes | None]) -> list[bytes | None]:
    """As many as make a frame of a good size, at least one: the worker asks again for the rest."""
    size = 0
    for i, value in enumerate(values):
        size += len(value or b"")
        if i and size > _ANSWER_BYTES:
            return values[:i]
    return values
