"""Where a work runs, and what it has done so far."""

from __future__ import annotations

from grape.model.cursor import Progress
from grape.model.topology import Limits
from grape.protocol.messages import Assign, Failure, Reply, Timer
from grape.worker.outbox import Outbox
from grape.worker.state import StateTable


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
