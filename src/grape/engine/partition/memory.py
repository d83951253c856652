"""What clients hand in: their events, and the ids by which they are known when they come again."""

from __future__ import annotations

import msgspec

from grape.engine.partition.expiry import Expiries
from grape.engine.partition.ledger import Ledger
from grape.model import batch as codec
from grape.model.batch import Context
from grape.model.stored import CLIENT_ID


class Memory:
    """Events from outside that have no number of their own."""

    def __init__(self, ledger: Ledger, expiries: Expiries) -> None:
        self._ledger = ledger
        self._expiries = expiries

    def take_in(
        self, pool: str, number: int, name: str, key: str | None, data: bytes, event_id: str, context: Context, now: int
    ) -> None:
        """An event, for partition ``number`` of one of the pools that listen to it."""
        ids = {0: event_id} if event_id else None
        contexts = [context] if context != Context() else []
        body = codec.one(name, key, msgspec.Raw(data), ids=ids, contexts=[0] if contexts else None)
        self._ledger.send(pool, number, body, 1, contexts, now)

    def remember(self, event_id: str, content: int, now: int, *, is_call: bool = False) -> None:
        """An id, to recognise it when it comes again within the dedup-horizon."""
        key = CLIENT_ID + event_id.encode()
        self._ledger.put("text", key, now.to_bytes(8, "big") + content.to_bytes(4, "big") + bytes([is_call]))
        self._expiries.add(now + int(self._ledger.app.limits.dedup_horizon * 1e6), "text", key)
