"""Answers to the calls of handlers: a log beside that of the partition, so that they never stand behind its events."""

from __future__ import annotations

from grape.engine.inbox import Inbox
from grape.engine.partition.failures import Failures
from grape.engine.partition.ledger import Ledger
from grape.model import batch as codec
from grape.model.cursor import Progress
from grape.model.stored import ERROR, REPLIES


class Answers:
    """``log``: where they come; None: in a directory of older code there is none yet."""

    def __init__(self, ledger: Ledger, failures: Failures) -> None:
        self._ledger = ledger
        self._failures = failures
        name = REPLIES + ledger.pool
        self.log = ledger.app.log(name, ledger.number) if name in ledger.app.record.logs else None
        self.has_more = False
        """The last time there were more than one commit holds."""
        self._inbox = Inbox(ledger.head.answers)
        if self.log is not None:
            ledger.reads(self.log, self._inbox)

    def take(self) -> None:
        """Give those that have come to the events that wait for them, as many as one commit holds.

        Raises:
            Corrupt: a stored batch is not what was written.
        """
        if self.log is None:
            return
        self.has_more = not self._read()
        while not self.has_more and self._inbox.unpark():
            self.has_more = not self._read()
        if self._inbox.dropped:
            self._inbox.dropped.clear()
            self._ledger.draft.changed = True

    def _read(self) -> bool:
        """Returns whether all was read."""
        ledger, inbox = self._ledger, self._inbox
        assert self.log is not None
        while found := ledger.transport.read(self.log, inbox.read_to, ledger.app.limits.dispatch_bytes):
            for stored in found:
                if not ledger.has_room(ledger.app.limits.max_event * 2):
                    return False
                header = codec.header_of(stored.batch) if stored.known else codec.check(stored.batch)
                if ledger.transport.features.exact_forwarding:
                    inbox.catch_up(header)  # there are no gaps but of what was damaged and taken out
                if inbox.offer(stored.position, header, len(stored.batch)) is not None:
                    self._give(codec.body_of(stored.batch, header))
                    inbox.progress(stored.position, Progress(header.events))
                    ledger.draft.changed = True
                inbox.passed(stored.position)
        return True

    def _give(self, body: bytes) -> None:
        for run in codec.runs_of(body):
            columns = codec.names_of(run), codec.keys_of(run) or (), codec.raw_data_of(run) or ()
            for name, request, data in zip(*columns, strict=True):
                self._failures.answered(request or "", bytes(data), name == ERROR)
