"""What waits in the logs of pools: shown one event at a time, dropped, or moved to the dead letters.

For an event that no worker gets through, whatever the reason. It is taken out as if it had been worked off: the head of
its partition says that it is finished.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final

from grape.abc.transport import Commit, Rows, Table
from grape.engine.inbox import Inbox
from grape.engine.logged import NOT_WAITING, PARKED, Logged, letters_of, logged
from grape.errors import Corrupt
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.batch import Header
from grape.model.spots import Spot
from grape.model.stored import NO_POOLS, AppRecord, DeadLetter, Head, decode_head, encode, row_key
from grape.protocol.orders import Changes
from grape.tools.directory import Directory, decoded
from grape.tools.repair import Repair

_READ_BYTES: Final = 4 << 20


def waiting(directory: Directory, record: AppRecord, only: PartitionId | None = None) -> Iterator[Logged]:
    """Every event in the logs of pools that is not finished, in the order of the logs; a batch that cannot be read
    stands for itself.

    Raises:
        Corrupt: a head, or a row of a log, is not what was written.
    """
    for log, number in record.logs.items():
        if log.startswith(NO_POOLS):
            continue
        for n in range(record.partitions):
            partition = PartitionId(record.id, number, n)
            if only is None or partition == only:
                head = _head_of(directory, partition)
                for position, batch in _batches(directory, partition, head):
                    yield from logged(record, log, partition, position, batch, head.cursor.progress(position))


def _head_of(directory: Directory, partition: PartitionId) -> Head:
    found = directory.reader.head(partition)
    return decoded(decode_head, found.head, "head of a partition") if found is not None and found.head else Head()


def _batches(directory: Directory, partition: PartitionId, head: Head) -> Iterator[tuple[int, bytes]]:
    at = head.cursor.position
    while found := directory.reader.read(partition, at, _READ_BYTES):
        for stored in found:
            if not head.cursor.is_finished(stored.position):
                yield stored.position, stored.batch
        at = found[-1].position + 1


class BacklogRepair(Repair):
    """`Repair` of what waits in the logs."""

    def take_out(self, record: AppRecord, spots: Iterable[Spot], bury: bool) -> Changes:
        """Events that wait are finished without having been handed out. ``bury``: each becomes a dead letter of every
        node that is to get it. A spot without an index means all of its batch.

        Raises:
            Corrupt: something stored cannot be read.
            StorageFailed: the disk refused; what was committed before stays.
        """
        changes = Changes()
        for partition, group in groupby(sorted(set(spots)), key=lambda spot: spot.partition):
            self._take_out(record, partition, list(group), bury, changes)
        return changes

    def _take_out(
        self, record: AppRecord, partition: PartitionId, spots: list[Spot], bury: bool, changes: Changes
    ) -> None:
        claim = self._claim(partition)
        head = decoded(decode_head, claim.head, "head of a partition") if claim.head else Head()
        before = decoded(decode_head, encode(head), "head of a partition")
        inbox = Inbox(head)
        wanted = {(spot.position, spot.index): spot for spot in spots}
        letters: list[DeadLetter] = []
        drops: list[int] = []
        now = int(time.time() * 1e6)
        last = max(spot.position for spot in spots)
        # Everything up to the last one is accepted, so that what an origin sent stays in its order.
        for position, batch in list(_batches(self.directory, partition, before)):
            if position > last:
                break
            all_of_it = wanted.pop((position, -1), None)
            chosen = [
                event
                for event in logged(record, spots[0].log, partition, position, batch, before.cursor.progress(position))
                if wanted.pop((position, event.spot.index), None) or all_of_it
            ]
            if inbox.offer(position, _header(batch), len(batch)) is None:
                for event in chosen:
                    changes.refused[event.spot.id] = PARKED
                continue
            for event in chosen:
                done = inbox.cursor.progress(position)
                count = _header(batch).events
                for i in [event.spot.index] if event.spot.index >= 0 else range(count):
                    done = done.with_done(i)
                inbox.progress(position, done)
                letters += letters_of(event, now) if bury else []
                changes.held += 1
                if position not in inbox.open:
                    drops.append(position)
        for spot in wanted.values():
            changes.refused[spot.id] = NOT_WAITING
        if drops or head != before:
            rows: Rows = [(row_key(head.next_dead + i), encode(letter)) for i, letter in enumerate(letters)]
            head.next_dead += len(letters)
            tables: list[tuple[Table, Rows]] = [("dead", rows)] if letters else []
            self._submit(Commit(partition, claim.term, 1, encode(head), (), tables))
            self.let_go(partition, head.cursor.position, drops)


def _header(batch: bytes) -> Header:
    """
    Raises:
        Corrupt: not even that can be read.
    """
    try:
        return codec.check(batch)
    except Corrupt as e:
        raise Corrupt(f"{e}; grape repair takes it out") from None
