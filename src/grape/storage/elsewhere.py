"""Other storages as an engine asks them: pure of threads, over storages that are open."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import IO, Final

from grape.abc.storage import ALWAYS, About, Place, Put, Storage
from grape.errors import Corrupt
from grape.model.objects import Stored
from grape.storage.streams import chunks_of, collected

_SHA256: Final = "sha256:"


async def stat(storage: Storage, place: Place) -> Stored | None:
    about = await storage.stat(place)
    return None if about is None else stored_of(about)


async def read(storage: Storage, place: Place, start: int, size: int) -> tuple[Stored, bytes] | None:
    async with storage.read(place, start, start + size) as found:
        return None if found is None else (stored_of(found.about), await collected(found.chunks))


async def page(
    storage: Storage, namespace: str, prefix: str, position: str, limit: int
) -> tuple[list[tuple[str, Stored]], str]:
    found = await storage.page(namespace, prefix, position, limit)
    return [(about.key, stored_of(about)) for about in found.items], found.position


async def ship(storage: Storage, place: Place, stored: Stored, blob: Callable[[bytes], IO[bytes]]) -> None:
    """``blob``: opens the bytes of a digest.

    Raises:
        Corrupt: they are not there.
    """
    if not stored.is_there:
        await storage.remove(place, ALWAYS)
        return
    put = Put(
        stored.content_type,
        stored.tags,
        stored.user,
        stored.time,
        stored.expires,
        size=stored.size,
        checksum=_SHA256 + stored.checksum.hex(),
    )
    if not stored.blob:
        await storage.write(place, chunks_of(stored.data), put)
        return
    try:
        file = blob(stored.checksum)
    except OSError:
        raise Corrupt(f"the bytes {stored.checksum.hex()} are not there") from None
    with file:
        await storage.write(place, chunks_of(file), put)


def stored_of(about: About) -> Stored:
    checksum, told = b"", about.checksum
    if told.startswith(_SHA256):
        checksum, told = bytes.fromhex(told.removeprefix(_SHA256)), ""
    # A number that is another one after every write, as its version is.
    number = int.from_bytes(hashlib.sha256(about.version.encode()).digest()[:6], "big")
    return Stored(
        number,
        about.size,
        checksum,
        about.time,
        about.content_type,
        about.tags,
        about.user,
        about.expires,
        version=about.version,
        told=told,
    )
