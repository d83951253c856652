"""Where a work runs, and what it has done so far."""

from __future__ import annotations

from typing import Final

from grape.model.cursor import Progress
from grape.model.topology import Limits
from grape.model.tracing import Span
from grape.protocol.messages import Assign, Failure, Reply, Timer, Work
from grape.worker.emits import TooMuch
from grape.worker.objects import Written
from grape.worker.outbox import Outbox
from grape.worker.state import StateTable

TIMER_COSTS: Final = 256
REPLY_COSTS: Final = 256
FAILURE_COSTS: Final = 512
SPAN_COSTS: Final = 1_024
"""About how many bytes one takes in memory beside its data. At max-result (64 MiB) none can be over `MAX_ITEMS`."""

Locks = tuple[dict[str, set[str]], dict[tuple[str, str], set[str]]]


class Assigned:
    """A partition that is assigned to this worker."""

    def __init__(self, assign: Assign) -> None:
        self.number = assign.partition
        self.epoch = assign.epoch
        self.empty = assign.empty
        self.chain_new = assign.chain_new
        self.tables: dict[str, StateTable] = {}
        self.locks: dict[str, set[str]] = {}
        self.deadlines: dict[int, int] = {}
        """Of contexts that have one, by number."""
        self.traced: dict[int, str] = {}
        """Of contexts of traced events, what they carry."""
        self.written: dict[bytes, list[Written]] = {}
        """Objects that handlers have written and the engine does not know of yet, by place; the last one counts."""
        self.lines: dict[tuple[str, str], set[str]] = {}
        """Ids of the events that were handed in as failed or behind, by the (node, key) whose line they stand in, until
        they have been retried. When the engine sends the first one back it may not know all of them yet."""
        for node, key in assign.held:
            self.locks.setdefault(node, set()).add(key)

    def begin(self, work: Work) -> None:
        """Take what it says of the events in it. Contexts are numbered anew when no work is out."""
        self.deadlines = work.deadlines if not work.context_base else {**self.deadlines, **work.deadlines}
        self.traced = work.traced if not work.context_base else {**self.traced, **work.traced}

    def copy_locks(self) -> Locks:
        """Locks and lines, as they are now."""
        locks = {node: set(keys) for node, keys in self.locks.items()}
        return locks, {line: set(ids) for line, ids in self.lines.items()}

    def forget(self, locks: Locks) -> None:
        """What was done since the last result has not happened; ``locks`` are those of then."""
        self.tables = {}
        self.written = {}
        self.empty = False
        self.locks, self.lines = locks


class Effects:
    """What a work has done so far and its result will say. ``size``: about how many bytes, at most ``max_size``."""

    def __init__(self, limits: Limits, max_size: int | None = None) -> None:
        self.size = 0
        self._max_size = limits.max_result if max_size is None else max_size
        self.outbox = Outbox(limits.batch_target, limits.batch_max)
        self.emits = 0
        self.timers: list[Timer] = []
        self.failures: list[Failure] = []
        self.replies: list[Reply] = []
        self.written: list[Written] = []
        self.retried: list[int] = []
        self.done: dict[int, Progress] = {}
        self.counts: dict[str, int] = {}
        self.emit_counts: dict[str, int] = {}
        self.spans: list[Span] = []
        self.derived: list[tuple[int, str]] = []
        self.traced: dict[int, str] = {}
        """What the contexts of ``derived`` carry, by their numbers."""

    def add_size(self, size: int) -> None:
        """
        Raises:
            TooMuch: it is more than a result can hold.
        """
        self.size += size
        if self.size > self._max_size:
            raise TooMuch
