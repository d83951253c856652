"""The objects of an app in its own data directory, for those outside of it.

What is committed is read from the directory, whoever runs on it. What is written goes through the engine, if one runs,
so that there is one order; large bytes are put where they belong before, by whoever writes them. On a directory at rest
this process writes itself.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import unquote

import msgspec
from msgspec import structs

from grape.abc.storage import (
    ALWAYS,
    CHUNK,
    About,
    Change,
    Changes,
    Features,
    HandedIn,
    If,
    Page,
    Place,
    Put,
    Reading,
    Storage,
    StorageConfig,
)
from grape.abc.transport import AtRest, Callbacks, Table
from grape.builtins import DIRECTORY, transport
from grape.errors import Conflict, Corrupt, GrapeError, InUse, Refused, StorageFailed, Unsupported, UsageError
from grape.host.objects import PUT_EMIT, WRITE_OBJECTS, PutEmit
from grape.model.address import PartitionId
from grape.model.objects import (
    INLINE,
    OBJECTS,
    REMOVED,
    Done,
    Ledger,
    ObjectWrite,
    Stored,
    Wanted,
    as_stored,
    decode_ledger,
    decode_stored,
    gone,
    number_of,
    place_key,
    split_place,
    written,
)
from grape.running import ConnectedEngine, connect
from grape.storage.conditions import conflict
from grape.storage.streams import Measured
from grape.store.blobs import FOLDER, Coming, path_of
from grape.tools.directory import Directory
from grape.tools.sharing import Shared, give_back, share

T = TypeVar("T")

_AGAIN: Final = 20
"""An engine may come or go between a look and what follows from it."""
_PAUSE: Final = 0.1
_SCANNED: Final = 1_000


class EmbeddedConfig(StorageConfig, frozen=True, kw_only=True, rename="kebab"):
    """
    directory: of an app's data
    app: which one, if there are several
    """

    directory: str
    app: str | None = None


class EmbeddedStorage(Storage):
    name: ClassVar[str] = "embedded"
    Config: ClassVar[type[StorageConfig]] = EmbeddedConfig
    features = Features(largest=1 << 50, tells_changes=True, of_others=True)

    def __init__(self, config: EmbeddedConfig) -> None:
        self._path = Path(config.directory).absolute()
        self._app = config.app
        self._timeout = config.timeout
        self._shared: Shared | None = None
        self._home: PartitionId
        self._engine: ConnectedEngine | None = None

    @classmethod
    def settings_of(cls, place: str) -> dict[str, Any]:
        if not place.startswith("/"):
            raise UsageError(f"embedded:// is followed by the absolute path of a data directory, not by {place!r:.100}")
        return {"directory": unquote(place)}

    async def open(self) -> None:
        shared = share(self._path)

        def find(directory: Directory) -> PartitionId:
            record = directory.app(self._app)
            if OBJECTS not in record.logs:
                raise UsageError(f"{self._path}: an older Grape has run here last, without objects; run its app once")
            return PartitionId(record.id, record.logs[OBJECTS], 0)

        try:
            self._home = await asyncio.to_thread(shared.look, find)
        except BaseException:
            give_back(shared)
            raise
        self._shared = shared

    async def close(self) -> None:
        if self._shared is not None:
            shared, self._shared = self._shared, None
            give_back(shared)
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await asyncio.to_thread(engine.close)

    # ------------------------------------------------------------------ read

    async def _look(self, do: Callable[[AtRest], T]) -> T:
        """In a thread: others may look into the same directory for long."""
        assert self._shared is not None, "open comes first"
        return await asyncio.to_thread(self._shared.look, lambda directory: do(directory.reader))

    async def _rows(
        self, table: Table, after: bytes, limit: int, before: bytes | None = None
    ) -> list[tuple[bytes, bytes]]:
        return await self._look(lambda reader: reader.scan(self._home, table, after, limit, before))

    async def _stored(self, place: Place) -> Stored | None:
        key = place_key(place.namespace, place.key)
        (packed,) = await self._look(lambda reader: reader.get(self._home, "object", [key]))
        stored = None if packed is None else decode_stored(packed)
        return stored if stored is not None and stored.is_there else None

    async def stat(self, place: Place) -> About | None:
        stored = await self._stored(place)
        return None if stored is None else stored.about(place.key)

    @asynccontextmanager
    async def read(self, place: Place, start: int = 0, end: int | None = None) -> AsyncIterator[Reading | None]:
        stored, fd = await self._stored(place), -1
        while stored is not None and stored.blob:
            try:
                fd = os.open(path_of(self._path, stored.checksum), os.O_RDONLY | os.O_CLOEXEC)
                break
            except FileNotFoundError:  # it was written anew meanwhile
                again = await self._stored(place)
                if again == stored:
                    raise Corrupt(
                        f"{place.namespace}/{place.key}: its bytes are not in {self._path / FOLDER}"
                    ) from None
                stored = again
            except OSError as e:
                raise StorageFailed(f"{e.filename}: {e.strerror}") from None
        if stored is None:
            yield None
            return
        try:
            last = stored.size if end is None else min(end, stored.size)
            chunks = _once(stored.data[start:last]) if fd < 0 else _of_file(fd, start, last)
            yield Reading(stored.about(place.key), chunks)
        finally:
            if fd >= 0:
                os.close(fd)

    async def page(self, namespace: str, prefix: str = "", position: str = "", limit: int = 1000) -> Page:
        begin, keys = place_key(namespace, prefix), len(place_key(namespace, ""))
        after = place_key(namespace, position) + b"\0" if position else begin
        items: list[About] = []
        while len(items) < limit:
            rows = await self._rows("object", max(begin, after), min(_SCANNED, limit - len(items)), begin + b"\xff" * 4)
            for place, packed in rows:
                stored = decode_stored(packed)
                if stored.is_there:
                    items.append(stored.about(place[keys:].decode()))
            if not rows:
                return Page(items)
            after = rows[-1][0] + b"\0"
        return Page(items, split_place(after[:-1])[1])

    async def count(self, namespace: str, prefix: str, now: int) -> tuple[int, int]:
        begin = after = place_key(namespace, prefix)
        count = size = 0
        while rows := await self._rows("object", after, _SCANNED, begin + b"\xff" * 4):
            sizes = [
                stored.size
                for stored in [decode_stored(packed) for _, packed in rows]
                if stored.size != REMOVED and not 0 < stored.expires <= now
            ]
            count, size, after = count + len(sizes), size + sum(sizes), rows[-1][0] + b"\0"
        return count, size

    async def changes(self, namespace: str, prefix: str, position: str | None, limit: int = 1000) -> Changes:
        row = next(iter(await self._rows("change", b"", 1)), (b"-", b""))
        ledger = decode_ledger(row[1]) if row[0] == b"" else Ledger()
        if position is None:
            return Changes([], str(ledger.next - 1))
        if not position.isdecimal():
            raise UsageError(f"{position!r:.60} is no position in what has changed")
        at = int(position)
        if at < ledger.forgotten:
            raise UsageError(f"position {at} is too old: it is not known any more what was removed since")
        found: list[tuple[int, bytes, bool]] = []
        for key_of, is_there in ((written, True), (gone, False)):
            rows = await self._rows("change", key_of(at + 1), limit, key_of((1 << 63) - 1))
            found += [(number_of(key), place, is_there) for key, place in rows]
        found.sort()
        items = []
        for _, place, is_there in found[:limit]:
            where = Place(*split_place(place))
            if where.namespace == namespace and where.key.startswith(prefix):
                stored = await self._stored(where) if is_there else None
                items.append(Change(where.key, None if stored is None else stored.about(where.key)))
        return Changes(items, str(found[:limit][-1][0] if found else at))

    # ------------------------------------------------------------------ write

    async def write(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        async with self._brought(place, chunks, put) as write:
            done = await self._submit(write, put.when, place)
        assert done.now is not None
        return done.now.about(place.key)

    async def write_and_emit(
        self, place: Place, chunks: AsyncIterator[bytes], put: Put, event: Callable[[About], HandedIn]
    ) -> About:
        if put.when.asks:
            raise Unsupported("an object that is written with an event is written without a condition")
        async with self._brought(place, chunks, put) as write:
            return await self._both(write, place, event)

    async def _both(self, write: ObjectWrite, place: Place, event: Callable[[About], HandedIn]) -> About:
        about = structs.replace(as_stored(write, 0).about(place.key), version="")
        handed_in = event(about)
        asked = PutEmit(write, handed_in.name, handed_in.key, handed_in.data, handed_in.id or secrets.token_hex(16))
        for attempt in range(_AGAIN):
            engine = await self._connected()
            if engine is None:
                if not attempt:
                    raise UsageError(f"no engine runs on {self._path}, and only one takes events")
                await asyncio.sleep(_PAUSE)
                continue
            try:
                await asyncio.wait_for(asyncio.wrap_future(engine.connected().ask_verb(PUT_EMIT, asked)), self._timeout)
            except TimeoutError:
                raise StorageFailed(f"the engine on {self._path} has not answered within {self._timeout:g} s") from None
            except Refused as e:
                if not e.retriable or self._is_alive(engine):
                    raise
                self._engine = None  # it has ended; under its id the event is accepted once
                await asyncio.sleep(_PAUSE)
            else:
                return about
        raise StorageFailed(f"the engine on {self._path} comes and goes; try again")

    @asynccontextmanager
    async def _brought(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> AsyncIterator[ObjectWrite]:
        """Its bytes are there, or in it; they are not taken for what somebody has left while the block lasts."""
        measured = Measured(chunks, self.features.largest, put)
        begin, coming = bytearray(), None
        writing: asyncio.Future[None] | None = None
        try:
            async for chunk in measured:  # read and summed while the one before is written
                if coming is None and len(begin) + len(chunk) <= INLINE:
                    begin += chunk
                    continue
                if coming is None:
                    coming = await self._failing(lambda: Coming(self._path / FOLDER, sums=False))
                    chunk = bytes(begin) + chunk
                if writing is not None:
                    await writing
                writing = asyncio.ensure_future(self._failing(partial(coming.add, chunk)))
            if writing is not None:
                await writing
            measured.check()
            digest = bytes.fromhex(measured.checksum.partition(":")[2])
            if coming is not None:
                await self._failing(partial(coming.keep, self._path / FOLDER, digest))
            yield ObjectWrite(
                place.namespace,
                place.key,
                measured.size,
                digest,
                time.time_ns() // 1000 if put.time is None else put.time,
                put.content_type,
                put.tags,
                put.user,
                put.expires,
                coming is not None,
                b"" if coming is not None else bytes(begin),
            )
        finally:
            if writing is not None:
                await asyncio.wait([writing])  # it is in a thread: nothing stops it
            if coming is not None:
                coming.drop()

    async def remove(self, place: Place, when: If = ALWAYS) -> bool:
        return (await self._submit(ObjectWrite(place.namespace, place.key, REMOVED), when, place)).was_there

    async def _submit(self, write: ObjectWrite, when: If, place: Place) -> Done:
        """
        Raises:
            Conflict: what is wanted is not so.
        """
        done = await self._done(write, _wanted(when))
        if not done.holds:
            there = None if done.now is None else done.now.about(place.key)
            raise Conflict(conflict(place, when, there))
        return done

    async def _done(self, write: ObjectWrite, wanted: Wanted) -> Done:
        for _ in range(_AGAIN):
            engine = await self._connected()
            try:
                if engine is None:
                    return await asyncio.to_thread(self._at_rest, write, wanted)
                asked = engine.connected().ask_verb(WRITE_OBJECTS, [(write, wanted)])
                answer = await asyncio.wait_for(asyncio.wrap_future(asked), self._timeout)
                return msgspec.msgpack.decode(answer, type=list[Done])[0]
            except TimeoutError:
                raise StorageFailed(f"the engine on {self._path} has not answered within {self._timeout:g} s") from None
            except InUse:
                pass  # an engine has begun meanwhile
            except Refused as e:
                if engine is None or not e.retriable or self._is_alive(engine):
                    raise
                self._engine = None  # it has ended: whether it is written is asked again, as the same write
            await asyncio.sleep(_PAUSE)
        raise StorageFailed(f"the engine on {self._path} comes and goes; try again")

    @staticmethod
    def _is_alive(engine: ConnectedEngine) -> bool:
        try:
            engine.connected()
        except GrapeError:
            return False
        return True

    async def _connected(self) -> ConnectedEngine | None:
        """None: none runs here."""
        if self._engine is not None and self._is_alive(self._engine):
            return self._engine
        self._engine = None
        try:
            self._engine = await asyncio.to_thread(connect, str(self._path))
        except UsageError:
            return None
        return self._engine

    def _at_rest(self, write: ObjectWrite, wanted: Wanted) -> Done:
        """
        Raises:
            InUse: an engine runs here.
        """
        calls: Queue[Callable[[], None]] = Queue()
        failed: list[BaseException] = []
        found: list[Done] = []
        callbacks = Callbacks(lambda _: None, lambda _: None, failed.append, lambda _: None)
        assert self._shared is not None, "open comes first"
        with self._shared.away():
            writing = transport(DIRECTORY).open(self._path, callbacks, calls.put)
            try:
                writing.write_objects(self._home, [(write, wanted)], found.extend)
                while not found and not failed:
                    calls.get()()
            finally:
                writing.close()
        if failed:
            raise failed[0] if isinstance(failed[0], GrapeError) else StorageFailed(str(failed[0]))
        return found[0]

    async def _failing(self, do: Callable[[], T]) -> T:
        """In a thread.

        Raises:
            StorageFailed: the disk refuses.
        """
        try:
            return await asyncio.to_thread(do)
        except OSError as e:
            raise StorageFailed(f"{e.filename or self._path}: {e.strerror or e}") from None


def _wanted(when: If) -> Wanted:
    """
    Raises:
        Conflict: no object can be so.
    """
    number, checksum = -1, b""
    if when.version is not None:
        number = int(when.version) if when.version.isdecimal() and len(when.version) < 19 else 0
    if when.checksum is not None:
        kind, _, digits = when.checksum.partition(":")
        try:
            checksum = bytes.fromhex(digits) if kind == "sha256" else b"\0"
        except ValueError:
            checksum = b"\0"
        checksum = checksum or b"\0"
    return Wanted(number, checksum, when.absent, -1 if when.not_newer_than is None else when.not_newer_than)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


async def _of_file(fd: int, start: int, end: int) -> AsyncIterator[bytes]:
    at = start
    while at < end:
        try:
            chunk = await asyncio.to_thread(os.pread, fd, min(CHUNK, end - at), at)
        except OSError as e:
            raise Corrupt(f"the file of an object cannot be read: {e.strerror}") from None
        if not chunk:
            raise Corrupt("the file of an object is shorter than it was")
        at += len(chunk)
        yield chunk
