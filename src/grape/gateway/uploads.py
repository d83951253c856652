"""Large objects over HTTP in parts, which may come in any order, at the same time, and again after something broke off.

Parts are objects, too, of the namespace "uploads", until the whole is written; who never ends an upload has them
expire.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from grape.abc.storage import About
from grape.errors import BadArgument, Conflict, GrapeError
from grape.gateway.access import Verb
from grape.gateway.answers import as_json
from grape.gateway.conditions import condition_of, described_by, ttl_of
from grape.gateway.problems import Problem
from grape.model.names import check_key, check_namespace
from grape.storage.objects import Objects

NAMESPACE: Final = "uploads"
MOST: Final = 10_000
"""Parts of an upload."""
_KEPT: Final = 86_400.0
"""Seconds for which a part is."""
_ID: Final = re.compile(r"[0-9a-f]{32}")
_PART: Final = re.compile(r"[0-9]{1,5}")


class Opening(Protocol):
    def __call__(
        self, request: Request, verb: Verb, *, writes: bool = False, own: bool = False
    ) -> AbstractAsyncContextManager[Objects]: ...


class Begun(msgspec.Struct, frozen=True):
    """What an upload was begun with."""

    namespace: str
    key: str
    content_type: str
    tags: tuple[str, ...] = ()
    user: dict[str, str] = {}
    ttl: float | None = None


class Uploads:
    """
    POST ?uploads: begins one, and says its id. PUT ?upload=ID&part=N: a part, N from 1. POST ?upload=ID: all parts, in
    the order of their numbers, are the object now. DELETE ?upload=ID: it is given up.
    """

    def __init__(self, objects: Opening) -> None:
        self._objects = objects

    async def post(self, request: Request) -> Response:
        if "uploads" in request.query_params:
            return await self._begin(request)
        if "upload" in request.query_params:
            return await self._complete(request)
        raise BadArgument("POST begins an upload in parts (?uploads), or ends it (?upload=ID); PUT writes an object")

    async def _begin(self, request: Request) -> Response:
        namespace, key = check_namespace(request.path_params["namespace"]), check_key(request.path_params["key"])
        upload = secrets.token_hex(16)
        options = described_by(request)
        async with self._objects(request, "emit", writes=True, own=True) as objects:
            put = objects.described(**options)
            begun = Begun(namespace, key, put.content_type, put.tags, put.user, options.get("ttl"))
            await _parts(objects).put(f"{upload}/begun", msgspec.json.encode(begun), ttl=_KEPT)
        return as_json({"upload": upload}, 201)

    async def part(self, request: Request) -> Response:
        number = request.query_params.get("part", "")
        if not _PART.fullmatch(number) or not 1 <= int(number) <= MOST:
            raise BadArgument(f"part: a number from 1 to {MOST:,}, not {number!r:.60}")
        async with self._objects(request, "emit", writes=True, own=True) as objects:
            parts = _parts(objects)
            upload, _ = await self._begun(request, parts)
            about = await or_412(lambda: parts.put(f"{upload}/{int(number):05}", request.stream(), ttl=_KEPT))
        return as_json({"part": int(number), "size": about.size, "checksum": about.checksum})

    async def _complete(self, request: Request) -> Response:
        async with self._objects(request, "emit", writes=True, own=True) as own:
            parts = _parts(own)
            upload, begun = await self._begun(request, parts)
            listed = [about async for about in parts.list(f"{upload}/")]
            found = [about for about in listed if _PART.fullmatch(about.key.rpartition("/")[2])]
            missing = sorted(set(range(1, len(found) + 1)) - {int(about.key[-5:]) for about in found})
            if missing or not found:
                raise Problem(409, "conflict", f"part {missing[0] if missing else 1} of the upload has not come")
            options: dict[str, Any] = {
                "content_type": begun.content_type,
                "tags": begun.tags,
                "user": begun.user,
                "ttl": begun.ttl,
            }
            if "ttl" in request.query_params:
                options["ttl"] = ttl_of(request)
            async with self._objects(request, "emit", writes=True) as objects:
                options |= await condition_of(request, objects, begun.key)
                about = await or_412(lambda: objects.put(begun.key, _joined(parts, found), **options))
            await _gone(parts, upload)
        return as_json(about, headers={"etag": f'"{about.version}"'})

    async def abort(self, request: Request) -> Response:
        async with self._objects(request, "emit", writes=True, own=True) as objects:
            upload, _ = await self._begun(request, _parts(objects))
            await _gone(_parts(objects), upload)
        return Response(status_code=204)

    @staticmethod
    async def _begun(request: Request, parts: Objects) -> tuple[str, Begun]:
        """
        Raises:
            Problem: there is no such upload of this object.
        """
        upload = request.query_params["upload"]
        found = await parts.get(f"{upload}/begun") if _ID.fullmatch(upload) else None
        try:
            begun = None if found is None else msgspec.json.decode(found.data, type=Begun)
        except msgspec.MsgspecError:  # who may write objects may write such a one
            begun = None
        place = request.path_params["namespace"], request.path_params["key"]
        if begun is None or (begun.namespace, begun.key) != place:
            raise Problem(404, "no-upload", f"there is no upload {upload!r:.60} of this object; it may have expired")
        return upload, begun


def _parts(objects: Objects) -> Objects:
    return Objects(objects.storage, NAMESPACE)


async def _joined(parts: Objects, found: Sequence[About]) -> AsyncIterator[bytes]:
    for about in found:
        async with parts.open(about.key) as part:
            if part is None:
                raise Problem(409, "conflict", "a part of the upload has gone; it was ended twice, or has expired")
            async for chunk in part.chunks:
                yield chunk


async def _gone(parts: Objects, upload: str) -> None:
    for key in [about.key async for about in parts.list(f"{upload}/")]:
        await parts.remove(key)


async def or_412(do: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await do()
    except Conflict as e:
        raise Problem(412, "conflict", str(e)) from None
    except GrapeError:
        raise
    except ClientDisconnect:
        raise Problem(400, "cut-off", "the body ended before it was whole; nothing was written") from None
