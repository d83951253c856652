"""Orders to an engine that runs, as they stand in `Ask`, and what comes of them. Verbs: docs/door.md, section 8."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

RETRY: Final = "retry"
DROP: Final = "drop"
DROP_EVENTS: Final = "drop-events"
BURY_EVENTS: Final = "bury-events"
DELETE_STATE: Final = "delete-state"

MOST: Final = 1_000
"""Ids or keys of one order."""
MOST_ORDERS: Final = 64
"""That are under way, of all clients."""
MAX_ID: Final = 2_048
"""Bytes of an id."""


class Letters(Struct, frozen=True):
    """``ids`` of dead letters and stopped events; with ``held`` of all held events."""

    ids: list[str]
    held: bool = False


class Events(Struct, frozen=True):
    """``ids`` of events that wait in a log."""

    ids: list[str]


class States(Struct, frozen=True):
    """State of ``node``. Keys are bytes of UTF-8."""

    node: str
    keys: list[bytes]


class Changes(Struct):
    """What was changed, durably: how many dead letters, stopped events, and others that are held (or waited in a log),
    and states. ``refused``: id -> why not. ``missing``: keys that had no state."""

    dead: int = 0
    stopped: int = 0
    held: int = 0
    states: int = 0
    refused: dict[str, str] = {}
    missing: list[bytes] = []

    def add(self, other: Changes) -> None:
        self.dead += other.dead
        self.stopped += other.stopped
        self.held += other.held
        self.states += other.states
        self.refused.update(other.refused)
        self.missing += other.missing
