"""Chunks that have to be had whole before they are sent on, because their checksum goes before them: in memory while
they are few, then in a temporary file, which is seen as memory that the system may take back."""

from __future__ import annotations

import asyncio
import mmap
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Any, Final

from grape.storage.streams import WHOLE

SMALL: Final = WHOLE
"""Bytes that stay in memory."""


@asynccontextmanager
async def spooled(chunks: AsyncIterator[bytes], small: int = SMALL) -> AsyncIterator[memoryview]:
    """All of them. Whoever uses the view has done so when the context ends."""
    held: list[bytes] = []
    size = 0
    file: IO[Any] | None = None
    try:
        async for chunk in chunks:
            size += len(chunk)
            if file is not None:
                await asyncio.to_thread(file.write, chunk)
                continue
            held.append(chunk)
            if size > small:
                file = await asyncio.to_thread(_begun, held)
                held = []
        if file is None:
            yield memoryview(held[0] if len(held) == 1 else b"".join(held))
            return
        await asyncio.to_thread(file.flush)
        # It is not closed by name: a request that was given up may still look at it, and it goes with its last user.
        yield memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    finally:
        if file is not None:
            file.close()


def _begun(held: list[bytes]) -> IO[Any]:
    file = tempfile.TemporaryFile(prefix="grape-")  # noqa: SIM115 - whoever began it closes it
    for chunk in held:
        file.write(chunk)
    return file
