"""Careful mode of an async pool: one event at a time, announced before it begins, and handed in by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from grape.protocol.messages import Announce, BatchItem, Named, Work
from grape.worker.effects import Assigned
from grape.worker.handin import HandIn
from grape.worker.jobs import Begun, Item, Job, Retry, Root
from grape.worker.retries import Retries
from grape.worker.runtime import Runtime
from grape.worker.stage import RootStage, RunColumns


class Pool(Protocol):
    """What it needs of the pool."""

    runtime: Runtime
    hand_in: HandIn

    def may_go_on(self, part: Assigned) -> bool: ...

    def needs_turn(self, job: Job) -> bool: ...

    def turn(self, job: Job) -> asyncio.Future[None]: ...

    def begin(self, job: Job) -> bool: ...

    async def run(self, job: Job) -> None: ...

    def ended(self, job: Job, task: asyncio.Task[None]) -> None: ...

    def finished(self, job: Job, finish: Callable[[], None]) -> None: ...

    def fail_named(self, job: Job, named: Named) -> None: ...

    def root_done(self, item: Item, index: int, part: Assigned) -> None: ...

    def finish_of(self, work: Begun, part: Assigned) -> None: ...


async def run_carefully(pool: Pool, message: Work, part: Assigned) -> None:
    """Nothing else runs meanwhile."""
    hand_in, runtime = pool.hand_in, pool.runtime
    hand_in.flush()  # whatever is handed in from here on is of the event that was announced
    hand_in.begun(part)
    hand_in.enter(part)
    part.begin(message)
    runtime.start_carefully(message)
    hand_in.by_hand = True
    await _Careful(pool, message, part).run()
    runtime.end_carefully()
    hand_in.by_hand = False
    hand_in.soon()


class _Careful:
    """One work."""

    def __init__(self, pool: Pool, message: Work, part: Assigned) -> None:
        self._pool = pool
        self._runtime = pool.runtime
        self._message = message
        self._part = part
        self._named = {(named.id, named.node): named for named in message.named}
        self._work = Begun(message)

    async def run(self) -> None:
        """Until an event is not to be begun any more."""
        message = self._message
        retries = Retries(self._runtime)
        for number, item in enumerate(message.retries):
            if not await self._retry(Retry(item, retries), message.context_base + number):
                return
        for batch, base in self._runtime.batches_of(message):
            if not await self._batch(batch, base):
                return

    async def _retry(self, retry: Retry, context: int) -> bool:
        pool, part = self._pool, self._part
        stage, unit = self._runtime.retry_stage(retry.item, context)
        root = Root(part, partial(pool.finish_of, self._work, part))
        if unit is not None:
            root.jobs, root.left = [Job(self._runtime.limits.max_result, unit, stage, root, retry)], 1
            if not await self._have_turns(root):
                return False
        if unit is not None and unit.is_async:
            await self._one(root.jobs[0])
        else:
            retry.all.run(retry.item, context)
            pool.finish_of(self._work, part)
        pool.hand_in.flush()
        pool.hand_in.enter(part)
        return True

    async def _batch(self, batch: BatchItem, base: int) -> bool:
        pool, part, runtime = self._pool, self._part, self._runtime
        item = Item(batch, self._work)
        offset = 0
        for run in runtime.runs_of(batch):
            columns = RunColumns(run)
            contexts = runtime.contexts_of(run, batch, offset, base)
            for at in range(run.count):
                if batch.done.is_done(offset + at):
                    continue
                stage = RootStage(columns, at, at + 1, batch.created, batch.id_prefix, offset, contexts)
                root = Root(part, partial(pool.root_done, item, offset + at, part))
                root.jobs = [Job(runtime.limits.max_result, unit, stage, root) for unit in runtime.units_of(run)]
                root.left = len(root.jobs)
                if not await self._have_turns(root):
                    return False
                for job in root.jobs:
                    if job.unit.is_async:
                        await self._one(job)
                    else:
                        pool.finished(job, partial(runtime.run_stage, job.unit, stage))
                if not root.jobs:
                    root.done()
                pool.hand_in.flush()
            offset += run.count
        return True

    async def _have_turns(self, root: Root) -> bool:
        """Before any of them begins, and is announced; False: they are not to be begun any more."""
        for job in root.jobs:
            if self._named_of(job) is None and self._pool.needs_turn(job):
                await asyncio.wait([self._pool.turn(job)])  # also if it is cancelled
            job.has_turn = True
        return self._pool.may_go_on(root.part)

    async def _one(self, job: Job) -> None:
        """One of an async node."""
        pool, named = self._pool, self._named_of(job)
        if named is not None:
            if pool.begin(job):
                pool.finished(job, partial(pool.fail_named, job, named))
            return
        self._runtime.announce(Announce(job.part.number, job.part.epoch, job.stage.id_of(0), job.unit.node))
        task = asyncio.ensure_future(pool.run(job))
        await asyncio.wait([task])  # one that a handler has cancelled is no end of this task
        pool.ended(job, task)

    def _named_of(self, job: Job) -> Named | None:
        """What it is handed in as, instead of started."""
        return self._named.get((job.stage.id_of(0), job.unit.node))
