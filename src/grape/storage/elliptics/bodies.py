"""What is to be written, whole: in memory as long as it is small, then in a file that has no name."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from grape.abc.storage import Put
from grape.errors import StorageFailed
from grape.storage.streams import Measured


class Body:
    """
    Attributes:
        size: bytes. digest: their SHA-512.
        data: all of them; None: they are in a file.
    """

    def __init__(self, data: bytes | None, file: IO[bytes] | None, size: int, digest: bytes) -> None:
        self.data = data
        self._file = file
        self.size = size
        self.digest = digest
        self._lock = asyncio.Lock()

    async def read(self, start: int, size: int) -> bytes:
        if self.data is not None:
            return self.data[start : start + size]
        async with self._lock:
            return await asyncio.to_thread(self._read, start, size)

    def _read(self, start: int, size: int) -> bytes:
        assert self._file is not None
        self._file.seek(start)
        return self._file.read(size)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


async def gathered(chunks: AsyncIterator[bytes], put: Put, small: int, largest: int, folder: str) -> Body:
    """All of it, checked; up to ``small`` bytes in memory, else in a file in ``folder``.

    Raises:
        TooLarge, BadArgument: as `Storage.write`.
    """
    announced = put.checksum.partition(":")[0]
    inner = Measured(chunks, largest, put, announced) if announced in ("sha256", "md5") else None
    outer = Measured(chunks if inner is None else aiter(inner), largest, put, "sha512")
    parts: list[bytes] = []
    file: IO[bytes] | None = None
    try:
        async for chunk in outer:
            parts.append(chunk)
            if outer.size > small:
                file = await asyncio.to_thread(_kept, file, b"".join(parts), folder)
                parts = []
        for measured in (inner, outer):
            if measured is not None:
                measured.check()
        if file is not None:
            await asyncio.to_thread(_kept, file, b"", folder)
    except BaseException:
        if file is not None:
            file.close()
        raise
    digest = bytes.fromhex(outer.checksum.partition(":")[2])
    return Body(b"".join(parts) if file is None else None, file, outer.size, digest)


def _kept(file: IO[bytes] | None, data: bytes, folder: str) -> IO[bytes]:
    """
    Raises:
        StorageFailed: there is no room.
    """
    try:
        if file is None:
            file = tempfile.TemporaryFile(prefix="grape-", dir=folder or None)  # noqa: SIM115 - it stays
        file.write(data)
        file.flush()
    except OSError as e:
        where = folder or tempfile.gettempdir()
        raise StorageFailed(
            f"{where}, where a large object waits until all of it is there: {e.strerror}; make room, or name another "
            f"directory (folder=)"
        ) from None
    return file


def body_of(data: bytes) -> Body:
    return Body(data, None, len(data), hashlib.sha512(data).digest())
