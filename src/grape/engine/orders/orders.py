"""Orders under way: each waits until no worker has what it changes, is done in slices, and is over when it is durable.

    given -> (the partition rests) -> a slice into the draft -> commit -> the next slice ... -> answered

An order is one more that changes a partition through its ledger, beside results, timers and events of clients: so there
is one writer, and what it changes is committed with whatever else there is. What a worker may remember of the partition
is made to be forgotten by a new epoch.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from grape.engine.committer import Committer
from grape.engine.engine import Engine
from grape.engine.orders.bare import Bare
from grape.engine.orders.order import SLICE, Order
from grape.engine.partition.partition import Partition
from grape.errors import Corrupt, Full, GrapeError
from grape.model.address import PartitionId
from grape.model.stored import SOURCE
from grape.protocol.orders import MOST_ORDERS, Changes

REST: Final = 5.0
"""Seconds for which nothing of a partition is handed out while an order waits for its workers."""
_ENDING: Final = "the engine is ending"
_LOST: Final = "another engine has its partition"
_UNKNOWN: Final = f"{_LOST}: the last of what was asked may be done, or not"

Do = Callable[[], None]
OwnLog = Callable[[str, Callable[[Committer], None]], None]
"""Claims partition 0 of a log, once for all who want it; what is called gets its committer."""


class _Given:
    """An order, and who waits for it."""

    def __init__(self, order: Order, then: Callable[[Changes], None]) -> None:
        self.order = order
        self.then = then
        self.durable = Changes()
        self.is_committing = False
        self.is_waiting = False
        self.is_late = False
        self.is_over = False


class Orders:
    """Of one engine.

    Args:
        soon: runs a function when what is being done is done. ``later``: in some seconds.
        own_log: see `OwnLog`.
        rest: see `REST`.

    Attributes:
        freed: told of a source's log in which a commit was under way that its feed knows nothing of.
    """

    def __init__(
        self,
        engine: Engine,
        soon: Callable[[Do], object],
        later: Callable[[float, Do], object],
        own_log: OwnLog,
        rest: float = REST,
    ) -> None:
        self.freed: Callable[[PartitionId], None] = lambda partition: None
        self._engine = engine
        self._soon = soon
        self._later = later
        self._own_log = own_log
        self._rest = rest
        self._lines: dict[PartitionId, deque[_Given]] = {}
        self._committers: dict[PartitionId, Committer] = {}
        for pool in engine.pools.values():
            pool.rested = self._rested

    @property
    def count(self) -> int:
        """That are not over."""
        return sum(map(len, self._lines.values()))

    def give(self, order: Order, then: Callable[[Changes], None]) -> None:
        """``then`` gets what came of it. Orders for one partition are done one after the other.

        Raises:
            Full: too many are under way.
        """
        if self.count >= MOST_ORDERS:
            raise Full(f"{MOST_ORDERS} orders are under way; try again later")
        line = self._lines.setdefault(order.partition, deque())
        line.append(_Given(order, then))
        if len(line) == 1:
            self._go_on_soon(line[0])

    def _go_on_soon(self, given: _Given) -> None:
        self._soon(partial(self._go_on, given))

    def _rested(self, partition: Partition) -> None:
        line = self._lines.get(partition.id)
        if line:
            self._go_on_soon(line[0])

    # ------------------------------------------------------------------ one after the other

    def _go_on(self, given: _Given) -> None:
        """Do the next slice of it, if it can be done now."""
        engine, order = self._engine, given.order
        if given.is_over or engine.failure is not None:
            return
        pool = engine.pools.get(order.log)
        partition = None if pool is None else pool.partitions.get(order.partition.number)
        if pool is not None and partition is None:
            self._lose(given)
        elif given.is_committing:
            return
        elif engine.draining:
            self._refuse(given, _ENDING)
        elif order.is_over:
            self._end(given, partition)
        elif partition is None:
            self._go_on_bare(given)
        elif order.is_blocked(partition):
            self._wait(given, partition)
        else:
            self._do(given, partition)

    def _wait(self, given: _Given, partition: Partition) -> None:
        if given.is_late:
            busy = sum(work.events + len(work.holds) for work in partition.works.values())
            given.order.give_up(
                f"a worker has had {busy:,} events of partition {partition.ledger.name} for over {self._rest:g} s, and "
                "what it has cannot be changed; try again, or when no engine runs"
            )
            self._go_on_soon(given)
            return
        partition.dispatch.is_resting = True
        if not given.is_waiting:
            given.is_waiting = True
            self._later(self._rest, partial(self._waited, given))

    def _waited(self, given: _Given) -> None:
        given.is_late = True
        self._go_on(given)

    def _do(self, given: _Given, partition: Partition) -> None:
        ledger, order = partition.ledger, given.order
        if not ledger.has_room(SLICE + 2 * ledger.app.limits.max_event):
            ledger.then(partial(self._go_on_soon, given))
            return
        try:
            order.step(ledger, partition)
            if order.has_touched and not order.is_over:
                partition.dispatch.is_resting = True  # nobody gets it as it was between two slices
            given.is_committing = True
            ledger.then(partial(self._committed, given))
            if order.is_over:
                self._let_go(order, partition)
            partition.flush()
        except GrapeError as e:
            self._engine.trouble(partition, e)

    def _committed(self, given: _Given) -> None:
        given.is_committing = False
        given.durable = copy.deepcopy(given.order.changes)
        self._go_on_soon(given)

    def _let_go(self, order: Order, partition: Partition) -> None:
        """It may be worked on again, by whoever knows nothing of what was."""
        pool = self._engine.pools[order.log]
        partition.dispatch.is_resting = False
        if order.has_touched and not partition.works:
            order.has_touched = False
            pool.renew(partition)
        else:
            pool.go_on(partition)

    def _refuse(self, given: _Given, why: str) -> None:
        """What is left of it; what was done stays."""
        given.order.refuse(why)
        pool = self._engine.pools.get(given.order.log)
        self._end(given, None if pool is None else pool.partitions.get(given.order.partition.number))

    def _lose(self, given: _Given) -> None:
        """Its partition is another engine's now; of the slice that was under way nobody here knows."""
        order = given.order
        if given.is_committing:
            order.changes = given.durable
            order.changes.refused[f"{order.log}.{order.partition.number}"] = _UNKNOWN
        self._refuse(given, _LOST)

    def _end(self, given: _Given, partition: Partition | None) -> None:
        if partition is not None:
            self._let_go(given.order, partition)
        given.is_over = True
        line = self._lines[given.order.partition]
        line.popleft()
        if line:
            self._go_on_soon(line[0])
        else:
            del self._lines[given.order.partition]
        self._engine.app.stats.revived += given.order.changes.dead  # so many more may come before feeding stops
        given.then(given.order.changes)

    # ------------------------------------------------------------------ where no pool is

    def _go_on_bare(self, given: _Given) -> None:
        order, engine = given.order, self._engine
        committer = self._committers.get(order.partition)
        if committer is None:
            given.is_committing = True
            self._claim(given)
            return
        if committer.is_busy:
            committer.when_free(partial(self._go_on, given))
            return
        try:
            desk = Bare(
                engine.app,
                engine.transport,
                order.partition,
                committer,
                is_pool=not order.log.startswith(SOURCE),
            )
            order.step(desk, None)
        except (Corrupt, ValueError) as e:
            self._refuse(given, str(e))
            return
        given.is_committing = True
        desk.commit(partial(self._bare_committed, given))

    def _claim(self, given: _Given) -> None:
        partition = given.order.partition

        def claimed(committer: Committer) -> None:
            self._committers[partition] = committer
            self._committed(given)

        if given.order.log.startswith(SOURCE):
            self._own_log(given.order.log, claimed)
        else:
            self._engine.claim(
                {partition: f"partition {given.order.log}/{partition.number}"}, lambda found: claimed(found[partition])
            )

    def _bare_committed(self, given: _Given) -> None:
        self._committed(given)
        self._soon(partial(self.freed, given.order.partition))
