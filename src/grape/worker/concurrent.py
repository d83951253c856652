"""Async slots: up to ``concurrency`` events at once, one per (node, key), each with effects of its own.

An async event is a *job*: it runs as a task with columns and a view of the state of its own. When it has succeeded its
effects are merged into those of its partition, and its root event is finished once all its jobs are. What is finished
is handed in after 20 ms at the latest. Synchronous nodes of the same pool run between the tasks, stage by stage.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from grape.authoring.emitter import Context, Emitter
from grape.authoring.state import State
from grape.errors import EventOver, HandlerError
from grape.model.batch import runs_of
from grape.model.cursor import Progress
from grape.model.event import Event
from grape.protocol.messages import Announce, Assign, BatchItem, Named, Result, Revoke, Work
from grape.worker.effects import Assigned, Effects
from grape.worker.emits import EmitColumns, bind
from grape.worker.retries import Retries
from grape.worker.runtime import Runtime
from grape.worker.stage import RootStage, RunColumns, Stage
from grape.worker.units import Emissions, StateAccess, Unit, arguments, stray_result
from grape.worker.values import Unfit, to_value

FLUSH_SECONDS: Final = 0.020
FLUSH_BYTES: Final = 16 << 20

_current: contextvars.ContextVar[Job | None] = contextvars.ContextVar("grape_job", default=None)


class Timeout(HandlerError):
    code = "timeout"


class _Root:
    """A root event and how many of its jobs still run."""

    __slots__ = ("index", "item", "jobs")

    def __init__(self, item: _Item, index: int) -> None:
        self.item = item
        self.index = index
        self.jobs = 0


class _Item:
    """A batch in work: its progress, and how many of its events are not finished."""

    def __init__(self, batch: BatchItem, work: _Work) -> None:
        self.position = batch.position
        self.progress = batch.done
        self.left = batch.events - batch.done.finished()
        self.work = work


class _Work:
    """``left``: batches and retries that are not finished."""

    def __init__(self, message: Work) -> None:
        self.message = message
        self.left = len(message.batches) + len(message.retries)


class Job:
    """One event at one async node."""

    def __init__(self, pool: AsyncPool, unit: Unit, stage: Stage, part: Assigned, done: Callable[[], None]) -> None:
        self.unit = unit
        self.stage = stage
        self.part = part
        self.done = done
        self.columns = EmitColumns(pool.runtime.limits.max_result, single=True)
        self.emitter = Context()
        self.access: StateAccess | None = None
        self.is_over = False
        self.deadline = 0.0


class AsyncPool:
    """Runs works whose pool has async nodes.

    Args:
        runtime: runs the synchronous part, and everything about routing, state and failures.
        send: sends a result.
    """

    def __init__(self, runtime: Runtime, send: Callable[[Result], None]) -> None:
        self.runtime = runtime
        self._send = send
        self._effects: dict[int, Effects] = {}
        self._ended: dict[int, list[int]] = {}
        self._lines: dict[tuple[int, str, str], deque[Job]] = {}
        self._waiting: dict[str, deque[Job]] = {}
        self._running: dict[str, int] = {}
        self._tasks: dict[asyncio.Task[None], Job] = {}
        self._flush_due = False
        self._works: deque[Work] = deque()
        self._careful: asyncio.Task[None] | None = None
        runtime.single = True
        for unit in runtime.units.values():
            if unit.is_async:
                _bind_shared(unit)

    # ------------------------------------------------------------------ messages

    def assign(self, message: Assign) -> None:
        self.runtime.assign(message)

    def revoke(self, message: Revoke) -> None:
        self.runtime.revoke(message)
        self._effects.pop(message.partition, None)
        self._ended.pop(message.partition, None)

    def work(self, message: Work) -> None:
        """Start a work; its results come through ``send``."""
        self._works.append(message)
        if self._careful is None:
            self._next()

    def _next(self) -> None:
        while self._works and self._careful is None:
            message = self._works.popleft()
            part = self.runtime.assigned(message.partition)
            if part is None or part.epoch != message.epoch:
                continue
            if message.careful:
                self._careful = asyncio.ensure_future(self._run_carefully(message, part))
            else:
                self._start(message, part)

    def _start(self, message: Work, part: Assigned) -> None:
        work = _Work(message)
        self._enter(part)
        runtime = self.runtime
        runtime.bound_cache()
        retries = Retries(runtime)
        for number, item in enumerate(message.retries):
            stage, unit = runtime.retry_stage(item, message.context_base + number)
            if unit is None or not unit.is_async:
                retries.run(item, message.context_base + number)
                self._finish_of(work, part)
                continue
            key = stage.key_of(0)
            if key is not None:
                runtime.locked(unit.node).discard(key)
            runtime.retries[item.id, unit.node] = item
            self._submit(Job(self, unit, stage, part, self._retried(work, part, unit, item.hold, key, item.rest)))
        retries.finish()
        for batch, base in runtime.batches_of(message):
            self._start_batch(batch, base, work, part)
        if not message.batches and not message.retries:
            self._end(work, part)
        self._flush_soon()

    def _retried(
        self, work: _Work, part: Assigned, unit: Unit, hold: int, key: str | None, rest: bool
    ) -> Callable[[], None]:
        def done() -> None:
            for held in [h for h, item in self.runtime.retries.items() if item.hold == hold and h[1] == unit.node]:
                del self.runtime.retries[held]
            effects = self._effects_of(part)
            failed = any(f.hold == hold for f in effects.failures)
            if not failed:
                effects.retried.append(hold)
                if rest and key is not None:
                    part.locks.setdefault(unit.node, set()).add(key)
            self._finish_of(work, part)

        return done

    def _start_batch(self, batch: BatchItem, base: int, work: _Work, part: Assigned) -> None:
        item = _Item(batch, work)
        if not item.left:
            self._effects_of(part).done[item.position] = Progress(batch.events)
            self._finish_of(work, part)
            return
        runtime = self.runtime
        offset = 0
        for run in runs_of(batch.body):
            columns = RunColumns(run)
            contexts = runtime.contexts_of(run, batch, offset, base)
            units = runtime.units_of(run)
            asynchronous = [unit for unit in units if unit.is_async]
            for at in range(run.count):
                if batch.done.is_done(offset + at):
                    continue
                stage = RootStage(columns, at, at + 1, batch.created, batch.id_prefix, offset, contexts)
                root = _Root(item, offset + at)
                root.jobs = len(asynchronous) + 1
                for unit in units:
                    if unit.is_async:
                        self._submit(Job(self, unit, stage, part, lambda r=root: self._done(r, part)))  # type: ignore[misc]
                    else:
                        self._enter(part)
                        runtime.run_stage(unit, stage)
                self._done(root, part)
                if self._effects_of(part).size > FLUSH_BYTES:
                    self.flush()
            offset += run.count

    # ------------------------------------------------------------------ jobs

    def _submit(self, job: Job) -> None:
        """Behind its (node, key), then within the slot's concurrency."""
        key = job.stage.key_of(0)
        if key is not None:
            line = (job.part.number, job.unit.node, key)
            queue = self._lines.get(line)
            if queue is not None:
                queue.append(job)
                return
            self._lines[line] = deque()
        self._admit(job)

    def _admit(self, job: Job) -> None:
        node = job.unit.node
        limit = min(slot.concurrency for slot in job.unit.slots.values())
        if self._running.get(node, 0) >= limit:
            self._waiting.setdefault(node, deque()).append(job)
            return
        self._running[node] = self._running.get(node, 0) + 1
        task = asyncio.ensure_future(self._run(job))
        self._tasks[task] = job
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        job = self._tasks.pop(task)
        node = job.unit.node
        self._running[node] -= 1
        waiting = self._waiting.get(node)
        if waiting:
            self._admit(waiting.popleft())
        key = job.stage.key_of(0)
        if key is not None:
            line = (job.part.number, node, key)
            queue = self._lines[line]
            if queue:
                self._admit(queue.popleft())
            else:
                del self._lines[line]
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]

    async def _run(self, job: Job) -> None:
        unit, stage, part, runtime = job.unit, job.stage, job.part, self.runtime
        if not self._is_current(part):
            return
        self._enter(part)
        if stage.key_of(0) in runtime.locked(unit.node) and unit.slots[stage.name_of(0)].ordered:
            runtime.behind(unit, stage, 0)
            job.done()
            return
        error: BaseException | None = None
        try:
            await self._call(job)
        except asyncio.CancelledError:
            error = Timeout(f"{unit.node!r} ran over its timeout of {unit.slots[stage.name_of(0)].timeout:g} s")
        except (Exception, SystemExit) as e:
            error = e
        job.is_over = True
        if not self._is_current(part):
            return
        self._enter(part)
        runtime.count(unit, stage)
        if error is None:
            try:
                if job.access is not None:
                    job.access.apply()
            except HandlerError as e:
                error = e
        if error is not None:
            runtime.fail(unit, stage, 0, error)
        elif job.columns.data:
            size = job.columns.size
            names, keys, data = job.columns.take()
            runtime.deliver(unit, stage, Emissions(names, keys, data, [len(data)], None, size))
        job.done()
        self._flush_soon()

    async def _call(self, job: Job) -> None:
        unit, stage, runtime = job.unit, job.stage, self.runtime
        data = stage.values(unit.payload)
        if data is not None and type(data[0]) is Unfit:
            raise data[0].error
        (event,) = stage.events(data)
        if unit.has_state:
            runtime.fill(unit, stage)
            job.access = StateAccess(unit.node, runtime.table(unit.node), event, runtime.now_us())
        bind(
            job.emitter,
            job.columns,
            unit.node,
            runtime.names,
            runtime.partitions,
            runtime.limits.max_event,
        )
        _current.set(job)
        handler = unit.handler
        slot = unit.slots[event.name]
        result = handler.call(*arguments(handler, event, unit.emitter, job.access))
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        timer: asyncio.TimerHandle | None = None

        def restart() -> None:
            nonlocal timer
            if timer is not None:
                timer.cancel()
            if slot.timeout:
                timer = loop.call_later(slot.timeout, task.cancel)

        stage.on_progress = restart
        restart()
        try:
            if handler.kind == "async-generator":
                async for value in result:
                    self._returned(job, event, value)
            else:
                self._returned(job, event, await result)
        finally:
            if timer is not None:
                timer.cancel()

    def _returned(self, job: Job, event: Event, value: Any) -> None:
        if value is None:
            return
        emits = job.unit.slots[event.name].emits
        if len(emits) != 1:
            raise stray_result(job.unit.node, emits, value)
        job.columns.put(emits[0], to_value(value, self.runtime.limits.max_event))

    # ------------------------------------------------------------------ careful mode

    async def _run_carefully(self, message: Work, part: Assigned) -> None:
        """One event at a time: what is still running ends first."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        self._enter(part)
        runtime = self.runtime
        runtime.start_carefully(message)
        work = _Work(message)
        retries = Retries(runtime)
        for number, item in enumerate(message.retries):
            stage, unit = runtime.retry_stage(item, message.context_base + number)
            if unit is not None and unit.is_async:
                key = stage.key_of(0)
                if key is not None:
                    runtime.locked(unit.node).discard(key)
                runtime.retries[item.id, unit.node] = item
                done = self._retried(work, part, unit, item.hold, key, item.rest)
                await self._one_carefully(Job(self, unit, stage, part, done), message.named)
            else:
                retries.run(item, message.context_base + number)
                self._finish_of(work, part)
            self.flush()
            self._enter(part)
        retries.finish()
        for batch, base in runtime.batches_of(message):
            in_work = _Item(batch, work)
            offset = 0
            for run in runs_of(batch.body):
                columns = RunColumns(run)
                contexts = runtime.contexts_of(run, batch, offset, base)
                for at in range(run.count):
                    if batch.done.is_done(offset + at):
                        continue
                    root_stage = RootStage(columns, at, at + 1, batch.created, batch.id_prefix, offset, contexts)
                    for node in runtime.units_of(run):
                        self._enter(part)
                        if node.is_async:
                            await self._one_carefully(Job(self, node, root_stage, part, _nothing), message.named)
                        else:
                            runtime.run_stage(node, root_stage)
                    root = _Root(in_work, offset + at)
                    root.jobs = 1
                    self._done(root, part)
                    self.flush()
                offset += run.count
        runtime.end_carefully()
        self._careful = None
        self._next()

    async def _one_carefully(self, job: Job, named: list[Named]) -> None:
        event_id, node = job.stage.id_of(0), job.unit.node
        for one in named:
            if (one.id, one.node) == (event_id, node):
                self._enter(job.part)
                self.runtime.count(job.unit, job.stage)
                self.runtime.fail(job.unit, job.stage, 0, None, one)
                job.done()
                return
        self.runtime.announce(Announce(job.part.number, job.part.epoch, event_id, node))
        await asyncio.ensure_future(self._run(job))

    # ------------------------------------------------------------------ results

    def _is_current(self, part: Assigned) -> bool:
        return self.runtime.assigned(part.number) is part

    def _effects_of(self, part: Assigned) -> Effects:
        effects = self._effects.get(part.number)
        if effects is None:
            # A result is handed in long before it is too large; only one event can make it so, which is looked at.
            effects = self._effects[part.number] = Effects(self.runtime.limits, sys.maxsize)
        return effects

    def _enter(self, part: Assigned) -> None:
        """What happens now belongs to ``part``."""
        self.runtime.enter(part, self._effects_of(part))

    def _done(self, root: _Root, part: Assigned) -> None:
        root.jobs -= 1
        if root.jobs or not self._is_current(part):
            return
        item = root.item
        item.progress = item.progress.with_done(root.index)
        item.left -= 1
        self._effects_of(part).done[item.position] = item.progress
        if not item.left:
            self._finish_of(item.work, part)

    def _finish_of(self, work: _Work, part: Assigned) -> None:
        work.left -= 1
        if not work.left:
            self._end(work, part)

    def _end(self, work: _Work, part: Assigned) -> None:
        self._effects_of(part)
        self._ended.setdefault(part.number, []).append(work.message.seq)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if any(effects.size > FLUSH_BYTES for effects in self._effects.values()):
            self.flush()
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Hand in what is finished."""
        self._flush_due = False
        effects, self._effects = self._effects, {}
        ended, self._ended = self._ended, {}
        for number, of_part in effects.items():
            part = self.runtime.assigned(number)
            if part is not None:
                self._send(self.runtime.result(part, of_part, ended.get(number, [])))


class _SharedState:
    """In an async node's class, in the place of a `State`: the state of the event that the running task handles."""

    def __init__(self, name: str, declared: State[Any]) -> None:
        self._name = name
        self._declared = declared

    def __get__(self, node: object, owner: type | None = None) -> Any:
        return self._declared if node is None else _access(self._name).read(self._name)

    def __set__(self, node: object, value: Any) -> None:
        _access(self._name).write(self._name, value)

    def __delete__(self, node: object) -> None:
        _access(self._name).delete(self._name)


def _nothing() -> None:
    pass


def _job(what: str) -> Job:
    job = _current.get()
    if job is None or job.is_over:
        raise EventOver(f"{what} was used outside of the handling of an event, or after its handler returned")
    return job


def _access(name: str) -> StateAccess:
    access = _job(f"state {name!r}").access
    assert access is not None
    return access


def _bind_shared(unit: Unit) -> None:
    """Emits and state of an async node find their event by the running task."""
    emitter: Emitter = unit.emitter

    def shared_method(name: str) -> Callable[..., None]:
        def method(*arguments: Any, **options: Any) -> None:
            getattr(_job(name).emitter, name)(*arguments, **options)

        return method

    for name in ("emit", "emit_many", "reply"):
        emitter.__dict__[name] = shared_method(name)
    if unit.handler.instance is not None and unit.handler.states:
        owner = type(emitter)
        shared = {name: _SharedState(name, state) for name, state in unit.handler.states.items()}
        for name in shared:
            emitter.__dict__.pop(name, None)
        emitter.__class__ = type(owner.__name__, (owner,), {**shared, "__module__": owner.__module__})
