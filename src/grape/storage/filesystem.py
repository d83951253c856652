"""Objects as plain files, which other programs may read and write.

    ROOT/NAMESPACE/KEY           the bytes; the parts of a key are directories
    ROOT/.grape/about/ab/...     what is known of those that were written here, named by place, inode and time of change
    ROOT/.grape/incoming/        what is being written
    ROOT/.grape/locks/           who may look and write as one step

What is known of a file stands under its inode and the time of its change. So it is there before the file is put in its
place by one rename, that of the file before stays until then, and of a file that another program has written since
nothing wrong is said. A part of a key over 240 bytes is cut into pieces, of which all but the last end with DEL, which
no key has.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import mimetypes
import os
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from grape.abc.storage import (
    ALWAYS,
    CHUNK,
    OCTETS,
    About,
    Features,
    If,
    Page,
    Place,
    Put,
    Reading,
    Storage,
    StorageConfig,
)
from grape.errors import BadArgument, Conflict, StorageFailed, UsageError
from grape.model.names import check_key
from grape.storage.conditions import conflict
from grape.storage.streams import Measured

T = TypeVar("T")

_PIECE: Final = 240
"""Bytes of a name: file systems have 255."""
_MORE: Final = "\x7f"
_OWN: Final = ".grape"
_LOCKS: Final = 256
_THREADS: Final = 16
_CURSORS: Final = 32
"""Lists that somebody goes through, and that need not be found again for the next page."""
_OLD: Final = 86_400.0
"""Seconds after which nobody writes any more what lies in ``incoming``."""


class FilesystemConfig(StorageConfig, frozen=True, kw_only=True, rename="kebab"):
    """
    root: directory, made if it is not there
    sync: whether a write is durable when it returns; false: when the machine gets to it
    """

    root: str
    sync: bool = True


class _Known(Struct, frozen=True, omit_defaults=True):
    """What stands beside a file."""

    checksum: str
    time: int
    content_type: str = OCTETS
    tags: tuple[str, ...] = ()
    user: dict[str, str] = {}
    expires: int = 0


class FilesystemStorage(Storage):
    name: ClassVar[str] = "file"
    Config: ClassVar[type[StorageConfig]] = FilesystemConfig
    features = Features(largest=1 << 62, mixes=False)

    def __init__(self, config: FilesystemConfig) -> None:
        self._root = Path(config.root).absolute()
        self._sync = config.sync
        self._own = self._root / _OWN
        self._threads = ThreadPoolExecutor(_THREADS, "files")
        self._cursors: OrderedDict[tuple[str, str, str], Iterator[About]] = OrderedDict()

    @classmethod
    def settings_of(cls, place: str) -> dict[str, Any]:
        if not place.startswith("/"):
            raise UsageError(
                f"file:// is followed by an absolute path, as in file:///srv/objects, not by {place!r:.100}"
            )
        return {"root": unquote(place)}

    async def open(self) -> None:
        def make() -> None:
            try:
                for name in ("about", "incoming", "locks"):
                    (self._own / name).mkdir(parents=True, exist_ok=True)
                if not os.access(self._root, os.W_OK | os.X_OK):
                    raise PermissionError(13, "it cannot be written by this user", str(self._root))
                for left in (self._own / "incoming").iterdir():
                    with contextlib.suppress(FileNotFoundError):  # somebody else has just brought it
                        if time.time() - left.stat().st_mtime > _OLD:
                            left.unlink()
            except OSError as e:
                raise UsageError(f"{e.filename or self._root}: {e.strerror}; name another directory") from None

        await self._do(make)

    async def close(self) -> None:
        self._cursors.clear()
        self._threads.shutdown(wait=False)

    async def _do(self, what: Callable[[], T]) -> T:
        """In a thread.

        Raises:
            StorageFailed: the file system refuses.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, what)
        except OSError as e:
            raise StorageFailed(f"{e.filename or self._root}: {e.strerror or e}") from None

    # ------------------------------------------------------------------ where it lies

    def _path(self, place: Place) -> Path:
        """
        Raises:
            BadArgument: a link on the way leads out of the namespace.
        """
        base = self._root / place.namespace
        path = base.joinpath(*(piece for part in place.key.split("/") for piece in _pieces(part)))
        real = os.path.realpath(path.parent)
        if real != str(base) and not real.startswith(f"{os.path.realpath(base)}/") and real != os.path.realpath(base):
            raise BadArgument(f"{place.namespace}/{place.key}: a link leads out of {base}")
        return path

    def _beside(self, place: Place, found: os.stat_result) -> Path:
        """What is known of the file ``found`` at this place."""
        name = hashlib.blake2b(f"{place.namespace}/{place.key}".encode(), digest_size=16).hexdigest()
        return self._own / "about" / name[:2] / f"{name}.{found.st_ino:x}.{found.st_mtime_ns:x}"

    @contextmanager
    def _locked(self, place: Place) -> Iterator[None]:
        """Nobody else who uses Grape changes what is at this place. Blocking."""
        number = hashlib.blake2b(f"{place.namespace}/{place.key}".encode(), digest_size=1).digest()[0] % _LOCKS
        fd = os.open(self._own / "locks" / f"{number:02x}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _about(self, place: Place, found: os.stat_result) -> About:
        version = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
        try:
            known = msgspec.json.decode(self._beside(place, found).read_bytes(), type=_Known)
        except (OSError, msgspec.MsgspecError):  # somebody else's
            guessed = mimetypes.guess_type(place.key)[0] or OCTETS
            return About(place.key, found.st_size, version, "", found.st_mtime_ns // 1000, guessed)
        return About(
            place.key,
            found.st_size,
            version,
            known.checksum,
            known.time,
            known.content_type,
            known.tags,
            known.user,
            known.expires,
        )

    def _stat(self, place: Place, path: Path) -> About | None:
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return self._about(place, found) if stat.S_ISREG(found.st_mode) else None

    # ------------------------------------------------------------------ read

    async def stat(self, place: Place) -> About | None:
        return await self._do(lambda: self._stat(place, self._path(place)))

    @asynccontextmanager
    async def read(self, place: Place, start: int = 0, end: int | None = None) -> AsyncIterator[Reading | None]:
        def open_it() -> tuple[int, os.stat_result] | None:
            try:
                fd = os.open(self._path(place), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError):
                return None
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                os.close(fd)
                return None
            return fd, found

        opened = await self._do(open_it)
        if opened is None:
            yield None
            return
        fd, found = opened
        try:
            about = await self._do(lambda: self._about(place, found))
            yield Reading(about, self._chunks(fd, found, start, found.st_size if end is None else end))
        finally:
            os.close(fd)

    async def _chunks(self, fd: int, found: os.stat_result, start: int, end: int) -> AsyncIterator[bytes]:
        at = start
        while at < end:
            chunk = await self._do(lambda: os.pread(fd, min(CHUNK, end - at), at))  # noqa: B023 - it is awaited
            if not chunk:
                break
            at += len(chunk)
            yield chunk
        if os.fstat(fd).st_mtime_ns != found.st_mtime_ns:
            raise StorageFailed("another program has changed the file while it was read")

    # ------------------------------------------------------------------ write

    async def write(self, place: Place, chunks: AsyncIterator[bytes], put: Put) -> About:
        measured = Measured(chunks, self.features.largest, put)
        temporary = self._own / "incoming" / secrets.token_hex(12)
        fd = await self._do(lambda: os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        try:
            async for chunk in measured:
                await self._do(lambda: _write(fd, chunk))  # noqa: B023 - it is awaited
            measured.check()
            return await self._do(lambda: self._put(place, put, fd, temporary, measured.checksum))
        finally:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def _put(self, place: Place, put: Put, fd: int, temporary: Path, checksum: str) -> About:
        if self._sync:
            os.fsync(fd)
        path = self._path(place)
        with self._locked(place):
            there = self._stat(place, path)
            if not put.when.holds(there):
                raise Conflict(conflict(place, put.when, there))
            before = _lstat(path)
            new = os.fstat(fd)
            if (
                before is not None and before.st_mtime_ns >= new.st_mtime_ns
            ):  # a clock that steps makes no version again
                os.utime(fd, ns=(before.st_mtime_ns + 1, before.st_mtime_ns + 1))
                new = os.fstat(fd)
            moment = time.time_ns() // 1000 if put.time is None else put.time
            known = _Known(checksum, moment, put.content_type, put.tags, put.user, put.expires)
            beside = self._beside(place, new)
            self._write_beside(beside, msgspec.json.encode(known))
            try:
                self._rename(temporary, path, place)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
            if before is not None:
                old = self._beside(place, before)
                if old != beside:
                    old.unlink(missing_ok=True)
            return self._about(place, new)

    def _write_beside(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            if self._sync:
                os.fsync(file.fileno())
        self._sync_directory(path.parent)

    def _rename(self, temporary: Path, path: Path, place: Place) -> None:
        for _ in range(100):
            try:
                made = _make_parents(path.parent, self._root)
                os.rename(temporary, path)
            except FileNotFoundError:  # somebody has removed what was empty
                if not temporary.exists():
                    raise
                continue
            except (NotADirectoryError, FileExistsError):
                raise Conflict(_in_the_way(place)) from None
            except IsADirectoryError:
                try:
                    os.rmdir(path)
                except OSError:
                    raise Conflict(_in_the_way(place)) from None
                continue
            for folder in {path.parent, *made}:
                self._sync_directory(folder)
            return
        raise StorageFailed(f"{path}: its directory is removed again and again")

    def _sync_directory(self, path: Path) -> None:
        if self._sync:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _sync_removed(self, path: Path) -> None:
        for folder in path.parents:
            try:
                self._sync_directory(folder)
            except FileNotFoundError:  # who removed what was left in it has removed it, too
                if folder == self._root:
                    raise
            else:
                return

    async def remove(self, place: Place, when: If = ALWAYS) -> bool:
        def remove() -> bool:
            path = self._path(place)
            with self._locked(place):
                there = self._stat(place, path)
                if not when.holds(there):
                    raise Conflict(conflict(place, when, there))
                before = _lstat(path)
                if there is None or before is None:
                    return False
                os.unlink(path)
                self._sync_removed(path)
                self._beside(place, before).unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self._root or not _removed_if_empty(folder):
                    break
            return True

        return await self._do(remove)

    # ------------------------------------------------------------------ list

    async def page(self, namespace: str, prefix: str = "", position: str = "", limit: int = 1000) -> Page:
        def some() -> Page:
            cursor = self._cursors.pop((namespace, prefix, position), None)
            if cursor is None:
                cursor = self._walk(namespace, self._root / namespace, "", prefix, position)
            items = []
            for about in cursor:
                items.append(about)
                if len(items) == limit:
                    after = about.key
                    self._cursors[namespace, prefix, after] = cursor
                    while len(self._cursors) > _CURSORS:
                        self._cursors.popitem(last=False)
                    return Page(items, after)
            return Page(items)

        return await self._do(some)

    def _walk(self, namespace: str, folder: Path, begin: str, prefix: str, after: str) -> Iterator[About]:
        """Those below a directory whose keys begin with ``begin``, in the order of keys."""
        for key, path, is_folder in _entries(folder, begin):
            is_piece = is_folder and not key.endswith("/")
            if not (key.startswith(prefix) or (is_folder and prefix.startswith(key))):
                continue
            if after and key.encode() <= after.encode() and not (is_folder and after.startswith(key)):
                continue
            if is_folder or is_piece:
                yield from self._walk(namespace, path, key, prefix, after)
                continue
            try:
                about = self._stat(Place(namespace, check_key(key)), path)
            except BadArgument:  # another program's, which no key can name
                continue
            if about is not None:
                yield about


def _entries(folder: Path, begin: str) -> list[tuple[str, Path, bool]]:
    """Key (of a directory: how those in it begin), path, whether it is a directory; sorted by keys."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                try:
                    name.encode()
                except UnicodeEncodeError:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    key = begin + (name[:-1] if name.endswith(_MORE) else f"{name}/")
                    found.append((key, Path(entry.path), True))
                elif entry.is_file(follow_symlinks=False):
                    found.append((begin + name, Path(entry.path), False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda each: each[0].encode())


def _pieces(part: str) -> Iterator[str]:
    """A part of a key as names of files."""
    packed = part.encode()
    while len(packed) > _PIECE:
        cut = _PIECE
        while packed[cut] & 0xC0 == 0x80:  # within a character
            cut -= 1
        yield packed[:cut].decode() + _MORE
        packed = packed[cut:]
    yield packed.decode()


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write(fd: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]


def _make_parents(folder: Path, root: Path) -> list[Path]:
    """Those in which something new stands, so that it has to be made durable."""
    made: list[Path] = []
    missing = []
    while folder != root and not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        try:
            os.mkdir(each)
        except FileExistsError:
            if not each.is_dir():
                raise
        except FileNotFoundError:
            return made  # somebody removed it meanwhile: the rename finds out
        made.append(each.parent)
    return made


def _removed_if_empty(folder: Path) -> bool:
    try:
        os.rmdir(folder)
    except OSError:
        return False
    return True


def _in_the_way(place: Place) -> str:
    what = f"{place.namespace}/{place.key}"
    return f"{what}: in a file system no object can have a name that is the directory of another one's"
