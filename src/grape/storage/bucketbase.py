"""Objects in a bucket of some cloud, by obstore alone; which clouds there are: `grape.storage.buckets`.

    BUCKET/PREFIX/NAMESPACE/KEY   the bytes; what is known of them as metadata, as in S3 (`grape.storage.bucketnames`)

Conditions are kept by the server, which compares what is another one after every write: Google generations, Azure
ETags. obstore removes without a condition, so a removal takes none.

The checksum of an object stands before its bytes: see `grape.storage.s3`. With a condition it goes by one request.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final

from msgspec import structs

from grape.abc.storage import (
    ALWAYS,
    CHUNK,
    About,
    Features,
    If,
    Page,
    Place,
    Put,
    Reading,
    Storage,
)
from grape.errors import BadArgument, Conflict, GrapeError, StorageFailed, Unsupported, UsageError
from grape.model.names import check_key
from grape.storage.bucketerrors import NOT_HEARD, Cloud, is_gone, refusal_of
from grape.storage.bucketlists import Lists
from grape.storage.bucketnames import Names
from grape.storage.conditions import conflict
from grape.storage.obstored import chunks_of, in_range, nothing, settled
from grape.storage.s3about import about_of, check_of, metadata_of, written_by
from grape.storage.s3calls import PAUSE, TRIES
from grape.storage.s3errors import AGAIN, Refusal, Refused
from grape.storage.s3uploads import Held, Streamed
from grape.storage.spool import spooled
from grape.storage.streams import Measured

if TYPE_CHECKING:
    from obstore import GetResult, ObjectMeta, PutResult
    from obstore.store import AzureStore, ClientConfig, GCSStore, RetryConfig

LARGEST: Final = 5 << 40
_PARTS: Final = 9_000
"""Of an object, at most: Google takes 10,000."""
_AT_ONCE: Final = 4
"""Parts of one upload that are under way."""
_SLOWEST: Final = 1 << 17
"""Bytes a second, at least, of what is sent by one request; slower is as if nobody answered."""
_OPENING: Final = 2
"""Tries while it is opened: who opens it wants to know."""
_RACES: Final = 20
"""Writes that find each time that somebody else was faster."""
_THERE: Final = ".grape-there"
"""A name that is asked for, to see what is answered."""
_AGAIN: Final = frozenset({"broken", *NOT_HEARD})
"""Why no answer came of a request that is made again."""


class Buckets(Storage):
    """What both have in common.

    Attributes:
        names: how keys and metadata lie there. largest_one: bytes that it takes in one request.
        exact: versions by which a server may be asked at once.
        order, holds_lists: as `Lists` has them.
    """

    names: ClassVar[Names]
    largest_one: ClassVar[int]
    exact: ClassVar[re.Pattern[str]]
    holds_lists: ClassVar[bool]
    order: ClassVar[str]

    def __init__(self, cloud: Cloud, prefix: str, part: int) -> None:
        prefix = prefix.strip("/")
        try:
            self._prefix = f"{check_key(prefix)}/" if prefix else ""
        except BadArgument as e:
            raise UsageError(f"the prefix of {self.name}:// is as keys are: {e}") from None
        self._timeout, self._part, self._cloud = cloud.timeout, part, cloud
        self._store: GCSStore | AzureStore
        self._senders: dict[tuple[int, int], GCSStore | AzureStore] = {}
        self._lists = Lists(self.order, self.holds_lists)

    @abstractmethod
    def _new(self, client: ClientConfig, retry: RetryConfig) -> GCSStore | AzureStore: ...

    @abstractmethod
    def _version(self, meta: ObjectMeta | PutResult) -> str: ...

    @abstractmethod
    def _listed(self, meta: ObjectMeta) -> str:
        """The version that a list tells."""

    @abstractmethod
    def _mode(self, version: str) -> Any:
        """So that it is written over this version alone."""

    # ------------------------------------------------------------------ open and close

    async def open(self) -> None:
        try:
            from obstore.exceptions import BaseError
        except ImportError:
            raise UsageError(
                f"storage {self.name!r} needs the package obstore: pip install 'grape-engine[storage]'"
            ) from None
        long = timedelta(days=30)  # a body may take as long as it flows
        silent = timedelta(seconds=self._timeout)
        try:
            self._store = self._made(silent, None, _OPENING)
            await self._found_usable()
            self._store = self._made(long, silent)
            self._senders.clear()
        except (BaseError, ValueError) as e:
            raise self._cloud.unmade(e) from None
        except GrapeError:
            await self.close()
            raise
        self.features = Features(largest=LARGEST, removes=False, in_order=self.order == "utf-8", tells_all=False)

    async def _found_usable(self) -> None:
        """
        Raises:
            UsageError: no such bucket, no or wrong keys, no right to read. StorageFailed: nobody answers.
        """
        try:
            await self._get(self._prefix + _THERE, {})
        except Refused as e:
            if is_gone(e.refusal):
                return
            error = self._error(e.refusal, "open it")
            raise (UsageError(str(error)) if e.refusal.status in (400, 401, 403) else error) from None

    def _made(self, whole: timedelta, silent: timedelta | None, tries: int = TRIES) -> GCSStore | AzureStore:
        """
        Args:
            whole: for a request from its first to its last byte. silent: without one.
        """
        options: ClientConfig = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=min(5.0, self._timeout)),
            "timeout": whole,
        }
        if silent is not None:
            options["read_timeout"] = silent
        backoff: Any = {
            "init_backoff": timedelta(seconds=PAUSE[0]),
            "max_backoff": timedelta(seconds=PAUSE[1]),
            "base": 2,
        }
        patience = timedelta(seconds=max(15.0, 2 * self._timeout))
        return self._new(options, {"max_retries": tries - 1, "backoff": backoff, "retry_timeout": patience})

    def _sender(self, size: int, tries: int) -> GCSStore | AzureStore:
        """For requests with so many bytes. Those that are alike have their connections in common."""
        size = _SLOWEST if size <= _SLOWEST else max(size, self._part)
        store = self._senders.get((size, tries))
        if store is None:
            whole = timedelta(seconds=self._timeout + size / _SLOWEST)
            store = self._made(whole, None, tries)
            if size <= self._part:
                self._senders[size, tries] = store
        return store

    async def close(self) -> None:
        self._lists.forget()
        await settled()

    # ------------------------------------------------------------------ common to all

    def _begin(self, namespace: str) -> str:
        return f"{self._prefix}{namespace}/"

    def _key(self, place: Place) -> str:
        return self.names.stored(self._begin(place.namespace), place.key)

    def _error(self, refusal: Refusal, what: str) -> GrapeError:
        return self._cloud.error(refusal, f"{what} in {self.name}://{self._cloud.bucket}/{self._prefix}")

    def _about(self, key: str, found: GetResult) -> About:
        meta = found.meta
        modified = int(meta["last_modified"].timestamp() * 1e6)
        attributes: Any = found.attributes
        about = about_of(key, meta["size"], "", modified, self.names.heard(attributes))
        return structs.replace(about, version=self._version(meta))

    # ------------------------------------------------------------------ read

    async def stat(self, place: Place) -> About | None:
        found = await self._looked(place, self._key(place))
        return None if found is None else self._about(place.key, found)

    async def _looked(self, place: Place, key: str) -> GetResult | None:
        try:
            return await self._get(key, {"head": True})
        except Refused as e:
            if is_gone(e.refusal):
                return None
            raise self._error(e.refusal, f"look at {_named(place)}") from None

    async def _get(self, key: str, options: Any) -> GetResult:
        from obstore.exceptions import BaseError

        try:
            return await self._store.get_async(key, options=options)
        except FileNotFoundError as e:
            refusal = refusal_of(e)
            raise Refused(structs.replace(refusal, status=refusal.status or 404)) from None
        except BaseError as e:
            raise Refused(refusal_of(e)) from None

    @asynccontextmanager
    async def read(self, place: Place, start: int = 0, end: int | None = None) -> AsyncIterator[Reading | None]:
        found = await self._got(place, start, end)
        if found is None:
            yield None
        elif isinstance(found, About):
            yield Reading(found, nothing())
        else:
            yield Reading(
                self._about(place.key, found),
                chunks_of(found, _named(place), lambda e, what: self._error(refusal_of(e), what)),
                check_of(self.names.heard(found.attributes)),
            )

    async def _got(self, place: Place, start: int, end: int | None) -> GetResult | About | None:
        """`About`: there are no bytes in this range."""
        key = self._key(place)
        options = in_range(start, end)
        try:
            if end is not None and end <= start:
                return await self.stat(place)
            return await self._get(key, options)
        except Refused as e:
            if is_gone(e.refusal):
                return None
            if options and e.refusal.status == 416:
                return await self.stat(place)
            raise self._error(e.refusal, f"read {_named(place)}") from None

    # ------------------------------------------------------------------ write

    async def write(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        key = self._key(place)
        measured = Measured(chunks, self.largest_one if put.when.asks else LARGEST, put, crc=True)
        is_known = put.checksum.startswith("sha256:") and put.size is not None and put.size > self._part
        if is_known and put.size is not None and not put.when.asks:
            return await self._write(place, key, Streamed(measured, put.size), put.checksum, put)
        async with spooled(aiter(measured)) as body:
            measured.check()
            return await self._write(place, key, Held(body), measured.checksum, put, measured.crc)

    async def _write(
        self, place: Place, key: str, body: Held | Streamed, checksum: str, put: Put, check: str = ""
    ) -> About:
        write = secrets.token_hex(8)
        moment = time.time_ns() // 1000 if put.time is None else put.time
        attributes = self.names.told(metadata_of(put, checksum, moment, write, check))
        version = await self._put(place, key, body, put, {"Content-Type": put.content_type, **attributes}, write)
        return About(place.key, body.size, version, checksum, moment, put.content_type, put.tags, put.user, put.expires)

    async def _put(
        self, place: Place, key: str, body: Held | Streamed, put: Put, attributes: dict[str, str], write: str
    ) -> str:
        """The version."""
        races = failures = 0
        is_unsure = False
        while True:
            try:
                mode = await self._condition(place, key, put.when, races > 0)
                return await self._send(key, body, attributes, mode)
            except Conflict:
                if not is_unsure:
                    raise
                refusal = Refusal(412, "PreconditionFailed")
            except Refused as e:
                refusal = e.refusal
            may_be_done = refusal.may_be_done and refusal.why not in NOT_HEARD
            found = await self._written(key, write) if may_be_done else None
            if found is not None:
                return found
            if put.when.asks and refusal.was_unmet:
                if is_unsure:  # what is there may have been written over ours
                    raise StorageFailed(
                        f"{_named(place)} was written by somebody else, but whether this was written before it is not "
                        f"known: {self._cloud.endpoint} did not answer at first"
                    )
                races += 1
                if races == _RACES:
                    raise Conflict(f"{_named(place)}: somebody else was faster {_RACES} times")
            elif put.when.asks and (refusal.status in AGAIN or refusal.why in _AGAIN) and failures < TRIES - 1:
                is_unsure |= may_be_done
                failures += 1
                await asyncio.sleep(random.uniform(0, min(PAUSE[1], PAUSE[0] * 2**failures)))
            else:
                raise self._error(refusal, f"write {_named(place)}")

    async def _written(self, key: str, write: str) -> str | None:
        """The version if what is there is of this write, although it was not answered: or an earlier try of it was
        done, and its own condition does not hold any more."""
        try:
            found = await self._get(key, {"head": True})
        except Refused:
            return None
        return self._version(found.meta) if written_by(found.attributes) == write else None

    async def _condition(self, place: Place, key: str, when: If, is_again: bool) -> Any:
        """How it is written so that the server keeps it.

        Raises:
            Conflict: it is known not to be so.
        """
        if not when.asks:
            return "overwrite"
        if not is_again:
            if when == If(absent=True):
                return "create"
            if when == If(version=when.version) and self.exact.fullmatch(when.version or ""):
                return self._mode(when.version or "")
        found = await self._looked(place, key)
        there = None if found is None else self._about(place.key, found)
        if found is not None and there is not None and when.version == self._listed(found.meta):
            when = structs.replace(when, version=there.version)
        if not when.holds(there):
            raise Conflict(conflict(place, when, there))
        return "create" if there is None else self._mode(there.version)

    async def _send(self, key: str, body: Held | Streamed, attributes: Any, mode: Any) -> str:
        """
        Raises:
            Refused: it is not done.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        part = 0
        if mode == "overwrite" and body.size > self._part:
            part = max(self._part, -(-body.size // _PARTS))
        tries = TRIES if mode == "overwrite" else 1  # what is tried again unseen may find its own condition unmet
        store = self._sender(part or body.size, tries)
        try:
            if part:
                done = await store.put_async(
                    key,
                    _checked(body),
                    attributes=attributes,
                    use_multipart=True,
                    chunk_size=part,
                    max_concurrency=_AT_ONCE,
                )
            else:
                assert isinstance(body, Held)
                done = await store.put_async(key, body.view, attributes=attributes, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            raise Refused(Refusal(412, "PreconditionFailed")) from None
        except (BaseError, FileNotFoundError) as e:
            raise Refused(refusal_of(e)) from None
        return self._version(done)

    # ------------------------------------------------------------------ remove

    async def remove(self, place: Place, when: If = ALWAYS) -> bool:
        from obstore.exceptions import BaseError

        if when.asks:
            raise Unsupported(f"storage {self.name!r} does not look and remove as one step")
        try:
            await self._store.delete_async(self._key(place))
        except (BaseError, FileNotFoundError) as e:
            refusal = refusal_of(e)
            if isinstance(e, FileNotFoundError) and is_gone(structs.replace(refusal, status=404)):
                return False
            raise self._error(refusal, f"remove {_named(place)}") from None
        return True

    # ------------------------------------------------------------------ list

    async def page(self, namespace: str, prefix: str = "", position: str = "", limit: int = 1000) -> Page:
        from obstore.exceptions import BaseError

        begin = self._begin(namespace)

        def listed(meta: ObjectMeta) -> About | None:
            """None: another program's, which no key can name; or none of these."""
            key = self.names.key(begin, meta["path"])
            try:
                if not key.startswith(prefix) or self.names.stored(begin, check_key(key)) != meta["path"]:
                    return None
            except BadArgument:
                return None
            modified = int(meta["last_modified"].timestamp() * 1e6)
            return About(key, meta["size"], self._listed(meta), "", modified)

        async def is_there(about: About) -> bool:
            """obstore tells of "a/" as if it were "a"; such are empty."""
            place = Place(namespace, about.key)
            return about.size > 0 or await self._looked(place, self._key(place)) is not None

        common = self.names.common(begin, prefix)
        try:
            return await self._lists.page(self._store, common, begin, position, limit, listed, is_there)
        except BaseError as e:
            raise self._error(refusal_of(e), f"list {namespace}/{prefix}") from None


async def _checked(body: Held | Streamed) -> AsyncIterator[Any]:
    """
    Raises:
        BadArgument: it was not what was said of it. obstore gives up then, and nothing is seen.
    """
    async for piece in body.parts(CHUNK):
        yield piece
    body.check()


def _named(place: Place) -> str:
    return f"{place.namespace}/{place.key}"
