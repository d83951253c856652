"""Timers of a partition: rows in due order, of which the next ones are kept in memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

from grape.engine.partition.ledger import Draft, Ledger, decoded, grouped
from grape.model.stored import TimerEntry, decode_timer, encode, timer_key

_WINDOW: Final = 2_000
"""Timers that are kept in memory; the rest stays in its rows."""
_SAME_NAME: Final = 256
"""Timers that one name may have; the oldest gives way. (A delayed event has one for each pool that listens.)"""
_KEY: Final = 16
"""Bytes of the key of a row."""
_AT_ONCE: Final = 500
_ENTRY: Final = 100
"""Bytes of a timer beside its event, about."""


class Timers:
    """Due times are microseconds of wall time."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._cancelled: set[bytes] = set()
        """Of those in memory; their rows are gone, or will be with the next commit."""
        self._load()
        stored = len(self._due) if self._end is None else sum(1 for _ in ledger.rows("timer"))
        self.count = 0
        self._counts(stored)

    def _counts(self, more: int) -> None:
        """Those of the whole app with them."""
        self.count += more
        self._ledger.app.timers += more

    def _load(self) -> None:
        rows = self._ledger.transport.scan(self._ledger.id, "timer", b"", _WINDOW)
        self._due = [(int.from_bytes(key[:8], "big"), key) for key, _ in rows]
        heapq.heapify(self._due)
        self._end = max(due for due, _ in self._due) if len(rows) == _WINDOW else None
        """From here on they stay in their rows; None: none does."""
        self._cancelled &= self._uncommitted()
        self._skip_cancelled()

    def next_due(self) -> int | None:
        return self._due[0][0] if self._due else None

    def add(self, due: int, entry: TimerEntry) -> None:
        """One more, with the next commit. If it has a name, beside those that are called so already."""
        ledger = self._ledger
        key = timer_key(due, ledger.head.next_timer)
        ledger.head.next_timer += 1
        ledger.put("timer", key, encode(entry))
        ledger.draft.timers.append((due, key))
        self._counts(1)
        if entry.name:
            named = self._named(entry.name)
            if len(named) >= _SAME_NAME:
                self._remove(named.pop(0))
            ledger.put("text", entry.name, b"".join([*named, key]))

    def cancel(self, name: bytes) -> None:
        """Those that are called so, and are not due yet, never go off."""
        for key in self._named(name):
            self._remove(key)
        self._ledger.put("text", name, None)

    def named(self, name: bytes, keys: bytes) -> Iterator[tuple[bytes, TimerEntry]]:
        """Committed timers, by the ``keys`` that the text ``name`` holds."""
        for key in _split(keys):
            (value,) = self._ledger.transport.get(self._ledger.id, "timer", [key])
            if value is not None:
                yield key, decoded(decode_timer, value, "timer")

    def _named(self, name: bytes) -> list[bytes]:
        ledger = self._ledger
        (stored,) = ledger.transport.get(ledger.id, "text", [name])
        return _split(ledger.pending("text", name, stored) or b"")

    def _remove(self, key: bytes) -> None:
        ledger = self._ledger
        (stored,) = ledger.transport.get(ledger.id, "timer", [key])
        if ledger.pending("timer", key, stored) is not None:
            ledger.put("timer", key, None)
            self._counts(-1)
            if self._end is None or int.from_bytes(key[:8], "big") <= self._end:
                self._cancelled.add(key)

    def committed(self, draft: Draft) -> None:
        """Those of the draft count from now on."""
        for due, key in draft.timers:
            if self._end is None or due < self._end:
                heapq.heappush(self._due, (due, key))
        if len(self._due) > 2 * _WINDOW:
            self._shrink()
        self._skip_cancelled()
        if not self._due and self._end is not None:
            self._load()

    def _shrink(self) -> None:
        """Keep what is due next; the rest stays in its rows, and nothing is kept of what was cancelled."""
        due = sorted(timer for timer in self._due if timer[1] not in self._cancelled)
        self._cancelled &= self._uncommitted()
        if len(due) > _WINDOW:
            self._end = due[_WINDOW - 1][0]
            del due[_WINDOW:]
        self._due = due

    def _uncommitted(self) -> set[bytes]:
        """Keys of rows that are about to be written or removed."""
        return {key for draft in self._ledger.uncommitted() for key in draft.rows.get("timer", ())}

    def _skip_cancelled(self) -> None:
        while self._due and self._due[0][1] in self._cancelled:
            self._cancelled.discard(heapq.heappop(self._due)[1])

    def leave(self) -> None:
        """They are no longer here."""
        self._counts(-self.count)

    def fire(self, now: int) -> bool:
        """Let those that are due go off, a bounded number at once, in due order."""
        ledger = self._ledger
        if not ledger.settled or not self._due or self._due[0][0] > now:
            return False
        bodies: dict[tuple[str, int], list[bytes]] = {}
        for key, entry in self._take(now):
            ledger.put("timer", key, None)
            self._counts(-1)
            if entry.name:
                rest = b"".join(one for one in self._named(entry.name) if one != key)
                ledger.put("text", entry.name, rest or None)
            if entry.context is not None:
                ledger.send(entry.log, entry.partition, entry.body, 1, [entry.context], now)
            elif ledger.app.names_of(entry.log) is not None:
                bodies.setdefault((entry.log, entry.partition), []).append(entry.body)
        for (log, number), parts in bodies.items():
            for group in grouped(parts, len, ledger.app.limits.batch_max):
                ledger.send(log, number, b"".join(group), len(group), [], now)
        ledger.flush()
        return True

    def _take(self, now: int) -> Iterator[tuple[bytes, TimerEntry]]:
        """As many as one commit should hold."""
        left = self._ledger.app.limits.dispatch_bytes
        for _ in range(_AT_ONCE):
            if left <= 0 or not self._ledger.has_room(0) or not self._due or self._due[0][0] > now:
                return
            _, key = heapq.heappop(self._due)
            entry = self._ledger.row("timer", key, decode_timer, "timer")
            left -= _ENTRY + len(entry.body)
            self._skip_cancelled()
            yield key, entry


def _split(keys: bytes) -> list[bytes]:
    return [keys[at : at + _KEY] for at in range(0, len(keys), _KEY)]
