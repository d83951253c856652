"""The values that need no encoding to be kept, and how any object is named in an error."""

from __future__ import annotations

from typing import Final

PLAIN: Final = frozenset({type(None), bool, float, bytes, str, int})
"""Types whose exact instances are immutable and are kept as they are."""

MIN_INT: Final = -(2**63)
MAX_INT: Final = 2**63 - 1


def shown(value: object) -> str:
    """What it is, for an error; its text only where that cannot fail."""
    if type(value) is int and value.bit_length() > 256:  # Python itself refuses to write very long ones
        return f"an int of {value.bit_length()} bits"
    return f"{value!r:.60}" if type(value) in PLAIN else f"a {type(value).__name__}"
