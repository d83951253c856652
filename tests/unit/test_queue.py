"""The queue of one consumer: what it reads and keeps in mind."""

from __future__ import annotations

from typing import Any, cast

from grape.engine.outlet import DeadOutputs, Take, Taken, TakenBatch
from grape.engine.queue import Queue
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.batch import RunMeta
from grape.model.cursor import Progress

EVENTS = 500


class TakeOf:
    """In place of a `Take`: what is read, one after the other."""

    name = "queue=out/default"

    def __init__(self, batches: list[bytes]) -> None:
        self.left = [TakenBatch(0, position, batch, EVENTS) for position, batch in enumerate(batches)]

    def read(self, max_bytes: int, begin: int = 0) -> Taken | None:
        return Taken([self.left.pop(0)], frozenset([0])) if self.left else None

    def progress_of(self, number: int, position: int) -> Progress:
        return Progress()

    def progress(self, *_: Any) -> None: ...

    def touched(self, number: int) -> None: ...


class Buried:
    def bury(self, *_: Any) -> None: ...


def batch(body: bytes | None = None) -> bytes:
    whole = codec.encode_run(RunMeta(["out"]), EVENTS, None, list(range(EVENTS)))
    place = PartitionId(0, 0, 0)
    return codec.seal(whole if body is None else body, EVENTS, place, place, 1, 0, 0)


def queue(batches: list[bytes]) -> Queue:
    return Queue(cast(Take, TakeOf(batches)), cast(DeadOutputs, Buried()), 0)


def test_what_is_done_with_is_not_kept_in_mind_for_its_lease() -> None:
    one = queue([batch() for _ in range(20)])
    kept = 0
    while found := one.lend(EVENTS, 1 << 30, 86_400_000_000, 0):
        assert one.done([delivery.token for delivery in found]) == EVENTS
        kept = max(kept, len(one._due))
    assert kept < 4 * EVENTS
    assert one.lend(1, 1, 1, 0) == []


def test_what_is_still_lent_comes_again_though_others_were_forgotten() -> None:
    one = queue([batch() for _ in range(20)])
    first = one.lend(1, 1 << 30, 1_000, 0)
    while found := one.lend(EVENTS, 1 << 30, 86_400_000_000, 0):
        one.done([delivery.token for delivery in found])
    assert [delivery.token for delivery in one.lend(10, 1 << 30, 1_000, 2_000)] == [first[0].token]


def test_what_lies_behind_what_cannot_be_read_is_lent_and_cleared_at_once() -> None:
    assert len(queue([batch(b"\xc1"), batch(b"\xc1"), batch()]).lend(EVENTS, 1 << 30, 1, 0)) == EVENTS
    one = queue([batch(b"\xc1"), batch(b"\xc1"), batch()])
    assert one.clear() == EVENTS
    assert one.clear() == 0
