"""What an async pool runs: events at a node each, and what they are part of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from grape.authoring.emitter import Context
from grape.protocol.messages import Answer, BatchItem, RetryItem, Work
from grape.worker.effects import Assigned
from grape.worker.emits import EmitColumns
from grape.worker.objects import Access
from grape.worker.retries import Retries
from grape.worker.stage import Stage
from grape.worker.units.access import StateAccess
from grape.worker.units.unit import Unit


def nothing() -> None:
    pass


class Root:
    """An event of a work at all of its nodes. What they do takes effect together, when the last one is done, so that it
    is handed in as a whole or not at all. ``left``: jobs that still run. ``done``: called then."""

    __slots__ = ("done", "jobs", "left", "part")

    def __init__(self, part: Assigned, done: Callable[[], None]) -> None:
        self.part = part
        self.done = done
        self.jobs: list[Job] = []
        self.left = 0


class Item:
    """A batch in work: its progress, and how many of its events are not finished."""

    def __init__(self, batch: BatchItem, work: Begun) -> None:
        self.position = batch.position
        self.progress = batch.done
        self.left = batch.events - batch.done.finished()
        self.work = work


class Begun:
    """A work that is begun. ``left``: batches and retries that are not finished."""

    def __init__(self, message: Work) -> None:
        self.message = message
        self.left = len(message.batches) + len(message.retries)


class Retry(NamedTuple):
    """A held event, among the others of its work."""

    item: RetryItem
    all: Retries


class Job:
    """One event at one node. ``finish`` brings what it did into the effects of its partition."""

    def __init__(self, max_result: int, unit: Unit, stage: Stage, root: Root, retry: Retry | None = None) -> None:
        self.unit = unit
        self.stage = stage
        self.root = root
        self.part = root.part
        self.retry = retry
        self.columns = EmitColumns(max_result, single=True)
        self.emitter = Context()
        self.access: StateAccess | None = None
        self.is_traced = False
        self.has_turn = False
        self.is_started = False
        self.is_over = False
        self.is_late = False
        """It ran over its timeout, and was cancelled for that."""
        self.access_to_objects: Access | None = None
        self.finish: Callable[[], None] = nothing

    def own_key(self) -> str | None:
        return self.stage.key_of(0)

    def answers(self) -> Sequence[Answer]:
        return () if self.retry is None else self.retry.item.answers

    def keys_ahead(self) -> Sequence[str | None]:
        return ()

    @property
    def together(self) -> None:
        return None

    def place(self) -> object:
        return self

    def is_left(self) -> None:
        """What it has done is in columns of its own."""

    def objects(self) -> Access | None:
        return self.access_to_objects

    @property
    def line(self) -> tuple[int, int, str, str] | None:
        """Where it queues up: only one event of a (node, key) at a time."""
        key = self.stage.key_of(0)
        return None if key is None else (self.part.number, self.part.epoch, self.unit.node, key)
