"""The files of a data directory: whether it is one, of which format, who holds it, and who may read it.

Layout of a data directory::

    DIR/format    "grape-data 3": readable without LMDB; written last, so its presence means the directory is complete
    DIR/lock      held with flock by the one engine; its pid and host are inside
    DIR/data.mdb  the environment (lock.mdb beside it is LMDB's table of readers)
    DIR/large     rows that are too large for it, a file each (`grape.store.large`)
    DIR/blobs     large objects (`grape.store.blobs`)
    DIR/verify    left behind by an I/O error: the next open verifies every row before it serves
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import Final

from msgspec import Struct

from grape.errors import Corrupt, InUse, UsageError

FORMAT: Final = 3
READABLE: Final = frozenset({1, 2, FORMAT})
"""What lies in a directory of an older format lies so in one of this, in which there is more: an open for writing makes
it one, so that no older Grape overlooks what is only there."""
OURS: Final = frozenset(
    {"lock", "data.mdb", "lock.mdb", "format", "format.new", "verify", "crashes", "damaged", "large", "blobs"}
)
EMPTY_BYTES: Final = 2 * 4096
"""The first two pages of LMDB, in which nothing is stored yet."""
_BEGUN_BYTES: Final = 64 << 10
"""No transaction has been durable in a file of at most so many bytes one of whose first two pages never was."""


class Holder(Struct, frozen=True):
    """Who holds a data directory. ``pid`` is 0 when it has not told yet."""

    pid: int
    host: str


def fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
        left = memoryview(text.encode())
        while left:  # a disk that is nearly full takes a part of it
            left = left[os.write(fd, left) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(new, path)
    fsync_directory(path.parent)


def make_directory(path: Path) -> None:
    """``mkdir -p`` whose entries survive a power loss. What is stored is its owner's alone: the last one is closed to
    all others before anything is in it."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700 if directory == path else 0o777, exist_ok=True)
        if directory == path:
            directory.chmod(0o700)  # an odd umask takes the owner's rights as well
        fsync_directory(directory.parent)


def close_to_others(directory: Path) -> None:
    """Directories 0700, files 0600, whatever the umask says and whoever made them: an older Grape, or a `mkdir`.

    Raises:
        OSError: it is another user's.
    """
    os.chmod(directory, 0o700)
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            close_to_others(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            os.chmod(entry.path, 0o600)


def _read_holder(fd: int) -> Holder:
    pid, _, host = os.pread(fd, 512, 0).decode(errors="replace").strip().partition(" ")
    return Holder(int(pid) if pid.isdigit() else 0, host)


def _try_flock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(directory: str | os.PathLike[str]) -> Holder | None:
    """Who holds ``directory`` now; None if nobody does. Never disturbs an opener for longer than one system call."""
    try:
        fd = os.open(Path(directory) / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _try_flock(fd, fcntl.LOCK_SH) else _read_holder(fd)
    finally:
        os.close(fd)


def lock(directory: Path) -> int:
    """Take the lock of ``directory``; returns the descriptor that holds it.

    Raises:
        InUse: another engine has it.
    """
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _try_flock(fd, fcntl.LOCK_EX):
            # Somebody who only asks (`holder`) has a shared lock for a moment; a second engine never gets one.
            if not _try_flock(fd, fcntl.LOCK_SH):
                who = _read_holder(fd)
                raise InUse(
                    f"the data directory {directory} is in use by process {who.pid or '(unknown)'}"
                    f" on host {who.host or '(unknown)'}; stop it, or use another directory"
                )
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def stored_format(directory: Path) -> int:
    """The format of the complete data that ``directory`` holds; 0 if it is yet to be made.

    Raises:
        UsageError: another format, or not a data directory at all.
    """
    try:
        text = (directory / "format").read_text(errors="replace")
    except FileNotFoundError:
        strangers = sorted({e.name for e in os.scandir(directory)} - OURS) if directory.exists() else []
        if strangers:
            raise UsageError(
                f"{directory} is no data directory of Grape: it has no file 'format', but {', '.join(strangers[:3])!s};"
                " name an empty or a new directory"
            ) from None
        return 0
    word, _, version = text.strip().partition(" ")
    if word != "grape-data" or not version.isascii() or not version.isdecimal():
        raise Corrupt(
            f"{directory}/format says {text.strip()[:40]!r}, which no Grape wrote; if the rest is whole,"
            f" this mends it: grape repair --data {directory}"
        )
    if int(version) not in READABLE:
        raise unknown_format(directory, text.strip())
    return int(version)


def say_format(directory: Path) -> None:
    """Durably: the directory is complete, and of this format."""
    write_durably(directory / "format", f"grape-data {FORMAT}\n")


def unknown_format(path: Path, found: str) -> UsageError:
    return UsageError(
        f"{path} has data format {found[:40]!r}, this version of Grape reads and writes"
        f" 'grape-data {FORMAT}'; use the version of Grape that wrote it, or another directory"
    )


def is_unfinished(data: Path) -> bool:
    """Whether whoever made it was killed over its first two pages, or lost the power before they were durable: in such
    a file, of a directory that is not complete, nothing was ever accepted."""
    if not data.exists():
        return False
    with open(data, "rb") as file:
        begin, size = file.read(EMPTY_BYTES), os.fstat(file.fileno()).st_size
    half = EMPTY_BYTES // 2
    return size <= EMPTY_BYTES or (size <= _BEGUN_BYTES and not (any(begin[:half]) and any(begin[half:])))


def check_file(directory: Path) -> None:
    """LMDB would take an empty file for a new one, and begin anew in silence.

    Raises:
        Corrupt: a complete directory without its data.
    """
    data = directory / "data.mdb"
    size = data.stat().st_size if data.exists() else -1
    if size < EMPTY_BYTES:
        what = "is missing" if size < 0 else "is empty" if not size else f"is cut off ({size} bytes)"
        raise Corrupt(
            f"{data} {what}: what was in it is lost. Restore it from a backup; to begin anew: grape repair"
            f" --data {directory}"
        )
