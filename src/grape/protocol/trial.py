"""What new code would make of what is stored, before it runs."""

from __future__ import annotations

from msgspec import Struct


class StateProblem(Struct, frozen=True):
    """A value that the new code cannot read: of ``key``; ``text``: why."""

    node: str
    key: str
    text: str


class Trial(Struct, frozen=True):
    """What differs between the code that ran last and this one, and how it reads a sample of the stored state.

    Args:
        slots_gone, slots_new: as "event>node". nodes_gone, nodes_new: by name.
        moved: nodes that are in another pool now.
        sampled: node -> records that it was given. problems: what it could not read of them.
    """

    slots_gone: tuple[str, ...] = ()
    slots_new: tuple[str, ...] = ()
    nodes_gone: tuple[str, ...] = ()
    nodes_new: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    sampled: dict[str, int] = {}
    problems: tuple[StateProblem, ...] = ()
