"""Where the sockets are that engines and servers are spoken to by."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

DOOR: Final = "door"
"""Name of the socket in a data directory."""
CONTROL: Final = "control"
"""Name of the socket in the home of a server."""


@contextmanager
def door_of(directory: str, name: str = DOOR) -> Iterator[str]:
    """A path of the socket in ``directory`` for `bind` and `connect`, which take 107 bytes: by a descriptor of the
    directory, however long its own is.

    Raises:
        OSError: the directory cannot be used.
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
