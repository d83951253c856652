"""Objects of apps over HTTP: whole or a range of them, with conditions; streamed, so that memory stays flat."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from grape.abc.storage import Place, Storage
from grape.errors import BadArgument, StorageFailed, UsageError
from grape.gateway.access import Verb
from grape.gateway.answers import as_json
from grape.gateway.conditions import condition_of, described_by, has_conditions, headers_of, is_named, range_of
from grape.gateway.doors import Doors
from grape.gateway.problems import Problem, no_app
from grape.gateway.uploads import Uploads, or_412
from grape.model.bound import Bound
from grape.model.names import check_key
from grape.storage.connect import storage_of
from grape.storage.objects import Objects
from grape.storage.source import told_of
from grape.tools.namespaces import namespaces_in

May = Callable[[Request, str, Verb], None]

_PAGE: Final = 1_000


class ObjectPages:
    """
    Args:
        may: raises if whoever asks may not.
    """

    def __init__(self, doors: Doors, may: May) -> None:
        self._doors = doors
        self._may = may
        self._others: dict[str, Storage] = {}
        self._uploads = Uploads(self._objects)
        self._opening = asyncio.Lock()

    def routes(self) -> list[Route]:
        base = "/apps/{app}/objects/{namespace}"
        return [
            Route("/apps/{app}/objects", self._namespaces, methods=["GET"]),
            Route(base, self._list, methods=["GET"]),
            # One route: one for each method would tell those of the first alone of whatever is not allowed.
            Route(f"{base}/{{key:path}}", self._object, methods=["GET", "HEAD", "PUT", "POST", "DELETE"]),
        ]

    async def _object(self, request: Request) -> Response:
        if request.method == "POST":
            return await self._uploads.post(request)
        match request.method:
            case "PUT":
                return await self._put(request)
            case "DELETE":
                return await self._remove(request)
        return await self._get(request)

    @contextlib.asynccontextmanager
    async def _objects(
        self, request: Request, verb: Verb, *, writes: bool = False, own: bool = False
    ) -> AsyncIterator[Objects]:
        """``own``: in the app's own directory, wherever the namespace is.

        Raises:
            Problem: there is no such app, nothing of it is stored, or it is not for whoever asks.
        """
        name = request.path_params["app"]
        self._may(request, name, verb)
        info = await self._doors.look(name)
        if info is None:
            raise no_app(name)
        namespace = request.path_params["namespace"]
        bound = (await self._doors.ask("storages", {"name": name}, dict[str, Bound])).get(namespace)
        if bound is not None and not (own and not bound.is_read_only):
            if writes and bound.is_read_only:
                raise Problem(403, "read-only", f"{namespace!r:.100} is in another storage, which {name} may only read")
            yield Objects(await self._opened(bound.url), bound.namespace)
            return
        if writes:  # through the engine, which has one order for all
            await self._doors.app(name).door()
        storage = storage_of(f"embedded://{quote(info.data)}")
        try:
            await storage.open()
        except UsageError as e:
            raise Problem(404, "no-data", f"{name} has not run yet: {e}") from None
        try:
            yield Objects(storage, namespace)
        finally:
            await storage.close()

    async def _opened(self, url: str) -> Storage:
        """Another storage, which stays open.

        Raises:
            StorageFailed: it cannot be used.
        """
        async with self._opening:
            if url not in self._others:
                storage = storage_of(url)
                try:
                    await storage.open()
                except UsageError as e:
                    raise StorageFailed(str(e)) from None
                self._others[url] = storage
        return self._others[url]

    async def _namespaces(self, request: Request) -> Response:
        """Those in which there is something, and those in other storages."""
        name = request.path_params["app"]
        self._may(request, name, "read")
        info = await self._doors.look(name)
        if info is None:
            raise no_app(name)
        bound = await self._doors.ask("storages", {"name": name}, dict[str, Bound])
        try:
            own = await asyncio.to_thread(namespaces_in, info.data)
        except UsageError:  # it has not run yet
            own = []
        found = dict.fromkeys(own, "") | {each: where.url.partition("://")[0] for each, where in bound.items()}
        return as_json({"namespaces": [{"name": each, "storage": where} for each, where in sorted(found.items())]})

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        limit = query.get("limit", "100")
        if not limit.isdecimal() or not 1 <= int(limit[:9]) <= _PAGE:
            raise BadArgument(f"limit: a number from 1 to {_PAGE:,}, not {limit!r:.60}")
        async with self._objects(request, "read") as objects:
            page = await objects.page(
                query.get("prefix", ""), query.get("position", ""), int(limit), tags=query.getlist("tag")
            )
        return as_json({"objects": list(page.items), "position": page.position})

    async def _get(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as stack:
            objects = await stack.enter_async_context(self._objects(request, "read"))
            key = request.path_params["key"]
            about = await objects.stat(key)
            if about is None:
                raise Problem(404, "no-object", f"there is no object {key!r:.200}")
            headers = headers_of(about)
            if is_named(request.headers.get("if-none-match", ""), about):
                return Response(status_code=304, headers=headers)
            wanted = request.headers.get("if-match", "")
            if wanted and not is_named(wanted, about):
                raise Problem(412, "conflict", f"{key!r:.200} is version {about.version}")
            start, end = range_of(request, about)
            status = 200
            if (start, end) != (0, about.size):
                status, headers["content-range"] = 206, f"bytes {start}-{end - 1}/{about.size}"
            headers["content-length"] = str(end - start)
            if request.method == "HEAD":
                return Response(status_code=status, headers=headers)
            found = await stack.enter_async_context(objects.open(key, start, None if end == about.size else end))
            if found is None or found.about.version != about.version:
                raise Problem(409, "conflict", f"{key!r:.200} was written just now; ask again")
            opened = stack.pop_all()

        async def body() -> AsyncIterator[bytes]:
            async with opened:
                async for chunk in found.chunks:
                    yield chunk

        return StreamingResponse(body(), status, headers)

    async def _put(self, request: Request) -> Response:
        """Durable when the answer comes."""
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "media-type", "an object is stored as it comes: without Content-Encoding")
        if "upload" in request.query_params:
            return await self._uploads.part(request)
        options = described_by(request)
        if "emit" in request.query_params:
            return await self._put_and_emit(request, options)
        key = request.path_params["key"]
        async with self._objects(request, "emit", writes=True) as objects:
            options |= await condition_of(request, objects, key)
            about = await or_412(lambda: objects.put(key, request.stream(), **options))
        return as_json(about, headers={"etag": f'"{about.version}"'})

    async def _put_and_emit(self, request: Request, options: dict[str, Any]) -> Response:
        """With an event that tells of it, by one commit."""
        if has_conditions(request):
            raise BadArgument("with emit= an object is written without a condition")
        slot, key = request.query_params["emit"], check_key(request.path_params["key"])
        place = Place(request.path_params["namespace"], key)
        async with self._objects(request, "emit", writes=True, own=True) as objects:
            put, both = objects.described(**options), objects.storage.write_and_emit
            about = await or_412(lambda: both(place, request.stream(), put, lambda about: told_of(slot, place, about)))
        return as_json(about)

    async def _remove(self, request: Request) -> Response:
        if "upload" in request.query_params:
            return await self._uploads.abort(request)
        key = request.path_params["key"]
        async with self._objects(request, "emit", writes=True) as objects:
            wanted = await condition_of(request, objects, key)
            if wanted.pop("if_absent", False):
                if (about := await objects.stat(key)) is not None:
                    raise Problem(412, "conflict", f"{key!r:.200} is version {about.version}")
                raise Problem(404, "no-object", f"there is no object {key!r:.200}")
            if not await or_412(lambda: objects.remove(key, **wanted)):
                raise Problem(404, "no-object", f"there is no object {key!r:.200}")
        return Response(status_code=204)
