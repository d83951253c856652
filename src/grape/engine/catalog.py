"""The catalog of a data directory: its apps, and what their names are numbered. Kept as the head of one partition."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from grape.abc.transport import Claim, Transport
from grape.engine.check import check_topology
from grape.engine.committer import Committer
from grape.errors import Corrupt, UsageError
from grape.model.address import CATALOG
from grape.model.routing import route
from grape.model.stored import FORMAT, OUTPUT, REPLIES, AppRecord, Catalog, NodeRecord, decode_catalog, encode
from grape.model.topology import TopologySpec

COPY: Final = b"catalog"
"""Key of the text beside the catalog that is the same once more: without it nothing in a directory has a name."""


def read_catalog(head: bytes) -> Catalog:
    """
    Raises:
        Corrupt: it cannot be read.
        UsageError: an older or newer Grape wrote it.
    """
    if not head:
        return Catalog()
    try:
        version = msgspec.msgpack.decode(head)[0]
        if type(version) is int and 1 <= version != FORMAT:
            raise UsageError(
                f"the catalog has format {version}; this Grape reads and writes format {FORMAT}: use the version of "
                f"Grape that wrote it, or another directory"
            )
        if version != FORMAT:
            raise Corrupt(f"the catalog cannot be read: it says format {version!r:.40}")
        return decode_catalog(head)
    except (msgspec.MsgspecError, TypeError, ValueError, IndexError, KeyError, RecursionError) as e:
        raise Corrupt(f"the catalog cannot be read: {e}") from None


class CatalogStore:
    """The catalog of a transport that this process owns; its commits are settled as any other's. ``claim``: what was
    found when it was claimed."""

    def __init__(self, transport: Transport, claim: Claim) -> None:
        self.committer = Committer(transport, CATALOG, "the catalog", claim)
        self.catalog = read_catalog(claim.head)

    @property
    def is_saved(self) -> bool:
        """What was saved last is durable."""
        return not self.committer.is_busy

    def save(self, record: AppRecord, then: Callable[[], None] = lambda: None) -> None:
        """Store ``record``; ``then`` is called when it is durable. Wait for `is_saved` before the next one."""
        apps = {**self.catalog.apps, record.name: record}
        catalog = Catalog(FORMAT, apps, max(self.catalog.next_app, record.id + 1))

        def saved() -> None:
            self.catalog = catalog
            then()

        packed = encode(catalog)
        self.committer.submit(packed, rows=[("text", [(COPY, packed)])], then=saved)


def with_logs(record: AppRecord, names: Iterable[str]) -> AppRecord:
    """The record with a number for every log in ``names``."""
    numbers, next_log = dict(record.logs), record.next_log
    for name in names:
        if name not in numbers:
            numbers[name] = next_log
            next_log += 1
    return msgspec.structs.replace(record, logs=numbers, next_log=next_log)


def update_record(
    catalog: Catalog,
    topology: TopologySpec,
    partitions: int | None,
    default_partitions: int,
    dropped: frozenset[str] = frozenset(),
    rng: random.Random | None = None,
    others: Iterable[str] = (),
) -> AppRecord:
    """The record for ``topology``: the one that is there, adapted, or a new one. ``dropped``: what was allowed to go.
    ``rng``: of incarnations. ``others``: logs for what goes to other apps. The number of a node that is gone is never
    used again.

    Raises:
        UsageError: it has another number of partitions.
        TopologyError: the topology does not hang together.
    """
    check_topology(topology)
    old = catalog.apps.get(topology.name)
    if old is None:
        count = partitions or default_partitions
        incarnation = (rng or random.Random()).getrandbits(32)
        old = AppRecord(topology.name, catalog.next_app, incarnation, count, {}, {}, topology)
    elif partitions is not None and partitions != old.partitions:
        raise UsageError(
            f"app {old.name!r} has {old.partitions} partitions in this data directory, --partitions says {partitions}. "
            f"The number is fixed when an app is created: leave the option out, or use another directory"
        )
    nodes: dict[str, NodeRecord] = {}
    next_node = old.next_node
    for node in topology.nodes:
        before = old.nodes.get(node.name)
        if before is None:
            number, next_node = next_node, next_node + 1
        else:
            number = before.id
        nodes[node.name] = NodeRecord(number, node.pool, tuple(s.name for s in node.states))
    chained = route(topology).chained
    new = (chained - route(old.topology).chained) | old.unchained
    pools = [pool.name for pool in topology.pools]
    answers = [f"{REPLIES}{pool}" for pool in pools]
    names = [*pools, *answers, *(f"{OUTPUT}{o}" for o in topology.outputs), REPLIES, *others]
    return msgspec.structs.replace(
        with_logs(old, names),
        nodes=nodes,
        topology=topology,
        next_node=next_node,
        moving={},
        emptied={},
        unchained=new & chained,
        dropped=old.dropped | dropped,
    )
