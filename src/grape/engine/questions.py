"""Questions of workers for state that is not in their caches."""

from __future__ import annotations

from typing import Final

from grape.engine.app import App
from grape.engine.partition.partition import Partition
from grape.engine.worker import Worker
from grape.errors import ProtocolError
from grape.model.address import MAX_KEY_BYTES, PartitionId
from grape.model.stored import state_key
from grape.protocol.messages import Ask, Values

ANSWER_BYTES: Final = 16 << 20
UNREAD_BYTES: Final = 2 * ANSWER_BYTES
"""So much may lie on the way to a worker before it asks for more, or gets more work."""


class Questions:
    """What is asked while state is being committed is answered after it: only what is committed is state."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._deferred: dict[PartitionId, list[tuple[Worker, Ask]]] = {}

    def ask(self, worker: Worker, partition: Partition | None, ask: Ask) -> None:
        """Answer now or later. ``partition`` None: it is no longer the worker's.

        Raises:
            ProtocolError: it may not ask that.
        """
        if partition is None:
            worker.link.send(Values([None] * len(ask.keys)))
            return
        self._check(worker, partition, ask)
        if partition.has_all_state:
            self._answer(worker, partition, ask)
        else:
            self._deferred.setdefault(partition.id, []).append((worker, ask))

    def _check(self, worker: Worker, partition: Partition, ask: Ask) -> None:
        node = self._app.node(ask.node)
        if node is None or not node.states:
            raise ProtocolError(f"a question for the state of {ask.node!r}, which has none")
        if not all(1 <= len(key) <= MAX_KEY_BYTES for key in ask.keys):
            raise ProtocolError(f"a question for a key of 0 or over {MAX_KEY_BYTES} bytes")
        if any(asking is worker for asking, _ in self._deferred.get(partition.id, ())):
            raise ProtocolError("a question before the last one was answered")
        if worker.link.unread > UNREAD_BYTES:
            raise ProtocolError(f"questions whose answers it does not read: {worker.link.unread >> 20} MiB wait for it")

    def settled(self, partition: Partition) -> None:
        """Nothing of it is under way: answer."""
        for worker, ask in self._deferred.pop(partition.id, ()):
            self._answer(worker, partition, ask)

    def forget(self, partition: Partition) -> None:
        """Its worker has gone."""
        self._deferred.pop(partition.id, None)

    def lose(self, partition: Partition) -> None:
        """It is no longer here: whoever asks is answered that there is nothing."""
        for worker, ask in self._deferred.pop(partition.id, ()):
            if worker.serves:
                worker.link.send(Values([None] * len(ask.keys)))

    def _answer(self, worker: Worker, partition: Partition, ask: Ask) -> None:
        if worker.serves:
            worker.link.send(Values(_first_of(self.committed(partition, ask.node, ask.keys))))

    def committed(self, partition: Partition, node: str, keys: list[bytes]) -> list[bytes | None]:
        """State records of ``node``, None where there is none."""
        prefix = state_key(self._app.node_id(node), b"")
        return partition.ledger.transport.get(partition.id, "state", [prefix + key for key in keys])

    def at_once(self, partition: Partition, node: str, keys: list[bytes]) -> list[bytes | None]:
        """With what is yet to be committed: for a worker in this process, which cannot wait for it."""
        prefix = state_key(self._app.node_id(node), b"")
        found = self.committed(partition, node, keys)
        pending = partition.ledger.pending
        return [pending("state", prefix + key, value) for key, value in zip(keys, found, strict=True)]


def _first_of(values: list[bytes | None]) -> list[bytes | None]:
    """As many as make a frame of a good size, at least one: the worker asks again for the rest."""
    size = 0
    for i, value in enumerate(values):
        size += len(value or b"")
        if i and size > ANSWER_BYTES:
            return values[:i]
    return values
