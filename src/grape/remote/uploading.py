"""A package on its way to a server over HTTP, and run there: by the standard library alone, as the command line is to
start fast, and to need nothing more."""

from __future__ import annotations

import base64
import http.client
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final
from urllib.parse import urlsplit

import msgspec

from grape.apps.signature import signature_of
from grape.errors import EngineError, NoAnswer, Unreachable, UsageError
from grape.remote.asked import Order, Verb
from grape.remote.http import heard_of, request_of, token_of, url_of
from grape.server.hosted import AppInfo
from grape.server.supervisor import Uploaded

PATIENCE: Final = 900.0
"""Seconds that a server may take to install what a package requires."""


class Deployer:
    """A server that is spoken to over HTTP, one question after the other.

    Args:
        token: that it asks for; None: none.

    Raises:
        BadArgument: url or token cannot be one.
    """

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url_of(url)
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        self._base = parts.path.rstrip("/")
        self._headers = {} if token is None else {"authorization": f"Bearer {token_of(token)}"}
        self._http: http.client.HTTPConnection
        if parts.scheme == "https":
            tls = ssl.create_default_context()
            self._http = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=PATIENCE, context=tls)
        else:
            self._http = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)

    def __enter__(self) -> Deployer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def upload(self, file: Path) -> Uploaded:
        """Give it a package; nothing that runs changes. Uploaded again it is known already.

        Raises:
            UsageError: it is refused, and why.
            Refused, EngineError: the server is not there, or has failed.
        """
        headers = {"content-type": "application/gzip", "content-length": str(file.stat().st_size)}
        signature = signature_of(file)
        if signature:
            headers["grape-signature"] = base64.b64encode(signature).decode()
        with open(file, "rb") as content:
            status, answered, body = self._ask("POST", "/packages", headers, content)
        if status not in (200, 201):
            self._raise(status, answered, body)
        try:
            return msgspec.json.decode(body, type=Uploaded)
        except msgspec.MsgspecError:
            raise UsageError(f"{self.url}: what answers there is no server of Grape") from None

    def order(self, verb: Verb, name: str, version: str = "", drop_slots: tuple[str, ...] = ()) -> AppInfo:
        """As `grape.Client`'s method of this name.

        Raises:
            UsageError, Refused, EngineError: it cannot be, and why.
        """
        order = Order(verb, name, version, drop_slots)
        request = request_of(order, None)
        status, headers, body = self._ask(request.method, request.path, request.headers, request.body)
        heard = heard_of(order, self.url, status, headers, body)
        if heard.error is not None:
            raise heard.error
        info: AppInfo = heard.value
        return info

    def _raise(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        error = heard_of(Order("start"), self.url, status, headers, body).error
        raise error or EngineError(f"{self.url}: the server says {status}")

    def _ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes | IO[bytes]
    ) -> tuple[int, dict[str, str], bytes]:
        try:
            self._http.connect()
        except OSError as e:
            why = getattr(e, "verify_message", "") or e.strerror or str(e)
            raise Unreachable(
                f"{self.url} cannot be reached: {why}; does the server run, and is the url right?"
            ) from None
        try:
            answer = self._said(method, path, headers, body)
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        except (OSError, http.client.HTTPException) as e:
            raise NoAnswer(f"{self.url}: {e or type(e).__name__}; it is not known whether it was done") from None
        finally:
            self._http.close()

    def _said(self, method: str, path: str, headers: dict[str, str], body: Any) -> http.client.HTTPResponse:
        try:
            self._http.request(method, self._base + path, body, {**self._headers, **headers})
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has refused the rest, and says why
        return self._http.getresponse()
