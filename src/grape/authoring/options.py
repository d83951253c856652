"""Options that there are not: answered with the one that was meant."""

from __future__ import annotations

from collections.abc import Iterable

from grape.authoring.places import place_of_caller
from grape.errors import TopologyError
from grape.model.near import did_you_mean


def refuse_unknown(what: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """
    Raises:
        TopologyError: ``unknown``, the keyword arguments that nothing took, is not empty.
    """
    options = list(known)
    for name in unknown:
        hint = did_you_mean(name, options, f"its options are {', '.join(options)}", 0.5)
        raise TopologyError(f"{place_of_caller()}: {what} has no option {name!r}; {hint}")
