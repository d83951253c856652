"""A name that there is not, and those that may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

_MOST = 3


def near(name: object, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Names in ``known`` that are spelled like ``name``, whatever their case, best first."""
    if not isinstance(name, str):
        return []
    spelled: dict[str, list[str]] = {}
    for one in set(known):
        spelled.setdefault(one.lower(), []).append(one)
    close = difflib.get_close_matches(name.lower(), spelled, _MOST, cutoff)
    return [one for lower in close for one in difflib.get_close_matches(name, spelled[lower], _MOST, 0.0)][:_MOST]


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """ "did you mean 'a' or 'b'?"; ``otherwise`` if nothing is near."""
    found = near(name, known, cutoff)
    return f"did you mean {' or '.join(map(repr, found))}?" if found else otherwise


def no_such(kind: str, name: str, known: Collection[str], app: str) -> str:
    """That an app has none of this name, and what might be meant."""
    hint = did_you_mean(name, known, f"it has {', '.join(map(repr, known)) or 'none'}")
    return f"app {app!r} has no {kind} {name!r}; {hint}"
