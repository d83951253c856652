"""What a run names - pools, slots, outputs - is there in its app. Looked at before anything is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from grape.abc.source import Source
from grape.errors import UsageError
from grape.host.taking import Taker
from grape.model.near import did_you_mean
from grape.model.topology import DEFAULT_POOL, TopologySpec


def check_pools(named: Iterable[str], topology: TopologySpec) -> None:
    """Of profiles. The default pool may always have one.

    Raises:
        UsageError: there is no such pool.
    """
    known = tuple(pool.name for pool in topology.pools)
    for name in named:
        if name not in known and name != DEFAULT_POOL:
            raise UsageError(f"[pool.{name}]: {no_such('pool', name, known, topology)}")


def check_events(
    fed: Iterable[str], sources: Sequence[Source], takers: Sequence[Taker], topology: TopologySpec
) -> None:
    """
    Raises:
        UsageError: something is fed that nothing listens to, or taken that is no output.
    """
    for event in fed:
        check_slot(event, topology, f"--feed {event}: ")
    for taker in takers:
        if taker.event is not None and taker.event not in topology.outputs:
            raise UsageError(f"--take {taker.event}: {no_such('output', taker.event, topology.outputs, topology)}")
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
        raise UsageError(f"{what}{no_such('slot', event, topology.events, topology)}")


def no_such(kind: str, name: str, known: tuple[str, ...], topology: TopologySpec) -> str:
    hint = did_you_mean(name, known, f"it has {', '.join(map(repr, known)) or 'none'}")
    return f"app {topology.name!r} has no {kind} {name!r}; {hint}"
