"""Orders to an engine that runs, as they stand in `Ask`, and what comes of them. Verbs: docs/door.md, section 8."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

RETRY_LETTERS: Final = "retry letters"
DROP_LETTERS: Final = "drop letters"
DROP_EVENTS: Final = "drop events"
BURY_EVENTS: Final = "bury events"
DELETE_STATE: Final = "delete state"

MOST: Final = 1_000
"""Ids or keys of one order."""
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
    """What was changed, durably. ``dead``, ``stopped`` and ``held``: how many of each kind (``held`` also counts events
    that waited in a log); ``refused``: id -> why not."""

    dead: int = 0
    stopped: int = 0
    held: int = 0
    refused: dict[str, str] = {}

    def add(self, other: Changes) -> None:
        self.dead += other.dead
        self.stopped += other.stopped
        self.held += other.held
        self.refused.update(other.refused)


class StatesDeleted(Struct):
    """``missing``: keys that had no state. ``refused``: why others were not looked at, by key."""

    deleted: int = 0
    missing: list[bytes] = []
    refused: dict[bytes, str] = {}
