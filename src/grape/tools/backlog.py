"""What waits in the logs of pools: shown one event at a time, dropped, or moved to the dead letters.

For an event that no worker gets through, whatever the reason. It is taken out as if it had been worked off: the head of
its partition says that it is finished.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Final

import msgspec
from msgspec import Struct

from grape.abc.transport import Commit, Rows, Table
from grape.engine.inbox import Inbox
from grape.errors import Corrupt, GrapeError, UsageError
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.batch import Context, Header, Run, RunMeta
from grape.model.near import did_you_mean
from grape.model.stored import NO_POOLS, AppRecord, DeadLetter, Head, decode_head, encode, row_key
from grape.tools.directory import Directory, decoded
from grape.tools.repair import Changes, Repair
from grape.tools.sound import UNREADABLE, events_of

_PLACE: Final = re.compile(r"(?P<log>.+)\.(?P<partition>\d{1,5}):(?P<position>\d{1,18})(\.(?P<index>\d{1,9}))?", re.S)
_READ_BYTES: Final = 4 << 20


class Spot(Struct, frozen=True, order=True):
    """``main.3:17.2`` is event 2 of the batch at position 17 of partition 3 of pool ``main``; without the last number
    it is the whole batch, which cannot be read (index -1)."""

    log: str
    partition: PartitionId
    position: int
    index: int

    @property
    def id(self) -> str:
        return f"{self.log}.{self.partition.number}:{self.position}{f'.{self.index}' if self.index >= 0 else ''}"


class Logged(Struct, frozen=True):
    """An event that waits in a log. ``nodes``: who is to get it. ``problem``: why no worker can take it."""

    spot: Spot
    event: str
    key: str | None
    event_id: str
    created: int
    nodes: tuple[str, ...]
    problem: str
    run: Run | None = None
    context: Context | None = None
    offset: int = 0
    """Index of the first event of its run in the batch."""

    @property
    def node(self) -> str:
        return self.nodes[0] if len(self.nodes) == 1 else ""

    @property
    def kind(self) -> str:
        return "damaged" if self.problem else ""

    def raw(self) -> msgspec.Raw:
        """Its data; all of its run as bytes if they cannot be told apart."""
        if self.run is None:
            return msgspec.Raw(b"\xc0")
        try:
            return (codec.raw_data_of(self.run) or [msgspec.Raw(b"\xc0")] * self.run.count)[
                self.spot.index - self.offset
            ]
        except UNREADABLE:
            return msgspec.Raw(encode(self.run.data))

    def data(self) -> Any:
        """As `raw`, decoded; bytes if that cannot be."""
        raw = bytes(self.raw())
        try:
            return msgspec.msgpack.decode(raw)
        except UNREADABLE:
            return raw


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
                    yield from _events(record, log, partition, position, batch, head)


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


def _events(
    record: AppRecord, log: str, partition: PartitionId, position: int, batch: bytes, head: Head
) -> Iterator[Logged]:
    whole = Spot(log, partition, position, -1)
    try:
        header = codec.check(batch)
        contexts = codec.contexts_of(batch, header)
        body = codec.body_of(batch, header)
        codec.check_body(body, header.events, len(contexts), stored=True)
        ids = codec.ids_of(header, body)
    except (GrapeError, *UNREADABLE) as e:
        yield Logged(whole, "", None, "", 0, (), f"the batch cannot be read: {e}")
        return
    progress = head.cursor.progress(position)
    offset = 0
    for run in codec.runs_of(body):
        names = codec.names_of(run)
        problems = events_of(run)
        try:
            keys = codec.keys_of(run)
        except UNREADABLE:
            keys = None
        for i, problem in problems:
            if not progress.is_done(offset + i):
                yield Logged(
                    Spot(log, partition, position, offset + i),
                    names[i],
                    None if keys is None else keys[i],
                    ids[offset + i],
                    header.created,
                    _nodes(record, log, names[i], run.meta),
                    problem,
                    run,
                    _context(header, run.meta, i, ids[offset + i], contexts, partition),
                    offset,
                )
        offset += run.count


def _nodes(record: AppRecord, log: str, event: str, meta: RunMeta) -> tuple[str, ...]:
    pools = {node.name: node.pool for node in record.topology.nodes}
    found = [slot.node for slot in record.topology.slots if slot.event == event and pools.get(slot.node) == log]
    return tuple(node for node in found if meta.only is None or node in meta.only)


def _context(
    header: Header, meta: RunMeta, index: int, event_id: str, contexts: list[Context], partition: PartitionId
) -> Context | None:
    if header.flags & codec.SELF_REPLY:
        return Context(event_id, partition.number)
    number = -1 if meta.contexts is None else meta.contexts[index]
    return contexts[number] if number >= 0 else None


def parse_spot(record: AppRecord, text: str) -> Spot:
    """The place that a `Spot.id` names.

    Raises:
        UsageError: it is none of this app.
    """
    found = _PLACE.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no id of a waiting event, such as main.3:17.2; `grape log list` shows them")
    log, n = found["log"], int(found["partition"])
    pools = [name for name in record.logs if not name.startswith(NO_POOLS)]
    if log not in pools:
        hint = did_you_mean(log, pools, f"its pools: {', '.join(pools)}")
        raise UsageError(f"{text}: app {record.name!r} has no pool {log!r}; {hint}")
    if n >= record.partitions:
        raise UsageError(f"{text}: app {record.name!r} has partitions 0 to {record.partitions - 1}, not {n}")
    index = -1 if found["index"] is None else int(found["index"])
    return Spot(log, PartitionId(record.id, record.logs[log], n), int(found["position"]), index)


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
        last = max(spot.position for spot in spots)
        # Everything up to the last one is accepted, so that what an origin sent stays in its order.
        for position, batch in list(_batches(self.directory, partition, before)):
            if position > last:
                break
            all_of_it = wanted.pop((position, -1), None)
            chosen = [
                event
                for event in _events(record, spots[0].log, partition, position, batch, before)
                if wanted.pop((position, event.spot.index), None) or all_of_it
            ]
            if inbox.offer(position, _header(batch), len(batch)) is None:
                for event in chosen:
                    changes.refused[event.spot.id] = "its batch waits for one that is missing: grape repair mends that"
                continue
            for event in chosen:
                done = inbox.cursor.progress(position)
                count = _header(batch).events
                for i in [event.spot.index] if event.spot.index >= 0 else range(count):
                    done = done.with_done(i)
                inbox.progress(position, done)
                letters += _letters(event) if bury else []
                changes.held += 1
                if position not in inbox.open:
                    drops.append(position)
        for spot in wanted.values():
            changes.refused[spot.id] = "no such event waits (any more)"
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


def _letters(event: Logged) -> list[DeadLetter]:
    """For every node that was to get it."""
    meta = RunMeta([event.event])
    if event.run is not None:
        meta.hops = codec.hops_of(event.run.meta, event.spot.index - event.offset)
    key = None if event.problem else event.key
    body = codec.encode_run(meta, 1, None if key is None else [key], [event.raw()])
    now = int(time.time() * 1e6)
    text = event.problem or "moved here by grape log bury"
    kind = event.kind or "buried"
    return [
        DeadLetter(node, event.event, event.event_id, key, event.created, body, 0, now, kind, text, b"", event.context)
        for node in (event.nodes if event.nodes and not event.problem else ("",))
    ]
