"""URLs as they may be shown."""

from __future__ import annotations

import re
from typing import Final

_WHO: Final = re.compile(r"(?<=://)([^/?#:@]*):[^/]*@")
_PASSWORD: Final = re.compile(r"(?<=[?&]password=)[^&#]*")


def without_secrets(url: str) -> str:
    """The same, without a password that stands in it: "mongodb://ann:***@host/grape"."""
    return _PASSWORD.sub("***", _WHO.sub(r"\1:***@", url))
