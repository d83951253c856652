"""Bytes of large objects as files of a data directory.

DIR/blobs/ab/DIGEST       each once, read-only
DIR/blobs/incoming/       what is coming

Whoever brings bytes, also a command beside the engine, holds a lock on their file until an object has them: what is
locked by nobody, and is of no object, was left by somebody who died.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from grape.abc.blobs import Blobs
from grape.abc.transport import Post
from grape.errors import Corrupt, GrapeError, StorageFailed
from grape.store.files import fsync_directory, make_directory
from grape.store.keeping import Keepers

T = TypeVar("T")

FOLDER: Final = "blobs"
_INCOMING: Final = "incoming"
THREADS: Final = 2


def path_of(directory: Path, digest: bytes) -> Path:
    """Where the bytes of this digest lie in a data directory."""
    name = digest.hex()
    return directory / FOLDER / name[:2] / name


class Coming:
    """A file that is being written. Belongs to one thread at a time, as its parts come one after the other.

    Args:
        sums: whether it finds out the digest, which else whoever brings it says.
    """

    def __init__(self, folder: Path, *, sums: bool = True) -> None:
        make_directory(folder / _INCOMING)
        while True:
            self.path = folder / _INCOMING / secrets.token_hex(12)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if self.path.exists():  # else it was found before it was locked
                break
            os.close(self._fd)
        self._sum = hashlib.sha256() if sums else None
        self._size = 0

    def add(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        if self._sum is not None:
            self._sum.update(data)
        self._size += len(data)

    def finish(self, folder: Path, digest: bytes = b"") -> tuple[bytes, int]:
        """All of it is durable, and there is a directory for it."""
        os.fchmod(self._fd, 0o400)
        os.fsync(self._fd)
        if self._sum is not None:
            digest = self._sum.digest()
        make_directory(path_of(folder.parent, digest).parent)
        return digest, self._size

    def land(self, target: Path) -> None:
        """Under its digest: over the same bytes, if they were there. Durable once the directory is."""
        os.rename(self.path, target)

    def keep(self, folder: Path, digest: bytes = b"") -> tuple[bytes, int]:
        """Durable from now on, under its digest."""
        digest, size = self.finish(folder, digest)
        target = path_of(folder.parent, digest)
        self.land(target)
        for directory in (target.parent, folder, folder.parent):  # which others may have made, and died over it
            fsync_directory(directory)
        return digest, size

    def drop(self) -> None:
        """Nobody holds it any more; it is gone, unless it has landed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(OSError):
            os.unlink(self.path)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Nobody else holds the file meanwhile.

    Raises:
        BlockingIOError: somebody does. OSError: it is not there.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


class FileBlobs(Blobs):
    """
    Args:
        directory: of the data.
        post: runs a function on the engine's thread, from any.
        at_once: everything is done when the call returns: handlers on that thread wait for it.
    """

    def __init__(self, directory: Path, post: Post, *, at_once: bool = False) -> None:
        self._folder = directory / FOLDER
        self._post = post
        self._is_at_once = at_once
        self._keepers = Keepers(directory)
        self._threads = ThreadPoolExecutor(THREADS, "blobs")
        self._landing: Counter[bytes] = Counter()
        """They have their names, and whoever has brought them does not know of it yet."""
        self._coming: dict[Hashable, Coming] = {}
        self._turns: dict[Hashable, deque[Callable[[], None]]] = {}
        """By token: what is done when the last thing is, as there is more than one thread."""
        self._named: set[Path] = set()
        """Directories that are there for good: who finds one has it perhaps from a thread, or an engine that died, that
        had no time to see to it."""
        self._failures = 0
        """Of syncs of directories."""
        self._is_closed = False
        for left in (self._folder / _INCOMING).glob("*"):
            with contextlib.suppress(OSError), _held(left):
                left.unlink()

    def _do(self, what: Callable[[], T], then: Callable[[T | GrapeError], None]) -> None:
        def answer() -> Any:
            try:
                return what()
            except GrapeError as e:
                return e
            except OSError as e:
                return StorageFailed(f"{e.filename or self._folder}: {e.strerror or e}")

        def work() -> None:
            found = answer()
            if not self._is_closed:
                self._post(lambda: None if self._is_closed else then(found))

        if self._is_closed:
            return
        if self._is_at_once:
            then(answer())
        else:
            self._threads.submit(work)

    def _in_turn(self, token: Hashable, begin: Callable[[], None]) -> None:
        if token in self._turns:
            self._turns[token].append(begin)
        else:
            self._turns[token] = deque()
            begin()

    def _next(self, token: Hashable) -> None:
        if self._turns[token]:
            self._turns[token].popleft()()
        else:
            del self._turns[token]

    def part(
        self, token: Hashable, data: bytes, last: bool, then: Callable[[tuple[bytes, int] | GrapeError | None], None]
    ) -> None:
        def write() -> Coming | None:
            coming = self._coming.get(token)
            if coming is None:
                coming = self._coming[token] = Coming(self._folder)
            try:
                coming.add(data)
                if not last:
                    return None
                found.append(coming.finish(self._folder))
                return coming
            except BaseException:
                self._coming.pop(token, None)
                coming.drop()
                raise

        def written(coming: Coming | GrapeError | None) -> None:
            if isinstance(coming, Coming):
                del self._coming[token]
            self._next(token)
            if isinstance(coming, Coming):
                self._land(coming, *found[0], then)
            else:
                then(coming)

        found: list[tuple[bytes, int]] = []
        self._in_turn(token, lambda: self._do(write, written))

    def _land(
        self,
        coming: Coming,
        digest: bytes,
        size: int,
        then: Callable[[tuple[bytes, int] | GrapeError | None], None],
    ) -> None:
        """Names change on the engine's thread alone, so that nothing is removed that has just come."""
        target = path_of(self._folder.parent, digest)
        try:
            coming.land(target)
        except OSError as e:
            coming.drop()
            then(StorageFailed(f"{target}: {e.strerror}"))
            return
        self._landing[digest] += 1
        failures = self._failures

        def settle() -> None:
            try:
                self._settle(target.parent, failures)
            finally:
                coming.drop()

        def landed(error: GrapeError | None) -> None:
            self._landing[digest] -= 1
            if not self._landing[digest]:
                del self._landing[digest]
            then((digest, size) if error is None else error)

        self._do(settle, landed)

    def _settle(self, directory: Path, failures: int) -> None:
        """What was given its name in there, after so many failures, has it for good.

        Raises:
            OSError: it has not.
        """
        above = () if directory in self._named else (self._folder, self._folder.parent)
        try:
            for each in (directory, *above):
                fsync_directory(each)
        except OSError:
            self._failures += 1
            raise
        if self._failures != failures:  # told once, to whoever came first: it may have been this name that was lost
            raise OSError(errno.EIO, "a directory could not be made durable meanwhile", str(directory))
        self._named.add(directory)

    def forget(self, token: Hashable) -> None:
        def drop() -> None:
            coming = self._coming.pop(token, None)
            if coming is not None:
                coming.drop()

        self._in_turn(token, lambda: self._do(drop, lambda _: self._next(token)))

    def read(self, digest: bytes, start: int, size: int, then: Callable[[bytes | GrapeError], None]) -> None:
        path = path_of(self._folder.parent, digest)

        def read() -> bytes:
            try:
                with open(path, "rb") as file:
                    return os.pread(file.fileno(), size, start)
            except FileNotFoundError:
                raise Corrupt(f"{path}: the bytes of an object are not there") from None

        self._do(read, then)

    def remove(self, digests: Sequence[bytes]) -> Sequence[bytes]:
        gone: list[Path] = []
        stay: list[bytes] = []
        with self._keepers.away() as are_away:
            if not are_away:
                return digests
            for digest in digests:
                path, place = path_of(self._folder.parent, digest), self._folder / _INCOMING / secrets.token_hex(12)
                if digest not in self._landing:
                    try:
                        with _held(path):
                            os.rename(path, place)
                        gone.append(place)
                    except BlockingIOError:
                        stay.append(digest)
                    except OSError:
                        pass

        def remove() -> None:  # which takes a while, of what is large
            for path in gone:
                path.unlink(missing_ok=True)

        if gone:
            self._do(remove, lambda _: None)
        return stay

    def sizes(self, digests: Sequence[bytes], then: Callable[[Sequence[int | None]], None]) -> None:
        paths = [path_of(self._folder.parent, digest) for digest in digests]

        def look() -> Sequence[int | None]:
            return [path.stat().st_size if path.exists() else None for path in paths]

        self._do(look, lambda found: then([None] * len(paths) if isinstance(found, GrapeError) else found))

    def all(self, then: Callable[[Sequence[bytes]], None]) -> None:
        def found() -> Sequence[bytes]:
            names = [path.name for path in self._folder.glob("??/*")]
            return [bytes.fromhex(name) for name in names if len(name) == 64]

        self._do(found, lambda answer: None if isinstance(answer, GrapeError) else then(answer))

    def close(self) -> None:
        self._is_closed = True
        self._threads.shutdown(wait=True)
        for coming in self._coming.values():
            coming.drop()
        self._keepers.close()
