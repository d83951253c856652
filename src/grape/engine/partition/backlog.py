"""How much waits in a partition's log."""

from __future__ import annotations

from grape.abc.transport import Arrival
from grape.engine.partition.ledger import Ledger
from grape.model.cursor import Progress


class Backlog:
    """Counts events and bytes, and those of the whole app with them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._app = ledger.app
        self.events = 0
        self.size = 0
        self._count()
        ledger.reclaimed = self._count

    def add(self, events: int, size: int) -> None:
        """So much more waits, or less."""
        self.events += events
        self.size += size
        self._app.backlog_events += events
        self._app.backlog_bytes += size

    def progress(self, position: int, progress: Progress) -> int:
        """An open batch has come so far; returns how many of its events have newly finished."""
        inbox = self._ledger.inbox
        batch = inbox.open[position]
        newly = inbox.progress(position, progress)
        self.add(-newly, 0 if position in inbox.open else -batch.size)
        self._ledger.draft.changed = True
        return newly

    def drop_duplicates(self) -> int:
        """Batches that came twice wait no more; returns how many there were."""
        dropped = self._ledger.inbox.dropped
        for _, events, size in dropped:
            self.add(-events, -size)
            self._ledger.draft.changed = True
        count = len(dropped)
        dropped.clear()
        return count

    def _count(self) -> None:
        """All of it, after a claim: `Callbacks.arrived` goes on from its tail. What is finished may stand in the log
        still, also behind that tail."""
        ledger, cursor = self._ledger, self._ledger.head.cursor
        begun = sum(p.finished() for p in cursor.partial.values())
        finished = sorted(cursor.finished)
        # Between what is finished, never with it: that may go at any moment.
        starts = [cursor.position, *(position + 1 for position in finished)]
        ends = [min(position, ledger.tail) for position in finished] + [ledger.tail]
        there = [self._waiting(start, end) for start, end in zip(starts, ends, strict=True)]
        gone = [self._waiting(ledger.tail, cursor.position)]
        gone += [self._waiting(position, position + 1) for position in finished if position >= ledger.tail]
        events = sum(each.events for each in there) - sum(each.events for each in gone) - begun
        size = sum(each.size for each in there) - sum(each.size for each in gone)
        self.add(events - self.events, size - self.size)

    def _waiting(self, after: int, before: int) -> Arrival:
        ledger = self._ledger
        if after >= before:
            return Arrival(ledger.id, 0, 0, 0)
        return ledger.transport.waiting(ledger.id, after, before)
