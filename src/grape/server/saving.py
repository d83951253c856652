"""Backups of a server's home, while it runs, and homes made of them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, structs

from grape.apps import package
from grape.errors import Corrupt, Full, StorageFailed, UsageError
from grape.model.foreign import AT
from grape.model.near import did_you_mean
from grape.model.stored import SOURCE
from grape.server.config import FILE as CONFIG
from grape.server.home import Home, Installed, check_name
from grape.store.files import fsync_directory, make_directory
from grape.store.snapshot import Snapshot
from grape.tools.backup import Backup, Progress, Writer, read_backup, restore_files
from grape.tools.directory import Directory

TOKENS: Final = "tokens.json"

Ask = Callable[[str, object], msgspec.Raw]
"""A question to the server that runs on the home."""
HUSH: Final = 30.0
"""Seconds for which nothing goes between apps at most."""


class Hush(Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing goes from app to app, and no version changes, for so many seconds, or until the server is asked with 0.
    The answer: whether it was still so."""

    seconds: float


@contextmanager
def _hushed(ask: Ask | None) -> Iterator[None]:
    """What is seen meanwhile of several apps is of one moment: as if what carries events between them had died in it.

    Raises:
        Full: it took too long.
    """
    if ask is None:
        yield
        return
    ask("hush", Hush(HUSH))
    was_still = True
    try:
        yield
    finally:
        was_still = msgspec.msgpack.decode(ask("hush", Hush(0.0)), type=bool)
    if not was_still:
        raise Full(f"the apps could not be looked at within {HUSH:g} s; make the backup again, of fewer of them")


def back_up_data(source: Path, target: Path, progress: Progress, verify: bool) -> Backup:
    """One data directory.

    Raises:
        UsageError, EngineError: it cannot be; nothing is left of it then.
    """
    with Writer(target, progress) as writer:
        with _snapshot(source) as snapshot:
            at = time.time()
            writer.add_data(snapshot, "data")
        _verify(writer, ["data"], verify)
        return writer.finish("data", source.absolute(), at, (), is_whole=True)


def back_up_home(
    home: Home, apps: Sequence[str], target: Path, ask: Ask | None, progress: Progress, verify: bool
) -> Backup:
    """A home, or some ``apps`` of it, all at one moment. ``ask``: the server that runs on it; None: none does.

    Raises:
        UsageError, Refused, EngineError: it cannot be; nothing is left of it then.
    """
    if not home.apps.is_dir():
        raise UsageError(f"{home.path} is no home of a server: it has no apps/; of one data directory: --data DIR")
    known = home.names()
    for name in apps:
        if name not in known:
            raise UsageError(f"there is no app {name!r:.100}; {did_you_mean(name, known, _there_are(known))}")
    wanted = list(dict.fromkeys(apps)) or known
    with Writer(target, progress) as writer, ExitStack() as stack:
        held: dict[str, tuple[Installed, Snapshot | None]] = {}
        with _hushed(ask):
            at = time.time()
            for name in wanted:
                has_data = (home.data(name) / "format").exists()
                snapshot = stack.enter_context(_snapshot(home.data(name))) if has_data else None
                held[name] = home.installed(name), snapshot
        folders = []
        for name, (installed, snapshot) in held.items():
            writer.add_files(home.apps / name / "app.json", f"apps/{name}/app.json", name)
            _note(writer.place / "apps" / name / "app.json", installed)
            for version in installed.versions:
                if not (writer.place / "packages" / version.digest).exists():
                    writer.add_files(home.package(version.digest), f"packages/{version.digest}", name)
            if snapshot is not None:
                folders.append(f"apps/{name}/data")
                writer.add_data(snapshot, folders[-1])
                snapshot.close()  # its pages may be used again
        for name in ("profiles", TOKENS, CONFIG) if not apps else ():
            if (home.path / name).exists():
                writer.add_files(home.path / name, name, name)
        _verify(writer, folders, verify)
        return writer.finish("home", home.path, at, wanted, is_whole=not apps)


def _note(place: Path, installed: Installed) -> None:
    """As it was at that moment; it may be another since."""
    place.write_bytes(msgspec.json.format(msgspec.json.encode(installed)))
    with open(place, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _snapshot(directory: Path) -> Iterator[Snapshot]:
    if not (directory / "format").exists():
        what = "holds no data of Grape: it has no file 'format'" if directory.is_dir() else "there is no such directory"
        raise UsageError(f"{directory} {what}")
    snapshot = Snapshot(directory)
    try:
        yield snapshot
    finally:
        snapshot.close()


def _verify(writer: Writer, folders: list[str], wanted: bool) -> None:
    """
    Raises:
        Corrupt: something in it is damaged.
    """
    for folder in folders if wanted else ():
        found = writer.verify(folder)
        if found:
            raise Corrupt(f"{folder} is damaged, so the backup was not kept: {'; '.join(found[:10])}")


# ---------------------------------------------------------------------- back again


def restore_data(backup: Path, app: str | None, target: Path, progress: Progress) -> Backup:
    """One data directory: that of the backup, or that of an ``app`` in it.

    Raises:
        UsageError, EngineError: it cannot be; nothing is left of it then.
    """
    made = read_backup(backup)
    folder = "data"
    if made.kind == "home":
        (name,) = _chosen(backup, made, [app] if app else [])[:1] if app or len(made.apps) == 1 else ("",)
        if not name:
            raise UsageError(f"{backup} has several apps: say which one, {', '.join(made.apps)}; or restore it --home")
        folder = f"apps/{name}/data"
    elif app:
        raise UsageError(f"{backup} is of one data directory, in which there is no app of a server to choose")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already; name a directory that is not, or an empty one")
    with _staged(target.absolute().parent) as stage:
        if not restore_files(backup, made, folder, stage / "data", progress):
            raise UsageError(f"{backup}: {app or 'it'} has stored nothing yet")
        _move(stage / "data", target.absolute())
    return made


def restore_home(
    backup: Path, apps: Sequence[str], home: Home, progress: Progress, *, stopped: bool = False, force: bool = False
) -> list[str]:
    """Apps of a backup, into a home on which no server runs; returns their names.

    Args:
        stopped: they are not started with the server.
        force: also beside apps with which they have exchanged events.

    Raises:
        UsageError, EngineError: it cannot be. What is restored by then is whole; the rest is not there.
    """
    made = read_backup(backup)
    if made.kind != "home":
        raise UsageError(f"{backup} is of one data directory, not of a server: grape restore {backup} --data DIR")
    wanted = _chosen(backup, made, apps)
    if home.path.exists() and home.path.stat().st_uid != os.geteuid():
        raise UsageError(
            f"{home.path} is another user's, whose server could not use what is restored here: do it as that user"
        )
    home.open()
    try:
        there = home.names()
        for name in wanted:
            if name in there:
                raise UsageError(f"there is an app {name} in {home.path}; take it away first: grape app remove {name}")
            if (home.apps / name).exists():
                raise UsageError(
                    f"{home.apps / name} is in the way, and no app: perhaps of a restore that was cut off; remove it"
                )
        with _staged(home.path) as stage:
            installed = {name: _bring(backup, made, name, stage, progress) for name in wanted}
            if not force:
                _check_strangers(home, stage, wanted, there)
            for name in wanted:
                _put(home, stage, name, installed[name], stopped)
            for name in ("profiles", TOKENS, CONFIG) if made.is_whole and not apps else ():
                if not (home.path / name).exists() or name == "profiles":
                    _bring_beside(backup, made, name, stage, home, progress)
    finally:
        home.close()
    return wanted


def _chosen(backup: Path, made: Backup, apps: Sequence[str]) -> list[str]:
    for name in apps:
        check_name(name)
        if name not in made.apps:
            raise UsageError(
                f"{backup} has no app {name!r:.100}; {did_you_mean(name, made.apps, _there_are(made.apps))}"
            )
    return list(dict.fromkeys(apps)) or list(made.apps)


def _bring(backup: Path, made: Backup, name: str, stage: Path, progress: Progress) -> Installed:
    """All of an app, beside its place."""
    check_name(name)
    restore_files(backup, made, f"apps/{name}", stage / name, progress)
    try:
        installed = msgspec.json.decode((stage / name / "app.json").read_bytes(), type=Installed)
    except (OSError, msgspec.MsgspecError) as e:
        raise Corrupt(f"{backup}: apps/{name}/app.json cannot be read: {e}") from None
    for version in installed.versions:
        place = stage / "packages" / version.digest
        if not place.exists() and restore_files(backup, made, f"packages/{version.digest}", place, progress):
            package.check(place, version.digest)
    return installed


def _put(home: Home, stage: Path, name: str, installed: Installed, stopped: bool) -> None:
    """An app goes to its place; that it is there is said last."""
    for version in installed.versions:
        place = home.package(version.digest)
        if not place.exists() and (stage / "packages" / version.digest).exists():
            _move(stage / "packages" / version.digest, place)
    make_directory(home.apps / name)
    if (stage / name / "data").exists():
        _move(stage / name / "data", home.data(name))
    home.note(structs.replace(installed, wanted="stopped") if stopped else installed)


def _bring_beside(backup: Path, made: Backup, name: str, stage: Path, home: Home, progress: Progress) -> None:
    restore_files(backup, made, name, stage / name, progress)
    if (stage / name).is_dir():
        for file in (stage / name).iterdir():
            if not (home.path / name / file.name).exists():
                _move(file, home.path / name / file.name)
    elif (stage / name).exists():
        _move(stage / name, home.path / name)


def _check_strangers(home: Home, stage: Path, wanted: list[str], there: list[str]) -> None:
    """An app of another moment than those with which it has exchanged events would be taken for the one that has sent
    to them: what it sends anew has numbers that they have seen.

    Raises:
        UsageError: there is such an app.
    """
    sides = [(name, stage / name / "data") for name in wanted], [(name, home.data(name)) for name in there]
    logs = [{name: _logs(place) for name, place in side} for side in sides]
    for name, found in logs[0].items():
        for other, others in logs[1].items():
            if _has_met(found, other) or _has_met(others, name):
                raise UsageError(
                    f"{name} has exchanged events with {other}, which is of another moment here: some of what it sends "
                    f"would be taken for what was sent before, and be lost. Restore both from one backup, into a home "
                    f"without them; or take that with --force"
                )


def _logs(place: Path) -> set[str]:
    if not (place / "format").exists():
        return set()
    with Directory.open(place) as directory:
        return {log for record in directory.catalog.apps.values() for log in record.logs}


def _has_met(logs: set[str], other: str) -> bool:
    """Whether there is a stream of the other app's. (A log to it has everybody.)"""
    return any(log.startswith((f"{SOURCE}{AT}{other}=", f"{SOURCE}{AT}{other}?=")) for log in logs)


@contextmanager
def _staged(beside: Path) -> Iterator[Path]:
    try:
        make_directory(beside)
        stage = Path(tempfile.mkdtemp(prefix=".restore-", dir=beside))
    except OSError as e:
        raise StorageFailed(f"{e.filename or beside}: {e.strerror or e}") from None
    try:
        yield stage
    finally:
        for folder, _, _ in os.walk(stage):
            os.chmod(folder, 0o700)
        shutil.rmtree(stage, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    try:
        make_directory(target.parent)
        os.rename(source, target)
        fsync_directory(target.parent)
    except OSError as e:
        raise StorageFailed(f"{e.filename or target}: {e.strerror or e}") from None


def _there_are(names: Sequence[str]) -> str:
    return f"there are {', '.join(names) or 'none'}"
