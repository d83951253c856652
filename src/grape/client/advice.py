"""What is said of sources when an app starts: what they cannot give, and what order they have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from grape.abc.source import Source
from grape.model.topology import TopologySpec


def advice(topology: TopologySpec, sources: Sequence[Source], partitions: int) -> dict[str, str]:
    """Lines for people by the names of the sources, which are read from their start: to be said once more has come of
    one than a batch holds, whose order is the source's."""
    lines: dict[str, str] = {}
    fed = {source.name.partition("=")[0] for source in sources}
    for source in sources:
        if not source.is_keyless or source.terms.in_order or partitions == 1:
            continue
        event = source.name.partition("=")[0]
        node = first_keyed(topology, event, fed - {event})
        if node is not None:
            lines[source.name] = (
                f"source {source.name}: its events have no key and are spread over {partitions} partitions, so they "
                f"reach node {node!r}, which keeps state by key, in no order. If their order matters: "
                f"--feed {source.name},key=/expression/ (or =FIELD, =module:function), or ,order=source"
            )
    return lines


def first_keyed(topology: TopologySpec, event: str, others: set[str]) -> str | None:
    """The first node with state that events lead to which handlers of ``event`` emit. A node that declares no emits may
    emit whatever nobody feeds. ``others``: events that are fed themselves."""
    by_event: dict[str, list[str]] = {}
    for slot in topology.slots:
        by_event.setdefault(slot.event, []).append(slot.node)
    keyed = {node.name for node in topology.nodes if node.states}
    seen = {event}
    todo = [event]
    while todo:
        at = todo.pop(0)
        for slot in topology.slots:
            if slot.event != at:
                continue
            reached: Sequence[str] = slot.emits or [name for name in topology.events if name not in others]
            for name in reached:
                if name in seen or name not in by_event:
                    continue
                seen.add(name)
                todo.append(name)
                found = next((node for node in by_event[name] if node in keyed), None)
                if found is not None:
                    return found
    return None


def guarantees(sources: Iterable[Source]) -> list[str]:
    """Lines about sources that cannot be resumed."""
    return [
        f"source {source.name} cannot be read again: every run reads what it gets, a run that is killed loses what it "
        "has read and not committed"
        for source in sources
        if not source.is_repeatable
    ]
