"""What a stored row has to be so that an engine can start on it and work it off. One rule a table, for all that look.

The store has checked that a row is what was written. Here it is looked at as its reader will: whether it can be
decoded, whether its key can be one, and whether what it holds can be handed to a worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from grape.engine.catalog import read_catalog
from grape.engine.inbox import Inbox, origin_key
from grape.engine.logged import UNREADABLE, events_of
from grape.errors import Corrupt, GrapeError
from grape.model import batch as codec
from grape.model.address import CATALOG, PartitionId, check_key
from grape.model.batch import Header
from grape.model.cursor import Progress
from grape.model.objects import decode_ledger, decode_stored, is_unused
from grape.model.stored import (
    CLIENT_ID,
    NO_POOLS,
    SOURCE,
    TAKER,
    TIMER_NAME,
    AppRecord,
    Catalog,
    Head,
    decode_dead,
    decode_expiry,
    decode_head,
    decode_hold,
    decode_source,
    decode_taker,
    decode_timer,
    encode,
    expiry_of,
)

MAX_POSITION: Final = (1 << 63) - 1

_NOTHING_DONE: Final = Progress()


class BadEvent(ValueError):
    """An event of a batch that no worker can take."""


class Waiting(Struct):
    """A whole batch of a log. ``good``: all of its events can be handed out."""

    position: int
    header: Header
    good: bool = True


class Rules:
    """For the apps of a catalog. Every method returns what is wrong, None if nothing is."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._logs: dict[tuple[int, int], tuple[AppRecord, str]] = {}
        for record in catalog.apps.values():
            for name, number in record.logs.items():
                self._logs[record.id, number] = record, name
        self._tables: dict[str, Callable[[PartitionId, bytes, bytes], str | None]] = {
            "head": self._head,
            "logs": self._ends,
            "state": self._state,
            "hold": self._hold,
            "timer": self._timer,
            "dead": self._dead,
            "text": self._text,
            "expiry": self._expiry,
            "object": self._object,
            "change": self._changed,
            "blob": self._blob,
        }

    def log(self, partition: PartitionId) -> tuple[AppRecord, str] | None:
        """The app and the name of the log that a partition belongs to; None: there is none."""
        found = self._logs.get((partition.app, partition.pool))
        if found is None:
            return None
        record, name = found
        parts = 1 if name.startswith((SOURCE, TAKER)) else record.partitions
        return found if partition.number < parts else None

    def is_pool(self, partition: PartitionId) -> bool:
        found = self.log(partition)
        return found is not None and not found[1].startswith(NO_POOLS)

    def row(self, table: str, key: bytes, value: bytes) -> str | None:
        """``key``: with the partition; of long ones what is stored of it."""
        if len(key) < 6:
            return "a key that is none"
        partition = PartitionId.unpack(key[:6])
        if self.log(partition) is None and partition != CATALOG:
            return None  # of an app, or a log, that is gone or just being made: nobody reads it
        try:
            return self._tables[table](partition, key[6:], value)
        except UNREADABLE as e:
            return f"cannot be read: {e}"
        except GrapeError as e:
            return str(e)

    # ------------------------------------------------------------------ heads and ends of logs

    def _head(self, partition: PartitionId, key: bytes, value: bytes) -> str | None:
        if key:
            return "a key that is none"
        head = value[16:]
        if partition == CATALOG:
            read_catalog(head)
            return None
        found = self.log(partition)
        if found is None or not head:
            return None
        name = found[1]
        if name.startswith(SOURCE):
            decode_source(head)
        elif name.startswith(TAKER):
            decode_taker(head)
        elif not name.startswith(NO_POOLS):
            whole = decode_head(head)
            numbers = (whole.next_hold, whole.next_timer, whole.next_dead, whole.cursor.position)
            if not all(0 <= n <= MAX_POSITION for n in numbers):
                return "holds a number that cannot be"
        return None

    @staticmethod
    def _ends(partition: PartitionId, key: bytes, value: bytes) -> str | None:
        if key or len(value) != 16:
            return "cannot be read"
        trim, tail = int.from_bytes(value[:8], "big"), int.from_bytes(value[8:], "big")
        return None if trim <= tail <= MAX_POSITION else f"says that the log goes from {trim} to {tail}"

    # ------------------------------------------------------------------ tables

    def _state(self, partition: PartitionId, key: bytes, value: bytes) -> str | None:
        if partition == CATALOG:
            return None
        if len(key) < 3:
            return "a key that cannot be"
        if len(key) < 256:  # longer ones may be cut off
            check_key(key[2:].decode())
        else:
            value = self._long(key, value)
        expiry_of(value)
        msgspec.msgpack.decode(value, type=dict[str, msgspec.Raw])
        return None

    @staticmethod
    def _long(key: bytes, value: bytes) -> bytes:
        """The value of a row, which may begin with the whole of a key that is too long for LMDB."""
        size = int.from_bytes(value[:4], "big")
        return value[4 + size :] if 256 < size <= len(value) - 4 and key[:256] == value[4:260] else value

    def _hold(self, partition: PartitionId, key: bytes, value: bytes) -> str | None:
        if len(key) != 8:
            return "a key that cannot be"
        entry = decode_hold(value)
        _check_event(entry.body, entry.context is not None)
        if entry.key is not None:
            check_key(entry.key)
        if not (0 <= entry.due <= MAX_POSITION and entry.attempts >= 0 and entry.named_deaths >= 0):
            return "holds a number that cannot be"
        return None

    def _timer(self, partition: PartitionId, key: bytes, value: bytes) -> str | None:
        if len(key) != 16:
            return "a key that cannot be"
        entry = decode_timer(value)
        found = self.log(partition)
        if found is not None:
            record = found[0]
            if entry.log not in record.logs or not 0 <= entry.partition < record.partitions:
                return f"is for partition {entry.partition} of {entry.log!r}, which there is not"
        _check_event(entry.body, entry.context is not None)
        return None

    @staticmethod
    def _dead(partition: PartitionId, key: bytes, value: bytes) -> str | None:
        if len(key) != 8:
            return "a key that cannot be"
        letter = decode_dead(value)
        codec.check_body(letter.body, 1, stored=True)
        return None

    @staticmethod
    def _text(partition: PartitionId, key: bytes, value: bytes) -> str | None:
        if key.startswith(TIMER_NAME) and len(key) > 8 and len(value) % 16:
            return "a timer's name that cannot be read"
        is_id = key.startswith(CLIENT_ID) and len(key) < 256
        return "a client's id that cannot be read" if is_id and len(value) < 8 else None

    def _object(self, partition: PartitionId, key: bytes, value: bytes) -> str | None:
        if b"\0" not in key:
            return "a key that cannot be"
        stored = decode_stored(value if len(key) < 256 else self._long(key, value))
        if stored.number < 1 or (stored.is_there and (len(stored.checksum) != 32 or stored.size < 0)):
            return "holds a number that cannot be"
        return None if not stored.is_there or stored.blob or len(stored.data) == stored.size else "lacks its bytes"

    @staticmethod
    def _changed(partition: PartitionId, key: bytes, value: bytes) -> str | None:
        if not key:
            ledger = decode_ledger(value)
            return None if ledger.next > ledger.forgotten >= 0 else "holds a number that cannot be"
        if key[:1] == b"e":
            return None if len(key) > 10 and b"\0" in key[9:] and not value else "a key that cannot be"
        return None if len(key) == 9 and key[:1] in b"ct" and b"\0" in value else "a key that cannot be"

    @staticmethod
    def _blob(partition: PartitionId, key: bytes, value: bytes) -> str | None:
        is_unused(value)
        return None if len(key) == 32 else "a key that cannot be"

    @staticmethod
    def _expiry(partition: PartitionId, key: bytes, value: bytes) -> str | None:
        if len(key) != 16:
            return "a key that cannot be"
        decode_expiry(value)
        return None

    # ------------------------------------------------------------------ batches

    def batch(self, log: PartitionId, batch: bytes, progress: Progress = _NOTHING_DONE) -> str | None:
        """What is wrong with a stored batch, of which so much is finished."""
        try:
            header = codec.check(batch)
            codec.contexts_of(batch, header)
            if self.log(log) is not None and (header.target.pool, header.target.number) != (log.pool, log.number):
                return f"is meant for {header.target}"
        except Corrupt as e:
            return str(e)
        except UNREADABLE as e:
            return f"cannot be read: {e}"
        if not self.is_pool(log):
            return _body_problem(batch, header)
        return _body_problem(batch, header) or _events_problem(batch, header, progress)


def _check_event(body: bytes, has_context: bool) -> None:
    """
    Raises:
        ProtocolError, BadEvent: it is no body of one event.
    """
    codec.check_body(body, 1, 1 if has_context else 0, stored=True)
    run = next(codec.runs_of(body))
    for _, problem in events_of(run):
        if problem:
            raise BadEvent(problem)


def _body_problem(batch: bytes, header: Header) -> str | None:
    try:
        codec.check_body(
            codec.body_of(batch, header), header.events, len(codec.contexts_of(batch, header)), stored=True
        )
    except GrapeError as e:
        return f"cannot be read: {e}"
    except UNREADABLE as e:
        return f"cannot be read: {e}"
    return None


def _events_problem(batch: bytes, header: Header, progress: Progress) -> str | None:
    at = 0
    for run in codec.runs_of(codec.body_of(batch, header)):
        for i, problem in events_of(run):
            if problem and not progress.is_done(at + i):
                return f"event {at + i}: {problem}"
        at += run.count
    return None


def position_problem(head: Head, batches: list[Waiting], tail: int) -> str | None:
    """Why a partition would wait for ever, or pass over what comes; None: it would not."""
    cursor = head.cursor
    top = max([cursor.position, *(p + 1 for p in cursor.finished), *(p + 1 for p in cursor.partial)])
    if top > tail:
        return f"its head is at {top}, but its log ends at {tail}"
    there = {batch.position: batch.header for batch in batches}
    for position, progress in cursor.partial.items():
        if position not in there:
            return f"the batch at {position} is not finished, and is gone"
        if progress.first > there[position].events or progress.first < 0:
            return f"its head says that {progress.first} of {there[position].events} events at {position} are finished"
    copy = msgspec.msgpack.decode(encode(head), type=Head)
    inbox = Inbox(copy)
    left = [b for b in batches if b.position >= cursor.position]
    while True:
        for batch in left:
            inbox.offer(batch.position, batch.header, 0)
        if not inbox.unpark():  # those of one origin may lie there in another order than that of their numbers
            break
    parked = [b for b in left if b.header.sequence > copy.seen.get(origin_key(b.header), 0)]
    if parked:
        first = parked[0]
        expected = copy.seen.get(origin_key(first.header), 0)
        return f"batch {first.header.sequence} of {first.header.origin} waits for batch {expected}, which there is not"
    return None
