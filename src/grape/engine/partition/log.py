"""What waits in a partition's log, event by event: for whoever looks at it or takes something out of it, while no
worker has anything of it."""

from __future__ import annotations

from collections.abc import Iterator

from grape.abc.transport import Stored
from grape.engine.inbox import OpenBatch
from grape.engine.partition.backlog import Backlog
from grape.engine.partition.careful import Root
from grape.engine.partition.failures import Failures
from grape.engine.partition.ledger import Ledger
from grape.engine.walk import walk
from grape.model import batch as codec
from grape.model.cursor import Progress


def stored_batches(ledger: Ledger) -> Iterator[Stored]:
    """Every batch in the log that is not finished.

    Raises:
        Corrupt: one is not what was written.
    """
    cursor = ledger.head.cursor
    at = cursor.position
    while found := ledger.transport.read(ledger.id, at, ledger.app.limits.dispatch_bytes):
        for stored in found:
            codec.check(stored.batch)
            at = stored.position + 1
            if not cursor.is_finished(stored.position):
                yield stored


def unfinished_batches(ledger: Ledger) -> Iterator[tuple[OpenBatch, Progress, bytes]]:
    """Batches that are to be worked on, how far each is, and its bytes. Those of one origin may lie there in another
    order than that of their numbers."""
    found: set[int] = set()
    is_more = True
    while is_more:
        for stored in stored_batches(ledger):
            if stored.position not in found:
                batch = ledger.inbox.offer(stored.position, codec.header_of(stored.batch), len(stored.batch))
                if batch is not None:
                    found.add(stored.position)
                    yield batch, ledger.head.cursor.progress(stored.position), stored.batch
        is_more = ledger.inbox.unpark()


def finish_unstarted(ledger: Ledger, backlog: Backlog, position: int, index: int) -> None:
    """One event of an open batch is finished without having been handed out."""
    backlog.progress(position, ledger.head.cursor.progress(position).with_done(index))


def give_up_root(ledger: Ledger, backlog: Backlog, failures: Failures, root: Root, text: str) -> None:
    """Workers cannot even hand it in as failed: the engine does, for all of its nodes."""
    now = ledger.clock.now()
    if root.number >= 0:
        failures.end(failures.entry(root.number), text, root.number, now)
    elif root.position in ledger.inbox.open:
        (stored,) = ledger.transport.read(ledger.id, root.position, 1)[:1]
        header = ledger.inbox.open[root.position].header
        single = next(one for one in walk(stored.batch, header, ledger.number) if one.at == root.index)
        for node in single.only or _listeners(ledger, single.entry.event):
            failures.end(single.of(node), text, -1, now)
        finish_unstarted(ledger, backlog, root.position, root.index)
    ledger.draft.changed = True


def _listeners(ledger: Ledger, event: str) -> tuple[str, ...]:
    listeners = ledger.app.routing.listeners.get(event, ())
    return next((each.nodes for each in listeners if each.pool == ledger.pool), ())
