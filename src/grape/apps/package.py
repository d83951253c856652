"""The code of an app as one file, and as a directory that is named by what is in it.

A package is a tar, compressed with gzip, of plain files and directories. It is named by the SHA-256 of a list with a
line for each file, in the order of their paths: whether it is executable, the SHA-256 of what it holds, its path. So
packing the same directory twice gives the same name, whatever the times and owners of its files.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final, NoReturn

from msgspec import Struct

from grape.apps.manifest import manifest_of
from grape.errors import Corrupt, UsageError
from grape.isolates.tars import EXTENSIONS, open_tar
from grape.model.section import show_size

MAX_BYTES: Final = 1 << 30
MAX_FILES: Final = 20_000
_MAX_DEPTH: Final = 40
_MAX_PATH: Final = 1024
_MAX_STEP: Final = 255
_MAX_PADDING: Final = 1 << 20
_LEFT_OUT: Final = frozenset({"__pycache__", "node_modules"})
_CACHE: Final = "__pycache__"


class Entry(Struct, frozen=True):
    """A file of a package. ``path``: below its top, with slashes."""

    path: str
    is_executable: bool
    place: Path


def entries_of(directory: Path, *, whole: bool = False) -> list[Entry]:
    """What of a directory belongs into a package: everything but what is hidden, ``__pycache__`` and ``node_modules``.

    Args:
        whole: it is a package already, and nothing else may be in it.

    Raises:
        UsageError: something in it cannot be packed, and what.
    """
    found: list[Entry] = []
    total = 0
    for place, path in _walk(directory, "", whole):
        about = place.lstat()
        if not stat.S_ISREG(about.st_mode):
            what = "a symbolic link" if stat.S_ISLNK(about.st_mode) else "no plain file"
            raise UsageError(f"{place}: it is {what}, and a package has plain files only; put the file itself there")
        fault = _fault_of(path)
        if fault:
            raise UsageError(f"{place}: {fault}")
        total += about.st_size
        if len(found) >= MAX_FILES or total > MAX_BYTES:
            raise UsageError(
                f"{directory}: it is too large for a package, over {MAX_FILES:,} files or {show_size(MAX_BYTES)}; "
                f"what is hidden (a name that begins with a dot) is left out"
            )
        found.append(Entry(path, bool(about.st_mode & 0o100), place))
    return sorted(found, key=lambda entry: entry.path)


def _walk(directory: Path, above: str, whole: bool) -> Iterator[tuple[Path, str]]:
    for entry in os.scandir(directory):
        if _is_left_out(entry.name) and not whole:
            continue
        path = f"{above}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{path}/", whole)
        else:
            yield Path(entry.path), path


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name in _LEFT_OUT


def _fault_of(path: str) -> str:
    """Why a file in a package cannot have this path; "" if it can."""
    steps = path.split("/")
    try:
        size = len(path.encode())
        longest = max(len(step.encode()) for step in steps)
    except UnicodeEncodeError:
        return "its name is no UTF-8"
    if path.startswith("/") or any(step in ("", ".", "..") for step in steps):
        return "it leads out of the package"
    if any(map(_is_left_out, steps)):
        return "what is hidden, and what others put beside the code, is no part of a package"
    if "\\" in path or not path.isprintable():
        return "its name has characters in it that no file of a package has"
    if len(steps) > _MAX_DEPTH or size > _MAX_PATH or longest > _MAX_STEP:
        return f"it is too deep, or its name too long: {_MAX_DEPTH} directories and {_MAX_PATH} bytes at most"
    return ""


def digest_of(directory: Path, *, whole: bool = False) -> str:
    """The name of the package that ``directory`` is or makes, 64 hexadecimal digits. Arguments and errors are those of
    `entries_of`."""
    lines = hashlib.sha256()
    for entry in entries_of(directory, whole=whole):
        with open(entry.place, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        lines.update(f"{'x' if entry.is_executable else '-'} {content} {entry.path}\n".encode())
    return lines.hexdigest()


def pack(directory: Path, target: Path) -> str:
    """Write the package of the app in ``directory``; returns its name. The same app gives the same bytes.

    Raises:
        UsageError: its manifest, or something else in it, cannot be; ``target`` cannot be written.
    """
    manifest_of(directory)
    entries = entries_of(directory)
    new = target.with_name(target.name + ".new")
    try:
        with (
            open(new, "wb") as file,
            gzip.GzipFile("", "wb", 6, file, 0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for entry in entries:
                _add(archive, entry)
        os.replace(new, target)
    except OSError as e:
        new.unlink(missing_ok=True)
        raise UsageError(f"{e.filename or target}: {e.strerror or e}") from None
    return digest_of(directory)


def _add(archive: tarfile.TarFile, entry: Entry) -> None:
    content = entry.place.read_bytes()
    about = tarfile.TarInfo(entry.path)
    about.size = len(content)
    about.mode = 0o755 if entry.is_executable else 0o644
    archive.addfile(about, io.BytesIO(content))


def unpack(file: IO[bytes], name: str, target: Path) -> None:
    """Write the files of a package into ``target``, an empty directory of ours. Nobody vouches for what is in it: it is
    refused as a whole unless all of it can be. What was written then is for the caller to remove.

    Args:
        name: what it is called in errors.

    Raises:
        UsageError: it is no package, or has in it what none has.
        OSError: it cannot be written.
    """

    def refuse(text: str) -> NoReturn:
        raise UsageError(f"the package {name} {text}")

    seen: dict[str, bool] = {}
    files = total = 0
    try:
        with open_tar(file, refuse, EXTENSIONS) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]
                path = member.name.removeprefix("./").rstrip("/")
                if member.isdir() and path in ("", "."):
                    continue
                fault = _fault_of(path)
                if fault:
                    refuse(f"has {path!r:.200} in it: {fault}")
                if not (member.isfile() or member.isdir()):
                    refuse(f"has {path!r:.200} in it: it is neither a plain file nor a directory")
                _note(seen, path, member.isdir(), refuse)
                files += 1
                total += member.size
                if files > MAX_FILES or total > MAX_BYTES:
                    refuse(f"is too large: over {MAX_FILES:,} files, or {show_size(MAX_BYTES)}")
                if member.isdir():
                    (target / path).mkdir(parents=True, exist_ok=True)
                else:
                    _write(archive, member, target / path)
            assert archive.fileobj is not None
            if len(archive.fileobj.read(_MAX_PADDING)) == _MAX_PADDING:  # at its end gzip finds what is damaged
                refuse("has something behind its end")
    except (tarfile.TarError, EOFError, ValueError, gzip.BadGzipFile, UnicodeError) as e:
        refuse(f"cannot be read: {str(e)[:200] or type(e).__name__}")
    except OSError as e:
        if e.filename is None and e.errno is None:  # of gzip: damaged
            refuse(f"cannot be read: {str(e)[:200]}")
        raise


def _note(seen: dict[str, bool], path: str, is_directory: bool, refuse: Callable[[str], NoReturn]) -> None:
    """Each path once, also where small and capital letters are the same, and no file as a directory."""
    steps = path.casefold().split("/")
    for end in range(1, len(steps)):
        if seen.setdefault("/".join(steps[:end]), True) is False:
            refuse(f"has {path!r:.200} in it, below what is a file")
    whole = "/".join(steps)
    if whole in seen and not (is_directory and seen[whole]):
        refuse(f"has {path!r:.200} in it twice")
    seen[whole] = is_directory


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    assert content is not None
    mode = 0o555 if member.mode & 0o100 else 0o444
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())


def check(directory: Path, digest: str) -> None:
    """Whether a package in the store still is what its name says. What interpreters have put beside the code is taken
    out: it is no part of what the name is made of.

    Raises:
        Corrupt: it is not.
    """
    remove_caches(directory)
    try:
        found = digest_of(directory, whole=True)
    except (UsageError, OSError) as e:
        raise Corrupt(f"{directory}: the package cannot be read: {e}; upload it again") from None
    if found != digest:
        raise Corrupt(f"{directory}: the package has been changed: it is {found[:12]} now; upload it again")


def remove_caches(directory: Path) -> None:
    for place, folders, _ in os.walk(directory):
        if _CACHE in folders:
            folders.remove(_CACHE)
            shutil.rmtree(os.path.join(place, _CACHE), ignore_errors=True)
