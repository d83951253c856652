"""OTLP over HTTP: one request, and what its answer means."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import ssl
from typing import Final
from urllib.parse import urlsplit

from grape.traces.settings import Settings

LATER: Final = frozenset({408, 429, 500, 502, 503, 504})
"""What the collector may take when it is asked again."""
_MAX_ANSWER: Final = 1 << 16


def post(settings: Settings, body: bytes) -> tuple[int, float | None]:
    """The status of its answer, and after how many seconds it wants to be asked again. Blocking.

    Raises:
        OSError, HTTPException: there is none.
    """
    parts = urlsplit(settings.url)
    headers = {"content-type": "application/json", **settings.headers}
    if settings.packs:
        body, headers["content-encoding"] = gzip.compress(body, 1), "gzip"
    host, port = parts.hostname or "", parts.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=settings.timeout, context=ssl.create_default_context())
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=settings.timeout)
    )
    with contextlib.closing(connection):
        path = parts.path or "/"
        connection.request("POST", f"{path}?{parts.query}" if parts.query else path, body, headers)
        answer = connection.getresponse()
        answer.read(_MAX_ANSWER)
        wait = answer.headers.get("retry-after", "").strip()
        return answer.status, float(wait) if wait.isdecimal() else None


def shown(settings: Settings) -> str:
    """Without what may be a secret."""
    parts = urlsplit(settings.url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
