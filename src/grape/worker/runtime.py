"""The worker without its socket: takes messages, runs slots, gives results.

The way of a work: retries first, then each batch run by run, in chunks; a chunk goes through a node as a whole (a
*stage*), what it emitted over chained pairs is the next stage, the rest is collected in the outbox. After a chunk all
of its root events are finished: there a work may end early, and the engine sends what is left once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from grape.authoring.handler import Handler
from grape.errors import TooLarge
from grape.model.address import Partitions
from grape.model.batch import Run, runs_of, split_run
from grape.model.cursor import Progress
from grape.model.foreign import Peers
from grape.model.levels import Levels
from grape.model.objects import ObjectWrite
from grape.model.routing import Routing, route
from grape.model.topology import Limits, SlotSpec, TopologySpec
from grape.protocol.messages import (
    Announce,
    Ask,
    Assign,
    BatchItem,
    FromWorker,
    Named,
    Result,
    RetryItem,
    Revoke,
    StateChanges,
    Tried,
    Try,
    Welcome,
    Work,
)
from grape.worker import children
from grape.worker.blame import user_traceback
from grape.worker.delivery import Delivery
from grape.worker.effects import Assigned, Effects
from grape.worker.emits import Names, TooMuch
from grape.worker.ground import Ground
from grape.worker.mishaps import Complain
from grape.worker.objects import Access
from grape.worker.pacing import Pacer
from grape.worker.retries import Retries
from grape.worker.stage import RetryStage, RootStage, RunColumns, Stage
from grape.worker.state import StateTable
from grape.worker.together import Together
from grape.worker.turns import Turns
from grape.worker.units.make import make_unit
from grape.worker.units.unit import Emissions, Unit

ADAPTED: Final = ["partition", "cache", "chain", "rates", "traces"]
"""What an adapter can do, whatever stands behind it."""
CAPABILITIES: Final = [*ADAPTED, "timers", "calls", "peers", "try", "objects", "logs"]
"""What `Runtime` does, as it is said to the engine."""

_MAX_CHUNK: Final = 1024
_CHUNK_SECONDS: Final = 0.010
_CHUNK_EMITS: Final = 20_000
_CHUNK_BYTES: Final = 4 << 20
_WORK_SECONDS: Final = 0.100
_WORK_EMITS: Final = 200_000
_WORK_BYTES: Final = 16 << 20
"""After so much a work is handed in, and the engine sends the rest anew."""


class Overdue(NamedTuple):
    """An event that runs for too long: where it is, what it is, and its slot's timeout."""

    place: tuple[int, int]
    node: str
    event_id: str
    timeout: float


class Handling(NamedTuple):
    """What runs, of which partition."""

    unit: Unit
    stage: Stage
    part: Assigned


def _nobody(now: float) -> Overdue | None:
    return None


class Runtime:
    """One worker process's code, without I/O.

    Args:
        handlers: node name -> what to run, of the whole app.
        topology: the app.
        ask: sends `Ask` and waits for the answer.
        announce: sends at once.
        clock: monotonic seconds. ``wall``: microseconds of wall time.
    """

    def __init__(
        self,
        handlers: dict[str, Handler],
        topology: TopologySpec,
        ask: Callable[[Ask], list[bytes | None]],
        announce: Callable[[FromWorker], None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.topology = topology
        self._handlers = handlers
        self._ask = ask
        self.announce = announce
        self._clock = clock
        self.now_us = wall
        self.running: tuple[Unit, Stage] | None = None
        """What the watchdog looks at."""
        self.handling: Callable[[], Handling | None] = self.handles
        """What runs right now: what is printed is said by it."""
        self.leveled: Callable[[Levels, Iterable[str]], None] | None = None
        """Told how much is to be logged, and by which nodes."""
        self.complain: Complain | None = None
        """Says what no event has."""
        self.is_running: Callable[[], bool] = self._is_running
        """Whether a handler runs now, or an event waits for its turn. Called from another thread."""
        self.overdue: Callable[[float], Overdue | None] = _nobody
        """The async event that has run for too long at a monotonic time, and that cancelling has not ended."""
        self.progress = 0
        """Counts calls of ``event.progress()``."""
        self.pacer: Pacer | None = None
        """Keeps rates; None: nobody does, as engine and worker are one thread."""
        self.objects: Access | None = None
        """How handlers have objects."""
        self._assigned: dict[int, Assigned] = {}
        self._chunk: dict[str, int] = {}

    def _is_running(self) -> bool:
        return self.running is not None or (self.pacer is not None and self.pacer.is_waiting)

    def handles(self) -> Handling | None:
        """What a synchronous node runs."""
        running = self.running
        return None if running is None else Handling(*running, self.ground.part)

    # ------------------------------------------------------------------ messages

    def welcome(self, message: Welcome) -> None:
        """Take what the engine says of the app and of this worker."""
        self.topology = message.topology or self.topology
        self.pool = message.pool
        self.limits = message.limits
        self.concurrency = message.concurrency
        self.partitions = Partitions(message.partitions)
        self.names = Names(self.topology.name, self.topology.events, self.topology.outputs, message.peers)
        self.ground = Ground(self.limits, self._handlers, self._ask, self.now_us)
        self.ground.tracer.worker = message.worker
        if self.objects is not None and message.namespaces:
            self.objects.namespaces = message.namespaces
            self.ground.objects = self.objects
        routing = route(self.topology)
        self._routing: Routing = routing
        self.units: dict[str, Unit] = {}
        for node in self.topology.nodes:
            if node.pool == self.pool and node.name in self._handlers:
                slots = {slot.event: slot for slot in self.topology.slots if slot.node == node.name}
                self.units[node.name] = self.make_unit(self._handlers[node.name], slots)
        self.ground.delivery = Delivery(
            self.pool, self.units, routing, message.unchained, message.taken, self.partitions, self.run_stage
        )
        self.turns = Turns(self.units, self.ground, self.pacer)
        self.change_levels(message.levels)
        self._waits = False
        self._careful = False
        self._named: dict[tuple[str, str], Named] = {}

    def try_state(self, message: Try) -> Tried:
        """Read these records as events would."""
        handler = self._handlers.get(message.node)
        if handler is None:
            return Tried([])
        table = StateTable(message.node, handler.states, Limits().max_event, complete=False)
        return Tried(table.try_records(message.records))

    @property
    def place(self) -> tuple[int, int]:
        """Partition and epoch of what runs."""
        return self.ground.part.number, self.ground.part.epoch

    def make_unit(self, handler: Handler, slots: dict[str, SlotSpec]) -> Unit:
        """The loop that runs a node."""
        return make_unit(handler, slots, self.ground, self.names, self.partitions, self.limits)

    def change_peers(self, peers: Peers) -> None:
        """The other apps of the server are these from now on."""
        self.names.change_peers(peers)

    def change_levels(self, levels: Levels) -> None:
        """Handlers log as much as this from now on."""
        if self.leveled is not None:
            self.leveled(levels, self.units)

    def setup(self) -> None:
        """Call the nodes' ``setup``, before the first event."""
        for unit in self.units.values():
            if unit.handler.instance is not None:
                unit.handler.instance.setup()

    def teardown(self) -> None:
        """Call the nodes' ``teardown``, after the last event. What one raises is said, and keeps no other from its."""
        for unit in self.units.values():
            if unit.handler.instance is None:
                continue
            try:
                unit.handler.instance.teardown()
            except BaseException as e:
                children.end_child(e)
                if self.complain is None:
                    raise
                self.complain(f"teardown of {unit.node!r} failed\n{user_traceback(e)}", unit.node)
            children.end_child()

    def abandon(self) -> None:
        """In a child that a handler has forked: nothing runs behind the event that runs."""
        if self.running is not None:
            self.running[0].abandon()

    def assign(self, message: Assign) -> None:
        self._assigned[message.partition] = Assigned(message)

    def assigned(self, partition: int) -> Assigned | None:
        return self._assigned.get(partition)

    def start_carefully(self, work: Work) -> None:
        self._careful = True
        self._named = {(named.id, named.node): named for named in work.named}

    def end_carefully(self) -> None:
        self._careful = False
        self._named = {}

    @property
    def is_async(self) -> bool:
        """Whether the pool has async nodes; then `AsyncPool` has to run its works."""
        return any(unit.is_async for unit in self.units.values())

    def revoke(self, message: Revoke) -> None:
        self._assigned.pop(message.partition, None)

    def work(self, message: Work) -> Iterator[Result]:
        """Run a work; nothing comes back for a partition that is no longer this worker's."""
        part = self._assigned.get(message.partition)
        if part is None or part.epoch != message.epoch:
            return
        self.ground.enter(part, Effects(self.limits))
        part.begin(message)
        self.bound_cache()
        self._waits = self.turns.may_be_in(message)
        if not message.careful and not self._waits:
            locks = part.copy_locks()
            try:
                yield self._work_together(message)
                return
            except TooMuch:
                # Nothing has been handed in yet. What is committed can be asked for again.
                part.forget(locks)
                self.ground.effects = Effects(self.limits)
        yield from self._work_singly(message)

    def _work_together(self, message: Work) -> Result:
        """In chunks, until it is done or has become long; what is left then, the engine sends again.

        Raises:
            TooMuch: the effects of a chunk are over ``max-result``.
        """
        started = self._clock()
        effects = self.ground.effects
        self.ground.together = Together(message, self.runs_of, lambda run: [unit.node for unit in self.units_of(run)])

        def is_long() -> bool:
            return self._clock() - started > _WORK_SECONDS or effects.emits > _WORK_EMITS or effects.size > _WORK_BYTES

        retries = Retries(self)
        for number, retried in enumerate(message.retries):
            retries.run(retried, message.context_base + number)
        for item, context in self.batches_of(message):
            for ended in self._run_batch(item, context):
                if not ended and is_long():
                    return self.result(self.ground.part, effects, [message.seq])
            if is_long():
                break
        return self.result(self.ground.part, effects, [message.seq])

    def _work_singly(self, message: Work) -> Iterator[Result]:
        """Root by root, each handed in at once: in careful mode, because together it was too much, or as the next one
        may have to wait for its turn. Of what has a rate the engine sends again what is left after a while.

        Raises:
            GivenBack: the rest is not to be begun here any more.
        """
        self.ground.single = True
        self.ground.together = None
        if message.careful:
            self.start_carefully(message)
        try:
            yield from self._each_alone(message)
        finally:
            self.ground.single = self._waits = False
            self.end_carefully()
        yield self._hand_in([message.seq])

    def _each_alone(self, message: Work) -> Iterator[Result]:
        started = self._clock()
        retries = Retries(self)
        for number, retried in enumerate(message.retries):
            context = message.context_base + number
            if self._waits:
                stage, unit = self.retry_stage(retried, context)
                self.turns.wait([] if unit is None else [(unit, stage)], self._named, is_retry=True)
            retries.run(
                retried,
                context,
                lambda unit, stage: self._alone(lambda: self.run_stage(unit, stage), [(unit, stage)]),
            )
            yield self._hand_in([])
        for item, context in self.batches_of(message):
            for _ in self._run_batch(item, context):
                yield self._hand_in([])
                if self._waits and self._clock() - started > _WORK_SECONDS:
                    return

    def _alone(self, run: Callable[[], None], stages: list[tuple[Unit, Stage]]) -> None:
        """Run one root event, which is all that there is in ``effects``; too much of it is its failure, at all of its
        nodes (``stages``)."""
        locks = self.ground.part.copy_locks()
        try:
            run()
        except TooMuch:
            self.ground.part.forget(locks)
            self.ground.effects = Effects(self.limits)
            error = TooLarge(
                f"the event and what chained from it had effects of over {self.limits.max_result >> 20} MiB "
                f"(max-result): emits, state and replies together"
            )
            for unit, stage in stages:
                self.ground.count(unit, stage)
                self.ground.fail(unit, stage, 0, error)

    def _hand_in(self, ended: list[int]) -> Result:
        result = self.result(self.ground.part, self.ground.effects, ended)
        self.ground.effects = Effects(self.limits)
        return result

    def result(self, part: Assigned, effects: Effects, ended: list[int]) -> Result:
        """What has been done in ``part`` since its last result."""
        states: list[StateChanges] = []
        for table in part.tables.values():
            changes = table.take_changes()
            if changes is not None:
                states.append(changes)
        return Result(
            part.number,
            part.epoch,
            ended,
            list(effects.done.items()),
            effects.retried,
            effects.outbox.pack(),
            states,
            effects.timers,
            effects.failures,
            effects.replies,
            effects.counts,
            effects.emit_counts,
            effects.derived,
            effects.spans,
            _handed_in(part, effects),
        )

    def batches_of(self, work: Work) -> Iterator[tuple[BatchItem, int]]:
        """The batches of a work, each with the number of its first context: those of the retries come before."""
        base = work.context_base + len(work.retries)
        for item in work.batches:
            yield item, base
            base += item.contexts

    def runs_of(self, item: BatchItem) -> Iterator[Run]:
        """The runs of a batch, as they lead to nodes now."""
        for run in runs_of(item.body):
            yield from split_run(run, self._nodes_of)

    @staticmethod
    def contexts_of(run: Run, item: BatchItem, offset: int, base: int) -> list[int] | None:
        """The numbers of the contexts of a run's events; ``offset``: index of its first event in the batch."""
        if item.calls:
            return list(range(base + offset, base + offset + run.count))
        if run.meta.contexts is None:
            return None
        return [-1 if number < 0 else base + number for number in run.meta.contexts]

    def bound_cache(self) -> None:
        tables = [t for part in self._assigned.values() for t in part.tables.values()]
        size = sum(t.size for t in tables)
        if size > self.limits.cache_bytes:
            for table in tables:
                table.evict(0.5)

    # ------------------------------------------------------------------ what runs

    def retry_stage(self, item: RetryItem, context: int) -> tuple[RetryStage, Unit | None]:
        """The stage of a held event, and its unit (None: the node is gone). ``context``: its number."""
        run = next(runs_of(item.body))
        columns = RunColumns(run)
        hops = run.meta.hops if isinstance(run.meta.hops, int) else run.meta.hops[0]
        stage = RetryStage(
            run.meta.names[0],
            (columns.keys or [None])[0],
            columns.raw(0),
            hops,
            context if item.context >= 0 else -1,
            item.created,
            item.id,
            item.attempt,
        )
        stage.on_progress = self._count_progress
        return stage, self.units.get(item.node)

    def _run_batch(self, item: BatchItem, context_base: int) -> Iterator[bool]:
        """Run what is not done of a batch, chunk by chunk; yields after each whether the batch has ended."""
        progress = item.done
        offset = 0
        for run in self.runs_of(item):
            columns: RunColumns | None = None
            contexts = self.contexts_of(run, item, offset, context_base)
            at = 0
            while at < run.count:
                start = at
                while start < run.count and progress.is_done(offset + start):
                    start += 1
                end = start
                limit = 1 if self.ground.single else self._chunk_size(run)
                while (
                    end < run.count and end - start < limit and not (progress.behind and progress.is_done(offset + end))
                ):
                    end += 1
                    if not progress.behind:
                        end = min(run.count, start + limit)
                at = end
                if start == end:
                    continue  # nothing of it was left: an earlier work has done it
                if columns is None:
                    columns = RunColumns(run)
                self._run_roots(columns, start, end, item, offset, contexts)
                finished = offset + end
                progress = (
                    Progress(finished) if not progress.behind else _done_up_to(progress, offset + start, finished)
                )
                self.ground.effects.done[item.position] = progress
                yield finished >= item.events
            offset += run.count
        if not item.events:
            self.ground.effects.done[item.position] = Progress(0)

    def _chunk_size(self, run: Run) -> int:
        return self._chunk.get(run.meta.names[0], 1)

    def _run_roots(
        self, columns: RunColumns, start: int, end: int, item: BatchItem, offset: int, contexts: list[int] | None
    ) -> None:
        stages: list[tuple[Unit, Stage]] = []
        for unit in self.units_of(columns.run):
            stage = RootStage(columns, start, end, item.created, item.id_prefix, offset, contexts)
            stage.on_progress = self._count_progress
            stages.append((unit, stage))

        def run() -> None:
            for unit, stage in stages:
                self.run_stage(unit, stage)

        if self.ground.single:
            if self._waits:
                self.turns.wait(stages, self._named)
            self._alone(run, stages)
            return
        effects = self.ground.effects
        before, emits, size = self._clock(), effects.emits, effects.size
        run()
        took = self._clock() - before
        self._adapt(columns.run.meta.names[0], end - start, took, effects.emits - emits, effects.size - size)

    def units_of(self, run: Run) -> list[Unit]:
        """The nodes that a run is for. Older code may have meant it for some that do not listen any more."""
        only = run.meta.only
        return [self.units[node] for node in self._nodes_of(run.meta.names[0]) if only is None or node in only]

    def _nodes_of(self, event: str) -> list[str]:
        """The nodes of this pool that listen to it."""
        listeners = self._routing.listeners.get(event, ())
        return [node for listener in listeners if listener.pool == self.pool for node in listener.nodes]

    def _adapt(self, name: str, events: int, took: float, emits: int, nbytes: int) -> None:
        """A chunk should take some milliseconds, and not fill the memory with what it emits."""
        size = self._chunk.get(name, 1)
        load = max(took / _CHUNK_SECONDS, emits / _CHUNK_EMITS, nbytes / _CHUNK_BYTES)
        if load > 2:
            size = max(1, min(size, events) // 2)
        elif events >= size and load < 0.5:
            size = min(_MAX_CHUNK, size * 4)
        self._chunk[name] = size

    def _count_progress(self) -> None:
        self.progress += 1

    def run_stage(self, unit: Unit, stage: Stage) -> None:
        """One node over one stage, and all that chains from it."""
        stage = self.ground.without_lost(unit, stage)
        if not stage.count:
            return
        if unit.has_state:
            self.ground.fill(unit, stage)
        if self._careful:
            self._run_carefully(unit, stage)
            return
        if stage.contexts is not None and self.ground.part.traced and self.ground.tracer.is_traced(stage):
            for piece, is_traced in self.ground.tracer.pieces(stage):
                if is_traced:
                    self._run_traced(unit, piece)
                else:
                    self._run_unit(unit, piece)
            return
        self._run_unit(unit, stage)

    def _run_traced(self, unit: Unit, stage: Stage) -> None:
        """As `_run_unit`, one event. What it emits, and answers, is told to be caused by it."""
        ground = self.ground
        ground.count(unit, stage)
        tracer = ground.tracer
        tracer.begin(unit, stage)
        was_dirty = tracer.before(unit, stage)
        failures = len(ground.effects.failures)
        self.running = (unit, stage)
        try:
            emissions = unit.run(stage)
        finally:
            self.running = None
            wrote = tracer.after(unit, stage, was_dirty)
        if unit.has_state:
            ground.effects.add_size(ground.table(unit.node).take_written())
        if len(ground.effects.failures) > failures:
            tracer.forget(unit, stage)
        else:
            tracer.end(unit, stage, wrote=wrote)
        if emissions is not None:
            self.deliver(unit, stage, emissions)

    def _run_unit(self, unit: Unit, stage: Stage) -> None:
        self.ground.count(unit, stage)
        self.running = (unit, stage)
        try:
            emissions = unit.run(stage)
        finally:
            self.running = None
        if unit.has_state:
            self.ground.effects.add_size(self.ground.table(unit.node).take_written())
        if emissions is not None:
            self.deliver(unit, stage, emissions)

    def _run_carefully(self, unit: Unit, stage: Stage) -> None:
        for i in range(stage.count):
            single = stage.pick([i])
            event_id = single.id_of(0)
            named = self._named.get((event_id, unit.node))
            if named is not None:
                self.ground.count(unit, single)
                self.ground.fail(unit, single, 0, None, named)
                continue
            self.announce(Announce(self.ground.part.number, self.ground.part.epoch, event_id, unit.node))
            if self.ground.part.traced and self.ground.tracer.is_traced(single):
                self._run_traced(unit, single)
            else:
                self._run_unit(unit, single)

    # ------------------------------------------------------------------ what was emitted

    def deliver(self, unit: Unit, stage: Stage, emissions: Emissions) -> None:
        """Run what chains, collect the rest."""
        self.ground.delivery.deliver(self.ground.part, self.ground.effects, unit, stage, emissions)


def _handed_in(part: Assigned, effects: Effects) -> list[ObjectWrite]:
    """What was written; the engine knows of it from now on."""
    for written in effects.written:
        left = part.written.get(written.write.place, [])
        if written in left:
            left.remove(written)
        if not left:
            part.written.pop(written.write.place, None)
    return [written.write for written in effects.written]


def _done_up_to(progress: Progress, start: int, end: int) -> Progress:
    for i in range(start, end):
        progress = progress.with_done(i)
    return progress
