"""What a request says of an object: what it gets, and what has to be there (RFC 9110, 13)."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import quote, unquote

from starlette.requests import Request

from grape.errors import BadArgument
from grape.gateway.problems import Problem
from grape.model.objects import OCTETS, About
from grape.storage.objects import Objects

USER: Final = "x-grape-user-"
TAGS: Final = "x-grape-tags"
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def described_by(request: Request) -> dict[str, Any]:
    """As options of `Objects.put`.

    Raises:
        BadArgument: it cannot be.
    """
    headers = request.headers
    found: dict[str, Any] = {
        "content_type": headers.get("content-type", OCTETS),
        "tags": [_text(tag, TAGS) for tag in headers.get(TAGS, "").split(",") if tag],
        "user": {name.removeprefix(USER): _text(v, name) for name, v in headers.items() if name.startswith(USER)},
    }
    if "ttl" in request.query_params:
        found["ttl"] = ttl_of(request)
    return found


def ttl_of(request: Request) -> float:
    try:
        return float(request.query_params["ttl"])
    except ValueError:
        raise BadArgument("ttl: seconds") from None


def headers_of(about: About) -> dict[str, str]:
    headers = {
        "content-type": about.content_type,
        "etag": f'"{about.version}"',
        "accept-ranges": "bytes",
        "x-grape-checksum": about.checksum,
        "x-grape-time": str(about.time),
        "x-content-type-options": "nosniff",
        # What an object is, is for whoever asked: no page of this origin.
        "content-security-policy": "default-src 'none'; sandbox",
        "content-disposition": "attachment",
    }
    if about.tags:
        headers[TAGS] = ",".join(quote(tag) for tag in about.tags)
    return headers | {f"{USER}{name}": quote(value) for name, value in about.user.items()}


def is_named(header: str, about: About) -> bool:
    names = _names(header)
    return "*" in names or about.version in names


def has_conditions(request: Request) -> bool:
    return "if-match" in request.headers or "if-none-match" in request.headers


async def condition_of(request: Request, objects: Objects, key: str) -> dict[str, Any]:
    """What has to hold for a write, as options of `Objects.put`. What names several versions, or any, is compared with
    what is there, and holds as long as that stays.

    Raises:
        Problem: it does not hold.
    """
    matches, others = (request.headers.get(name, "").strip() for name in ("if-match", "if-none-match"))
    names = _names(matches)
    if not others and len(names) == 1 and names != ["*"]:
        return {"if_version": names[0]}
    if not matches and _names(others) == ["*"]:
        return {"if_absent": True}
    if not matches and not others:
        return {}
    about = await objects.stat(key)
    if (matches and (about is None or not is_named(matches, about))) or (about and others and is_named(others, about)):
        what = "not there" if about is None else f"version {about.version}"
        raise Problem(412, "conflict", f"{key!r:.200} is {what}")
    return {"if_absent": True} if about is None else {"if_version": about.version}


def range_of(request: Request, about: About) -> tuple[int, int]:
    """The first byte, and the one behind the last: all of it if no range is asked for, or one of another version.

    Raises:
        Problem: there is nothing.
    """
    header, size = request.headers.get("range", ""), about.size
    since = request.headers.get("if-range")
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]) or (since is not None and since.strip() != f'"{about.version}"'):
        return 0, size  # none, or several: all of it
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start, end = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
    if start >= end:
        raise Problem(416, "range", f"there are {size} bytes", headers={"content-range": f"bytes */{size}"})
    return start, end


def _names(header: str) -> list[str]:
    return [each.strip().removeprefix("W/").strip('"') for each in header.split(",") if each.strip()]


def _text(encoded: str, what: str) -> str:
    try:
        return unquote(encoded, errors="strict")
    except UnicodeDecodeError:
        raise BadArgument(f"{what}: percent-encoded UTF-8, not {encoded!r:.100}") from None
