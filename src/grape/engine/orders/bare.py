"""What stands for a partition that no pool has: of a source, whose dead letters are input that never became an event,
or of a pool that is gone from the app."""

from __future__ import annotations

from collections.abc import Callable

from grape.abc.transport import Rows, Send, Table, Transport
from grape.engine.app import App
from grape.engine.committer import Committer
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.batch import Context
from grape.model.stored import Head, decode_head, encode


class Bare:
    """The rows and batches of one commit, for whose time its owner has nothing under way.

    ``is_pool``: its head is that of a partition of a pool.
    """

    def __init__(
        self, app: App, transport: Transport, partition: PartitionId, committer: Committer, *, is_pool: bool
    ) -> None:
        self.rows: dict[Table, dict[bytes, bytes | None]] = {}
        self._app = app
        self._transport = transport
        self._partition = partition
        self._committer = committer
        self._sends: list[Send] = []
        self._packed = committer.head
        self._head = decode_head(self._packed) if is_pool and self._packed else Head()

    def stored(self, table: Table, key: bytes) -> bytes | None:
        rows = self.rows.get(table, {})
        return rows[key] if key in rows else self._transport.get(self._partition, table, [key])[0]

    def put(self, table: Table, key: bytes, value: bytes | None) -> None:
        self.rows.setdefault(table, {})[key] = value

    def send(self, log: str, number: int, body: bytes, events: int, contexts: list[Context], now: int) -> None:
        own, target, incarnation = self._partition, self._app.log(log, number), self._app.record.incarnation
        packed = target.packed()
        sequence = self._head.sent.get(packed, 0)
        self._head.sent[packed] = sequence + 1
        sealed = codec.seal(body, events, own, target, incarnation, sequence, now, contexts)
        self._sends.append(Send(target, sealed, events))
        self._packed = encode(self._head)

    def commit(self, then: Callable[[], None]) -> None:
        """All of it; ``then`` is called when it is durable."""
        rows: list[tuple[Table, Rows]] = [(table, list(rows.items())) for table, rows in self.rows.items()]
        self._committer.submit(self._packed, self._sends, rows, then=then)
