"""Whether the home of a server is whole, also while it runs: packages, what is installed, tokens, leftovers."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from grape.apps import environment
from grape.apps.package import digest_of
from grape.errors import Corrupt, GrapeError, UsageError
from grape.gateway.access import FILE as TOKENS
from grape.gateway.access import read as read_tokens
from grape.processes.profile_file import load_profiles
from grape.server.audit import FILE as AUDIT
from grape.server.config import FILE as CONFIG
from grape.server.config import read_file
from grape.server.home import Home, Installed
from grape.server.users import FILE as USERS


class Finding(Struct, frozen=True):
    """``is_damage``: something does not work, or is not as safe as it has to be; else it only takes room. ``remedy``:
    what to do."""

    what: str
    remedy: str
    is_damage: bool = True


def check_home(home: Home) -> Iterator[Finding]:
    """What is not as it should be.

    Raises:
        UsageError: there is no home.
    """
    if not home.path.is_dir():
        raise UsageError(f"{home.path}: there is no such directory")
    if not home.packages.is_dir() or not home.apps.is_dir():
        raise UsageError(f"{home.path} is no home of a server: it has no packages/ and no apps/")
    yield from _check_modes(home)
    installed, damaged = [], []
    for name in home.names():
        try:
            installed.append(home.installed(name))
        except Corrupt as e:
            damaged.append(Finding(str(e), "restore it from a backup: grape restore"))
    yield from damaged
    yield from _check_packages(home, installed, knows_all=not damaged)
    yield from _check_files(home)
    yield from _check_left(home)


def _check_modes(home: Home) -> Iterator[Finding]:
    """What may be read or changed by others."""
    for path in (home.path, home.path / TOKENS, home.path / "control", home.path / AUDIT, *home.apps.glob("*/data")):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue
        right = 0o711 if path == home.path and (home.path / USERS).exists() else 0o700 if path.is_dir() else 0o600
        if mode & ~right & 0o077:
            yield Finding(f"{path}: others may use it ({mode:04o})", f"chmod {right:o} {path}")


def _check_packages(home: Home, apps: list[Installed], *, knows_all: bool) -> Iterator[Finding]:
    used: set[str] = set()
    for app in apps:
        digests = [version.digest for version in app.versions]
        for role, digest in (("runs", app.current), ("ran before", app.previous), ("is being tried", app.trying)):
            if digest and digest not in digests:
                yield Finding(f"{app.name}: the version that {role}, {digest[:12]}, is none of its versions", _AGAIN)
        for version in app.versions:
            used.add(version.digest)
            fault = _fault_of(home.package(version.digest), version.digest)
            if fault:
                yield Finding(f"{app.name} {version.version}: its package {version.digest[:12]} {fault}", _AGAIN)
                continue
            key = environment.key_of(home.package(version.digest))
            if version.digest == app.current and key is not None and not (home.environments / key).is_dir():
                asked = " and ".join(environment.asks(home.package(version.digest)))
                text = f"{app.name} {version.version}: what {asked} asks for is not installed"
                yield Finding(text, f"it is at the next start: grape app restart {app.name}")
    for place in sorted(home.packages.iterdir()) if knows_all else ():
        if not place.name.startswith(".") and place.name not in used:
            yield Finding(f"{place}: a package of no app", "it goes with the next upload", is_damage=False)


_AGAIN = "upload it again: grape app upload DIR"


def _fault_of(place: Path, digest: str) -> str:
    if not place.is_dir():
        return "is not there"
    for folder, _, names in os.walk(place):
        if "__pycache__" in folder.split(os.sep):
            continue
        for name in names:
            if stat.S_IMODE(os.lstat(os.path.join(folder, name)).st_mode) & 0o022:
                return f"can be written by others: {name}"
    try:
        found = digest_of(place)  # without what interpreters have put beside the code
    except (GrapeError, OSError) as e:
        return f"cannot be read: {e}"
    return "" if found == digest else f"has been changed: it is {found[:12]} now"


def _check_files(home: Home) -> Iterator[Finding]:
    checks = [(home.path / TOKENS, read_tokens), (home.path / CONFIG, read_file)]
    checks += [(path, lambda path: load_profiles(str(path), {})) for path in sorted(home.profiles.glob("*.toml"))]
    for path, read in checks:
        if path.exists():
            try:
                read(path)
            except GrapeError as e:
                yield Finding(str(e), "mend it, or take it away")


def _check_left(home: Home) -> Iterator[Finding]:
    """What was begun and not finished; a server that starts takes most of it away."""
    patterns = (
        (home.packages, ".new-*"),
        (home.path, ".restore-*"),
        (home.path, "*.new"),
        (home.incoming, "*"),
        (home.environments, ".new-*"),
        (home.apps, "*/app.json.new"),
    )
    how = "perhaps it is being made" if home.is_served else "nothing uses it"
    for place, pattern in patterns:
        for left in sorted(place.glob(pattern)) if place.is_dir() else ():
            yield Finding(f"{left}: begun and not finished; {how}", f"if it stays: rm -r {left}", is_damage=False)
    for place in sorted(home.apps.iterdir()):
        if place.is_dir() and not (place / "app.json").exists():
            text = f"{place}: it has no app.json, so no app of it is known"
            yield Finding(text, "restore app.json from a backup; or, if nothing of it is needed, remove it")
