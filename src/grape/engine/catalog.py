"""The catalog of a data directory: its apps, and what their names are numbered. Kept as the head of one partition."""

from __future__ import annotations

import random

import msgspec

from grape.abc.transport import Commit, Transport
from grape.errors import Corrupt, UsageError
from grape.model.address import CATALOG
from grape.model.stored import FORMAT, REPLIES, AppRecord, Catalog, NodeRecord, decode_catalog, encode
from grape.model.topology import TopologySpec


def read_catalog(head: bytes) -> Catalog:
    """
    Raises:
        Corrupt: it cannot be read.
        UsageError: a newer Grape wrote it.
    """
    if not head:
        return Catalog()
    try:
        version = msgspec.msgpack.decode(head)[0]
        if version != FORMAT:
            raise UsageError(f"the data directory has format {version}; this Grape reads and writes format {FORMAT}")
        return decode_catalog(head)
    except (msgspec.MsgspecError, TypeError, IndexError, KeyError) as e:
        raise Corrupt(f"the catalog cannot be read: {e}") from None


class CatalogStore:
    """The catalog of a transport that this process owns. ``save`` hands a commit to the transport; what the caller must
    wait for is its outcome."""

    def __init__(self, transport: Transport) -> None:
        claim = transport.claim(CATALOG)
        self._transport = transport
        self._term, self._number = claim.term, 0
        self.catalog = read_catalog(claim.head)

    def save(self, record: AppRecord) -> Commit:
        """Store ``record`` in the catalog."""
        apps = {**self.catalog.apps, record.name: record}
        self.catalog = Catalog(FORMAT, apps, max(self.catalog.next_app, record.id + 1))
        self._number += 1
        commit = Commit(CATALOG, self._term, self._number, encode(self.catalog))
        self._transport.commit(commit)
        return commit


def update_record(
    catalog: Catalog, topology: TopologySpec, partitions: int | None, default_partitions: int, logs: list[str]
) -> AppRecord:
    """The record for ``topology``: the one that is there with what is new added, or a new one.

    Raises:
        UsageError: it has another number of partitions.
    """
    old = catalog.apps.get(topology.name)
    if old is None:
        count = partitions or default_partitions
        old = AppRecord(topology.name, catalog.next_app, random.getrandbits(32), count, {}, {}, topology)
    elif partitions is not None and partitions != old.partitions:
        raise UsageError(
            f"app {old.name!r} has {old.partitions} partitions in this data directory, --partitions says {partitions}. "
            f"The number is fixed when an app is created: leave the option out, or use another directory"
        )
    numbers = dict(old.logs)
    next_log = old.next_log
    for name in [*(pool.name for pool in topology.pools), *(f">{o}" for o in topology.outputs), REPLIES, *logs]:
        if name not in numbers:
            numbers[name] = next_log
            next_log += 1
    nodes = dict(old.nodes)  # one that is gone keeps its number: its state is still there
    next_node = old.next_node
    for node in topology.nodes:
        before = old.nodes.get(node.name)
        if before is None:
            number, next_node = next_node, next_node + 1
        else:
            number = before.id
        nodes[node.name] = NodeRecord(number, node.pool, tuple(s.name for s in node.states))
    return AppRecord(old.name, old.id, old.incarnation, old.partitions, numbers, nodes, topology, next_log, next_node)
