"""Objects in a bucket of S3, or of any server that speaks as S3 does.

    BUCKET/PREFIX/NAMESPACE/KEY   the bytes, and what is known of them as metadata (`grape.storage.s3about`)

Conditions are kept by the server (If-Match, If-None-Match), which compares ETags. They are the same for the same bytes:
between our look at an object and our write the same bytes may be written again, with other tags, and that is not
noticed. Nothing else is lost.

What a server does not keep of what Amazon's does is found out when the storage is opened, and `Features` say it.

The checksum of an object stands before its bytes. So they are had whole before they are sent, in a temporary file if
they are many; unless ``put`` says checksum and size, then they go as they come.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from os import environ
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, TypeVar
from urllib.parse import unquote, unquote_plus, urlsplit
from xml.etree import ElementTree

from msgspec import Meta, structs

from grape.abc.storage import (
    ALWAYS,
    About,
    Features,
    If,
    Page,
    Place,
    Put,
    Reading,
    Storage,
    StorageConfig,
)
from grape.errors import BadArgument, Conflict, GrapeError, StorageFailed, Unsupported, UsageError
from grape.model.names import check_key
from grape.storage.conditions import conflict
from grape.storage.obstored import chunks_of, in_range, nothing, settled
from grape.storage.s3about import (
    about_of,
    check_of,
    etag_of,
    key_of,
    metadata_of,
    stored_key,
    stored_prefix,
    version_of,
    written_by,
)
from grape.storage.s3calls import PAUSE, TRIES, Answer, Calls, elements
from grape.storage.s3errors import Refusal, Refused, Where, refusal_in
from grape.storage.s3keys import OWN, KeyRing
from grape.storage.s3probe import Found, probed
from grape.storage.s3uploads import Held, Streamed, Uploads
from grape.storage.spool import spooled
from grape.storage.streams import Measured

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ClientConfig, S3Store

T = TypeVar("T")

_LARGEST: Final = 5 << 40
_LARGEST_ONE: Final = 5 << 30
"""Bytes that S3 takes in one request."""
_PART: Final = 16 << 20
_SMALLEST_PART: Final = 5 << 20
_THREADS: Final = 16
_SLOWEST: Final = 1 << 17
"""Bytes a second, at least, of what is sent by one request; slower is as if nobody answered."""
_MOST_LISTED: Final = 1000
_LIST: Final = "ListBucketResult"
_OPENING: Final = 2
"""Tries while it is opened: who opens it wants to know."""
_RACES: Final = 20
"""Writes that find each time that somebody else was faster."""
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_AMAZON: Final = re.compile(r"https://([a-z0-9-]+\.)*amazonaws\.com(\.cn)?/?")


class S3Config(StorageConfig, frozen=True, kw_only=True, rename="kebab"):
    """
    bucket, prefix: where the objects lie; the bucket is there already
    endpoint: the server, as in http://127.0.0.1:8333; "": what AWS_ENDPOINT_URL says, or Amazon's
    region: of the bucket; "": what AWS_REGION says, or us-east-1
    variables: how the names of the environment's variables with the keys begin
    anonymous: whether no request is signed, for buckets that ask for no keys
    part: bytes that are sent by one request; larger objects go in parts
    probe: whether a server that is not Amazon's is asked, when it is opened, what it keeps of conditions and order;
        false: all that Amazon's does, but for uploads in parts
    abandoned: seconds after which uploads that were begun below the prefix are removed, as nobody ends them; 0: never
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    variables: str = OWN
    anonymous: bool = False
    part: Annotated[int, Meta(ge=_SMALLEST_PART, le=1 << 30)] = _PART
    probe: bool = True
    abandoned: Annotated[float, Meta(ge=0)] = 86_400.0


class S3Storage(Storage):
    name: ClassVar[str] = "s3"
    Config: ClassVar[type[StorageConfig]] = S3Config

    def __init__(self, config: S3Config) -> None:
        endpoint, region = _endpoint(config), _region(config)
        if _BUCKET.fullmatch(config.bucket) is None:
            raise UsageError("the bucket of an S3 storage is 2 to 255 letters, digits, '-', '_' and '.'")
        self._config = config
        self.variables = (f"{config.variables}_", "AWS_")
        self._where = Where(endpoint, config.bucket, region, config.variables, config.timeout)
        self._prefix = f"{config.prefix.strip('/')}/" if config.prefix.strip("/") else ""
        self._ring = None if config.anonymous else KeyRing(config.variables, region)
        self._calls = Calls(endpoint, config.bucket, region, self._ring, config.timeout)
        self._threads = ThreadPoolExecutor(_THREADS, "s3")
        self._server = Found()
        self._uploads = Uploads(self._calls, self._threads, config.part)
        self._store: S3Store
        self._sender: S3Store
        self._careful: S3Store
        self._careful_sender: S3Store

    @classmethod
    def settings_of(cls, place: str) -> dict[str, Any]:
        bucket, _, prefix = place.partition("/")
        if "@" in bucket or ":" in bucket:  # perhaps a secret: it is not told
            raise UsageError("s3:// is followed by BUCKET/PREFIX, and never by keys: they are in the environment")
        if _BUCKET.fullmatch(bucket) is None:
            raise UsageError(f"s3:// is followed by BUCKET/PREFIX, as in s3://photos/live, not by {place!r:.100}")
        return {"bucket": bucket, "prefix": unquote(prefix)}

    # ------------------------------------------------------------------ open and close

    async def open(self) -> None:
        try:
            import obstore  # noqa: F401 - whether it is there
        except ImportError:
            raise UsageError("storage 's3' needs the package obstore: pip install 'grape-engine[storage]'") from None
        await self._found_usable()
        if _AMAZON.fullmatch(self._where.endpoint) is None:
            self._server = Found(completes=False)
            try:
                if self._config.probe:
                    self._server = await self._in_thread(lambda: probed(self._calls, self._prefix))
            except Refused as e:
                raise self._error(e.refusal, "find out what it keeps") from None
        found = self._server
        self.features = Features(
            largest=_LARGEST,
            swaps=found.absent and found.matches,
            conditions=frozenset(
                [*(["absent"] if found.absent else []), *(["version", "checksum"] if found.matches else [])]
            ),
            removes=found.removes,
            in_order=not found.is_tree,
            tells_all=False,
        )
        long = timedelta(days=30)  # a body may take as long as it flows
        whole = self._config.timeout + self._config.part / _SLOWEST
        silent, all_of_it = timedelta(seconds=self._config.timeout), timedelta(seconds=whole)
        self._store, self._sender = self._made(long, silent), self._made(all_of_it, None)
        # A condition that does not hold when it is tried again may have held the first time: we look before we do.
        self._careful, self._careful_sender = self._made(long, silent, tries=1), self._made(all_of_it, None, tries=1)
        if self._config.abandoned:
            await self._uploads.clean(self._prefix, self._config.abandoned)

    async def _found_usable(self) -> None:
        """
        Raises:
            UsageError: no such bucket, no or wrong keys, another region, no right to list.
            StorageFailed: nobody answers.
        """
        query = {"list-type": "2", "max-keys": "1", "prefix": self._prefix}
        try:
            answer = await self._in_thread(lambda: self._calls.ask("GET", query=query, tries=_OPENING))
            list(elements(answer.text, _LIST, "Contents"))
        except Refused as e:
            error = self._error(e.refusal, "open it")
            raise (UsageError(str(error)) if e.refusal.status in (400, 401, 403) else error) from None
        except ElementTree.ParseError:
            raise UsageError(f"{self._where.endpoint} does not speak S3: look at endpoint") from None

    def _made(self, whole: timedelta, silent: timedelta | None, tries: int = TRIES) -> S3Store:
        """
        Args:
            whole: for a request from its first to its last byte. silent: without one.
        """
        from obstore.store import S3Store

        options: ClientConfig = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=min(5.0, self._config.timeout)),
            "timeout": whole,
        }
        if silent is not None:
            options["read_timeout"] = silent
        return S3Store(
            self._config.bucket,
            config={
                "endpoint": self._where.endpoint,
                "region": self._where.region,
                "conditional_put": "etag",
                "disable_bulk_delete": True,
                "skip_signature": self._config.anonymous,
                "virtual_hosted_style_request": False,
            },
            client_options=options,
            retry_config={
                "max_retries": tries - 1,
                "backoff": {
                    "init_backoff": timedelta(seconds=PAUSE[0]),
                    "max_backoff": timedelta(seconds=PAUSE[1]),
                    "base": 2,
                },
                "retry_timeout": timedelta(seconds=max(15.0, 2 * self._config.timeout)),
            },
            credential_provider=None if self._ring is None else _provider(self._ring),
        )

    async def close(self) -> None:
        await self._uploads.close()
        await settled()
        self._threads.shutdown(wait=False)
        self._calls.close()

    # ------------------------------------------------------------------ common to all

    def _begin(self, namespace: str) -> str:
        return f"{self._prefix}{namespace}/"

    def _key(self, place: Place) -> str:
        return stored_key(self._begin(place.namespace), place.key)

    async def _in_thread(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, what)

    async def _call(
        self,
        method: str,
        key: str = "",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        return await self._in_thread(lambda: self._calls.ask(method, key, query, headers, tries=TRIES))

    def _error(self, refusal: Refusal, what: str) -> GrapeError:
        return self._where.error(refusal, f"{what} in s3://{self._config.bucket}/{self._prefix}")

    # ------------------------------------------------------------------ read

    async def stat(self, place: Place) -> About | None:
        return await self._stat(place, self._key(place))

    async def _stat(self, place: Place, key: str) -> About | None:
        try:
            found = await self._get(key, {"head": True})
        except Refused as e:
            if e.refusal.is_gone:
                return None
            raise self._error(e.refusal, f"look at {_named(place)}") from None
        return _about(place.key, found)

    async def _get(self, key: str, options: Any) -> GetResult:
        from obstore.exceptions import BaseError

        try:
            return await self._store.get_async(key, options=options)
        except FileNotFoundError as e:
            refusal = refusal_in(e)
            raise Refused(structs.replace(refusal, status=refusal.status or 404)) from None
        except BaseError as e:
            raise Refused(refusal_in(e)) from None

    @asynccontextmanager
    async def read(self, place: Place, start: int = 0, end: int | None = None) -> AsyncIterator[Reading | None]:
        found = await self._got(place, start, end)
        if found is None:
            yield None
        elif isinstance(found, About):
            yield Reading(found, nothing())
        else:
            yield Reading(
                _about(place.key, found),
                chunks_of(found, _named(place), lambda e, what: self._error(refusal_in(e), what)),
                check_of(found.attributes),
            )

    async def _got(self, place: Place, start: int, end: int | None) -> GetResult | About | None:
        """`About`: there are no bytes in this range."""
        key = self._key(place)
        options = in_range(start, end)
        try:
            if end is not None and end <= start:
                return await self._stat(place, key)
            return await self._get(key, options)
        except Refused as e:
            if e.refusal.is_gone:
                return None
            if options and e.refusal.status == 416:
                return await self._stat(place, key)
            raise self._error(e.refusal, f"read {_named(place)}") from None

    # ------------------------------------------------------------------ write

    async def write(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        key = self._key(place)
        if not self.features.looks_at(put.when):
            raise Unsupported(f"the server of {self._where.endpoint} does not look and write as one step")
        in_parts = not put.when.asks or self._server.completes
        measured = Measured(chunks, _LARGEST if in_parts else _LARGEST_ONE, put, crc=True)
        if in_parts and put.checksum.startswith("sha256:") and put.size is not None and put.size > self._config.part:
            return await self._write(place, key, Streamed(measured, put.size), put.checksum, put)
        async with spooled(aiter(measured)) as body:
            measured.check()
            return await self._write(place, key, Held(body), measured.checksum, put, measured.crc)

    async def _write(
        self, place: Place, key: str, body: Held | Streamed, checksum: str, put: Put, check: str = ""
    ) -> About:
        write = secrets.token_hex(8)
        moment = time.time_ns() // 1000 if put.time is None else put.time
        etag = await self._put(place, key, body, put, metadata_of(put, checksum, moment, write, check))
        return About(
            place.key,
            body.size,
            version_of(etag, write),
            checksum,
            moment,
            put.content_type,
            put.tags,
            put.user,
            put.expires,
        )

    async def _put(self, place: Place, key: str, body: Held | Streamed, put: Put, metadata: dict[str, str]) -> str:
        """The ETag."""
        write = written_by(metadata)
        races = failures = 0
        is_unsure = False
        while True:
            try:
                condition = await self._condition(place, key, put.when, races > 0)
                return await self._send(key, body, put.content_type, metadata, condition)
            except Conflict:
                if not is_unsure:
                    raise
                refusal = Refusal(412, "PreconditionFailed")
            except Refused as e:
                refusal = e.refusal
                is_unsure |= e.unsure
            found = await self._written(key, write) if refusal.may_be_done else None
            if found is not None:
                return found
            if put.when.asks and refusal.was_unmet:
                if is_unsure:  # what is there may have been written over ours
                    raise StorageFailed(
                        f"{_named(place)} was written by somebody else, but whether this was written before it is not "
                        f"known: {self._where.endpoint} did not answer at first"
                    )
                if not body.can_again:
                    raise Conflict(conflict(place, put.when, await self.stat(place)))
                races += 1
                if races == _RACES:
                    raise Conflict(f"{_named(place)}: somebody else was faster {_RACES} times")
            elif put.when.asks and body.can_again and refusal.is_passing and failures < TRIES - 1:
                is_unsure |= refusal.may_be_done and not refusal.was_unheard
                failures += 1
                await asyncio.sleep(random.uniform(0, min(PAUSE[1], PAUSE[0] * 2**failures)))
            else:
                raise self._error(refusal, f"write {_named(place)}")

    async def _written(self, key: str, write: str) -> str | None:
        """The ETag if what is there is of this write, although it was not answered: or an earlier try of it was done,
        and its own condition does not hold any more."""
        try:
            found = await self._get(key, {"head": True})
        except Refused:
            return None
        return found.meta["e_tag"] if written_by(found.attributes) == write else None

    async def _condition(self, place: Place, key: str, when: If, is_again: bool) -> dict[str, str]:
        """Headers by which the server keeps it.

        Raises:
            Conflict: it is known not to be so.
        """
        if not when.asks:
            return {}
        if not is_again:
            if when == If(absent=True):
                return {"if-none-match": "*"}
            if when.version is not None and "." not in when.version and when == If(version=when.version):
                return {"if-match": etag_of(when.version)}
        there = await self._stat(place, key)
        if not _holds(when, there):
            raise Conflict(conflict(place, when, there))
        return {"if-none-match": "*"} if there is None else {"if-match": etag_of(there.version)}

    async def _send(
        self,
        key: str,
        body: Held | Streamed,
        content_type: str,
        metadata: dict[str, str],
        condition: dict[str, str],
    ) -> str:
        """
        Raises:
            Refused: it is not done.
        """
        if isinstance(body, Streamed) or (body.size > self._config.part and (not condition or self._server.completes)):
            headers = {"content-type": content_type, **{f"x-amz-meta-{name}": text for name, text in metadata.items()}}
            return await self._uploads.send(
                key, body, headers, condition, lambda: self._written(key, written_by(metadata))
            )
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        mode: Any = "overwrite"
        if "if-match" in condition:
            mode = {"e_tag": condition["if-match"]}
        elif condition:
            mode = "create"
        store = self._store
        if body.size > self._config.part:
            longest = timedelta(seconds=self._config.timeout + body.size / _SLOWEST)
            store = self._made(longest, None, tries=1 if condition else TRIES)
        elif body.size > _SLOWEST:
            store = self._careful_sender if condition else self._sender
        elif condition:
            store = self._careful
        attributes: Any = {"Content-Type": content_type, **metadata}
        try:
            done = await store.put_async(key, body.view, attributes=attributes, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            raise Refused(Refusal(412, "PreconditionFailed")) from None
        except (BaseError, FileNotFoundError) as e:
            raise Refused(refusal_in(e)) from None
        return done["e_tag"] or ""

    # ------------------------------------------------------------------ remove

    async def remove(self, place: Place, when: If = ALWAYS) -> bool:
        key = self._key(place)
        if when.asks and not (self.features.removes and self.features.looks_at(when)):
            raise Unsupported(f"the server of {self._where.endpoint} does not look and remove as one step")
        for _ in range(_RACES):
            there = await self._stat(place, key)
            if not _holds(when, there):
                raise Conflict(conflict(place, when, there))
            if there is None:
                return False
            try:
                headers = {"if-match": etag_of(there.version)} if when.asks else {}
                await self._call("DELETE", key, headers=headers)
            except Refused as e:
                if e.unsure and (e.refusal.was_unmet or e.refusal.is_gone):
                    raise StorageFailed(
                        f"{_named(place)} is not there any more, but whether this has removed it is not known: "
                        f"{self._where.endpoint} did not answer at first"
                    ) from None
                if when.asks and (e.refusal.was_unmet or e.refusal.is_gone):
                    continue
                if e.refusal.is_gone:
                    return False
                raise self._error(e.refusal, f"remove {_named(place)}") from None
            return True
        raise Conflict(f"{_named(place)}: somebody else was faster {_RACES} times")

    # ------------------------------------------------------------------ list

    async def page(self, namespace: str, prefix: str = "", position: str = "", limit: int = _MOST_LISTED) -> Page:
        begin = self._begin(namespace)
        query = {
            "list-type": "2",
            "encoding-type": "url",
            "max-keys": str(min(limit, _MOST_LISTED)),
            "prefix": stored_prefix(begin, prefix),
        }
        while True:
            if position:
                at = begin + position
                query["start-after"] = f"{at}/" if self._server.is_tree and not at.endswith("/") else at
            try:
                answer = await self._call("GET", "", query)
                found = list(elements(answer.text, _LIST, "Contents"))
            except Refused as e:
                raise self._error(e.refusal, f"list {namespace}/{prefix}") from None
            except ElementTree.ParseError:
                raise StorageFailed(f"list {namespace}/{prefix}: {self._where.endpoint} answers no list") from None
            decoded = unquote_plus if "<EncodingType>url<" in answer.text else str
            keys = [decoded(each["Key"]) for each in found]
            items = [about for stored, each in zip(keys, found, strict=True) if (about := _listed(begin, stored, each))]
            items = [about for about in items if about.key.startswith(prefix)]
            # One that goes through a tree may say that it has ended when what is below its last key is still to come.
            is_full = self._server.is_tree and len(keys) == min(limit, _MOST_LISTED)
            if not keys or not (is_full or "<IsTruncated>true<" in answer.text):
                return Page(items)
            position = keys[-1][len(begin) :]
            if items:
                return Page(items, position)


def _named(place: Place) -> str:
    return f"{place.namespace}/{place.key}"


def _about(key: str, found: GetResult) -> About:
    meta = found.meta
    modified = int(meta["last_modified"].timestamp() * 1e6)
    return about_of(key, meta["size"], meta["e_tag"] or "", modified, found.attributes)


def _listed(begin: str, stored: str, each: dict[str, str]) -> About | None:
    """None: another program's, which no key can name."""
    key = key_of(begin, stored)
    try:
        if stored_key(begin, check_key(key)) != stored:
            return None
        modified = int(datetime.fromisoformat(each["LastModified"]).timestamp() * 1e6)
        return About(key, int(each["Size"]), version_of(each["ETag"]), "", modified)
    except (BadArgument, KeyError, ValueError):
        return None


def _holds(when: If, there: About | None) -> bool:
    """A version without a write, as pages have it, is that of these bytes, by whatever write."""
    version = when.version
    if there is not None and version is not None and "." not in version and etag_of(there.version) == etag_of(version):
        when = structs.replace(when, version=there.version)
    return when.holds(there)


def _endpoint(config: S3Config) -> str:
    """
    Raises:
        UsageError: it cannot be one.
    """
    said = config.endpoint
    if not said and config.variables == OWN:
        said = next(
            (found for name in ("ENDPOINT_URL_S3", "ENDPOINT_URL") if (found := environ.get(f"AWS_{name}"))), ""
        )
    if not said:
        return f"https://s3.{_region(config)}.amazonaws.com"
    try:
        parts = urlsplit(said)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        has_keys = parts.username is not None or parts.port == 0
    except ValueError:
        is_one, has_keys = False, True
    if not is_one or has_keys:  # it may hold a secret: it is not told
        raise UsageError("endpoint is as in http://127.0.0.1:8333, with http:// or https:// and without keys")
    return said.rstrip("/")


def _region(config: S3Config) -> str:
    return config.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _provider(ring: KeyRing) -> Callable[[], Any]:
    def keys() -> dict[str, Any]:
        found = ring.keys()
        return {
            "access_key_id": found.key,
            "secret_access_key": found.secret,
            "token": found.token or None,
            "expires_at": datetime.fromtimestamp(found.expires, UTC) if found.expires else None,
        }

    return keys
