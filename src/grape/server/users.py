"""A server that is root: the workers of each app are a user of that app alone.

What an app was given once no other app gets, also when it is gone, as what it has written may still be there. Jailed
workers (cgroup, sandbox, container) are users of their own anyway, each worker another one.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from grape.apps.manifest import Manifest
from grape.errors import Corrupt, UsageError
from grape.isolates import users
from grape.isolates.view import can_reach, is_open_to
from grape.model.profile import Profile
from grape.server.home import Home
from grape.store.files import write_durably

FILE: Final = "users.json"
RANGES: Final = ((0x70200000, 1 << 16), (65_184, 336))
"""First, and how many; the second where this user namespace is small. Beside those of `grape.isolates.users`."""
_PATH: Final = 0o711
"""Of a directory that others may go through, and not look into."""


class AppUsers:
    """
    Args:
        is_wanted: by who keeps the server.
    """

    def __init__(self, home: Home, *, is_wanted: bool) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._range = _range() if is_wanted and os.geteuid() == 0 else None

    @property
    def are_given(self) -> bool:
        """Apps are users of their own here, if what they need lets them in."""
        return self._range is not None

    def of(self, app: str) -> int | None:
        """Its user, the same for ever; None: there are none. Blocking.

        Raises:
            Corrupt: who is who cannot be read.
        """
        if self._range is None:
            return None
        first, count = self._range
        with self._lock:
            known = self._known()
            if app not in known:
                taken = set(known.values())
                # Another home on this host begins somewhere else.
                start = zlib.crc32(f"{self._home.path}\0{app}".encode())
                free = (first + (start + i) % count for i in range(count) if first + (start + i) % count not in taken)
                number = next(free, None)
                if number is None:
                    return None
                known[app] = number
                write_durably(self._home.path / FILE, msgspec.json.format(msgspec.json.encode(known)).decode())
            return known[app]

    def _known(self) -> dict[str, int]:
        place = self._home.path / FILE
        try:
            return msgspec.json.decode(place.read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as e:
            raise Corrupt(
                f"{place}: it cannot be read: {e}; restore it, or remove it: apps become other users"
            ) from None

    @staticmethod
    def let_others_in(package: Path, environment: Path | None, profiles: Iterable[Profile]) -> bool:
        """Let workers in jails read the code, if any pool has such: as root each jail has a user of its own. The
        directories above may stay closed. Blocking."""
        are_others = any(map(_is_other, profiles))
        if are_others and os.geteuid() == 0:
            for place in (package, environment):
                if place is not None:
                    _open(place, 0o755)
        return are_others

    def let_in(self, user: int, package: Path, environment: Path | None, *, are_others: bool) -> str:
        """Let it go where its code lies, and nobody else unless its operator names who (``are_others``). Blocking.

        Returns:
            "", or why its workers cannot be that user.
        """
        homes = [self._home.path, self._home.packages, *([self._home.environments] if environment is not None else [])]
        for needed in (*_runtime(), str(self._home.path)):
            if not can_reach(needed, user, user):
                return f"nobody but root may enter {_closed(needed, user)}, where {_what(needed)} lies"
        if not all(is_open_to(place, user, user) for place in _runtime()):
            return "nobody but root may read this Python"
        for path in homes:
            os.chmod(path, _PATH)
        os.chown(package, 0, user)
        _open(package, 0o755 if are_others else 0o750)
        if environment is not None:
            _open(environment, 0o755)
        return ""


def _is_other(profile: Profile) -> bool:
    """Its workers are users that nobody knows before."""
    isolate = profile.isolate
    return bool(isolate.keys() & {"uid", "gid"}) or isolate.get("type", "process") != "process"


def check_claims(manifest: Manifest) -> None:
    """
    Raises:
        UsageError: an app says itself which user it is.
    """
    for pool, section in manifest.pool.items():
        isolate: Any = section.get("isolate", {}) if isinstance(section, dict) else {}
        for key in ("uid", "gid"):
            if isinstance(isolate, dict) and key in isolate:
                raise UsageError(
                    f"[pool.{pool}.isolate] {key}: on this server every app is a user of its own; who keeps the server "
                    f"may say another one: grape profile set {manifest.name} FILE"
                )


def _range() -> tuple[int, int] | None:
    for first, count in RANGES:
        if users.has(first) and users.has(first + count - 1):
            return first, count
    return None


def _runtime() -> list[str]:
    """What a worker in Python reads."""
    return [
        os.path.realpath(sys.executable),
        sysconfig.get_path("stdlib"),
        str(Path(__file__).parents[1]),
        os.path.dirname(msgspec.__file__),
    ]


def _what(needed: str) -> str:
    return "this Python" if needed in _runtime() else "the home of the server"


def _closed(path: str, user: int) -> str:
    above = [str(parent) for parent in reversed(Path(path).parents)]
    return next((each for each in above if not can_reach(f"{each}/any", user, user)), path)


def _open(directory: Path, mode: int) -> None:
    """Its subdirectories are for everybody who is let into it."""
    for folder, names, _ in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755)
    os.chmod(directory, mode)
