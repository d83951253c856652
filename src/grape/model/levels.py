"""How much handlers log: a level for the app, and one for each node that has its own. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from grape.errors import BadArgument
from grape.model.near import did_you_mean

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
"""From the one of which there is most."""
DEFAULT: Final = "info"
"""Of whatever nobody has said anything."""
NOBODY: Final = "default"
"""Takes back what was said."""
_RANK: Final = {level: rank for rank, level in enumerate(LEVELS)}

Levels = dict[str, str]
"""By node; "": of all others. Empty: nobody has said anything."""


def check_level(text: object, what: str = "level") -> str:
    """
    Raises:
        BadArgument: it is none.
    """
    if not isinstance(text, str) or text not in _RANK:
        hint = did_you_mean(text, LEVELS, "it is one of them") if isinstance(text, str) else "it is one of them"
        raise BadArgument(f"{what}: {', '.join(LEVELS)}, not {text!r:.60}; {hint}")
    return text


def level_of(levels: Mapping[str, str], node: str) -> str:
    """That counts for a node."""
    return levels.get(node) or levels.get("") or DEFAULT


def is_shown(levels: Mapping[str, str], node: str, level: str) -> bool:
    """Whether a record of this level is wanted of a node. What was printed has none, and is."""
    rank = _RANK.get(level)
    return rank is None or rank >= _RANK[level_of(levels, node)]


def ordered(own: Mapping[str, str], orders: Mapping[str, str]) -> Levels:
    """What counts, of what an app says of itself and what its operator says, who goes before: his level of the app goes
    also before those of its nodes."""
    return dict(orders) if "" in orders else {**own, **orders}


def with_order(orders: Mapping[str, str], node: str, level: str) -> Levels:
    """With one more; `NOBODY`: without it."""
    rest = {name: said for name, said in orders.items() if name != node}
    return rest if level == NOBODY else {**rest, node: level}


def read_levels(texts: Iterable[str]) -> Levels:
    """Of a command line: LEVEL, or NODE=LEVEL.

    Raises:
        BadArgument: one cannot be.
    """
    found: Levels = {}
    for text in texts:
        node, is_said, level = text.rpartition("=")
        if is_said and not node:
            raise BadArgument(f"--log-level {text!r:.80}: it is LEVEL, or NODE=LEVEL")
        if node in found:
            raise BadArgument(f"--log-level {text!r:.80}: {node or 'the app'} has one already")
        found[node] = check_level(level, "--log-level")
    return found


def check_nodes(levels: Iterable[str], nodes: Collection[str]) -> None:
    """
    Raises:
        BadArgument: they name a node that there is not.
    """
    for node in levels:
        if node and node not in nodes:
            hint = did_you_mean(node, nodes, f"it has {', '.join(map(repr, sorted(nodes)))}")
            raise BadArgument(f"a level for the node {node!r:.100}, which the app does not have; {hint}")
