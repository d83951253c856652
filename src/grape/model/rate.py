"""Rates as people write them."""

from __future__ import annotations

import re
from typing import Final

_SECONDS: Final = {
    **{"s": 1.0, "sec": 1.0, "second": 1.0},
    **{"min": 60.0, "minute": 60.0},
    **{"h": 3_600.0, "hour": 3_600.0},
    **{"d": 86_400.0, "day": 86_400.0},
}
_RATE: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*/\s*([a-z]+)\s*")
MOST: Final = 1e9


def rate_of(value: object) -> float:
    """Events a second: of text such as "100/s", "20/min", "500/h", "10/day", or a number, which is events a second.

    Raises:
        ValueError: that is none.
    """
    rate = 0.0
    if type(value) in (int, float):
        rate = float(value)  # type: ignore[arg-type]
    elif isinstance(value, str) and (found := _RATE.fullmatch(value)):
        seconds = _SECONDS.get(found[2])
        rate = float(found[1]) / seconds if seconds else 0.0
    if not 0 < rate <= MOST:
        raise ValueError(f"a rate is events a second, or text such as '100/s', '20/min' or '500/h', not {value!r:.60}")
    return rate
