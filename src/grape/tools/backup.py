"""Backups: what a data directory, or the home of a server, was at one moment, as a directory of plain files.

    TARGET/backup.json            what is in it, with a digest of every file; written last
    TARGET/data/                  of one data directory
    TARGET/apps/NAME/data/        of a home: the directory of each app
    TARGET/apps/NAME/app.json
    TARGET/packages/DIGEST/, TARGET/profiles/, TARGET/tokens.json, TARGET/grape-server.toml

It is made beside its place and moved there when all of it is durable: whatever is called so is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

import grape
from grape.engine.catalog import read_catalog
from grape.errors import Corrupt, StorageFailed, UsageError
from grape.model.address import CATALOG, PartitionId
from grape.model.objects import OBJECTS, is_unused
from grape.store import large
from grape.store.blobs import path_of
from grape.store.files import FORMAT, fsync_directory, stored_format, write_durably
from grape.store.reader import Reader
from grape.store.snapshot import Snapshot
from grape.tools.directory import Checkup, rows_of

NAME: Final = "backup.json"
VERSION: Final = 1
_CHUNK: Final = 1 << 20
_LOOK: Final = 0.25
_BESIDE: Final = ("crashes", "damaged")
"""What lies beside the data in a directory, and is not made anew by itself."""

Progress = Callable[[str, int, int], None]
"""Of what, how many bytes are done, of how many at most."""


class File(Struct, frozen=True):
    """``sha256``: of what it holds. ``mode``: of whom it may be read."""

    size: int
    sha256: str
    mode: int


class Backup(Struct, frozen=True):
    """What a backup says of itself. ``at``: the moment, seconds of wall time. ``is_whole``: of a home with all that is
    in it, not of some apps. ``files``: by their paths in it."""

    version: int
    kind: Literal["data", "home"]
    grape: str
    at: float
    source: str
    apps: tuple[str, ...]
    is_whole: bool
    files: dict[str, File]


class Writer:
    """A backup that is being made; nothing is left of it unless `finish` is called.

    Args:
        target: must not be there, or be empty.

    Raises:
        UsageError: it is there.
        StorageFailed: the disk refuses.
    """

    def __init__(self, target: Path, progress: Progress) -> None:
        self.target = target.absolute()
        self._progress = progress
        try:
            if self.target.is_symlink() or (self.target.exists() and not _is_empty(self.target)):
                raise UsageError(f"{target} is there already; name a directory that is not, or an empty one")
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.place = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.partial-", dir=self.target.parent))
        except OSError as e:
            raise _refused(e, target) from None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.place, ignore_errors=True)

    def add_data(self, snapshot: Snapshot, folder: str) -> None:
        """A data directory, as the snapshot has it, as ``folder``."""
        source, place = snapshot.directory, self.place / folder
        is_doubtful = (source / "verify").exists()
        try:
            place.mkdir(parents=True, mode=0o700)
            with self._watched(folder, place / "data.mdb", snapshot.size):
                snapshot.write(place)
            for name in _BESIDE:
                for file in _files_below(source / name):
                    with contextlib.suppress(FileNotFoundError):  # the newest hundred crashes are kept
                        _copy(file, place / file.relative_to(source), 0o600)
            if is_doubtful or (source / "verify").exists():  # whoever opens it looks at every row first
                write_durably(place / "verify", "of a directory whose last run ended with an I/O error\n")
            write_durably(place / "format", f"grape-data {stored_format(source) or FORMAT}\n")
            for digest in _blobs_of(place):
                blob = path_of(source, digest)
                try:
                    _copy(blob, path_of(place, digest), 0o400)
                except FileNotFoundError:
                    if snapshot.has_its_files:
                        raise Corrupt(
                            f"{blob}: the bytes of an object are lost, so the backup was not kept; `grape storage "
                            f"verify NAMESPACE/ --data {source}` says which object it is: remove it, or write it anew"
                        ) from None
                    raise UsageError(f"{source} was changed meanwhile ({blob} has gone); make it again") from None
            with contextlib.closing(Reader(place)) as reader:
                rows, _, _ = reader.large_rows()
            for row in rows.values():
                _copy(large.path_of(source, row.name), large.path_of(place, row.name), 0o600)
            (place / "lock.mdb").unlink(missing_ok=True)
        except OSError as e:
            raise _refused(e, place) from None

    def add_files(self, source: Path, folder: str, what: str) -> None:
        """A file, or all below a directory, as ``folder``."""
        files = [source] if source.is_file() else list(_files_below(source))
        for file in files:
            place = self.place / folder / file.relative_to(source) if file != source else self.place / folder
            try:
                _copy(file, place, stat.S_IMODE(file.stat().st_mode))
            except FileNotFoundError:
                raise UsageError(f"{what} was changed meanwhile ({file} has gone); make the backup again") from None
            except OSError as e:
                raise _refused(e, place) from None

    def verify(self, folder: str) -> list[str]:
        """Walk over a data directory in it; what is damaged, a line each."""
        place = self.place / folder
        with Checkup(place) as checkup:
            found = checkup.run(lambda rows: self._progress(f"checking {folder}", rows, 0))
        (place / "lock.mdb").unlink(missing_ok=True)
        return found

    def finish(
        self, kind: Literal["data", "home"], source: Path, at: float, apps: Iterable[str], is_whole: bool
    ) -> Backup:
        """Say what is in it, and move it to its place. It is durable then."""
        try:
            files: dict[str, File] = {}
            for file in _files_below(self.place):
                path = str(file.relative_to(self.place))
                self._progress(f"reading {path}", 0, file.stat().st_size)
                files[path] = _described(file)
            made = Backup(VERSION, kind, grape.__version__, at, str(source), tuple(apps), is_whole, files)
            for folder, _, _ in os.walk(self.place):
                fsync_directory(Path(folder))
            write_durably(self.place / NAME, msgspec.json.format(msgspec.json.encode(made)).decode())
            os.rename(self.place, self.target)  # also over an empty directory
            fsync_directory(self.target.parent)
        except OSError as e:
            raise _refused(e, self.target) from None
        return made

    @contextlib.contextmanager
    def _watched(self, what: str, file: Path, most: int) -> Iterator[None]:
        """Tells how far it is."""
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(_LOOK):
                with contextlib.suppress(OSError):
                    self._progress(what, file.stat().st_size, most)

        watcher = threading.Thread(target=watch, name="grape-backup", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()


def read_backup(path: Path) -> Backup:
    """What a backup says of itself.

    Raises:
        UsageError: it is none, or of a newer Grape.
        Corrupt: what it says cannot be read.
    """
    try:
        text = (path / NAME).read_bytes()
    except FileNotFoundError:
        what = f"it has no file {NAME}" if path.is_dir() else "there is no such directory"
        raise UsageError(f"{path} is no backup: {what}. One that was cut off never gets its name") from None
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from None
    try:
        made = msgspec.json.decode(text, type=Backup)
    except msgspec.MsgspecError as e:
        raise Corrupt(f"{path / NAME}: it cannot be read: {e}") from None
    if made.version > VERSION:
        raise UsageError(f"{path}: it was made by Grape {made.grape}, which is newer than this one")
    return made


def restore_files(backup: Path, made: Backup, folder: str, target: Path, progress: Progress) -> int:
    """What lies in ``folder`` of a backup, as ``target``, durable; returns how many files that are.

    Raises:
        Corrupt: a file is not what was written.
        StorageFailed: the disk refuses.
    """
    count = 0
    for path, file in made.files.items():
        if path != folder and not path.startswith(f"{folder}/"):
            continue
        if ".." in Path(path).parts or os.path.isabs(path):
            raise Corrupt(f"{backup / NAME}: {path!r:.200} leads out of the backup")
        place = target / Path(path).relative_to(folder)
        try:
            progress(path, 0, file.size)
            digest = _copy(backup / path, place, file.mode)
        except OSError as e:
            raise _refused(e, place) from None
        if digest != file.sha256:
            raise Corrupt(f"{backup / path}: it is not what was written when the backup was made; take another one")
        count += 1
    if target.is_dir():
        for below, _, _ in os.walk(target):
            fsync_directory(Path(below))
    return count


def _blobs_of(place: Path) -> list[bytes]:
    """The digests of its large objects."""
    found: list[bytes] = []
    with contextlib.closing(Reader(place)) as reader:
        head = reader.head(CATALOG)
        for record in read_catalog(b"" if head is None else head.head).apps.values():
            if OBJECTS in record.logs:
                home = PartitionId(record.id, record.logs[OBJECTS], 0)
                found += [digest for digest, count in rows_of(reader, home, "blob", b"") if not is_unused(count)]
    return found


def _described(file: Path) -> File:
    about = file.stat()
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return File(about.st_size, digest, stat.S_IMODE(about.st_mode))


def _copy(source: Path, target: Path, mode: int) -> str:
    """Durably; returns the digest of it."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest = hashlib.sha256()
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as out, open(source, "rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fchmod(out.fileno(), mode & 0o777)
        os.fsync(out.fileno())
    return digest.hexdigest()


def _files_below(place: Path) -> Iterator[Path]:
    """Plain files only, in the order of their names."""
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(each for each in folders if each != "__pycache__")
        for name in sorted(names):
            file = Path(folder) / name
            if file.is_file() and not file.is_symlink() and not name.endswith(".new"):
                yield file


def _is_empty(place: Path) -> bool:
    return place.is_dir() and next(os.scandir(place), None) is None


def _refused(error: OSError, place: Path) -> StorageFailed:
    return StorageFailed(f"{error.filename or place}: {error.strerror or error}")
