"""How deep a value may be nested. Whoever reads one is somewhere in a stack of his own, and all that lies in a log or
in state has to be readable from everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

MAX_DEPTH: Final = 256
"""Lists and maps in one another."""
SHALLOW: Final = 700
"""The recursion limit of an engine's process, which reads what workers send, whatever they are: less than that of a
process that runs handlers (1,000), so that what the engine has let in can be read there."""

_CONTAINERS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
"""What an array or map begins with."""
_decode: Final = msgspec.msgpack.Decoder().decode


def is_too_deep(packed: bytes) -> bool:
    """Whether an encoded value is nested deeper than `MAX_DEPTH`. Nearly all are told by their size, or by how many
    bytes of them may begin a container."""
    if len(packed) <= MAX_DEPTH or packed[0] not in _CONTAINERS:
        return False
    if len(packed) - len(packed.translate(None, _CONTAINERS)) <= MAX_DEPTH:
        return False
    try:
        level: list[Any] = [_decode(packed)]
    except RecursionError:
        return True
    except (msgspec.DecodeError, TypeError, UnicodeDecodeError):  # such as a map with a map as a key: the engine looks
        return False
    for _ in range(MAX_DEPTH):
        level = [child for each in level for child in _children(each) if isinstance(child, list | tuple | dict)]
        if not level:
            return False
    return True


def _children(container: Any) -> Iterable[Any]:
    return (*container, *container.values()) if isinstance(container, dict) else container
