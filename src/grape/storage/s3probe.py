"""What a server of S3 keeps of what Amazon's does. Some take a condition that they do not know and write all the same:
it has to be tried."""

from __future__ import annotations

import secrets
from typing import Final

from msgspec import Struct

from grape.storage.s3calls import Calls
from grape.storage.s3errors import Refused

NEVER: Final = f'"{"0" * 32}"'
"""An ETag that nothing has."""


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
    ask = calls.ask
    below, beside = f"{begin}a/b", f"{begin}a!"

    def holds(method: str, condition: dict[str, str]) -> bool:
        """Whether the server refuses because of it."""
        try:
            ask(method, below, headers=condition, body=b"" if method == "DELETE" else b"1")
        except Refused as e:
            if e.refusal.was_unmet or e.refusal.code == "NoSuchKey":
                return True
            if e.refusal.status not in (400, 501):  # it knows no such header
                raise
        return False

    try:
        ask("PUT", below, body=b"1")
        ask("PUT", beside, body=b"1")
    except Refused as e:
        if e.refusal.status != 403:
            raise
        # These keys may only read: there is nothing to ask but who it is.
        who = ask("GET", query={"list-type": "2", "max-keys": "1"}).headers.get("server", "")
        return Found(completes=False, is_tree=who.startswith("SeaweedFS"))
    try:
        listed = ask("GET", query={"list-type": "2", "prefix": begin}).text
        return Found(
            absent=holds("PUT", {"if-none-match": "*"}),
            matches=holds("PUT", {"if-match": NEVER}),
            removes=holds("DELETE", {"if-match": NEVER}),
            completes=False,
            is_tree=listed.find("a/b</Key>") < listed.find("a!</Key>"),
        )
    finally:
        for key in (below, beside):
            ask("DELETE", key)
