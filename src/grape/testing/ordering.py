"""Orders for the simulator that change nothing in the end, but for the letters that are dropped: what fails is tried
again, what waits is buried and put back, and workers forget what they know."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from grape.abc.transport import Table
from grape.engine.logged import BURIED, logged
from grape.engine.orders.order import Desk, LetterOrder, Order, StateOrder
from grape.engine.orders.waiting import LogOrder
from grape.engine.partition.partition import Partition
from grape.model.spots import Place, Spot
from grape.model.stored import DeadLetter, HoldEntry, decode_dead, decode_hold
from grape.testing.machine import Machine

_MOST: Final = 3
_ROWS: Final = 1 << 20
_BYTES: Final = 1 << 30


class Forget(StateOrder):
    """Its worker asks for all state anew."""

    def step(self, desk: Desk, partition: Partition | None) -> None:
        super().step(desk, partition)
        self.has_touched = True


def random_order(machine: Machine, rng: Random, dropped: list[DeadLetter | HoldEntry]) -> Order | None:
    """About some of what lies in one partition now; None: nothing is there. What it is to drop is added to
    ``dropped``."""
    pool = rng.choice(sorted(machine.engine.pools))
    partitions = machine.engine.pools[pool].partitions
    if not partitions:
        return None
    partition = partitions[rng.choice(sorted(partitions))]
    kind = rng.choice(("dead", "hold", "log", "forget", "drop"))
    if kind == "forget":
        return Forget(pool, partition.id, [(b"\xff\xffnobody", b"nobody")])
    if kind == "drop":
        return _drop(machine, partition, rng, dropped)
    if kind == "log":
        spots = list(_waiting(machine, partition))
        return _log_order(machine, partition, rng.sample(spots, min(len(spots), rng.randint(1, _MOST))))
    places = list(_dead(machine, partition) if kind == "dead" else _held(machine, partition))
    chosen = rng.sample(places, min(len(places), rng.randint(1, _MOST)))
    return _letter_order(machine, partition, chosen) if chosen else None


def _drop(machine: Machine, partition: Partition, rng: Random, dropped: list[DeadLetter | HoldEntry]) -> Order | None:
    """A dead letter or stopped event."""
    rows: list[tuple[bool, bytes, DeadLetter | HoldEntry]] = []
    for key, value in _rows(machine, partition, "dead"):
        if (letter := decode_dead(value)).kind != BURIED:
            rows.append((False, key, letter))
    for key, value in _rows(machine, partition, "hold"):
        if (entry := decode_hold(value)).stopped:
            rows.append((True, key, entry))
    if not rows:
        return None
    is_held, key, row = rng.choice(rows)
    dropped.append(row)
    place = Place(partition.pool, partition.id, is_held, int.from_bytes(key, "big"))
    return LetterOrder(machine.app.record, partition.pool, partition.id, [place], "drop", False)


def put_back(machine: Machine) -> Iterator[Order]:
    """What was buried by an order."""
    for pool in machine.engine.pools.values():
        for partition in pool.partitions.values():
            places = list(_dead(machine, partition, kind=BURIED))
            if places:
                yield _letter_order(machine, partition, places)


def _log_order(machine: Machine, partition: Partition, spots: list[Spot]) -> Order | None:
    if not spots:
        return None
    return LogOrder(machine.app.record, partition.pool, partition.id, spots, bury=True)


def _letter_order(machine: Machine, partition: Partition, places: list[Place]) -> Order:
    return LetterOrder(machine.app.record, partition.pool, partition.id, places, "retry", True)


def _dead(machine: Machine, partition: Partition, kind: str | None = None) -> Iterator[Place]:
    for key, value in _rows(machine, partition, "dead"):
        if kind is None or decode_dead(value).kind == kind:
            yield Place(partition.pool, partition.id, False, int.from_bytes(key, "big"))


def _held(machine: Machine, partition: Partition) -> Iterator[Place]:
    for key, value in _rows(machine, partition, "hold"):
        if not decode_hold(value).calls:  # else it would give up waiting for its answer
            yield Place(partition.pool, partition.id, True, int.from_bytes(key, "big"))


def _rows(machine: Machine, partition: Partition, table: Table) -> list[tuple[bytes, bytes]]:
    return machine.transport.scan(partition.id, table, b"", _ROWS)


def _waiting(machine: Machine, partition: Partition) -> Iterator[Spot]:
    cursor = partition.head.cursor
    for stored in machine.transport.read(partition.id, cursor.position, _BYTES):
        if not cursor.is_finished(stored.position):
            where = partition.pool, partition.id, stored.position
            for event in logged(machine.app.record, *where, stored.batch, cursor.progress(stored.position)):
                yield event.spot
