"""Async slots: up to ``concurrency`` events at once, one per (node, key), each with effects of its own.

An async event is a *job*: it runs as a task with columns and a view of the state of its own. When it has succeeded its
effects are merged into those of its partition, and its root event is finished once all its jobs are. What is finished
is handed in when nothing else runs, after 20 ms at the latest. Synchronous nodes of the same pool run between the
tasks, stage by stage.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from grape.authoring.emitter import Emitter
from grape.authoring.state import State
from grape.errors import EventOver, HandlerError
from grape.model.cursor import Progress
from grape.model.event import Event
from grape.model.values import Unfit, to_value
from grape.protocol.messages import BatchItem, Named, Result, Revoke, Work
from grape.worker import children
from grape.worker.carefully import run_carefully
from grape.worker.effects import Assigned
from grape.worker.emits import Emitting
from grape.worker.handin import HandIn
from grape.worker.jobs import Begun, Item, Job, Retry, Root, nothing
from grape.worker.retries import Retries
from grape.worker.runtime import Handling, Overdue, Runtime
from grape.worker.stage import RootStage, RunColumns
from grape.worker.units.access import StateAccess
from grape.worker.units.general import arguments
from grape.worker.units.unit import Emissions, Unit, failure, key_for, stray_result

_TURNS: Final = 4.0
"""Seconds after which a loop stands that nothing has turned."""
_GRACE: Final = 1.0
"""Seconds that a cancelled handler may take to end."""

_current: contextvars.ContextVar[Job | None] = contextvars.ContextVar("grape_job", default=None)


class Timeout(HandlerError):
    code = "timeout"


class AsyncPool:
    """Runs works whose pool has async nodes.

    Args:
        runtime: runs the synchronous part, and everything about routing, state and failures.
        send: sends a result.
    """

    def __init__(self, runtime: Runtime, send: Callable[[Result], None]) -> None:
        self.runtime = runtime
        self._lines: dict[tuple[int, int, str, str], deque[Job]] = {}
        self._ready: deque[Job] = deque()
        self._is_admitting = False
        self._waiting: dict[str, deque[Job]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadlines: dict[Job, float] = {}
        """When each running job is cancelled (monotonic seconds)."""
        self._crowd: deque[Job] = deque()
        """What only the worker's own limit keeps from running."""
        self._running: dict[str, int] = {}
        self._tasks: dict[asyncio.Task[None], Job] = {}
        self._turned = time.monotonic()
        self._works: deque[Work] = deque()
        self._careful: asyncio.Task[None] | None = None
        self._turns: dict[asyncio.Future[None], Job] = {}
        """Those that are waited for."""
        self._begun = 0
        """Handlers that have begun and not ended."""
        self._drained: Callable[[], object] | None = None
        self.hand_in = HandIn(runtime, send, self._break)
        self.broken: Callable[[BaseException], None] = _raise
        """Told of what ends this worker, whatever callback of the loop it comes up in."""
        runtime.ground.single = True
        runtime.handling = self._handling
        runtime.overdue = self._overdue
        runtime.is_running = self._is_running
        for unit in runtime.units.values():
            if unit.is_async:
                _bind_shared(unit)

    # ------------------------------------------------------------------ messages

    def revoke(self, message: Revoke) -> None:
        self.runtime.revoke(message)
        self.hand_in.forget(message.partition)
        for turn, job in list(self._turns.items()):
            if not self._is_current(job.part):
                turn.cancel()

    def work(self, message: Work) -> None:
        """Start a work; its results come through ``send``."""
        if self._drained is None:
            self._works.append(message)
            self._next()

    def drain(self, drained: Callable[[], object]) -> None:
        """Start nothing more. ``drained`` is called when what has begun is over; the rest is left to others."""
        self._drained = drained
        self._works.clear()
        self._look_whether_drained()

    def _look_whether_drained(self) -> None:
        if self._drained is not None and not self._begun:
            self._drained()

    def _next(self) -> None:
        while self._works and self._careful is None:
            message = self._works.popleft()
            part = self.runtime.assigned(message.partition)
            if part is None or part.epoch != message.epoch:
                continue
            if message.careful:
                self._careful = asyncio.ensure_future(self._run_carefully(message, part))
                self._careful.add_done_callback(self._over_carefully)
                continue
            try:
                self._start(message, part)
            except BaseException:
                self.hand_in.is_over = True  # in the middle of an event: what there is of its effects never counts
                raise

    def _start(self, message: Work, part: Assigned) -> None:
        work = Begun(message)
        self.hand_in.begun(part)
        self.hand_in.enter(part)
        part.begin(message)
        runtime = self.runtime
        runtime.bound_cache()
        retries = Retries(runtime)
        for number, item in enumerate(message.retries):
            stage, unit = runtime.retry_stage(item, message.context_base + number)
            if unit is not None and (unit.is_async or runtime.turns.needs(unit, stage, is_retry=True)):
                root = Root(part, partial(self.finish_of, work, part))
                self._submit(root, [Job(runtime.limits.max_result, unit, stage, root, Retry(item, retries))])
            else:
                retries.run(item, message.context_base + number)
                self.finish_of(work, part)
        for batch, base in runtime.batches_of(message):
            self._start_batch(batch, base, work, part)
        if not message.batches and not message.retries:
            self._end(work, part)
        self.hand_in.soon()

    def _start_batch(self, batch: BatchItem, base: int, work: Begun, part: Assigned) -> None:
        item = Item(batch, work)
        if not item.left:
            self.hand_in.effects_of(part).done[item.position] = Progress(batch.events)
            self.finish_of(work, part)
            return
        runtime = self.runtime
        offset = 0
        for run in runtime.runs_of(batch):
            columns = RunColumns(run)
            contexts = runtime.contexts_of(run, batch, offset, base)
            units = runtime.units_of(run)
            for at in range(run.count):
                if batch.done.is_done(offset + at):
                    continue
                stage = RootStage(columns, at, at + 1, batch.created, batch.id_prefix, offset, contexts)
                root = Root(part, partial(self.root_done, item, offset + at, part))
                jobs = [Job(runtime.limits.max_result, unit, stage, root) for unit in units]
                if any(job.unit.is_async or job.line in self._lines or job.unit.has_rate for job in jobs):
                    self._submit(root, jobs)
                    continue
                self.hand_in.enter(part)
                for unit in units:
                    runtime.run_stage(unit, stage)
                root.done()
                self.hand_in.if_much(part)
            offset += run.count

    # ------------------------------------------------------------------ jobs

    def _submit(self, root: Root, jobs: list[Job]) -> None:
        """Each behind its (node, key), then within its slot's concurrency. All jobs of an event queue up before any of
        the next one, so they never wait for each other in a circle."""
        root.jobs = jobs
        root.left = len(jobs)
        for job in jobs:
            line = job.line
            if line is not None:
                queue = self._lines.get(line)
                if queue is not None:
                    queue.append(job)
                    continue
                self._lines[line] = deque()
            self._admit(job)

    def _admit(self, job: Job) -> None:
        """Start it, or the next one that may start. (A synchronous job may end at once and let others start: a loop,
        as they may be many.)"""
        self._ready.append(job)
        if self._is_admitting:
            return
        self._is_admitting = True
        try:
            while self._ready:
                self._start_job(self._ready.popleft())
        finally:
            self._is_admitting = False

    def _start_job(self, job: Job) -> None:
        if self._drained is not None:
            return
        if not job.unit.is_async:
            self._start_sync(job)
            return
        node = job.unit.node
        limit = min(slot.concurrency for slot in job.unit.slots.values())
        if self._running.get(node, 0) >= limit:
            self._waiting.setdefault(node, deque()).append(job)
            return
        if len(self._tasks) >= self.runtime.concurrency:
            self._crowd.append(job)
            return
        self._running[node] = self._running.get(node, 0) + 1
        task = asyncio.ensure_future(self.run(job))
        self._tasks[task] = job
        task.add_done_callback(self._over)

    def _start_sync(self, job: Job) -> None:
        if not job.has_turn and self.needs_turn(job):
            self.turn(job).add_done_callback(partial(self._turn_came, job))
        elif job.retry is not None:
            self.finished(job, partial(job.retry.all.run_stage, job.retry.item, job.unit, job.stage))
        else:
            self.finished(job, partial(self.runtime.run_stage, job.unit, job.stage))

    def _turn_came(self, job: Job, _: asyncio.Future[None]) -> None:
        if not self.may_go_on(job.part):
            return
        try:
            job.has_turn = True
            self._start_sync(job)
        except BaseException as e:
            self._break(e)

    def needs_turn(self, job: Job) -> bool:
        if not job.unit.has_rate:
            return False
        self.hand_in.enter(job.part)
        return self.runtime.turns.needs(job.unit, job.stage, is_retry=job.retry is not None)

    def turn(self, job: Job) -> asyncio.Future[None]:
        """It is cancelled if the partition is taken away."""
        assert self.runtime.pacer is not None
        turn = self.runtime.pacer.turn((job.stage.name_of(0), job.unit.node))
        self._turns[turn] = job
        turn.add_done_callback(self._turns.pop)
        return turn

    def may_go_on(self, part: Assigned) -> bool:
        """The partition is still this worker's, which is not about to end."""
        return self._drained is None and self._is_current(part)

    def _over(self, task: asyncio.Task[None]) -> None:
        job = self._tasks.pop(task)
        node = job.unit.node
        self._running[node] -= 1
        waiting = self._waiting.get(node)
        try:
            if self._crowd:
                self._admit(self._crowd.popleft())
            if waiting:
                self._admit(waiting.popleft())
            self.ended(job, task)
        except BaseException as e:
            self._break(e)

    async def _run_carefully(self, message: Work, part: Assigned) -> None:
        """What is still running ends first."""
        while self._tasks or self._turns:
            await asyncio.wait([*self._tasks, *self._turns])
        await run_carefully(self, message, part)
        self._careful = None
        self._next()

    def _over_carefully(self, task: asyncio.Task[None]) -> None:
        try:
            task.result()
        except BaseException as e:
            self._break(e)

    def ended(self, job: Job, task: asyncio.Task[None]) -> None:
        """Its task is over. Another handler may have cancelled it before it began; what else it raised is no failure of
        an event, and ends the worker."""
        if not task.cancelled():
            task.result()
        elif not job.is_started and self._is_current(job.part) and self.begin(job):
            job.is_over = True
            self.runtime.ground.count(job.unit, job.stage)
            error = asyncio.CancelledError("another handler cancelled its task before it began")
            self.finished(job, partial(self._take_effect, job, error))

    def _break(self, error: BaseException) -> None:
        self.hand_in.is_over = True  # in the middle of an event: what there is of its effects never counts
        self.broken(error)

    async def run(self, job: Job) -> None:
        if not job.has_turn and self.needs_turn(job):
            await self.turn(job)
        if not self.may_go_on(job.part):
            return
        job.is_started = True
        if not self.begin(job):
            return
        self._begun += 1
        error: BaseException | None = None
        if job.part.traced and job.stage.contexts is not None:
            self.runtime.ground.tracer.begin(job.unit, job.stage)
            job.is_traced = True
        try:
            # Here, in the coroutine of the task itself: a GeneratorExit out of a task that the handler awaits closes
            # all that is awaited, and is raised in this one alone.
            await self._call(job)
        except BaseException as e:
            error = e
        try:
            self._is_run(job, error)
        finally:
            self._begun -= 1
            self._look_whether_drained()

    def _is_run(self, job: Job, raised: BaseException | None) -> None:
        unit, stage, runtime = job.unit, job.stage, self.runtime
        error = None if raised is None else failure(raised)
        if job.is_late and isinstance(raised, asyncio.CancelledError):
            error = Timeout(f"{unit.node!r} ran over its timeout of {unit.slots[stage.name_of(0)].timeout:g} s")
        children.end_child()
        job.is_over = True
        if self._is_current(job.part):
            runtime.ground.count(unit, stage)
            self.finished(job, partial(self._take_effect, job, error))
        elif job.is_traced:
            runtime.ground.tracer.forget(unit, stage)

    def _handling(self) -> Handling | None:
        job = _current.get()
        if job is None or job.is_over:
            return self.runtime.handles()
        return Handling(job.unit, job.stage, job.part)

    def begin(self, job: Job) -> bool:
        """Whether the job may run: nothing that failed before it keeps its key, nor is it lost. If not, it is over."""
        unit, stage, runtime = job.unit, job.stage, self.runtime
        self.hand_in.enter(job.part)
        if job.retry is not None:
            if not job.retry.all.begin(job.retry.item, unit, stage):
                self.finished(job, nothing)
                return False
        elif stage.key_of(0) in runtime.ground.locked(unit.node) and unit.slots[stage.name_of(0)].ordered:
            self.finished(job, partial(runtime.ground.behind, unit, stage, 0))
            return False
        lost = runtime.ground.lost(unit, stage, 0)
        if lost is not None:
            self.finished(job, partial(self.fail_named, job, lost, True))
        return lost is None

    def finished(self, job: Job, finish: Callable[[], None]) -> None:
        """The job has run. With the last one of its event all take effect, and those that waited for them may start."""
        job.finish = finish
        root = job.root
        root.left -= 1
        if root.left:
            return
        self.hand_in.enter(root.part)
        try:
            for one in root.jobs:
                one.finish()
                one.finish = nothing
            root.done()
        except BaseException:
            self.hand_in.is_over = True  # in the middle of an event: what there is of its effects never counts
            raise
        for one in root.jobs:
            self._leave(one)
        self.hand_in.soon()

    def _leave(self, job: Job) -> None:
        line = job.line
        queue = None if line is None else self._lines.get(line)
        if line is None or queue is None:
            return
        if queue:
            self._admit(queue.popleft())
        else:
            del self._lines[line]

    def _take_effect(self, job: Job, error: BaseException | None) -> None:
        unit, stage, runtime = job.unit, job.stage, self.runtime
        tracer = runtime.ground.tracer if job.part.traced and stage.contexts is not None else None
        was_dirty = tracer is not None and tracer.before(unit, stage)
        if job.access is not None:
            runtime.ground.table(unit.node).in_use.discard(stage.key_of(0) or "")
            if error is None:
                try:
                    job.access.apply()
                except BaseException as e:  # comparing values is code of the user's
                    error = failure(e)
        wrote = tracer is not None and tracer.after(unit, stage, was_dirty)
        if error is not None:
            job.columns.cut(0)
            runtime.ground.fail(unit, stage, 0, error)
        elif tracer is not None:
            stage = stage.pick([0])
            tracer.end(unit, stage, wrote=wrote)
        if error is None and job.columns.data:
            size = job.columns.size
            names, keys, data = job.columns.take()
            runtime.deliver(unit, stage, Emissions(names, keys, data, [len(data)], None, size))
        if job.retry is not None:
            job.retry.all.end(job.retry.item, unit, stage, error is not None)
        job.access = None

    def fail_named(self, job: Job, named: Named, final: bool = False) -> None:
        unit, stage, runtime = job.unit, job.stage, self.runtime
        runtime.ground.count(unit, stage)
        runtime.ground.fail(unit, stage, 0, None, named, final)
        if job.retry is not None:
            job.retry.all.end(job.retry.item, unit, stage, True)

    async def _call(self, job: Job) -> None:
        unit, stage, runtime = job.unit, job.stage, self.runtime
        data = stage.values(unit.payload)
        if data is not None and type(data[0]) is Unfit:
            raise data[0].error
        (event,) = stage.events(data)
        if unit.has_state:
            runtime.ground.fill(unit, stage)
            table = runtime.ground.table(unit.node)
            if event.key is not None:
                table.in_use.add(event.key)
            job.access = StateAccess(unit.node, table, event, runtime.ground.now_us())
        job.access_to_objects = runtime.ground.objects
        emitting = Emitting(
            job.emitter,
            job.columns,
            unit.node,
            runtime.names,
            runtime.partitions,
            runtime.limits.max_event,
            job,
        )
        emitting.begin()
        _current.set(job)
        handler = unit.handler
        slot = unit.slots[event.name]
        result = handler.call(*arguments(handler, event, unit.emitter, job.access))
        loop = self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        timer: asyncio.TimerHandle | None = None

        def cancel() -> None:
            job.is_late = True
            task.cancel()

        def restart() -> None:
            nonlocal timer
            if timer is not None:
                timer.cancel()
            if slot.timeout:
                timer = loop.call_later(slot.timeout, cancel)
                self._deadlines[job] = time.monotonic() + slot.timeout

        stage.on_progress = restart
        restart()
        try:
            if hasattr(result, "__aiter__"):
                async for value in result:
                    self._returned(job, event, value)
            else:  # a wrapper may have awaited it
                self._returned(job, event, await result if inspect.isawaitable(result) else result)
            emitting.calls.check()
        finally:
            # Through an event, which the garbage collector does not look into, the job would hold on to itself.
            stage.on_progress = nothing
            self._deadlines.pop(job, None)
            if timer is not None:
                timer.cancel()

    def turned(self) -> None:
        """The loop turns; to be called by it about every second."""
        self._turned = time.monotonic()

    def _is_running(self) -> bool:
        """A handler has the loop, or waits on one that turns. Called from another thread."""
        loop = self._loop
        if loop is not None and asyncio.current_task(loop) is not None:
            return True
        if self.runtime.running is not None:
            return True
        pacer, is_turning = self.runtime.pacer, time.monotonic() - self._turned < _TURNS
        waits = pacer is not None and pacer.is_waiting
        return is_turning and (waits or any(not task.done() for task in list(self._tasks)))

    def _overdue(self, now: float) -> Overdue | None:
        """The job that cancelling has not ended: it swallows that, or keeps the loop for itself, so that nothing else
        can run. Called from another thread."""
        late = [job for job, deadline in list(self._deadlines.items()) if now > deadline + _GRACE]
        if not late:
            return None
        running = asyncio.current_task(self._loop) if self._loop is not None else None
        job = self._tasks.get(running, late[0]) if running is not None else late[0]
        unit, stage = job.unit, job.stage
        place = (job.part.number, job.part.epoch)
        return Overdue(place, unit.node, stage.id_of(0), unit.slots[stage.name_of(0)].timeout)

    def _returned(self, job: Job, event: Event, value: Any) -> None:
        if value is None:
            return
        emits = job.unit.slots[event.name].emits
        if len(emits) != 1:
            raise stray_result(job.unit.node, emits, value)
        out = to_value(value, self.runtime.limits.max_event)
        job.columns.put(emits[0], out, key_for(job.unit.handler, event.name, value, self.runtime.partitions))

    # ------------------------------------------------------------------ results

    def _is_current(self, part: Assigned) -> bool:
        return self.runtime.assigned(part.number) is part

    def root_done(self, item: Item, index: int, part: Assigned) -> None:
        item.progress = item.progress.with_done(index)
        item.left -= 1
        self.hand_in.effects_of(part).done[item.position] = item.progress
        if not item.left:
            self.finish_of(item.work, part)

    def finish_of(self, work: Begun, part: Assigned) -> None:
        work.left -= 1
        if not work.left:
            self._end(work, part)

    def _end(self, work: Begun, part: Assigned) -> None:
        self.hand_in.ended(part, work.message.seq)


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


class _SharedStorage:
    """Objects of the event that the running task handles."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_job("storage").emitter.__dict__["storage"], name)

    def __getitem__(self, namespace: str) -> Any:
        return _job("storage").emitter.__dict__["storage"][namespace]


def _raise(error: BaseException) -> None:
    raise error


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

    def shared_method(name: str) -> Callable[..., Any]:
        def method(*arguments: Any, **options: Any) -> Any:
            return getattr(_job(name).emitter, name)(*arguments, **options)

        return method

    for name in ("emit", "emit_many", "reply", "cancel_timer", "call"):
        emitter.__dict__[name] = shared_method(name)
    emitter.__dict__["storage"] = _SharedStorage()
    if unit.handler.instance is not None and unit.handler.states:
        owner = type(emitter)
        shared = {name: _SharedState(name, state) for name, state in unit.handler.states.items()}
        for name in shared:
            emitter.__dict__.pop(name, None)
        emitter.__class__ = type(owner.__name__, (owner,), {**shared, "__module__": owner.__module__})
