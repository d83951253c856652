"""Nodes that are not Python: lines on standard input and output cannot tell what they listen to, so Python does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from grape.authoring.places import place_of_caller
from grape.errors import TopologyError
from grape.model.topology import StateSpec
from grape.model.values import seconds


class External:
    """A node of a pool with ``runtime="lines"``.

    Args:
        name: the node's name.
        states: names of its states, or a mapping of names to how long a value lives after it was set (seconds, or a
            timedelta; None: until it is deleted).
        objects: it asks for objects; then it gets the next event when it has answered the last one.

    Raises:
        TopologyError: a state has no name, or a time that cannot be.
    """

    def __init__(
        self,
        name: str,
        states: Iterable[str] | Mapping[str, float | timedelta | None] = (),
        *,
        objects: bool = False,
    ) -> None:
        self.where = place_of_caller()
        self.name = name
        self.objects = bool(objects)
        times = (
            states if isinstance(states, Mapping) else dict.fromkeys([states] if isinstance(states, str) else states)
        )
        self.states: tuple[StateSpec, ...] = tuple(self._state(state, ttl) for state, ttl in times.items())

    def _state(self, name: object, ttl: float | timedelta | None) -> StateSpec:
        if not isinstance(name, str) or not name:
            raise TopologyError(f"{self.where}: the name of a state is text, not {name!r:.60}")
        if ttl is None:
            return StateSpec(name)
        try:
            lives = seconds(ttl, f"the ttl of state {name!r}")
        except (TypeError, ValueError) as e:
            raise TopologyError(f"{self.where}: {e}") from None
        if not lives:
            raise TopologyError(f"{self.where}: the ttl of state {name!r} is more than 0 seconds, or None")
        return StateSpec(name, lives)

    def __repr__(self) -> str:
        return f"External({self.name!r})"
