"""Numbers of things in words."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """ "1 worker", "2,000 workers"; ``many``: for what is not made by an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
