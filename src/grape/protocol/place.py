"""Where the door of an engine is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

DOOR: Final = "door"
"""Name of the socket in a data directory."""


@contextmanager
def door_of(directory: str) -> Iterator[str]:
    """A path of it for `bind` and `connect`, which take 107 bytes: by a descriptor of the directory, however long its
    own is.

    Raises:
        OSError: the directory cannot be used.
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{DOOR}"
    finally:
        os.close(fd)
