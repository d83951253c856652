"""Where a name leads, and which pairs of nodes chain: decided once, from the topology alone."""

from __future__ import annotations

from msgspec import Struct

from grape.model.stored import OUTPUT
from grape.model.topology import SlotSpec, TopologySpec


class Listener(Struct, frozen=True):
    """The nodes of one pool that listen to one event."""

    pool: str
    nodes: tuple[str, ...]


class Routing(Struct, frozen=True):
    """``listeners[event]``: per pool, in order of declaration. ``chained``: pairs (emitting node, target node)."""

    listeners: dict[str, tuple[Listener, ...]]
    outputs: frozenset[str]
    chained: frozenset[tuple[str, str]]

    def knows(self, event: str) -> bool:
        return event in self.listeners or event in self.outputs

    def logs_of(self, event: str) -> list[str]:
        """Where it goes that comes in from outside: to every pool that listens, or into the output; empty: nowhere."""
        if event in self.outputs:
            return [OUTPUT + event]
        return [listener.pool for listener in self.listeners.get(event, ())]


def route(topology: TopologySpec) -> Routing:
    """Compute where every event of ``topology`` leads."""
    pool_of = {node.name: node.pool for node in topology.nodes}
    nodes: dict[str, dict[str, list[str]]] = {}
    for slot in topology.slots:
        nodes.setdefault(slot.event, {}).setdefault(pool_of[slot.node], []).append(slot.node)
    listeners = {
        event: tuple(Listener(pool, tuple(names)) for pool, names in pools.items()) for event, pools in nodes.items()
    }
    return Routing(listeners, frozenset(topology.outputs), chained_pairs(topology))


def eager_events(topology: TopologySpec) -> frozenset[str]:
    """Events that may run before they are accepted: all who listen say so, and are in one pool, so that one commit
    accepts both the event and what came of it."""
    pool_of = {node.name: node.pool for node in topology.nodes}
    slots: dict[str, list[SlotSpec]] = {}
    for slot in topology.slots:
        slots.setdefault(slot.event, []).append(slot)
    return frozenset(
        event
        for event, listeners in slots.items()
        if all(slot.eager for slot in listeners) and len({pool_of[slot.node] for slot in listeners}) == 1
    )


def long_events(topology: TopologySpec) -> frozenset[str]:
    """Events whose handlers may run for long: keyless ones are spread one by one."""
    long = {pool.name for pool in topology.pools if pool.long}
    pools = {node.name: node.pool for node in topology.nodes}
    return frozenset(slot.event for slot in topology.slots if pools[slot.node] in long)


def chained_pairs(topology: TopologySpec) -> frozenset[tuple[str, str]]:
    """The pairs that run at once in the same worker.

    A pair chains if an edge of it is declared (``emits=``), both nodes are in one pool and synchronous, no slot of
    the target says ``chain=False``, and the pair lies on no cycle of declared pairs.
    """
    nodes = {node.name: node for node in topology.nodes}
    by_event: dict[str, list[SlotSpec]] = {}
    for slot in topology.slots:
        by_event.setdefault(slot.event, []).append(slot)
    declared: dict[str, set[str]] = {}
    for slot in topology.slots:
        for event in slot.emits:
            for target in by_event.get(event, ()):
                declared.setdefault(slot.node, set()).add(target.node)
    unchained = {slot.node for slot in topology.slots if not slot.chain}
    component = _strongly_connected(declared)
    return frozenset(
        (source, target)
        for source, targets in declared.items()
        for target in targets
        if nodes[source].pool == nodes[target].pool
        and not nodes[source].is_async
        and not nodes[target].is_async
        and target not in unchained
        and component[source] != component[target]
    )


def _strongly_connected(graph: dict[str, set[str]]) -> dict[str, int]:
    """Component number of every vertex (Tarjan 1972, iterative). Two vertices lie on a common cycle exactly if
    their numbers are equal; a vertex with an edge to itself shares its own number."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    component: dict[str, int] = {}
    stack: list[str] = []
    for start in graph:  # whatever has no edge of its own is the target of one that has
        if start in index:
            continue
        index[start] = low[start] = len(index)
        stack.append(start)
        work = [(start, iter(graph[start]))]
        while work:
            vertex, targets = work[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    work.append((target, iter(graph.get(target, ()))))
                    break
                if target not in component:
                    low[vertex] = min(low[vertex], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[vertex])
                if low[vertex] == index[vertex]:
                    number = len(component)
                    while True:
                        member = stack.pop()
                        component[member] = number
                        if member == vertex:
                            break
    return component
