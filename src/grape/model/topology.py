"""A topology as plain data: what a worker tells the engine about its app. No callables in here."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

from msgspec import Meta, Struct, structs

DEFAULT_POOL: Final = "main"

T = TypeVar("T")

MAX_NAMES: Final = 10_000
"""Nodes, slots and outputs of an app, and names that one of these lists."""
MAX_POOLS: Final = 256
MAX_SCHEMA: Final = 16 << 10
"""Bytes of a JSON Schema."""

Names = Annotated[tuple[T, ...], Meta(max_length=MAX_NAMES)]

Runtime = Literal["python", "node", "perl", "exec", "lines"]
"""What runs the workers of a pool."""
OnFail = Literal["dead", "stop"]


class StateSpec(Struct, frozen=True, omit_defaults=True):
    """One named piece of keyed state of a node. ``ttl`` in seconds; None: kept until deleted."""

    name: str
    ttl: float | None = None


class NodeSpec(Struct, frozen=True, omit_defaults=True):
    """``is_async``: its handler is a coroutine; such a node is never chained. ``objects``: a program of lines that asks
    for objects, so that it gets one event at a time."""

    name: str
    pool: str = DEFAULT_POOL
    states: Names[StateSpec] = ()
    is_async: bool = False
    objects: bool = False


class SlotSpec(Struct, frozen=True, omit_defaults=True):
    """The link event -> node with its options. Times are seconds.

    ``retries``: attempts after the first one. ``backoff`` doubles up to ``backoff_max``, with full jitter.
    ``timeout`` 0: none. ``emits``: declared names; they allow chaining and early checks.
    ``batch`` above 1: the handler gets lists of up to that many payloads. ``eager``: a client's event runs while it is
    not accepted yet, and what it does is accepted with it. ``where``: file:line of the handler. ``rate``: events a
    second over all workers, at most (0: any number), ``burst`` at once. ``takes``, ``gives``: JSON Schema of a payload,
    and of a result, for people; "": any.
    """

    event: str
    node: str
    emits: Names[str] = ()
    retries: int = 3
    backoff: float = 1.0
    backoff_max: float = 60.0
    timeout: float = 60.0
    on_fail: OnFail = "dead"
    ordered: bool = True
    chain: bool = True
    concurrency: int = 100
    batch: int = 1
    where: str = ""
    eager: bool = False
    rate: float = 0.0
    burst: int = 1
    takes: Annotated[str, Meta(max_length=MAX_SCHEMA)] = ""
    gives: Annotated[str, Meta(max_length=MAX_SCHEMA)] = ""


class PoolSpec(Struct, frozen=True, omit_defaults=True):
    """``long``: its handlers may run for as long as they live; a worker gets one work at a time. ``runtime``: what runs
    its workers; ``entry``: which file, and further arguments."""

    name: str
    long: bool = False
    runtime: Runtime = "python"
    entry: Names[str] = ()

    @property
    def describes_itself(self) -> bool:
        """Whether its own workers tell its nodes and slots; the others' stand in the topology's code."""
        return self.runtime not in ("python", "lines")


class TopologySpec(Struct, frozen=True, omit_defaults=True):
    """All of an app: its slots in the order of their declaration."""

    name: str
    nodes: Names[NodeSpec] = ()
    slots: Names[SlotSpec] = ()
    outputs: Names[str] = ()
    pools: Annotated[tuple[PoolSpec, ...], Meta(max_length=MAX_POOLS)] = (PoolSpec(DEFAULT_POOL),)

    def node(self, name: str) -> NodeSpec:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def slot(self, event: str, node: str) -> SlotSpec:
        for slot in self.slots:
            if slot.event == event and slot.node == node:
                return slot
        raise KeyError((event, node))

    @property
    def events(self) -> tuple[str, ...]:
        """Names that something listens to, without outputs; in order of declaration."""
        return tuple(dict.fromkeys(slot.event for slot in self.slots))


def names(topology: TopologySpec) -> list[str]:
    """Everything in it that has a name which others are shown."""
    found = [topology.name, *topology.outputs, *(pool.name for pool in topology.pools)]
    for node in topology.nodes:
        found += [node.name, node.pool, *(state.name for state in node.states)]
    for slot in topology.slots:
        found += [slot.event, slot.node, *slot.emits]
    return found


def without_schemas(topology: TopologySpec) -> TopologySpec:
    """What counts of it: a default that a module works out when it is imported makes another schema in every worker."""
    slots = tuple(
        structs.replace(slot, takes="", gives="") if slot.takes or slot.gives else slot for slot in topology.slots
    )
    return structs.replace(topology, slots=slots)


def with_pool(topology: TopologySpec, pool: str, part: TopologySpec) -> TopologySpec:
    """``topology`` with the nodes and slots that the workers of ``pool`` have described."""
    nodes = tuple(structs.replace(node, pool=pool) for node in part.nodes)
    return structs.replace(topology, nodes=topology.nodes + nodes, slots=topology.slots + part.slots)


class Limits(Struct, frozen=True):
    """Sizes in bytes, counts in events, times in seconds. One value for the engine and all its workers.

    ``dedup_horizon``: so long a client's event id is recognised when it comes again. ``reply_ttl``: so long it is known
    that a call has ended.
    """

    max_event: int = 8 << 20
    batch_target: int = 128 << 10
    batch_max: int = 512 << 10
    max_result: int = 64 << 20
    max_hops: int = 10_000
    dispatch_events: int = 8_192
    dispatch_bytes: int = 4 << 20
    hold_events: int = 10_000
    hold_bytes: int = 16 << 20
    cache_bytes: int = 64 << 20
    dedup_horizon: float = 86_400.0
    reply_ttl: float = 600.0
    named_deaths: int = 3
