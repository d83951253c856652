"""What goes wrong, as HTTP says it: a status, and `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from typing import Any, Final

from grape.errors import (
    BadArgument,
    BadPayload,
    CallFailed,
    Conflict,
    EngineError,
    Forbidden,
    Full,
    GrapeError,
    NoAnswer,
    TooLarge,
    UnknownEvent,
    Unsupported,
    UsageError,
)
from grape.model.values import BadValue

MEDIA: Final = "application/problem+json"
_STATUS: Final[tuple[tuple[type[GrapeError], int], ...]] = (
    # the first that fits
    (UnknownEvent, 404),
    (TooLarge, 413),
    (BadPayload, 422),
    (BadValue, 422),
    (BadArgument, 400),
    (CallFailed, 502),
    (Conflict, 409),
    (NoAnswer, 504),
    (Unsupported, 501),
    (Full, 429),
    (Forbidden, 403),
    (UsageError, 400),
    (EngineError, 503),
)
_TITLES: Final = {
    400: "Bad request",
    401: "Who is asking?",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "Conflict",
    412: "Not as was asked for",
    413: "Too large",
    415: "Unsupported media type",
    416: "Out of range",
    422: "Does not fit",
    429: "Full",
    431: "Header too large",
    500: "The gateway failed",
    501: "Unsupported",
    502: "The handler failed",
    503: "Not here now",
    504: "No answer in time",
}


class Problem(Exception):
    """An answer that is an error.

    Args:
        code: stable, for programs. detail: for people: what, and what to do.
        more: further members of the document. headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        more: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = headers or {}
        self.document: dict[str, Any] = {
            "type": f"urn:grape:{code}",
            "title": _TITLES.get(status, "Error"),
            "status": status,
            "detail": detail,
            "code": code,
            **(more or {}),
        }


def no_app(name: str) -> Problem:
    return Problem(404, "no-app", f"there is no app {name!r:.100} here")


def problem_of(error: GrapeError, status: int | None = None) -> Problem:
    """What is said of an error of an engine. ``status``: instead of the usual one."""
    found = status or next((number for kind, number in _STATUS if isinstance(error, kind)), 500)
    more: dict[str, Any] = {"retriable": error.retriable}
    if isinstance(error, CallFailed):
        more["node"] = error.node
    headers = {"retry-after": "1"} if found in (429, 503) else {}
    problem = Problem(found, error.code, str(error), more, headers)
    if isinstance(error, CallFailed):  # its code is the handler's own
        problem.document["type"] = f"urn:grape:{CallFailed.code}"
    return problem
