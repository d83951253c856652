"""What a worker died of, or got stuck over: which works go carefully from now on, and which event is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from grape.engine.handshake import MAX_TEXT
from grape.engine.partition.careful import Root
from grape.engine.partition.dispatch import Dispatched
from grape.engine.partition.partition import Partition
from grape.engine.worker import Worker
from grape.protocol.messages import Named, Stuck


class Hopeless(NamedTuple):
    """A root over which careful workers die again and again, although they should hand it in as failed."""

    partition: Partition
    root: Root


def stuck(worker: Worker, partition: Partition, message: Stuck) -> None:
    """It has overrun its time at an event, and says which."""
    worker.explained, worker.is_named = message.text[:MAX_TEXT], True
    for number, seq in worker.outstanding:
        if number == message.partition and seq in partition.works:
            partition.dispatch.suspect(partition.works[seq])
    trace = message.trace[:MAX_TEXT]
    partition.careful.name(Named(message.id, message.node, "timeout", worker.explained, False, trace))


def blame(worker: Worker, how: str) -> bool:
    """Suspect what it was at. In careful mode that is the event that it announced last: then True, it is named."""
    text = f"the worker died: {how}"
    was_named = False
    for at, (partition, work) in enumerate(_works(worker)):
        if at and not partition.dispatch.top_up:
            break
        if work.careful and worker.announced is not None and worker.announced[0] == partition.number:
            _, event, node = worker.announced
            partition.careful.name(Named(event, node, "worker-died", text, True))
            was_named = True
        partition.dispatch.suspect(work)
    return was_named


def hopeless(worker: Worker) -> Hopeless | None:
    """The root that it died over, if there is no other way on."""
    for partition, work in _works(worker):
        root = partition.died_carefully(work) if work.careful else None
        return None if root is None else Hopeless(partition, root)
    return None


def _works(worker: Worker) -> Iterator[tuple[Partition, Dispatched]]:
    for number, seq in worker.outstanding:
        partition = worker.partitions.get(number)
        work = None if partition is None else partition.works.get(seq)
        if partition is not None and work is not None:
            yield partition, work
