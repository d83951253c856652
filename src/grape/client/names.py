"""What a run names - slots, outputs - is there in its app. Looked at before anything is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from grape.abc.source import Source
from grape.errors import UsageError
from grape.model.near import no_such
from grape.model.topology import TopologySpec


def check_events(fed: Iterable[str], sources: Sequence[Source], taken: Iterable[str], topology: TopologySpec) -> None:
    """
    Raises:
        UsageError: something is fed that nothing listens to, or taken that is no output.
    """
    for event in fed:
        check_slot(event, topology, f"--feed {event}: ")
    for event in taken:
        if event not in topology.outputs:
            raise UsageError(f"--take {event}: {no_such('output', event, topology.outputs, topology.name)}")
    for source in sources:
        if source.terms.on_end:
            check_slot(source.terms.on_end, topology, f"on_end={source.terms.on_end}: ")


def check_slot(event: str, topology: TopologySpec, what: str = "") -> None:
    """
    Args:
        what: begins the text of the error.

    Raises:
        UsageError: nothing listens to it.
    """
    if event not in topology.events:
        raise UsageError(f"{what}{no_such('slot', event, topology.events, topology.name)}")
