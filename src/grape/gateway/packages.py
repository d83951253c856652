"""Packages over HTTP: what comes is written aside, bounded, and handed to the server, which alone has a store."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import uuid
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from grape.apps.signature import MAX_BYTES
from grape.gateway.access import Access
from grape.gateway.answers import as_json
from grape.gateway.bodies import media_of
from grape.gateway.doors import Doors, Who
from grape.gateway.problems import Problem
from grape.model.section import show_size
from grape.server.supervisor import Upload, Uploaded

AT_ONCE: Final = 2
"""Packages that come to a gateway at a time."""
_WRITE: Final = 1 << 20
_MEDIA: Final = frozenset(
    {"", "application/gzip", "application/x-gzip", "application/x-tar", "application/octet-stream"}
)


def who_asks(access: Access, request: Request) -> Who:
    """As the audit log has it."""
    client = request.client
    address = "" if client is None else f"{client.host}:{client.port}"
    return Who(access.who(dict(request.scope["headers"])), address)


def _signature(header: str) -> bytes:
    """
    Raises:
        Problem: it cannot be one.
    """
    try:
        found = base64.b64decode(header, validate=True)
    except ValueError:
        found = bytes(MAX_BYTES + 1)
    if len(found) > MAX_BYTES:
        raise Problem(400, "bad-argument", "grape-signature: the file of a signature, in base64")
    return found


class Packages:
    """
    Args:
        doors: of the apps, and of the server. access: who may do what. most: bytes of a package.
    """

    def __init__(self, doors: Doors, access: Access, most: int) -> None:
        self._doors = doors
        self._access = access
        self._most = most
        self._coming = 0

    def routes(self) -> list[Route]:
        return [Route("/packages", self._take, methods=["POST"])]

    async def _take(self, request: Request) -> Response:
        """Taken in as by `grape app upload`; nothing that runs changes."""
        apps = self._access.admin_of(dict(request.scope["headers"]))
        who = who_asks(self._access, request)
        media = media_of(dict(request.scope["headers"]).get(b"content-type", b""))
        if media not in _MEDIA:
            raise Problem(415, "media-type", f"a package comes as application/gzip, not as {media[:100]!r}")
        said = request.headers.get("content-length", "0")
        if said.isdecimal() and int(said) > self._most:
            raise self._too_large()
        if self._coming >= AT_ONCE:
            text = f"{AT_ONCE} packages are on their way already; ask again"
            raise Problem(429, "full", text, {"retriable": True}, {"connection": "close", "retry-after": "5"})
        signature = _signature(request.headers.get("grape-signature", ""))
        path = self._doors.home.incoming / f"{uuid.uuid4().hex}.tar.gz"
        self._coming += 1
        try:
            await self._write(request, path)
            found = await self._doors.ask_for(who, "upload", Upload(str(path), apps, signature), Uploaded)
        finally:
            self._coming -= 1
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        return as_json(found, 200 if found.is_known else 201, {"location": f"/apps/{found.name}"})

    async def _write(self, request: Request, path: Path) -> None:
        """
        Raises:
            Problem: it is too large, comes too slowly, or the disk does not take it.
        """
        size = 0
        waiting: list[bytes] = []
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb", 0) as file:
                async for piece in request.stream():
                    size += len(piece)
                    if size > self._most:
                        raise self._too_large()
                    waiting.append(piece)
                    if sum(map(len, waiting)) >= _WRITE:
                        await asyncio.to_thread(file.writelines, waiting)
                        waiting = []
                await asyncio.to_thread(file.writelines, waiting)
        except OSError as e:
            text = f"the server cannot keep the package: {e.strerror or e}"
            raise Problem(503, "no-room", text, {"retriable": True}, {"connection": "close"}) from None
        if not size:
            raise Problem(400, "bad-argument", "the body is the package: curl --data-binary @orders-1.tar.gz")

    def _too_large(self) -> Problem:
        text = f"a package of over {show_size(self._most)}, which its server takes at most (max-package)"
        return Problem(413, "too-large", text, None, {"connection": "close"})
