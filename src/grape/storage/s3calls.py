"""Requests to S3 that obstore does not know: a page of a list, uploads in parts with a condition at their end, removal
with a condition. Blocking, for threads."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import random
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Final
from urllib.parse import parse_qsl, quote, urlsplit
from xml.etree import ElementTree

from msgspec import Struct

from grape.storage.s3errors import AGAIN, NO_ANSWER, Refusal, Refused, refusal_of
from grape.storage.s3keys import KeyRing, Keys

TRIES: Final = 6
PAUSE: Final = (0.1, 5.0)
"""Seconds before a request is tried again: doubled from the first, up to the second, with full jitter."""
_IDLE: Final = 16
"""Connections that are kept for the next request."""
_PIECE: Final = 1 << 18
_STALE: Final = 20.0
"""Seconds after which a connection nobody used is not trusted any more: servers close them."""


class Answer(Struct, frozen=True):
    """``headers``: names in small letters. ``unsure``: an earlier try of it may have been done too."""

    status: int
    headers: dict[str, str]
    body: bytes
    unsure: bool = False

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class Calls:
    """Requests to one bucket.

    Args:
        endpoint: "https://..", with or without a path. keys: None: nothing is signed.
        timeout: seconds without a byte in either direction.
    """

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        region: str,
        keys: KeyRing | None,
        timeout: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(endpoint)
        self._is_tls = parts.scheme == "https"
        self._host = parts.netloc
        self._base = f"{parts.path.rstrip('/')}/{quote(bucket, safe='~')}"
        self._region = region
        self._keys = keys
        self._timeout = timeout
        self._sleep = sleep
        self._proxy = urllib.request.getproxies().get(parts.scheme, "")
        if self._proxy and urllib.request.proxy_bypass(parts.hostname or ""):
            self._proxy = ""
        self._context = ssl.create_default_context() if self._is_tls else None
        self._lock = threading.Lock()
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def ask(
        self,
        method: str,
        key: str = "",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        tries: int = TRIES,
    ) -> Answer:
        """
        Args:
            key: as it is stored; "": the bucket.

        Raises:
            Refused: it is not done, as often as it was tried.
        """
        target = f"{self._base}/{quote(key, safe='/~')}" if key else self._base
        asked = "&".join(f"{quote(n, safe='~')}={quote(v, safe='~')}" for n, v in sorted((query or {}).items()))
        if asked:
            target = f"{target}?{asked}"
        longest, unsure = PAUSE[0], False
        for i in range(tries):
            if i:
                self._sleep(random.uniform(0, longest))
                longest = min(2 * longest, PAUSE[1])
            refusal, answer = self._once(method, target, headers or {}, body)
            if answer is not None and answer.status < 300:
                return Answer(answer.status, answer.headers, answer.body, unsure)
            unsure = unsure or refusal.status in AGAIN or (refusal.status == NO_ANSWER and refusal.why != "refused")
            if refusal.status != NO_ANSWER and refusal.status not in AGAIN:
                break
        raise Refused(refusal, unsure)

    def _once(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | memoryview
    ) -> tuple[Refusal, Answer | None]:
        scheme = "https" if self._is_tls else "http"
        keys = None if self._keys is None else self._keys.keys()
        full = signed(method, f"{scheme}://{self._host}{target}", headers, body, keys, self._region, time.time())
        full["content-length"] = str(len(body))
        connection = self._connection()
        try:
            # By the piece: the time-out of a socket counts for all that is handed to it at once.
            pieces = (body[at : at + _PIECE] for at in range(0, len(body), _PIECE))
            connection.request(method, target, pieces if body else None, full)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as e:
            connection.close()
            return Refusal(why=_why(e)), None
        if answer.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append((time.monotonic(), connection))
                del self._idle[:-_IDLE]
        found = {name.lower(): value for name, value in answer.getheaders()}
        done = Answer(answer.status, found, data)
        return refusal_of(answer.status, done.text[:10_000], found.get("x-amz-bucket-region", "")), done

    def _connection(self) -> http.client.HTTPConnection:
        with self._lock:
            while self._idle:
                used, connection = self._idle.pop()
                if time.monotonic() - used < _STALE:
                    return connection
                connection.close()
        host = urlsplit(self._proxy).netloc.rpartition("@")[2] if self._proxy else self._host
        if self._context is not None:
            made: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, timeout=self._timeout, context=self._context
            )
        else:
            made = http.client.HTTPConnection(host, timeout=self._timeout)
        if self._proxy:
            made.set_tunnel(self._host)
        return made


def elements(text: str, whole: str, name: str) -> Iterator[dict[str, str]]:
    """What each of the elements called so has, by name.

    Raises:
        ParseError: it is no ``whole`` in XML.
    """
    root = ElementTree.fromstring(text)
    if root.tag.rpartition("}")[2] != whole:
        raise ElementTree.ParseError(whole)
    for each in root:
        if each.tag.rpartition("}")[2] == name:
            yield {child.tag.rpartition("}")[2]: child.text or "" for child in each}


def text_in(text: str, name: str) -> str:
    """
    Raises:
        Refused: there is no such element.
    """
    try:
        for each in ElementTree.fromstring(text):
            if each.tag.rpartition("}")[2] == name and each.text:
                return each.text
    except ElementTree.ParseError:
        pass
    raise Refused(Refusal(200, "", f"no {name} in what it answers"), True)


def _why(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, TimeoutError):
        return "timeout"
    return "connect" if isinstance(error, OSError) and not isinstance(error, ConnectionError) else "broken"


def signed(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | memoryview,
    keys: Keys | None,
    region: str,
    now: float,
) -> dict[str, str]:
    """Its headers, and those of the signature ("AWS Signature Version 4"); without ``keys`` there is none."""
    full = {name.lower(): value for name, value in headers.items()}
    if keys is None:
        return full
    parts = urlsplit(url)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    summed = hashlib.sha256(body).hexdigest()
    full |= {"host": parts.netloc, "x-amz-date": stamp, "x-amz-content-sha256": summed}
    if keys.token:
        full["x-amz-security-token"] = keys.token
    names = sorted(full)
    query = sorted((quote(n, safe="~"), quote(v, safe="~")) for n, v in parse_qsl(parts.query, True))
    canonical = [
        method,
        parts.path or "/",
        "&".join(f"{name}={value}" for name, value in query),
        *(f"{name}:{' '.join(full[name].split())}" for name in names),
        "",
        ";".join(names),
        summed,
    ]
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    secret = f"AWS4{keys.secret}".encode()
    for each in scope.split("/"):
        secret = hmac.digest(secret, each.encode(), "sha256")
    canonical_sum = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    text = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, canonical_sum))
    signature = hmac.digest(secret, text.encode(), "sha256").hex()
    full["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.key}/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    return full
