"""Bytes as they come: from whatever holds them, in chunks, checked on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import IO, Any, Final

from zlib_ng.zlib_ng import crc32

from grape.abc.storage import CHUNK, Put
from grape.errors import BadArgument, Corrupt, TooLarge
from grape.model.values import shown

Data = bytes | bytearray | memoryview | str | os.PathLike[str] | IO[bytes] | Iterable[bytes] | AsyncIterable[bytes]
"""What an object can be made of: bytes, text (as UTF-8), a path of a file, an open file, chunks."""
WHOLE: Final = 8 << 20
"""Bytes that stay one chunk where cutting them would only be copying them."""


class Crc32:
    """As a hash of `hashlib`."""

    def __init__(self, data: bytes | memoryview = b"") -> None:
        self._sum = crc32(data)

    def update(self, data: bytes) -> None:
        self._sum = crc32(data, self._sum)

    def hexdigest(self) -> str:
        return f"{self._sum:08x}"


_KNOWN: Final[dict[str, Any]] = {
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "md5": hashlib.md5,
    "crc32": Crc32,
}


def chunks_of(data: Data) -> AsyncIterator[bytes]:
    """
    Raises:
        BadArgument: it is nothing that has bytes.
    """
    if isinstance(data, str):
        return _once(data.encode())
    if isinstance(data, bytes | bytearray | memoryview):
        return _once(bytes(data))
    if isinstance(data, os.PathLike):
        return _of_path(data)
    if isinstance(data, AsyncIterable):
        return _checked(data)
    if hasattr(data, "read"):
        return _of_file(data)
    if isinstance(data, Iterable):
        return _of_chunks(data)
    raise BadArgument(f"an object is made of bytes, text, a path, an open file or chunks, not of {shown(data)}")


def size_of(data: Data) -> int | None:
    """Bytes, if that can be known without reading it."""
    if isinstance(data, str):
        return len(data.encode())
    if isinstance(data, bytes | bytearray):
        return len(data)
    if isinstance(data, memoryview):
        return data.nbytes
    if isinstance(data, os.PathLike):
        return os.stat(data).st_size
    return None


async def _once(data: bytes) -> AsyncIterator[bytes]:
    if len(data) <= WHOLE:
        yield data
        return
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


async def _of_path(path: os.PathLike[str]) -> AsyncIterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


async def _of_file(file: Any) -> AsyncIterator[bytes]:
    while chunk := file.read(CHUNK):
        yield _bytes(chunk)


async def _of_chunks(chunks: Iterable[Any]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield _bytes(chunk)


async def _checked(chunks: AsyncIterable[Any]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield _bytes(chunk)


def _bytes(chunk: object) -> bytes:
    if isinstance(chunk, bytes | bytearray | memoryview):
        return bytes(chunk)
    raise BadArgument(f"the chunks of an object are bytes, not {shown(chunk)}")


class Measured:
    """Chunks that are counted and summed while they go by; `check` says whether they were what ``put`` said of them.

    Args:
        crc: also as `Reading.check` has it.

    Raises (when it is made, or while one goes through them):
        TooLarge: more than ``largest`` bytes.
    """

    def __init__(
        self, chunks: AsyncIterator[bytes], largest: int, put: Put, kind: str = "sha256", *, crc: bool = False
    ) -> None:
        if put.size is not None and put.size > largest:
            raise _too_large(largest)
        self._chunks = chunks
        self._largest = largest
        self._put = put
        self._sum = _KNOWN[kind]()
        self._crc = Crc32() if crc else None
        self._kind = kind
        self.size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self.size += len(chunk)
            if self.size > self._largest:
                raise _too_large(self._largest)
            self._sum.update(chunk)
            if self._crc is not None:
                self._crc.update(chunk)
            yield chunk

    @property
    def crc(self) -> str:
        """Of all that went by; "": it was not asked for."""
        return "" if self._crc is None else f"crc32:{self._crc.hexdigest()}"

    @property
    def checksum(self) -> str:
        return f"{self._kind}:{self._sum.hexdigest()}"

    def check(self) -> None:
        """
        Raises:
            BadArgument: they were not.
        """
        put = self._put
        if put.size is not None and put.size != self.size:
            raise BadArgument(f"size: {put.size} bytes were announced, {self.size} came")
        if put.checksum and put.checksum.startswith(f"{self._kind}:") and put.checksum != self.checksum:
            raise BadArgument(f"checksum: {put.checksum} was announced, what came has {self.checksum}")


def _too_large(largest: int) -> TooLarge:
    return TooLarge(f"an object of over {largest:,} bytes, which is as much as this storage takes")


async def verified(chunks: AsyncIterator[bytes], checksum: str, size: int, what: str) -> AsyncIterator[bytes]:
    """The chunks of a whole object.

    Raises:
        Corrupt: at their end: they are not what was written.
    """
    kind = _KNOWN.get(checksum.partition(":")[0])
    found = kind() if kind is not None else None
    seen = 0
    async for chunk in chunks:
        seen += len(chunk)
        if found is not None:
            found.update(chunk)
        yield chunk
    if seen != size:
        raise Corrupt(f"{what}: {seen:,} bytes came, it has {size:,}")
    if found is not None and found.hexdigest() != checksum.partition(":")[2]:
        raise Corrupt(f"{what}: what is stored is not what was written, its checksum is another one")


def whole(data: bytes, checksum: str, size: int, what: str) -> bytes:
    """The bytes of a whole object.

    Raises:
        Corrupt: they are not what was written.
    """
    kind, _, expected = checksum.partition(":")
    if len(data) != size or (kind in _KNOWN and _KNOWN[kind](data).hexdigest() != expected):
        raise Corrupt(f"{what}: what is stored is not what was written")
    return data


async def collected(chunks: AsyncIterator[bytes]) -> bytes:
    """All of them as one."""
    return b"".join([chunk async for chunk in chunks])
