"""Timers of a partition: rows in due order, of which the next ones are kept in memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

from grape.engine.partition.ledger import Draft, Ledger, grouped
from grape.model.stored import TimerEntry, decode_timer, encode, timer_key

_WINDOW: Final = 2_000
"""Timers that are kept in memory; the rest stays in its rows."""
_AT_ONCE: Final = 500
_ENTRY: Final = 100
"""Bytes of a timer beside its event, about."""


class Timers:
    """Due times are microseconds of wall time."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._load()
        stored = len(self._due) if self._end is None else sum(1 for _ in ledger.rows("timer"))
        ledger.app.timers += stored

    def _load(self) -> None:
        rows = self._ledger.transport.scan(self._ledger.id, "timer", b"", _WINDOW)
        self._due = [(int.from_bytes(key[:8], "big"), key) for key, _ in rows]
        heapq.heapify(self._due)
        self._end = max(due for due, _ in self._due) if len(rows) == _WINDOW else None
        """From here on they stay in their rows; None: none does."""

    def next_due(self) -> int | None:
        return self._due[0][0] if self._due else None

    def add(self, due: int, entry: TimerEntry) -> None:
        """One more, with the next commit."""
        ledger = self._ledger
        key = timer_key(due, ledger.head.next_timer)
        ledger.head.next_timer += 1
        ledger.put("timer", key, encode(entry))
        ledger.draft.timers.append((due, key))
        ledger.app.timers += 1

    def committed(self, draft: Draft) -> None:
        """Those of the draft count from now on."""
        for due, key in draft.timers:
            if self._end is None or due < self._end:
                heapq.heappush(self._due, (due, key))

    def fire(self, now: int) -> bool:
        """Let those that are due go off, a bounded number at once, in due order."""
        ledger = self._ledger
        if not ledger.settled or not self._due or self._due[0][0] > now:
            return False
        bodies: dict[tuple[str, int], list[bytes]] = {}
        for key, entry in self._take(now):
            ledger.put("timer", key, None)
            ledger.app.timers -= 1
            if entry.context is not None:
                ledger.send(entry.log, entry.partition, entry.body, 1, [entry.context], now)
            elif ledger.app.names_of(entry.log) is not None:
                bodies.setdefault((entry.log, entry.partition), []).append(entry.body)
        for (log, number), parts in bodies.items():
            for group in grouped(parts, len, ledger.app.limits.batch_max):
                ledger.send(log, number, b"".join(group), len(group), [], now)
        if not self._due and self._end is not None:
            ledger.then(self._load)
        ledger.flush()
        return True

    def _take(self, now: int) -> Iterator[tuple[bytes, TimerEntry]]:
        """As many as one commit should hold."""
        left = self._ledger.app.limits.dispatch_bytes
        for _ in range(_AT_ONCE):
            if left <= 0 or not self._due or self._due[0][0] > now:
                return
            _, key = heapq.heappop(self._due)
            entry = self._ledger.row("timer", key, decode_timer, "timer")
            left -= _ENTRY + len(entry.body)
            yield key, entry
