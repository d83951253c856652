"""Events of clients that run before they are accepted (ADR 27).

    client --> draft: a held entry --> Work --> Result --> the same draft --> one commit accepts it, and what came of it

The entry is an ordinary one of the hold list. So nothing is lost if its draft has to be committed earlier, by whatever
else happens to the partition or because the handler takes long: then it is accepted and held, and its result is a
commit of its own, as that of any held event.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from grape.engine.partition.failures import Failures
from grape.engine.partition.ledger import Ledger
from grape.model import batch as codec
from grape.model.batch import Context
from grape.model.policy import locks_key
from grape.model.stored import HoldEntry
from grape.protocol.door import Emit

PATIENCE: Final = 5_000
"""So long a client waits for a handler before its event is accepted without what comes of it (microseconds)."""
KIND: Final = "eager"


class Eager:
    """What a worker has, or had, of events that nobody knew to be accepted."""

    def __init__(self, ledger: Ledger, failures: Failures) -> None:
        self._ledger = ledger
        self._failures = failures
        self._stats = ledger.app.stats.pools[ledger.pool]
        self._created: dict[int, int] = {}

    def take_in(self, event: Emit, nodes: Iterable[str], context: Context, now: int) -> None:
        """Into the draft, which is not committed yet, as an entry that is due for each of ``nodes``."""
        ledger = self._ledger
        # No other event ever has this id: a number is used again only after a new claim, if nobody has heard of it.
        event_id = event.id or f"{ledger.origin}-{ledger.term}.{ledger.head.next_hold}"
        inherited = None if context == Context() else context
        body = codec.one(event.name, event.key, msgspec.Raw(event.data))
        for node in nodes:
            slot = ledger.app.slot(event.name, node)
            assert slot is not None
            entry = HoldEntry(node, event.name, event_id, event.key, now, body, due=now, context=inherited)
            entry.locks = locks_key(slot, event.key, "retry")
            entry.kind, entry.text = KIND, "a worker has it"
            self._created[ledger.head.next_hold] = now
            self._failures.hold(entry)
        ledger.draft.waits_until = now + PATIENCE

    def tried(self, number: int, now: int) -> None:
        """A worker has handed in a held entry for the first time, if it was one of these: done, or failed."""
        created = self._created.pop(number, None)
        if created is not None:
            self._stats.finished += 1
            self._stats.latencies.add(now - created, 1)
