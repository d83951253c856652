"""What goes by itself after some time: state with a ttl, and ids that clients gave."""

from __future__ import annotations

from typing import Final, Literal

from grape.engine.partition.ledger import Ledger, decoded
from grape.model.address import MAX_KEY_BYTES
from grape.model.stored import Expiry, decode_expiry, encode, expiry_of, timer_key

_AT_ONCE: Final = 500
_LARGEST: Final = 2 * (MAX_KEY_BYTES + 300)
"""Bytes that it takes to remove a row, and to say when to look again."""
_NEVER: Final = 1 << 62


class Expiries:
    """Due times are microseconds of wall time."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._next = self._first(0)

    def add(self, due: int, table: Literal["state", "text"], key: bytes) -> None:
        """The row may go when it is ``due``."""
        head = self._ledger.head
        self._ledger.put("expiry", timer_key(due, head.next_timer), encode(Expiry(table, key)))
        head.next_timer += 1
        self._next = min(self._next, due)

    def next_due(self) -> int | None:
        """When `expire` has something to do."""
        return self._next if self._next < _NEVER and self._ledger.settled else None

    def expire(self, now: int) -> None:
        """Remove what has expired, a bounded number at once; nobody waits for it."""
        ledger = self._ledger
        if now < self._next or not ledger.settled:
            return
        due = ledger.transport.scan(ledger.id, "expiry", b"", _AT_ONCE, timer_key(now + 1, 0))
        self._next = self._first(now + 1 if len(due) < _AT_ONCE else 0)
        for place, value in due:
            if not ledger.has_room(_LARGEST):
                self._next = int.from_bytes(place[:8], "big")
                break
            ledger.put("expiry", place, None)
            entry: Expiry = decoded(decode_expiry, value, "expiry")
            if entry.table == "text":
                ledger.put("text", entry.key, None)
                continue
            (record,) = ledger.transport.get(ledger.id, "state", [entry.key])
            last = 0 if record is None else expiry_of(record)
            if last > now:
                self.add(last, "state", entry.key)  # it was written again since
            elif last:
                ledger.put("state", entry.key, None)
        ledger.flush()

    def _first(self, after: int) -> int:
        rows = self._ledger.transport.scan(self._ledger.id, "expiry", timer_key(after, 0), 1)
        return int.from_bytes(rows[0][0][:8], "big") if rows else _NEVER
