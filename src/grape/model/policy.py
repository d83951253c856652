"""What happens after a failure: pure decisions, shared by the engine and the workers."""

from __future__ import annotations

import random
from typing import Literal

from grape.model.topology import SlotSpec

Verdict = Literal["retry", "dead", "stop"]


def after_failure(slot: SlotSpec, attempt: int, named_deaths: int = 0, named_limit: int = 3) -> Verdict:
    """What becomes of an event whose attempt number ``attempt`` (from 1) failed.

    A death that named the event has a limit of its own, whatever ``retries`` says.
    """
    if named_deaths:
        if named_deaths < named_limit:
            return "retry"
    elif attempt <= slot.retries:
        return "retry"
    return "dead" if slot.on_fail == "dead" else "stop"


def locks_key(slot: SlotSpec, key: str | None, verdict: Verdict) -> bool:
    """Whether later events of this (node, key) have to wait behind the failed one."""
    return key is not None and slot.ordered and verdict != "dead"


def backoff(slot: SlotSpec, attempt: int, rng: random.Random) -> float:
    """Seconds until the next attempt: doubling, capped, full jitter (uniform between 0 and the cap)."""
    ceiling = min(slot.backoff_max, slot.backoff * 2.0 ** min(attempt - 1, 60))
    return rng.uniform(0.0, ceiling)
