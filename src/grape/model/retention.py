"""How much of an output is kept for whoever takes it later."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from grape.model.section import Duration, Size


class Keeping(Struct, frozen=True, kw_only=True, rename="kebab"):
    """What has been in an output longer, or is more, is let go of, whoever has not had it. What every consumer is done
    with goes at once.

    Args:
        age: seconds. size: bytes.
    """

    age: Duration = Duration(86_400)
    size: Size = Size(256 << 20)


KEPT_SPANS: Final = Keeping(age=Duration(3_600), size=Size(64 << 20))
"""Of what traced events did."""
