"""The dashboard: files of this package, which a browser gets as they are."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_KINDS: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class File:
    """One of them. ``etag``: of what is in it."""

    def __init__(self, name: str, content: bytes) -> None:
        self.content = content
        self.kind = f"{_KINDS[name[name.rindex('.') :]]}; charset=utf-8"
        self.etag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'

    def answer(self, known: str) -> Response:
        """``known``: the etag of what the browser has."""
        headers = {**HEADERS, "cache-control": "no-cache", "etag": self.etag}
        if known == self.etag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers={**headers, "content-type": self.kind})


def routes() -> list[Route]:
    """Of the page and what it is made of: there is nothing in them that somebody may not see."""
    folder = resources.files("grape.gateway") / "dashboard"
    files = {file.name: File(file.name, file.read_bytes()) for file in folder.iterdir() if "." in file.name[1:]}

    async def page(request: Request) -> Response:
        return files["index.html"].answer(request.headers.get("if-none-match", ""))

    async def part(request: Request) -> Response:
        found = files.get(request.path_params["file"])
        if found is None:
            return Response(status_code=404)
        return found.answer(request.headers.get("if-none-match", ""))

    return [
        Route("/", page, methods=["GET"]),
        Route("/dashboard/{file}", part, methods=["GET"]),
    ]
