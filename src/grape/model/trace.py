"""Tracebacks as text."""

from __future__ import annotations

import re
from typing import Final

_PLACE: Final = re.compile(r'^ *(?:\| )*File "([^"\n]+)", line (\d+)', re.MULTILINE)
_LIBRARY: Final = ("/site-packages/", "/dist-packages/", "/lib/python3", "<frozen ")


def last_place(trace: str) -> str:
    """ "file:line" of the last line of the user's in a traceback; "" without one."""
    places = _PLACE.findall(trace)
    own = [place for place in places if not any(part in place[0] for part in _LIBRARY)] or places
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""
