"""Which loop fits a handler."""

from __future__ import annotations

from typing import Any

from grape.authoring.handler import Handler
from grape.authoring.state import State
from grape.model.address import Partitions
from grape.model.topology import Limits, SlotSpec
from grape.worker.emits import Names
from grape.worker.units.batch import BatchUnit
from grape.worker.units.function import FunctionUnit
from grape.worker.units.general import GeneralUnit
from grape.worker.units.node import CountingUnit, NodeUnit
from grape.worker.units.unit import Host, Unit


def make_unit(
    handler: Handler, slots: dict[str, SlotSpec], host: Host, names: Names, partitions: Partitions, limits: Limits
) -> Unit:
    """The loop that fits ``handler``."""
    kind: type[Unit]
    if handler.is_batch:
        kind = BatchUnit
    elif handler.kind == "sync" and handler.arguments == ("payload",) and not handler.states and not handler.keys:
        kind = FunctionUnit
    elif handler.kind == "sync" and handler.instance is not None and not handler.states:
        kind = NodeUnit
    elif handler.kind == "sync" and handler.instance is not None and _is_countable(handler.states):
        kind = CountingUnit
    else:
        kind = GeneralUnit
    return kind(handler, slots, host, names, partitions, limits)


def _is_countable(states: dict[str, State[Any]]) -> bool:
    return len(states) == 1 and all(s.is_bare for s in states.values())
