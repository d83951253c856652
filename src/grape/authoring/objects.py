"""What a handler does with objects: ``self.storage``, ``context.storage``.

A write is part of what the handler does: it counts with its state and its emits, by one commit, once, or not at all if
the event fails. Nobody sees it before that but later handlers of the same partition, so of the same key.
"""

from __future__ import annotations

import hashlib
import os
import time as clock
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import IO, Any, Final, Protocol

from grape.errors import HandlerError
from grape.model.names import check_key, check_namespace, check_prefix, check_tags, check_type, check_user
from grape.model.objects import INLINE, OCTETS, REMOVED, About, ObjectWrite
from grape.model.values import seconds, shown

Data = bytes | bytearray | memoryview | str | os.PathLike[str] | IO[bytes] | Iterable[bytes]
"""What an object can be made of: bytes, text (as UTF-8), a path of a file, an open file, chunks."""
CHUNK: Final = 1 << 20


class Backend(Protocol):
    """Where objects are, for one handler. Blocking; the methods that begin with ``a`` are for coroutines."""

    def may(self, namespace: str, what: str) -> None:
        """
        Raises:
            HandlerError: it is not granted.
        """

    def write(self, write: ObjectWrite) -> None: ...

    def upload(self, chunks: Iterator[bytes]) -> tuple[bytes, int]:
        """Digest and size of what lies in a file now."""

    def stat(self, namespace: str, key: str) -> About | None: ...

    def read(self, namespace: str, key: str, start: int, end: int | None) -> Iterator[bytes] | None: ...

    def part(self, namespace: str, key: str, start: int, end: int | None) -> tuple[About, bytes] | None: ...

    def page(self, namespace: str, prefix: str, position: str) -> tuple[list[About], str]: ...

    async def aupload(self, chunks: Iterator[bytes]) -> tuple[bytes, int]: ...

    async def astat(self, namespace: str, key: str) -> About | None: ...

    async def aread(self, namespace: str, key: str, start: int, end: int | None) -> AsyncIterator[bytes] | None: ...

    async def apage(self, namespace: str, prefix: str, position: str) -> tuple[list[About], str]: ...


class _Base:
    def __init__(self, backend: Backend, namespace: str) -> None:
        self._backend = backend
        self._namespace = namespace

    def _asks(self, key: str) -> str:
        self._backend.may(self._namespace, "read")
        return check_key(key)

    def _remove(self, key: str) -> None:
        """There is no such object any more, with the commit of this event.

        Raises:
            HandlerError: the namespace is not granted. BadArgument: a key that cannot be.
        """
        self._backend.may(self._namespace, "write")
        self._backend.write(ObjectWrite(self._namespace, check_key(key), REMOVED))

    def checked(
        self,
        key: str,
        content_type: str = OCTETS,
        tags: Iterable[str] = (),
        user: Mapping[str, str] | None = None,
        time: int | None = None,
        ttl: float | timedelta | None = None,
    ) -> dict[str, Any]:
        """What is put, but for its bytes."""
        self._backend.may(self._namespace, "write")
        if time is not None and (type(time) is not int or not 0 < time < 1 << 62):
            raise HandlerError(f"time= is microseconds since 1970, not {shown(time)}")
        return {
            "namespace": self._namespace,
            "key": check_key(key),
            "content_type": check_type(content_type),
            "tags": check_tags(tags),
            "user": check_user({} if user is None else user),
            "time": time or 0,
            "expires": 0 if ttl is None else clock.time_ns() // 1000 + max(1, int(seconds(ttl, "ttl=") * 1e6)),
        }


class NodeStorage(_Base):
    """The objects of one namespace, in a handler that is no coroutine. ``storage["other"]``: of another one, if
    ``grape.toml`` grants it. ``storage.aio``: for coroutines."""

    def __getitem__(self, namespace: str) -> NodeStorage:
        return NodeStorage(self._backend, check_namespace(namespace))

    @property
    def aio(self) -> AsyncNodeStorage:
        """The same for coroutines."""
        return AsyncNodeStorage(self._backend, self._namespace)

    def put(
        self,
        key: str,
        data: Data,
        *,
        content_type: str = OCTETS,
        tags: Iterable[str] = (),
        user: Mapping[str, str] | None = None,
        time: int | None = None,
        ttl: float | timedelta | None = None,
    ) -> None:
        """Write an object, whole, with the commit of this event.

        Args:
            data: bytes, text, a path (`pathlib.Path`), an open file, or chunks. Over 64 KiB go to a file at once, chunk
                by chunk, so that memory stays flat; it counts when the commit does.
            time: microseconds since 1970, else that of now. ttl: seconds after which it is gone.

        Raises:
            HandlerError: the namespace is not granted. BadArgument: a name that cannot be.
        """
        about = self.checked(key, content_type, tags, user, time, ttl)
        begin, rest = first_of(data)
        if rest is None:
            self._backend.write(inline(about, begin))
        else:
            digest, size = self._backend.upload(_joined(begin, rest))
            self._backend.write(ObjectWrite(**about, size=size, checksum=digest, blob=True))

    def remove(self, key: str) -> None:
        """There is no such object any more, from the commit on; it need not have been there."""
        self._remove(key)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes | None:
        """The bytes of an object, from ``start`` up to ``end`` (not included); None: there is none."""
        found = self.chunks(key, start, end)
        return None if found is None else b"".join(found)

    def chunks(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes] | None:
        """The same, as chunks of up to 1 MiB."""
        return self._backend.read(self._namespace, self._asks(key), *_range(start, end))

    def part(self, key: str, start: int = 0, end: int | None = None) -> tuple[About, bytes] | None:
        """What is known of an object, and what begins a range: at most 1 MiB, one byte at least if there are any."""
        return self._backend.part(self._namespace, self._asks(key), *_range(start, end))

    def stat(self, key: str) -> About | None:
        """What is known of an object; None: there is none."""
        return self._backend.stat(self._namespace, self._asks(key))

    def list(self, prefix: str = "", *, tags: Iterable[str] = ()) -> Iterator[About]:
        """Those that are committed and whose keys begin with ``prefix``, in the order of keys."""
        self._backend.may(self._namespace, "read")
        every, position = set(check_tags(tags)), ""
        while True:
            found, position = self._backend.page(self._namespace, check_prefix(prefix), position)
            yield from (about for about in found if every <= set(about.tags))
            if not position:
                return


class AsyncNodeStorage(_Base):
    """As `NodeStorage`, for coroutines."""

    def __getitem__(self, namespace: str) -> AsyncNodeStorage:
        return AsyncNodeStorage(self._backend, check_namespace(namespace))

    async def put(
        self,
        key: str,
        data: Data,
        *,
        content_type: str = OCTETS,
        tags: Iterable[str] = (),
        user: Mapping[str, str] | None = None,
        time: int | None = None,
        ttl: float | timedelta | None = None,
    ) -> None:
        """See `NodeStorage.put`."""
        about = self.checked(key, content_type, tags, user, time, ttl)
        begin, rest = first_of(data)
        if rest is None:
            self._backend.write(inline(about, begin))
        else:
            digest, size = await self._backend.aupload(_joined(begin, rest))
            self._backend.write(ObjectWrite(**about, size=size, checksum=digest, blob=True))

    async def remove(self, key: str) -> None:
        """As of `NodeStorage`."""
        self._remove(key)

    async def chunks(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes] | None:
        """As of `NodeStorage`: ``async for chunk in await storage.chunks(key)``."""
        return await self._backend.aread(self._namespace, self._asks(key), *_range(start, end))

    async def get(self, key: str, start: int = 0, end: int | None = None) -> bytes | None:
        """See `NodeStorage.get`."""
        found = await self._backend.aread(self._namespace, self._asks(key), *_range(start, end))
        return None if found is None else b"".join([chunk async for chunk in found])

    async def stat(self, key: str) -> About | None:
        """See `NodeStorage.stat`."""
        return await self._backend.astat(self._namespace, self._asks(key))

    async def list(self, prefix: str = "", *, tags: Iterable[str] = ()) -> AsyncIterator[About]:
        """See `NodeStorage.list`."""
        self._backend.may(self._namespace, "read")
        every, position = set(check_tags(tags)), ""
        while True:
            found, position = await self._backend.apage(self._namespace, check_prefix(prefix), position)
            for about in found:
                if every <= set(about.tags):
                    yield about
            if not position:
                return


def inline(about: Mapping[str, Any], data: bytes) -> ObjectWrite:
    return ObjectWrite(**about, size=len(data), checksum=hashlib.sha256(data).digest(), data=data)


def first_of(data: Data) -> tuple[bytes, Iterator[bytes] | None]:
    """The whole of it, and None; or, if it is too much for a row, what begins it, and the rest."""
    if isinstance(data, str):
        data = data.encode()
    if isinstance(data, bytes | bytearray | memoryview):
        whole = bytes(data)
        return (whole, None) if len(whole) <= INLINE else (b"", _cut(whole))
    chunks = _chunks_of(data)
    begin = bytearray()
    for chunk in chunks:
        begin += chunk
        if len(begin) > INLINE:
            return bytes(begin), chunks
    return bytes(begin), None


def _cut(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


def _joined(begin: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """In chunks of a good size."""
    buffer = bytearray(begin)
    for chunk in rest:
        buffer += chunk
        while len(buffer) >= CHUNK:
            yield bytes(buffer[:CHUNK])
            del buffer[:CHUNK]
    if buffer:
        yield bytes(buffer)


def _chunks_of(data: Any) -> Iterator[bytes]:
    if isinstance(data, os.PathLike):
        with open(data, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
        return
    if hasattr(data, "read"):
        while chunk := data.read(CHUNK):
            yield _bytes(chunk)
        return
    if not isinstance(data, Iterable):
        raise TypeError(f"an object is made of bytes, text, a path, an open file or chunks, not of {shown(data)}")
    for chunk in data:
        yield _bytes(chunk)


def _bytes(chunk: object) -> bytes:
    if isinstance(chunk, bytes | bytearray | memoryview):
        return bytes(chunk)
    raise TypeError(f"the chunks of an object are bytes, not {shown(chunk)}")


def _range(start: object, end: object) -> tuple[int, int | None]:
    if type(start) is int and start >= 0 and (end is None or (type(end) is int and end >= start)):
        return start, end
    raise ValueError(f"a range is from 0 or more to the same or more, not {shown(start)} to {shown(end)}")


class Recorded:
    """Outside a worker: objects in memory, so that a test can call a handler and look at what it wrote."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], tuple[About, bytes]] = {}
        self._blobs: dict[bytes, bytes] = {}

    def may(self, namespace: str, what: str) -> None:
        pass

    def write(self, write: ObjectWrite) -> None:
        place = write.namespace, write.key
        if write.size == REMOVED:
            self.objects.pop(place, None)
            return
        data = self._blobs[write.checksum] if write.blob else write.data
        about = About(
            write.key,
            write.size,
            str(len(self.objects) + 1),
            f"sha256:{write.checksum.hex()}",
            write.time,
            write.content_type,
            write.tags,
            write.user,
            write.expires,
        )
        self.objects[place] = about, data

    def upload(self, chunks: Iterator[bytes]) -> tuple[bytes, int]:
        data = b"".join(chunks)
        digest = hashlib.sha256(data).digest()
        self._blobs[digest] = data
        return digest, len(data)

    def stat(self, namespace: str, key: str) -> About | None:
        found = self.objects.get((namespace, key))
        return None if found is None else found[0]

    def read(self, namespace: str, key: str, start: int, end: int | None) -> Iterator[bytes] | None:
        found = self.objects.get((namespace, key))
        return None if found is None else iter([found[1][start:end]])

    def part(self, namespace: str, key: str, start: int, end: int | None) -> tuple[About, bytes] | None:
        found = self.objects.get((namespace, key))
        return None if found is None else (found[0], found[1][start:end][:CHUNK])

    def page(self, namespace: str, prefix: str, position: str) -> tuple[list[About], str]:
        return [a for (n, k), (a, _) in sorted(self.objects.items()) if n == namespace and k.startswith(prefix)], ""

    async def aupload(self, chunks: Iterator[bytes]) -> tuple[bytes, int]:
        return self.upload(chunks)

    async def astat(self, namespace: str, key: str) -> About | None:
        return self.stat(namespace, key)

    async def aread(self, namespace: str, key: str, start: int, end: int | None) -> AsyncIterator[bytes] | None:
        found = self.read(namespace, key, start, end)
        return None if found is None else _each(found)

    async def apage(self, namespace: str, prefix: str, position: str) -> tuple[list[About], str]:
        return self.page(namespace, prefix, position)


async def _each(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
