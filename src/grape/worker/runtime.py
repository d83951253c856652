"""The worker without its socket: takes messages, runs slots, gives results.

The way of a work: retries first, then each batch run by run, in chunks; a chunk goes through a node as a whole (a
*stage*), what it emitted over chained pairs is the next stage, the rest is collected in the outbox. After a chunk all
of its root events are finished: there a work may end early, and the engine sends what is left once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any, Final

from msgspec import Struct

from grape.authoring.emitter import INHERIT
from grape.authoring.handler import Handler
from grape.model.address import Partitions
from grape.model.batch import Run, one, runs_of
from grape.model.cursor import Progress
from grape.model.policy import after_failure, locks_key
from grape.model.routing import Routing, route
from grape.model.topology import Limits, TopologySpec
from grape.protocol.messages import (
    Announce,
    Ask,
    Assign,
    BatchItem,
    Emitted,
    Failure,
    FromWorker,
    Named,
    Reply,
    Result,
    RetryItem,
    Revoke,
    StateChanges,
    Timer,
    Welcome,
    Work,
)
from grape.worker.blame import blame
from grape.worker.emits import Delayed, Names, Replied
from grape.worker.outbox import Outbox, Target
from grape.worker.stage import ChildStage, RetryStage, RootStage, RunColumns, Stage
from grape.worker.state import StateTable
from grape.worker.units import Emissions, Unit, make_unit
from grape.worker.values import Raw, encode

OUTPUT: Final = ">"
"""First character of the log name of an output; pools have their bare names."""

_MAX_CHUNK: Final = 1024
_CHUNK_SECONDS: Final = 0.010
_CHUNK_EMITS: Final = 20_000
_WORK_SECONDS: Final = 0.100
_WORK_EMITS: Final = 200_000


class _Route(Struct, frozen=True):
    """Where one name leads when one node emits it. ``chained``: units of this pool that run at once if the key stays in
    the partition; ``near``: (log, group, only) for such events beside the chained ones; ``far``: for all others."""

    chained: tuple[Unit, ...]
    near: tuple[tuple[str, object, list[str] | None], ...]
    far: tuple[tuple[str, object, list[str] | None], ...]
    output: str


class Assigned:
    """A partition that is assigned to this worker."""

    def __init__(self, assign: Assign) -> None:
        self.number = assign.partition
        self.epoch = assign.epoch
        self.empty = assign.empty
        self.chain_new = assign.chain_new
        self.tables: dict[str, StateTable] = {}
        self.locks: dict[str, set[str]] = {}
        for node, key in assign.held:
            self.locks.setdefault(node, set()).add(key)


class Effects:
    """What a work has done so far and its result will say."""

    def __init__(self, limits: Limits) -> None:
        self.outbox = Outbox(limits.batch_target, limits.batch_max)
        self.emits = 0
        self.timers: list[Timer] = []
        self.failures: list[Failure] = []
        self.replies: list[Reply] = []
        self.retried: list[int] = []
        self.done: dict[int, Progress] = {}
        self.counts: dict[str, int] = {}
        self.emit_counts: dict[str, int] = {}


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
        self.progress = 0
        """Counts calls of ``event.progress()``."""
        self.retries: dict[tuple[str, str], RetryItem] = {}
        """Held events that run right now, by (id, node)."""
        self._assigned: dict[int, Assigned] = {}
        self._chunk: dict[str, int] = {}

    # ------------------------------------------------------------------ messages

    def welcome(self, message: Welcome) -> None:
        self.pool = message.pool
        self.limits = message.limits
        self.taken = message.taken
        self._unchained = message.unchained
        self.partitions = Partitions(message.partitions)
        self.names = Names(self.topology.name, [*self.topology.events, *self.topology.outputs])
        routing = route(self.topology)
        self._routing: Routing = routing
        self.units: dict[str, Unit] = {}
        for node in self.topology.nodes:
            if node.pool == self.pool and node.name in self._handlers:
                slots = {slot.event: slot for slot in self.topology.slots if slot.node == node.name}
                self.units[node.name] = make_unit(
                    self._handlers[node.name], slots, self, self.names, self.partitions, self.limits
                )
        self._routes: dict[tuple[str, bool], dict[str, _Route]] = {}
        self._effects = Effects(self.limits)
        self._part = Assigned(Assign(0, 0))
        self._careful = False
        self._named: dict[tuple[str, str], Named] = {}

    @property
    def place(self) -> tuple[int, int]:
        """Partition and epoch of what runs."""
        return self._part.number, self._part.epoch

    def setup(self) -> None:
        """Call the nodes' ``setup``, before the first event."""
        for unit in self.units.values():
            if unit.handler.instance is not None:
                unit.handler.instance.setup()

    def teardown(self) -> None:
        """Call the nodes' ``teardown``, after the last event."""
        for unit in self.units.values():
            if unit.handler.instance is not None:
                unit.handler.instance.teardown()

    def assign(self, message: Assign) -> None:
        self._assigned[message.partition] = Assigned(message)

    def assigned(self, partition: int) -> Assigned | None:
        return self._assigned.get(partition)

    def enter(self, part: Assigned, effects: Effects) -> None:
        """What runs from now on belongs to ``part``, and goes into ``effects``."""
        self._part = part
        self._effects = effects

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
        self._part = part
        self._careful = message.careful
        self._named = {(named.id, named.node): named for named in message.named}
        self._effects = Effects(self.limits)
        self.bound_cache()
        started = self._clock()
        self.run_retries(message.retries, message.context_base)
        for item, context in self.batches_of(message):
            for ended in self._run_batch(item, context):
                full = self._clock() - started > _WORK_SECONDS or self._effects.emits > _WORK_EMITS
                if self._careful:
                    yield self.result(self._part, self._effects, [])
                    self._effects = Effects(self.limits)
                elif full and not ended:
                    yield self.result(self._part, self._effects, [message.seq])
                    return
            if not self._careful and (self._clock() - started > _WORK_SECONDS or self._effects.emits > _WORK_EMITS):
                break
        yield self.result(self._part, self._effects, [message.seq])

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
        )

    def batches_of(self, work: Work) -> Iterator[tuple[BatchItem, int]]:
        """The batches of a work, each with the number of its first context: those of the retries come before."""
        base = work.context_base + len(work.retries)
        for item in work.batches:
            yield item, base
            base += item.contexts

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

    def run_retries(self, items: list[RetryItem], base: int) -> None:
        stuck: set[tuple[str, str | None]] = set()
        relock: set[tuple[str, str]] = set()
        for number, item in enumerate(items):
            stage, unit = self.retry_stage(item, base + number)
            key = stage.key_of(0)
            line = (item.node, key)
            if unit is None or (key is not None and line in stuck):
                continue
            locks = self.locked(item.node)
            if key is not None:
                locks.discard(key)
            failures = len(self._effects.failures)
            self.retries[item.id, item.node] = item
            self.run_stage(unit, stage)
            del self.retries[item.id, item.node]
            failed = any(f.hold == item.hold for f in self._effects.failures[failures:])
            if not failed:
                self._effects.retried.append(item.hold)
            if key is not None:
                if key in locks:
                    stuck.add(line)
                    relock.discard((item.node, key))
                elif item.rest:
                    relock.add((item.node, key))
        for node, key in relock:
            self.locked(node).add(key)

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
        done = self._effects.done
        for run in runs_of(item.body):
            columns: RunColumns | None = None
            contexts = self.contexts_of(run, item, offset, context_base)
            at = 0
            while at < run.count:
                start = at
                while start < run.count and progress.is_done(offset + start):
                    start += 1
                end = start
                limit = 1 if self._careful else self._chunk_size(run)
                while (
                    end < run.count and end - start < limit and not (progress.behind and progress.is_done(offset + end))
                ):
                    end += 1
                    if not progress.behind:
                        end = min(run.count, start + limit)
                if start < end:
                    if columns is None:
                        columns = RunColumns(run)
                    self._run_roots(columns, start, end, item, offset, contexts)
                at = end
                finished = offset + end
                progress = (
                    Progress(finished) if not progress.behind else _done_up_to(progress, offset + start, finished)
                )
                self._effects.done[item.position] = progress
                yield finished >= item.events
            offset += run.count
        if not item.events:
            done[item.position] = Progress(0)

    def _chunk_size(self, run: Run) -> int:
        return self._chunk.get(run.meta.names[0], 1)

    def _run_roots(
        self, columns: RunColumns, start: int, end: int, item: BatchItem, offset: int, contexts: list[int] | None
    ) -> None:
        name = columns.run.meta.names[0]
        before, emits = self._clock(), self._effects.emits
        for unit in self.units_of(columns.run):
            stage = RootStage(columns, start, end, item.created, item.id_prefix, offset, contexts)
            stage.on_progress = self._count_progress
            self.run_stage(unit, stage)
        self._adapt(name, end - start, self._clock() - before, self._effects.emits - emits)

    def units_of(self, run: Run) -> list[Unit]:
        """The nodes that a run is for."""
        nodes = run.meta.only
        if nodes is None:
            listeners = self._routing.listeners.get(run.meta.names[0], ())
            nodes = [node for listener in listeners if listener.pool == self.pool for node in listener.nodes]
        return [self.units[node] for node in nodes if node in self.units]

    def _adapt(self, name: str, events: int, took: float, emits: int) -> None:
        """A chunk should take some milliseconds, and not fill the memory with what it emits."""
        size = self._chunk.get(name, 1)
        if took > 2 * _CHUNK_SECONDS or emits > 2 * _CHUNK_EMITS:
            size = max(1, min(size, events) // 2)
        elif events >= size and took < _CHUNK_SECONDS / 2 and emits < _CHUNK_EMITS / 2:
            size = min(_MAX_CHUNK, size * 4)
        self._chunk[name] = size

    def _count_progress(self) -> None:
        self.progress += 1

    def run_stage(self, unit: Unit, stage: Stage) -> None:
        """One node over one stage, and all that chains from it."""
        stage = self._without_lost(unit, stage)
        if not stage.count:
            return
        if unit.has_state:
            self.fill(unit, stage)
        if self._careful:
            self._run_carefully(unit, stage)
            return
        self.count(unit, stage)
        self.running = (unit, stage)
        try:
            emissions = unit.run(stage)
        finally:
            self.running = None
        if emissions is not None:
            self.deliver(unit, stage, emissions)

    def _run_carefully(self, unit: Unit, stage: Stage) -> None:
        for i in range(stage.count):
            single = stage.pick([i])
            self.count(unit, single)
            event_id = single.id_of(0)
            named = self._named.get((event_id, unit.node))
            if named is not None:
                self.fail(unit, single, 0, None, named)
                continue
            self.announce(Announce(self._part.number, self._part.epoch, event_id, unit.node))
            self.running = (unit, single)
            try:
                emissions = unit.run(single)
            finally:
                self.running = None
            if emissions is not None:
                self.deliver(unit, single, emissions)

    def _without_lost(self, unit: Unit, stage: Stage) -> Stage:
        """Without events that have come too far (max-hops): those are dead."""
        limit = self.limits.max_hops
        hops = stage.hops
        if not limit or (hops if isinstance(hops, int) else max(hops)) <= limit:
            return stage
        kept = []
        for i in range(stage.count):
            if stage.hops_of(i) > limit:
                text = (
                    f"the event was emitted over {limit} hops away from the outside (max-hops): does "
                    f"{stage.name_of(i)!r} go round in a circle? A delayed emit starts at 0 again"
                )
                self.count(unit, stage.pick([i]))
                self.fail(unit, stage, i, None, Named("", unit.node, "too-many-hops", text, False), final=True)
            else:
                kept.append(i)
        return stage.pick(kept)

    def fill(self, unit: Unit, stage: Stage) -> None:
        table = self.table(unit.node)
        missing = table.missing(stage.keys or ())
        if missing:
            part = self._part
            answer = self._ask(Ask(part.number, part.epoch, unit.node, [key.encode() for key in missing]))
            table.fill(missing, answer)

    def count(self, unit: Unit, stage: Stage) -> None:
        counts = self._effects.counts
        if isinstance(stage.names, str):
            name = f"{stage.names}>{unit.node}"
            counts[name] = counts.get(name, 0) + stage.count
        else:
            for event in stage.names:
                name = f"{event}>{unit.node}"
                counts[name] = counts.get(name, 0) + 1

    # ------------------------------------------------------------------ Host: what units ask for

    def locked(self, node: str) -> set[str]:
        return self._part.locks.setdefault(node, set())

    def table(self, node: str) -> StateTable:
        tables = self._part.tables
        if node not in tables:
            tables[node] = StateTable(
                node, self._handlers[node].states, self.limits.max_event, complete=self._part.empty
            )
        return tables[node]

    def fail(
        self,
        unit: Unit,
        stage: Stage,
        index: int,
        error: BaseException | None,
        named: Named | None = None,
        final: bool = False,
    ) -> None:
        slot = unit.slots[stage.name_of(index)]
        retrying = self.retries.get((stage.id_of(index), unit.node))
        deaths = (retrying.named_deaths if retrying is not None else 0) + (named is not None and named.death)
        verdict = (
            "dead"
            if final
            else after_failure(
                slot,
                stage.attempt_of(index),
                deaths if named is not None and named.death else 0,
                self.limits.named_deaths,
            )
        )
        key = stage.key_of(index)
        if locks_key(slot, key, verdict) and key is not None:
            self.locked(unit.node).add(key)
        if named is not None:
            kind, text, trace = named.kind, named.text, ""
        else:
            assert error is not None
            kind, text, trace = blame(error)
        self._record(
            unit,
            stage,
            index,
            kind=kind,
            text=text,
            trace=trace,
            named=bool(named is not None and named.death),
            final=final,
        )

    def behind(self, unit: Unit, stage: Stage, index: int) -> None:
        self._record(unit, stage, index, behind=True)

    def _record(self, unit: Unit, stage: Stage, index: int, **what: Any) -> None:
        name, key = stage.name_of(index), stage.key_of(index)
        event_id = stage.id_of(index)
        retrying = self.retries.get((event_id, unit.node)) if self.retries else None
        body = one(name, key, stage.data_of(index), hops=stage.hops_of(index))
        self._effects.failures.append(
            Failure(
                unit.node,
                name,
                event_id,
                key,
                stage.created(),
                body,
                hold=-1 if retrying is None else retrying.hold,
                context=stage.context_of(index),
                **what,
            )
        )
        slot = f"{name}>{unit.node}"
        self._effects.counts[slot] = self._effects.counts.get(slot, 0) - 1

    # ------------------------------------------------------------------ what was emitted

    def deliver(self, unit: Unit, stage: Stage, emissions: Emissions) -> None:
        """Run what chains, collect the rest."""
        self._effects.emits += len(emissions)
        if emissions.marks is None:
            self._deliver_results(unit, stage, emissions)
        else:
            self._deliver_emits(unit, stage, emissions)

    def _deliver_results(self, unit: Unit, stage: Stage, emissions: Emissions) -> None:
        """One emit an event, all with the key of their event: nothing leaves the partition."""
        flat, data = emissions.flat, emissions.data
        assert data is not None
        n = len(data)

        def of_events(column: Any) -> Any:
            if flat is None or not isinstance(column, list):
                return column
            return [column[i] for i in flat]

        keys = of_events(stage.keys)
        hops = of_events(_one_more(stage.hops))
        contexts = of_events(stage.contexts)
        if isinstance(emissions.names, str):
            self._send(unit, stage, emissions.names, keys or [None] * n, data, hops, contexts, flat, None, None)
            return
        for name in dict.fromkeys(emissions.names):
            picked = [i for i, other in enumerate(emissions.names) if other == name]
            self._send(
                unit,
                stage,
                name,
                [None] * len(picked) if keys is None else [keys[i] for i in picked],
                [data[i] for i in picked],
                hops if isinstance(hops, int) else [hops[i] for i in picked],
                None if contexts is None else [contexts[i] for i in picked],
                [flat[i] for i in picked] if flat is not None else picked,
                None,
                None,
            )

    def _deliver_emits(self, unit: Unit, stage: Stage, emissions: Emissions) -> None:
        names, keys, data, marks = emissions.names, emissions.keys, emissions.data, emissions.marks
        assert isinstance(names, list)
        assert keys is not None
        assert data is not None
        assert marks is not None
        first = names[0]
        uniform = type(first) is str and names.count(first) == len(names)
        origins: list[int] | None = None
        if INHERIT in keys or not isinstance(stage.hops, int) or stage.contexts is not None or not uniform:
            origins = _origins(marks)
        if INHERIT in keys:
            own = stage.key_column()
            assert origins is not None
            keys = [own[at] if key is INHERIT else key for key, at in zip(keys, origins, strict=True)]
        hops = _one_more(stage.hops)
        if isinstance(hops, list):
            assert origins is not None
            hops = [hops[at] for at in origins]
        contexts = stage.contexts
        if contexts is not None:
            assert origins is not None
            contexts = [contexts[at] for at in origins]
        if uniform:
            self._send(unit, stage, first, keys, data, hops, contexts, None, marks, self._numbers(keys))
            return
        groups = self._in_order(unit, stage, names, keys, data, contexts, hops, origins or [])
        for name, picked in groups:
            self._send(
                unit,
                stage,
                name,
                [keys[i] for i in picked],
                [data[i] for i in picked],
                hops if isinstance(hops, int) else [hops[i] for i in picked],
                None if contexts is None else [contexts[i] for i in picked],
                picked,
                marks,
                self._numbers([keys[i] for i in picked]),
            )

    def _in_order(
        self,
        unit: Unit,
        stage: Stage,
        names: list[Any],
        keys: list[str | None],
        data: list[Any],
        contexts: list[int] | None,
        hops: int | list[int],
        origins: list[int],
    ) -> list[tuple[str, list[int]]]:
        """Emits of several names as consecutive groups of one name each, so that a node which listens to several of
        them gets them in order. Timers and replies are done with here."""
        groups: list[tuple[str, list[int]]] = []
        shared = len({self._listeners_key(unit, n) for n in set(names) if type(n) is str}) < len(
            {n for n in names if type(n) is str}
        )
        by_name: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            if type(name) is str:
                if shared:
                    if groups and groups[-1][0] == name:
                        groups[-1][1].append(i)
                    else:
                        groups.append((name, [i]))
                else:
                    picked = by_name.get(name)
                    if picked is None:
                        picked = by_name[name] = []
                        groups.append((name, picked))
                    picked.append(i)
            elif type(name) is Delayed:
                context = -1 if contexts is None else contexts[i]
                self._delay(name, keys[i], data[i], context)
            elif type(name) is Replied:
                context = stage.context_of(origins[i])
                if context >= 0:
                    value = data[i]
                    packed = bytes(value) if type(value) is Raw else encode(value)
                    self._effects.replies.append(Reply(context, packed, name.final))
        return groups

    def _listeners_key(self, unit: Unit, name: str) -> object:
        nodes = frozenset(n for listener in self._routing.listeners.get(name, ()) for n in listener.nodes)
        return nodes or name

    def _numbers(self, keys: list[str | None]) -> list[int]:
        own, partitions = self._part.number, self.partitions
        if None in keys:
            return [own if key is None else partitions[key] for key in keys]
        return list(map(partitions.__getitem__, keys))  # type: ignore[arg-type]

    def _send(
        self,
        unit: Unit,
        stage: Stage,
        name: str,
        keys: list[str | None],
        data: list[Any],
        hops: int | list[int],
        contexts: list[int] | None,
        flat: list[int] | None,
        marks: list[int] | None,
        numbers: list[int] | None,
    ) -> None:
        """Events of one name. ``numbers``: their partitions, None: all stay in this one."""
        counts = self._effects.emit_counts
        counts[name] = counts.get(name, 0) + len(keys)
        routed = self._route(unit.node, name)
        own = self._part.number
        if routed.output:
            if name in self.taken:
                self._collect(routed.far, own, name, keys, data, hops, contexts)
            return
        if routed.chained:
            near = (
                None
                if numbers is None or numbers.count(own) == len(numbers)
                else [i for i, number in enumerate(numbers) if number == own]
            )
            if near is None:
                self._chain(unit, stage, routed, name, keys, data, hops, contexts, flat, marks)
                return
            far = [i for i, number in enumerate(numbers or ()) if number != own]
            if near:
                self._chain(
                    unit,
                    stage,
                    routed,
                    name,
                    [keys[i] for i in near],
                    [data[i] for i in near],
                    hops if isinstance(hops, int) else [hops[i] for i in near],
                    None if contexts is None else [contexts[i] for i in near],
                    near if flat is None else [flat[i] for i in near],
                    marks,
                )
            keys = [keys[i] for i in far]
            data = [data[i] for i in far]
            hops = hops if isinstance(hops, int) else [hops[i] for i in far]
            contexts = None if contexts is None else [contexts[i] for i in far]
            numbers = [numbers[i] for i in far] if numbers is not None else None
        if numbers is None:
            self._collect(routed.far, own, name, keys, data, hops, contexts)
        else:
            self._scatter(routed.far, name, keys, data, hops, contexts, numbers)

    def _chain(
        self,
        unit: Unit,
        stage: Stage,
        routed: _Route,
        name: str,
        keys: list[str | None],
        data: list[Any],
        hops: int | list[int],
        contexts: list[int] | None,
        flat: list[int] | None,
        marks: list[int] | None,
    ) -> None:
        self._collect(routed.near, self._part.number, name, keys, data, hops, contexts)
        for target in routed.chained:
            self.run_stage(target, ChildStage(stage, len(keys), name, keys, data, hops, contexts, flat, marks))

    def _collect(
        self,
        logs: tuple[tuple[str, object, list[str] | None], ...],
        partition: int,
        name: str,
        keys: list[str | None],
        data: list[Any] | None,
        hops: int | list[int],
        contexts: list[int] | None,
    ) -> None:
        """Append to one partition of every log."""
        for log, group, only in logs:
            base = hops if isinstance(hops, int) else hops[0]
            columns = self._effects.outbox.columns(Target(log, partition), group, name, base, only)
            columns.extend(name, keys, data, hops, contexts)

    def _scatter(
        self,
        logs: tuple[tuple[str, object, list[str] | None], ...],
        name: str,
        keys: list[str | None],
        data: list[Any],
        hops: int | list[int],
        contexts: list[int] | None,
        numbers: list[int],
    ) -> None:
        """Sort by partition, then append. The usual case (no data, or nothing but keys and data) has loops of its own:
        this is where every event of a splitter passes."""
        if isinstance(hops, int) and contexts is None:
            by_key: dict[int, list[str | None]] = {number: [] for number in set(numbers)}
            if data.count(None) == len(data):
                put = {number: column.append for number, column in by_key.items()}
                for number, key in zip(numbers, keys, strict=True):
                    put[number](key)
                for number, column in by_key.items():
                    self._collect(logs, number, name, column, None, hops, None)
                return
            by_data: dict[int, list[Any]] = {number: [] for number in by_key}
            for number, key, value in zip(numbers, keys, data, strict=True):
                by_key[number].append(key)
                by_data[number].append(value)
            for number, column in by_key.items():
                self._collect(logs, number, name, column, by_data[number], hops, None)
            return
        rows: dict[int, list[int]] = {}
        for i, number in enumerate(numbers):
            rows.setdefault(number, []).append(i)
        for number, picked in rows.items():
            self._collect(
                logs,
                number,
                name,
                [keys[i] for i in picked],
                [data[i] for i in picked],
                hops if isinstance(hops, int) else [hops[i] for i in picked],
                None if contexts is None else [contexts[i] for i in picked],
            )

    def _delay(self, delayed: Delayed, key: str | None, data: Any, context: int) -> None:
        name = delayed.name
        counts = self._effects.emit_counts
        counts[name] = counts.get(name, 0) + 1
        number = self._part.number if key is None else self.partitions[key]
        contexts = [] if context < 0 else [context]
        body = one(name, key, data, **({"contexts": [0]} if contexts else {}))
        for log in self._logs_of(name):
            self._effects.timers.append(Timer(delayed.delay, Emitted(log, number, 1, body, contexts)))

    def _logs_of(self, name: str) -> list[str]:
        if name in self._routing.outputs:
            return [OUTPUT + name] if name in self.taken else []
        return [listener.pool for listener in self._routing.listeners[name]]

    def _route(self, node: str, name: str) -> _Route:
        routes = self._routes.setdefault((node, self._part.chain_new), {})
        found = routes.get(name)
        if found is None:
            found = routes[name] = self._make_route(node, name)
        return found

    def _make_route(self, node: str, name: str) -> _Route:
        if name in self._routing.outputs:
            return _Route((), (), ((OUTPUT + name, name, None),), name)
        pairs = self._routing.chained
        if not self._part.chain_new:
            pairs = pairs - self._unchained
        chained: list[Unit] = []
        near: list[tuple[str, object, list[str] | None]] = []
        far: list[tuple[str, object, list[str] | None]] = []
        for listener in self._routing.listeners[name]:
            group = (listener.pool, listener.nodes)
            far.append((listener.pool, group, None))
            rest = [target for target in listener.nodes if (node, target) not in pairs]
            if listener.pool == self.pool:
                chained += [self.units[target] for target in listener.nodes if (node, target) in pairs]
            if rest:
                near.append((listener.pool, group, None if len(rest) == len(listener.nodes) else rest))
        return _Route(tuple(chained), tuple(near), tuple(far), "")


def _one_more(hops: int | list[int]) -> int | list[int]:
    return hops + 1 if isinstance(hops, int) else [h + 1 for h in hops]


def _origins(marks: list[int]) -> list[int]:
    """For every emit the index of the event that made it."""
    out: list[int] = []
    before = 0
    for i, mark in enumerate(marks):
        out.extend(repeat(i, mark - before))
        before = mark
    return out


def _done_up_to(progress: Progress, start: int, end: int) -> Progress:
    for i in range(start, end):
        progress = progress.with_done(i)
    return progress
