"""How much waits in a partition's log."""

from __future__ import annotations

from grape.engine.partition.ledger import Ledger
from grape.model.cursor import Progress


class Backlog:
    """Counts events and bytes, and those of the whole app with them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._app = ledger.app
        self.events = 0
        self.size = 0
        waiting = ledger.transport.waiting(ledger.id, ledger.head.cursor.position)
        self.add(waiting.events - self._begun(), waiting.size)
        ledger.reclaimed = self._recount

    def add(self, events: int, size: int) -> None:
        """So much more waits, or less."""
        self.events += events
        self.size += size
        self._app.backlog_events += events
        self._app.backlog_bytes += size

    def progress(self, position: int, progress: Progress) -> int:
        """An open batch has come so far; returns how many of its events have newly finished."""
        inbox, draft = self._ledger.inbox, self._ledger.draft
        batch = inbox.open[position]
        newly = inbox.progress(position, progress)
        ended = position not in inbox.open
        if ended:
            draft.finished_events += batch.header.events
            draft.finished_bytes += batch.size
        self.add(-newly, -batch.size if ended else 0)
        draft.changed = True
        return newly

    def drop_duplicates(self) -> int:
        """Batches that came twice wait no more; returns how many there were."""
        dropped, draft = self._ledger.inbox.dropped, self._ledger.draft
        for _, events, size in dropped:
            draft.finished_events += events
            draft.finished_bytes += size
            self.add(-events, -size)
            draft.changed = True
        count = len(dropped)
        dropped.clear()
        return count

    def _begun(self) -> int:
        return sum(p.finished() for p in self._ledger.head.cursor.partial.values())

    def _recount(self, counts: bool) -> None:
        """After a claim: arrivals from before it are not told any more."""
        ledger = self._ledger
        waiting = ledger.transport.waiting(ledger.id, 0)
        drafts = ledger.uncommitted(counts)
        events = waiting.events - self._begun() - sum(draft.finished_events for draft in drafts)
        size = waiting.size - sum(draft.finished_bytes for draft in drafts)
        self.add(events - self.events, size - self.size)
