"""Who may do what: tokens with scopes, and which pages of browsers may ask at all.

A token is 32 random bytes; what is stored of it is its SHA-256, so nobody learns tokens from the disk, and to compare
takes as long whatever was asked. A scope is ``APP:VERB`` with ``*`` for all apps: emit (and call), read, admin.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import secrets
import time
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from grape.errors import Corrupt, UsageError
from grape.gateway.problems import Problem
from grape.store.files import write_durably

Verb = Literal["emit", "read", "admin"]

PREFIX: Final = "grape_"
ANYBODY: Final = "anybody"
"""Of this machine, where no token is needed."""
FILE: Final = "tokens.json"
_SCOPE: Final = re.compile(r"(\*|[a-z0-9][a-z0-9_.-]{0,63}):(emit|read|admin|\*)")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_LOOK: Final = 0.02
"""Seconds that a token which was taken back may still be taken for good."""
_MOST: Final = 1_000
_LONGEST: Final = 1_000
"""Of what was granted: how much is remembered, and of how many characters at most."""
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class Token(Struct, frozen=True):
    """``sha256``: of the token, hexadecimal. ``expires``: seconds of wall time; None: never."""

    name: str
    sha256: str
    scopes: tuple[str, ...]
    created: float
    expires: float | None = None


def create(path: Path, name: str, scopes: tuple[str, ...], expires: float | None = None) -> str:
    """Make a token; what is returned is nowhere else.

    Raises:
        UsageError: a name or scope that cannot be one, or is taken.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r:.100} cannot be the name of a token: letters, digits, '_', '.', '@' and '-'")
    for scope in scopes:
        if not _SCOPE.fullmatch(scope):
            raise UsageError(f"{scope!r:.100} is no scope: APP:emit, APP:read, APP:admin or APP:*; APP may be *")
    known = read(path)
    if any(token.name == name for token in known):
        raise UsageError(f"there is a token {name!r} already; take it back first: grape token revoke {name}")
    text = PREFIX + secrets.token_urlsafe(32)
    _write(path, [*known, Token(name, _hash(text), scopes, time.time(), expires)])
    return text


def revoke(path: Path, name: str) -> None:
    """
    Raises:
        UsageError: there is none of that name.
    """
    known = read(path)
    kept = [token for token in known if token.name != name]
    if len(kept) == len(known):
        raise UsageError(f"there is no token {name!r:.100}; there are {', '.join(t.name for t in known) or 'none'}")
    _write(path, kept)


def read(path: Path) -> list[Token]:
    """
    Raises:
        Corrupt: the file cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Token])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as e:
        raise Corrupt(f"{path}: the tokens cannot be read: {e}") from None


def _write(path: Path, tokens: list[Token]) -> None:
    write_durably(path, msgspec.json.format(msgspec.json.encode(tokens)).decode())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Access:
    """
    Args:
        path: of the file with the tokens, which may change at any time.
        is_open: without a file of tokens everybody may do everything; it is for whoever is on this machine.
        origins: of pages that browsers may ask from, beside those of the gateway itself.
    """

    def __init__(self, path: Path, *, is_open: bool, origins: frozenset[str] = frozenset()) -> None:
        self._path = path
        self._is_open = is_open
        self._origins = origins
        self._tokens: dict[str, Token] = {}
        self._stamp: tuple[int, int] | None = None
        self._look_at = 0.0
        self._granted: dict[tuple[bytes, bytes, bytes, str, Verb], float] = {}
        """What was asked and granted, until when: as long as the tokens are the same."""

    def check(self, headers: dict[bytes, bytes], app: str, verb: Verb) -> None:
        """Whether whoever sends these headers may do that with the app ("": with none).

        Raises:
            Problem: he may not.
        """
        self._load()
        said = headers.get
        asked = said(b"authorization", b""), said(b"origin", b""), said(b"host", b""), app, verb
        if self._granted.get(asked, 0.0) > time.time():
            return
        until = self._checked(headers, app, verb)
        if sum(map(len, asked)) <= _LONGEST:
            if len(self._granted) >= _MOST:
                self._granted.clear()
            self._granted[asked] = until

    def _checked(self, headers: dict[bytes, bytes], app: str, verb: Verb) -> float:
        """Until when that is so."""
        token = self._token(headers)
        if token is None:
            return math.inf
        if not any(_covers(scope, app, verb) for scope in token.scopes):
            raise Problem(403, "forbidden", f"the token {token.name!r} is not for {app or '*'}:{verb}")
        return math.inf if token.expires is None else token.expires

    def who(self, headers: dict[bytes, bytes]) -> str:
        """Who sends these headers.

        Raises:
            Problem: nobody who is known.
        """
        self._load()
        token = self._token(headers)
        return ANYBODY if token is None else f"token {token.name}"

    def admin_of(self, headers: dict[bytes, bytes]) -> tuple[str, ...] | None:
        """Of which apps whoever sends these headers may change everything, also before they are there; None: of all.

        Raises:
            Problem: of none.
        """
        self._load()
        token = self._token(headers)
        if token is None:
            return None
        scopes = [scope.partition(":") for scope in token.scopes]
        apps = tuple(app for app, _, verb in scopes if verb in ("admin", "*"))
        if not apps:
            raise Problem(403, "forbidden", f"the token {token.name!r} is not for the admin of any app")
        return None if "*" in apps else apps

    def _token(self, headers: dict[bytes, bytes]) -> Token | None:
        """None: nobody needs one.

        Raises:
            Problem: there is none that is known.
        """
        self._check_page(headers)
        if self.asks_nobody:
            return None
        kind, _, text = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if kind.lower() != "bearer" or not text:
            raise _who("a token is needed: Authorization: Bearer grape_...")
        token = self._find(text.strip())
        if token is None:
            raise _who("this token is not known, or not any more")
        if token.expires is not None and token.expires <= time.time():
            raise _who("this token has expired")
        return token

    @property
    def asks_nobody(self) -> bool:
        """There never was a token. Who takes the last one back does not mean that everybody may do everything."""
        return self._is_open and self._stamp is None

    def _find(self, text: str) -> Token | None:
        wanted = _hash(text)
        found = None
        for sha256, token in self._tokens.items():
            if hmac.compare_digest(sha256, wanted):
                found = token
        return found

    def _load(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK
        try:
            about = os.stat(self._path)
            stamp: tuple[int, int] | None = (about.st_mtime_ns, about.st_ino)
        except FileNotFoundError:
            stamp = None
        if stamp != self._stamp:
            self._granted.clear()
            self._tokens = {token.sha256: token for token in read(self._path)}
            self._stamp = stamp

    def _check_page(self, headers: dict[bytes, bytes]) -> None:
        """A page of others, in the browser of somebody who may ask, may not; nor may one whose name was made to lead
        here."""
        origin = headers.get(b"origin")
        host = headers.get(b"host", b"").decode("latin-1")
        if self.asks_nobody and host.rpartition(":")[0].strip() not in _LOCAL and host not in _LOCAL:
            text = f"without tokens this is for {', '.join(sorted(_LOCAL))} only, not {host!r:.100}"
            raise Problem(403, "forbidden", text)
        if origin is None:
            return
        said = origin.decode("latin-1")
        if said not in self._origins and said.partition("://")[2] != host:
            raise Problem(403, "forbidden", f"pages of {said!r:.200} may not ask here")


def _covers(scope: str, app: str, verb: Verb) -> bool:
    apps, _, verbs = scope.partition(":")
    return apps in ("*", app) and (verbs in ("*", verb) or (verbs == "admin" and verb == "read"))


def _who(text: str) -> Problem:
    return Problem(401, "unauthorized", text, None, {"www-authenticate": "Bearer"})
