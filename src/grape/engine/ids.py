"""Ids of what sources feed: an event with an id that was fed before is not fed again.

They are remembered where positions are, in the partition of the source that fed them, and looked for in those of all
sources, and where the ids of clients are. Engine's thread only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from grape.abc.transport import Rows, Table, Transport
from grape.engine.app import App
from grape.engine.clock import Clock
from grape.model.address import PartitionId, partition_of
from grape.model.stored import CLIENT_ID, NO_POOLS, SOURCE, Expiry, decode_expiry, encode, timer_key
from grape.protocol.door import Named, Verdict

_EXPIRIES_AT_ONCE: Final = 10_000


class Ids:
    """Of one app. What was found new stays so until it is durable."""

    def __init__(self, app: App, transport: Transport, clock: Clock) -> None:
        self._app = app
        self._transport = transport
        self.clock = clock
        self._pending: dict[str, int] = {}

    def check(self, events: Sequence[Named]) -> list[Verdict]:
        """Which of these are fed, in their order."""
        stored = self._stored({event.id: event for event in events})
        verdicts: list[Verdict] = []
        for event in events:
            known = self._pending.get(event.id, stored.get(event.id))
            if known is None:
                self._pending[event.id] = event.content
                verdicts.append("new")
            else:
                verdicts.append("known" if known == event.content else "conflict")
        return verdicts

    def _stored(self, events: dict[str, Named]) -> dict[str, int]:
        """The contents that were accepted under these ids within the dedup-horizon."""
        found: dict[str, int] = {}
        by_number: dict[int, list[str]] = {}
        for event in events.values():
            by_number.setdefault(partition_of(event.key or event.id, self._app.partitions), []).append(event.id)
        for name in self._app.record.logs:
            if name.startswith(SOURCE):
                self._look(self._app.log(name, 0), list(events), found)
            elif not name.startswith(NO_POOLS):
                for number, ids in by_number.items():
                    self._look(self._app.log(name, number), ids, found)
        return found

    def _look(self, partition: PartitionId, ids: list[str], found: dict[str, int]) -> None:
        oldest = self.clock.now() - int(self._app.limits.dedup_horizon * 1e6)
        keys = [CLIENT_ID + one.encode() for one in ids]
        for one, value in zip(ids, self._transport.get(partition, "text", keys), strict=True):
            if value is not None and int.from_bytes(value[:8], "big") >= oldest:
                found[one] = int.from_bytes(value[8:12], "big")

    def rows(self, source: PartitionId, events: Sequence[Named], number: int) -> list[tuple[Table, Rows]]:
        """What remembers them, in the partition of their source, and forgets those that are old. ``number``: of the
        first, to tell rows that expire at the same time apart."""
        now = self.clock.now()
        due = now + int(self._app.limits.dedup_horizon * 1e6)
        texts: dict[bytes, bytes | None] = {}
        expiries: dict[bytes, bytes | None] = {}
        for place, value in self._transport.scan(source, "expiry", b"", _EXPIRIES_AT_ONCE, timer_key(now, 0)):
            expiries[place] = None
            texts[decode_expiry(value).key] = None
        for i, event in enumerate(events, number):
            key = CLIENT_ID + event.id.encode()
            texts[key] = now.to_bytes(8, "big") + event.content.to_bytes(4, "big")
            expiries[timer_key(due, i)] = encode(Expiry("text", key))
        return [("text", list(texts.items())), ("expiry", list(expiries.items()))]

    def settled(self, events: Iterable[Named]) -> None:
        """They are stored now, or whoever was to feed them is gone."""
        for event in events:
            self._pending.pop(event.id, None)
