"""The home of a server: what is installed in it, and where everything lies.

    HOME/lock                 held by the one server
    HOME/control              its socket, for its user alone
    HOME/packages/DIGEST/     the code of apps, read-only, each named by what is in it
    HOME/apps/NAME/app.json   what is installed of an app, and whether it is to run
    HOME/apps/NAME/data/      its engine's directory
    HOME/apps/NAME/log/       what it printed
    HOME/environments/KEY/    what the Python code of apps needs beside it
    HOME/incoming/            packages that are on their way
    HOME/profiles/NAME.toml   how its operator keeps and confines it

Everything that says something is replaced as a whole and durable before anybody is told.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct, structs

from grape.apps import environment, package
from grape.apps.manifest import APP, Manifest, manifest_of
from grape.errors import Corrupt, Forbidden, InUse, UsageError
from grape.model.levels import Levels
from grape.model.near import did_you_mean
from grape.store.files import fsync_directory, make_directory, write_durably

KEPT: Final = 10
"""Versions of an app; older ones go, but never the one that runs or ran before."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

Wanted = Literal["running", "stopped"]


class Version(Struct, frozen=True):
    """A package of an app. ``version``: as its manifest calls it. ``at``: when it came, seconds of wall time."""

    digest: str
    version: str
    at: float


class Installed(Struct, frozen=True):
    """What is known of an app.

    Args:
        versions: the newest last.
        current: digest of the one that runs, or would. previous: of the one before.
        trying: one that is being changed to: whether it has begun is not known yet.
        wanted: what its operator wants, also after the next start of the server.
        is_paused: its workers are given nothing, at the operator's wish.
        levels: how much its handlers log, as its operator says.
        is_parked: it had nothing to do. due: until then; seconds of wall time, None: for ever.
        events: to which the one that ran last listens; None: none has run.
        repository: the version of what its server's repository says of it, as it was written or read last.
    """

    name: str
    versions: tuple[Version, ...] = ()
    current: str = ""
    previous: str = ""
    trying: str = ""
    wanted: Wanted = "stopped"
    is_paused: bool = False
    levels: Levels = {}
    is_parked: bool = False
    due: float | None = None
    events: tuple[str, ...] | None = None
    repository: str = ""

    def version(self, digest: str) -> Version | None:
        return next((version for version in self.versions if version.digest == digest), None)

    def find(self, text: str) -> Version:
        """The version of that name, or whose digest begins so; the newest of several.

        Raises:
            UsageError: there is none.
        """
        for version in reversed(self.versions):
            if version.version == text or (len(text) >= 6 and version.digest.startswith(text)):
                return version
        known = [version.version for version in self.versions]
        hint = did_you_mean(text, known, f"there are {', '.join(known) or 'none'}")
        raise UsageError(f"{self.name}: there is no version {text!r:.100}; {hint}")


class Home:
    """
    Args:
        path: made if it is not there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.packages = self.path / "packages"
        self.apps = self.path / "apps"
        self.profiles = self.path / "profiles"
        self.environments = self.path / "environments"
        self.incoming = self.path / "incoming"
        self._lock = -1

    def data(self, name: str) -> Path:
        """The data directory of an app."""
        return self.apps / name / "data"

    def log(self, name: str) -> Path:
        """The log of an app; older parts of it have a number more."""
        return self.apps / name / "log" / "app.log"

    def package(self, digest: str) -> Path:
        return self.packages / digest

    def profile(self, name: str) -> str | None:
        """How the operator keeps an app, if he has said."""
        path = self.profiles / f"{name}.toml"
        return str(path) if path.exists() else None

    # ------------------------------------------------------------------ the one server

    def open(self) -> None:
        """Take it, and clear away what an earlier server has left half done.

        Raises:
            InUse: another server has it.
            UsageError: it cannot be written.
        """
        try:
            for path in (self.path, self.packages, self.apps, self.profiles, self.incoming):
                make_directory(path)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise UsageError(f"{e.filename or self.path}: {e.strerror}; name another home for the server") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{self.path}: another server has it; `grape app list --home {self.path}` asks it") from None
        for left in (*self.packages.glob(".new-*"), *self.path.glob(".restore-*"), *self.incoming.glob("*")):
            _remove(left)

    def close(self) -> None:
        os.close(self._lock)

    @property
    def is_served(self) -> bool:
        """A server has it, or somebody who restores into it."""
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    # ------------------------------------------------------------------ what is installed

    def names(self) -> list[str]:
        """Of all apps."""
        return sorted(place.parent.name for place in self.apps.glob("*/app.json"))

    @staticmethod
    def may_be_installed(name: str) -> bool:
        return APP.fullmatch(name) is not None

    def is_installed(self, name: str) -> bool:
        return self.may_be_installed(name) and (self.apps / name / "app.json").exists()

    def installed(self, name: str) -> Installed:
        """
        Raises:
            Corrupt: what is known of it cannot be read.
        """
        place = self.apps / name / "app.json"
        try:
            found = msgspec.json.decode(place.read_bytes(), type=Installed)
        except (OSError, msgspec.MsgspecError) as e:
            raise Corrupt(f"{place}: it cannot be read: {e}; restore it, or move {place.parent} away") from None
        if found.name != name:
            raise Corrupt(f"{place}: it is of an app {found.name!r:.100}; move {place.parent} away")
        return found

    def note(self, app: Installed) -> None:
        """It is so from now on."""
        make_directory(self.apps / app.name)
        write_durably(self.apps / app.name / "app.json", msgspec.json.format(msgspec.json.encode(app)).decode())

    def forget(self, name: str) -> None:
        """Nothing stays of an app but the packages that others have too."""
        place = self.apps / name
        (place / "app.json").unlink(missing_ok=True)  # first: half an app is none
        fsync_directory(place)
        _remove(place)

    # ------------------------------------------------------------------ packages

    @staticmethod
    def may_be_package(digest: str) -> bool:
        return _DIGEST.fullmatch(digest) is not None

    def take_in(self, file: Path, apps: Collection[str] | None = None) -> tuple[str, Manifest]:
        """A package becomes part of the store; its name, and the manifest in it. Blocking. ``apps``: of one of which it
        has to be; None: of any.

        Raises:
            Forbidden: it is of another app.
            UsageError: it is none, and why; nothing of it is kept.
        """
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=self.packages))
        try:
            with open(file, "rb") as archive:
                package.unpack(archive, file.name, new)
            manifest = manifest_of(new)
            if apps is not None and manifest.name not in apps:
                raise Forbidden(f"a package of {manifest.name}, by who may change {', '.join(apps)}")
            digest = package.digest_of(new, whole=True)
            place = self.package(digest)
            if not place.exists():
                for folder, _, _ in os.walk(new):
                    fsync_directory(Path(folder))
                os.rename(new, place)
                fsync_directory(self.packages)
        except Forbidden:
            raise
        except UsageError as e:
            raise UsageError(str(e).replace(f"{new}/", "").replace(str(new), file.name)) from None
        except OSError as e:
            raise UsageError(f"{e.filename or file}: {e.strerror or e}") from None
        finally:
            _remove(new)
        return digest, manifest

    def checked(self, name: str, digest: str) -> Path:
        """Where the package of an app lies, which still is what it was.

        Raises:
            Corrupt: it is not.
        """
        place = self.package(digest)
        if not _DIGEST.fullmatch(digest) or not place.is_dir():
            raise Corrupt(f"{name}: its package {digest[:12]} is not in {self.packages}; upload it again")
        package.check(place, digest)
        return place

    def environment(self, package: Path) -> Path | None:
        """What the Python code in a package needs beside it, made if it is not there; None: it needs nothing. Blocking,
        perhaps minutes.

        Raises:
            UsageError: it cannot be had.
        """
        key = environment.key_of(package)
        if key is None:
            return None
        place = self.environments / key
        if not place.is_dir():
            environment.build(package, place)
        return place

    def drop_unused(self, apps: list[Installed]) -> None:
        """Packages of none of these."""
        used = {version.digest for app in apps for version in app.versions}
        for place in self.packages.iterdir():
            if _DIGEST.fullmatch(place.name) and place.name not in used:
                _remove(place)
        if self.environments.is_dir():
            kept = {environment.key_of(self.package(digest)) for digest in used}
            for place in self.environments.iterdir():
                if place.name not in kept:
                    _remove(place)


def with_version(app: Installed, digest: str, version: str) -> Installed:
    """``app`` with one package more, which is the newest."""
    others = [each for each in app.versions if each.digest != digest]
    kept = {app.current, app.previous, app.trying}
    while len(others) >= KEPT:
        oldest = next((each for each in others if each.digest not in kept), None)
        if oldest is None:
            break
        others.remove(oldest)
    return structs.replace(app, versions=(*others, Version(digest, version, time.time())))


def check_name(name: str) -> None:
    """Of an app.

    Raises:
        UsageError: no app can have it.
    """
    if not APP.fullmatch(name):
        raise UsageError(f"{name!r:.100} cannot be the name of an app: small letters, digits, '-', '_' and '.'")


def _remove(place: Path) -> None:
    """Also what is read-only."""
    for folder, _, _ in os.walk(place):
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
    if place.is_file() or place.is_symlink():
        place.unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
