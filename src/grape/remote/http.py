"""How HTTP says it (docs/http.md), without I/O: requests out of what is asked, and what the answers mean."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from msgspec import Struct

from grape.client.calls import decoded_reply
from grape.client.connection import error_of
from grape.client.events import ClientEvent
from grape.client.programs import UNKNOWN
from grape.errors import (
    Away,
    BadArgument,
    CallFailed,
    EngineError,
    Forbidden,
    Full,
    GrapeError,
    NoAnswer,
    Unauthorized,
    Unreachable,
    UsageError,
)
from grape.model.values import BadValue, shown
from grape.remote.asked import Asked, Batch, Call, Emit, Heard, Order
from grape.server.hosted import AppInfo

PACKED: Final = "application/msgpack"
STREAM: Final = "text/event-stream"
MAX_WAIT: Final = 300.0
"""Seconds that a server lets one wait; who waits longer asks again."""
_PROBLEM: Final = "application/problem+json"
_LONGEST_PAUSE: Final = 3_600.0
_ID: Final = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
_TOKEN: Final = re.compile(r"[!-~]+")
_AGAIN: Final = frozenset({408, 429, 502, 503, 504})
"""Of whoever stands between, which do not say themselves whether it is worth it."""
_NOT_DONE: Final = frozenset({401, 403, 404, 405, 413, 415, 429, 431})
_BY_STATUS: Final[dict[int, type[GrapeError]]] = {
    401: Unauthorized,
    403: Forbidden,
    429: Full,
    502: Away,
    503: Away,
    504: NoAnswer,
}
_BY_CODE: Final[dict[str, type[GrapeError]]] = {
    "no-server": Away,
    "slow": NoAnswer,
    "http": UsageError,
    "method": UsageError,
    "no-page": UsageError,
    "media-type": UsageError,
    "unauthorized": Unauthorized,
    "forbidden": Forbidden,
}
"""Those that only HTTP has; the others are of `grape.errors`."""


class Request(Struct, frozen=True):
    """``path``: with its query. ``timeout``: seconds that nothing may come; None: any number."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    timeout: float | None = None


def url_of(url: object) -> str:
    """A server's address, without a slash at its end.

    Raises:
        BadArgument: it is none.
    """
    if type(url) is not str:
        raise BadArgument(f"url= is text, http://127.0.0.1:8080, not {shown(url)}")
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right or re.search(r"[\s\x00-\x1f]", url):
        raise BadArgument(f"{shown(url)} is no url of a server: http://127.0.0.1:8080, https://..., or door:DIRECTORY")
    if "@" in parts.netloc:
        raise BadArgument("the url has a name or password in it; who asks is said by token=")
    if parts.query or parts.fragment:
        raise BadArgument(f"{shown(url)}: a server's url ends before '?' and '#'")
    return url.rstrip("/")


def token_of(token: object) -> str:
    """What stands behind "Bearer"; it is shown in no error.

    Raises:
        BadArgument: it cannot be one.
    """
    if type(token) is not str or not _TOKEN.fullmatch(token.strip()):
        raise BadArgument("token= is text as `grape token create` prints it: visible letters, without spaces")
    return token.strip()


# ---------------------------------------------------------------------- what is asked


def request_of(asked: Asked, timeout: float | None) -> Request:
    """
    Raises:
        BadArgument: an id that cannot be said in a header.
    """
    match asked:
        case Emit():
            return _event_request(asked.app, asked.event, {}, {}, timeout)
        case Call():
            wait = MAX_WAIT if timeout is None else min(timeout, MAX_WAIT)
            query = {"wait": f"{max(wait, 0.001):.3f}"}
            return _event_request(asked.app, asked.event, query, {"accept": PACKED}, timeout)
        case Batch():
            body = msgspec.msgpack.encode([_item(event) for event in asked.events])
            return Request("POST", f"/apps/{asked.app}/events", {"content-type": PACKED}, body, timeout)
        case Order():
            return _order_request(asked, timeout)


def stream_request(call: Call, timeout: float | None) -> Request:
    """
    Raises:
        BadArgument: an id that cannot be said in a header.
    """
    request = request_of(call, timeout)
    return msgspec.structs.replace(request, headers={**request.headers, "accept": STREAM})


def _event_request(
    app: str, event: ClientEvent, query: dict[str, str], headers: dict[str, str], timeout: float | None
) -> Request:
    if not _ID.fullmatch(event.id):
        raise BadArgument(f"id=: over HTTP it has 1 to 255 letters of ASCII, not {shown(event.id)}")
    if event.key is not None:
        query["key"] = event.key
    if event.wait is not None:
        query["deadline"] = f"{event.wait / 1e6:.6f}"
    name = quote(event.name, safe="")
    if not name.strip("."):
        name = name.replace(".", "%2E")  # else it would be a way up
    path = f"/apps/{app}/events/{name}{'?' if query else ''}{urlencode(query)}"
    if event.trace:
        headers["traceparent"] = event.trace
    return Request("POST", path, {"content-type": PACKED, "idempotency-key": event.id, **headers}, event.data, timeout)


def _item(event: ClientEvent) -> dict[str, Any]:
    return {"event": event.name, "data": msgspec.Raw(event.data), "key": event.key, "id": event.id}


def _order_request(order: Order, timeout: float | None) -> Request:
    if order.verb in ("apps", "app"):
        return Request("GET", f"/apps/{order.app}".rstrip("/"), {}, b"", timeout)
    query = [("version", order.version)] if order.version else []
    query += [("drop-slot", slot) for slot in order.drop_slots]
    path = f"/apps/{order.app}/{order.verb}{'?' if query else ''}{urlencode(query)}"
    return Request("POST", path, {}, b"", timeout)


# ---------------------------------------------------------------------- what is answered


def heard_of(asked: Asked, url: str, status: int, headers: Mapping[str, str], body: bytes) -> Heard:
    """What an answer means. ``headers``: by small names."""
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == _PROBLEM:
        return _problem_heard(asked, url, status, headers, body)
    if 200 <= status < 300:
        try:
            return Heard(_value_of(asked, status, media, body))
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
            return Heard(error=UsageError(f"{url}: what answers there is no server of Grape ({media or 'no type'})"))
    if 300 <= status < 400:
        return Heard(error=UsageError(f"{url} has moved to {shown(headers.get('location', ''))}; say that url instead"))
    kind = _BY_STATUS.get(status, EngineError if status >= 500 else UsageError)
    error = kind(f"{url}: what answers there says {status}, and not as a server of Grape does; is the url right?")
    return _failed(asked, error, status, status in _AGAIN, _pause(headers))


def sent_problem(call: Call, url: str, data: bytes) -> Heard:
    """Of an error among server-sent events."""
    return _problem_heard(call, url, 500, {}, data)


def lost(asked: Asked, url: str, why: str, *, was_sent: bool, again: bool, is_stranger: bool) -> Heard:
    """No answer came. ``was_sent``: some of the question may have arrived."""
    if not was_sent:
        text = f"{url} cannot be reached: {why}; does the server run (grape serve), and is the url right?"
        return Heard(error=Unreachable(text), again=again, is_stranger=is_stranger)
    what = UNKNOWN if not isinstance(asked, Order) else "it is not known whether it was done"
    again = again and (not isinstance(asked, Order) or asked.is_harmless)
    return Heard(error=NoAnswer(f"{url}: {why}; {what}"), again=again, is_open=True, is_stranger=is_stranger)


def _value_of(asked: Asked, status: int, media: str, body: bytes) -> Any:
    """
    Raises:
        MsgspecError, ValueError: no server of Grape says that.
    """
    match asked:
        case Emit():
            return msgspec.json.decode(body, type=_Accepted).accepted
        case Batch():
            accepted = msgspec.json.decode(body, type=_Accepted).accepted
            if accepted != len(asked.events):
                raise ValueError("of all that were sent")
            return accepted
        case Call():
            if status != 200 or media not in (PACKED, "application/json"):
                raise ValueError("no answer to a call")
            return decoded_reply(body) if media == PACKED else msgspec.json.decode(body)
        case Order():
            return msgspec.json.decode(body, type=tuple[AppInfo, ...] if asked.verb == "apps" else AppInfo)


def _problem_heard(asked: Asked, url: str, status: int, headers: Mapping[str, str], body: bytes) -> Heard:
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.MsgspecError, RecursionError):
        return _failed(asked, EngineError(f"{url}: an error that cannot be read ({status})"), status, False, None)
    again = status in (408, 503) if problem.retriable is None else problem.retriable
    heard = _failed(asked, _error_of(problem, url), problem.status or status, again, _pause(headers))
    if isinstance(asked, Batch) and problem.accepted is not None:
        first_untried = len(asked.events) - problem.untried
        refused = {refused.item for refused in problem.refused}
        untaken = tuple(i for i in range(len(asked.events)) if i in refused or i >= first_untried)
        heard = msgspec.structs.replace(heard, untaken=untaken)
    return heard


def _failed(asked: Asked, error: GrapeError, status: int, again: bool, pause: float | None) -> Heard:
    is_open = status not in _NOT_DONE and again
    if isinstance(asked, Order):
        again = again and (asked.is_harmless or not is_open)
    elif isinstance(error, Away) and error.code:
        is_open = False
    return Heard(error=error, again=again, is_open=is_open, pause=pause)


def _error_of(problem: _Problem, url: str) -> GrapeError:
    if problem.type == f"urn:grape:{CallFailed.code}":
        text = problem.detail.removeprefix(f"node {problem.node!r} failed: ")
        return CallFailed(problem.code, text, problem.node)
    if problem.code == BadValue.code:
        return BadValue(problem.detail)
    kind = _BY_CODE.get(problem.code)
    if kind is None:
        return error_of(problem.code, problem.detail)
    return kind(f"{url}: {problem.detail}")


def _pause(headers: Mapping[str, str]) -> float | None:
    """What Retry-After says: seconds, or a date."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        found = float(text)
    except ValueError:
        try:
            found = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(0.0, found), _LONGEST_PAUSE) if math.isfinite(found) else None


class _Accepted(Struct):
    accepted: int


class _Refused(Struct):
    item: int
    code: str = ""


class _Problem(Struct):
    detail: str = ""
    code: str = ""
    type: str = ""
    status: int = 0
    node: str = ""
    retriable: bool | None = None
    accepted: int | None = None
    refused: list[_Refused] = []
    untried: int = 0
