"""What a server of S3 keeps of what Amazon's does. Some take a condition that they do not know and write all the same,
some look first and write then: it has to be tried, by several who come together."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from msgspec import Struct

from grape.storage.s3calls import Calls
from grape.storage.s3errors import Refused

NEVER: Final = f'"{"0" * 32}"'
"""An ETag that nothing has."""
_TOGETHER: Final = 3


class Found(Struct, frozen=True):
    """What a server does beside storing."""

    absent: bool = True
    matches: bool = True
    removes: bool = True
    completes: bool = True
    """The end of an upload in parts looks and writes as one step too. Asking once does not tell: SeaweedFS refuses it
    when the condition does not hold, but lets several through that come together. So only Amazon's is trusted, and to
    others what has a condition goes by one request, however large."""
    is_tree: bool = False
    """Its lists go through a tree, so that "a/b" is before "a!", and what is after "a" leaves out "a/b"."""


def probed(calls: Calls, prefix: str) -> Found:
    """Ask the server, by objects that nobody looks at and that are gone after it. Blocking.

    Raises:
        Refused: it cannot be asked.
    """
    begin = f"{prefix}.grape-probe/{secrets.token_hex(8)}/"
    below, beside = f"{begin}a/b", f"{begin}a!"
    try:
        calls.ask("PUT", beside, body=b"1")
    except Refused as e:
        if e.refusal.status != 403:
            raise
        # These keys may only read: there is nothing to ask but who it is.
        who = calls.ask("GET", query={"list-type": "2", "max-keys": "1"}).headers.get("server", "")
        return Found(completes=False, is_tree=who.startswith("SeaweedFS"))
    try:
        made = _let_through(calls, below, {"if-none-match": "*"})
        there = calls.ask("PUT", below, body=b"1").headers.get("etag", "")
        changed = _let_through(calls, below, {"if-match": there})
        listed = calls.ask("GET", query={"list-type": "2", "prefix": begin}).text
        return Found(
            absent=made == 1,
            matches=changed == 1 and _is_refused(calls, "PUT", below, NEVER),
            removes=_is_refused(calls, "DELETE", below, NEVER),
            completes=False,
            is_tree=listed.find("a/b</Key>") < listed.find("a!</Key>"),
        )
    finally:
        for key in (below, beside):
            calls.ask("DELETE", key)


def _let_through(calls: Calls, key: str, condition: dict[str, str]) -> int:
    """How many of some who come together; one, if the server looks and writes as one step."""

    def is_done(body: bytes) -> bool:
        try:
            # Once: a try that was done, but not answered, would be let through and refused.
            calls.ask("PUT", key, headers=condition, body=body, tries=1)
        except Refused as e:
            if e.refusal.was_unmet or e.refusal.is_gone:
                return False
            if e.refusal.status not in (400, 501):
                raise
            return False  # it knows no such header, and lets none through
        return True

    with ThreadPoolExecutor(_TOGETHER) as threads:
        return sum(threads.map(is_done, (b"%d" % i for i in range(2, 2 + _TOGETHER))))


def _is_refused(calls: Calls, method: str, key: str, etag: str) -> bool:
    """Because it is another one that is there."""
    try:
        calls.ask(method, key, headers={"if-match": etag}, body=b"" if method == "DELETE" else b"1")
    except Refused as e:
        if e.refusal.was_unmet or e.refusal.is_gone:
            return True
        if e.refusal.status not in (400, 501):
            raise
    return False
