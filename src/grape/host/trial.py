"""New code tries what is stored, beside the engine that runs on it: a sample of each node's state is read by a worker
that has the new code, and nothing is changed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import msgspec

from grape.engine.catalog import read_catalog
from grape.errors import GrapeError, UsageError
from grape.host.house import Verb
from grape.host.streams import Say
from grape.model.address import CATALOG, PartitionId
from grape.model.stored import AppRecord, state_key
from grape.model.topology import TopologySpec
from grape.processes.workers import Workers
from grape.protocol.door import Answer, Ask, Refused
from grape.protocol.messages import Try
from grape.protocol.trial import StateProblem, Trial
from grape.store.reader import Reader

_SAMPLE: Final = 500
"""Records of a node."""
_BYTES: Final = 16 << 20
"""Of all of them, about."""
_SHOWN: Final = 20
"""Problems of one node that are told."""


class Trials:
    """Of one engine that has described its app and not opened its directory."""

    def __init__(self, directory: Path, topology: TopologySpec, workers: Workers) -> None:
        self._directory = directory
        self._topology = topology
        self._workers = workers
        self._tasks: set[asyncio.Task[None]] = set()

    def verbs(self) -> dict[str, Verb]:
        """ "trial": `grape.protocol.trial.Trial`."""
        return {"trial": self._ask}

    def _ask(self, ask: Ask, say: Say) -> None:
        task = asyncio.ensure_future(self._answer(ask, say))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, ask: Ask, say: Say) -> None:
        try:
            say(Answer(ask.number, msgspec.Raw(msgspec.msgpack.encode(await self.run()))))
        except GrapeError as e:
            say(Refused(ask.number, e.code, str(e)))

    async def run(self) -> Trial:
        """
        Raises:
            GrapeError: what is stored cannot be read, or the worker cannot say.
        """
        if not (self._directory / "format").exists():
            return Trial()
        try:
            reader = Reader(self._directory)
        except OSError as e:
            raise UsageError(f"the data directory {self._directory} cannot be read: {e}") from None
        try:
            return await self._run(reader)
        finally:
            reader.close()

    async def _run(self, reader: Reader) -> Trial:
        head = reader.head(CATALOG)
        record = read_catalog(b"" if head is None else head.head).apps.get(self._topology.name)
        if record is None:
            return Trial()
        sampled: dict[str, int] = {}
        problems: list[StateProblem] = []
        room = _BYTES
        for node in self._topology.nodes:
            if node.name not in record.nodes or not node.states or room <= 0:
                continue
            rows = _sample(reader, record, node.name)
            room -= sum(len(value) for _, value in rows)
            found = await self._workers.try_state(Try(node.name, [value for _, value in rows]))
            if found is not None and rows:
                sampled[node.name] = len(rows)
                keys = [key.decode("utf-8", "replace") for key, _ in rows]
                problems += [StateProblem(node.name, keys[at], text) for at, text in found[:_SHOWN] if at < len(keys)]
        return compare(record, self._topology, sampled, tuple(problems))


def _sample(reader: Reader, record: AppRecord, node: str) -> list[tuple[bytes, bytes]]:
    """Some (key, record) of every partition."""
    number, pool = record.nodes[node].id, record.logs[record.nodes[node].pool]
    begin, end = state_key(number, b""), state_key(number + 1, b"")
    each = max(1, _SAMPLE // record.partitions)
    found: list[tuple[bytes, bytes]] = []
    for n in range(record.partitions):
        rows = reader.scan(PartitionId(record.id, pool, n), "state", begin, each)
        found += [(key[len(begin) :], value) for key, value in rows if key < end]
    return found


def compare(record: AppRecord, new: TopologySpec, sampled: dict[str, int], problems: tuple[StateProblem, ...]) -> Trial:
    """With what ran last."""
    old_slots = {f"{slot.event}>{slot.node}" for slot in record.topology.slots}
    new_slots = {f"{slot.event}>{slot.node}" for slot in new.slots}
    old_nodes = {node.name: node.pool for node in record.topology.nodes}
    new_nodes = {node.name: node.pool for node in new.nodes}
    return Trial(
        slots_gone=_sorted(old_slots - new_slots),
        slots_new=_sorted(new_slots - old_slots),
        nodes_gone=_sorted(old_nodes.keys() - new_nodes.keys()),
        nodes_new=_sorted(new_nodes.keys() - old_nodes.keys()),
        moved=_sorted({name for name, pool in new_nodes.items() if old_nodes.get(name, pool) != pool}),
        sampled=sampled,
        problems=problems,
    )


def _sorted(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted(names))
