"""What obstore gives of an object, as chunks: the same for every cloud."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final

from grape.abc.storage import CHUNK
from grape.errors import Corrupt, GrapeError, StorageFailed
from grape.storage.streams import WHOLE

if TYPE_CHECKING:
    from obstore import GetResult


_SETTLES: Final = 1.0
"""Seconds, at most: others than obstore may have such threads, too."""


def in_range(start: int, end: int | None) -> dict[str, Any]:
    """As obstore is asked for these bytes."""
    if end is not None:
        return {"range": (start, end)}
    return {"range": {"offset": start}} if start else {}


async def chunks_of(
    found: GetResult, name: str, error: Callable[[BaseException, str], GrapeError]
) -> AsyncIterator[bytes]:
    """
    Args:
        name: of the object. error: what an error of obstore's is to whoever was about to do that.

    Raises:
        StorageFailed: somebody else writes it. Corrupt: not all of it came. What ``error`` says.
    """
    from obstore.exceptions import BaseError, PreconditionError

    start, end = found.range
    came = 0
    try:
        if end - start <= CHUNK:  # in one go, which is half the work
            chunk = bytes(await found.bytes_async())
            came = len(chunk)
            yield chunk
        else:
            async for each in found.stream(WHOLE if end - start <= WHOLE else CHUNK):
                came += len(each)
                yield bytes(each)
    except PreconditionError:
        raise StorageFailed(f"{name} was written while it was read: read it again") from None
    except BaseError as e:
        raise error(e, f"read {name}, of which {came:,} bytes came,") from None
    if came != end - start:
        raise Corrupt(f"{name}: {came:,} bytes came of {end - start:,}")


async def settled() -> None:
    """obstore's threads have come back from waking this one, for which each of them holds Python once more: one that
    wants that when Python has begun to end aborts the process."""
    ends = time.monotonic() + _SETTLES
    while time.monotonic() < ends:
        own = {thread.ident for thread in threading.enumerate()}
        if sys._current_frames().keys() <= own:
            return
        await asyncio.sleep(0.001)


async def nothing() -> AsyncIterator[bytes]:
    """No bytes."""
    for _ in ():
        yield b""
