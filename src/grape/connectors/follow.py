"""A file that is followed as it grows, through rotation: renamed and made anew, or copied and truncated.

A position says which file it is in (inode), where, and the hash of what is before it. If the file is not what it was,
it is looked for among its neighbours, whose names begin with its own: the one that was renamed has the inode, the one
that was copied has the same bytes.
"""

from __future__ import annotations

import glob
import os
import stat
import threading
from pathlib import Path
from typing import Any, Final

from msgspec import structs

from grape.abc.source import Chunk
from grape.connectors.files import Changed, LinesFile
from grape.connectors.lines import MAX_EVENT
from grape.connectors.reading import BLOCK, Descriptor, Position, pack
from grape.errors import UsageError

_PAUSE: Final = 0.1
_QUIET: Final = 10
"""Looks in a row that find nothing new in a file that was renamed: its writer has let go of it."""
_PACKED: Final = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".Z", ".zip")


class FollowedFile(LinesFile):
    """See the module. ``read`` waits for more, until the source is closed."""

    def __init__(
        self,
        event: str,
        path: str | Path,
        max_event: int = MAX_EVENT,
        *,
        key: Any = None,
        id: Any = None,
        block: int = BLOCK,
    ) -> None:
        super().__init__(event, path, max_event, key=key, id=id, block=block)
        self._closing = threading.Event()
        self._inode = 0
        self._is_anew = False
        self._quiet = 0
        self._news: list[str] = []

    def open(self, position: bytes) -> None:
        self.close()
        self._closing.clear()
        at = self._position(position)
        found = self._found(at) if position else None
        self._is_anew = bool(position) and found is None
        self._take(self._open(self._path) if found is None else found)
        if self._is_anew:
            self._lost(at)

    def read(self, position: bytes) -> Chunk | None:
        at = Position() if self._is_anew else self._position(position)
        at = structs.replace(at, inode=self._inode)
        while not self._closing.is_set():
            chunk = self._look(at)
            if chunk is not None:
                self._is_anew = False
                return chunk
            self._closing.wait(_PAUSE)
        return None

    def total(self) -> int | None:
        return None

    def news(self) -> list[str]:
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        self._closing.set()
        super().close()

    # -------------------------------------------------------------- what there is now

    def _look(self, at: Position) -> Chunk | None:
        use = self._use
        assert use is not None
        with use as usable:
            if not usable:
                return None
            try:
                chunk = self._read(self._fd, use, at, False)
                if chunk is None and self._is_left():
                    self._quiet += 1
                    if self._quiet < _QUIET:
                        return None
                    chunk = self._read(self._fd, use, at, True)  # its last line gets no end any more
                    if chunk is None:
                        return self._go_on()
                self._quiet = 0
                return chunk
            except Changed:
                return self._truncated(at)

    def _is_left(self) -> bool:
        """Whether another file has its name now."""
        try:
            return self._path.stat().st_ino != self._inode
        except OSError:
            return False  # the new one is not there yet

    def _go_on(self) -> Chunk | None:
        """To the file that came after this one, which has been read."""
        modified = os.fstat(self._fd).st_mtime_ns
        newer = [
            (status.st_mtime_ns, path)
            for path, status in self._neighbours()
            if status.st_ino != self._inode and status.st_mtime_ns > modified
        ]
        for path in [*(path for _, path in sorted(newer)), self._path]:
            try:
                fd = self._open(path)
            except UsageError:
                continue
            self._take(fd)
            return self._moved(Position())
        return None

    def _truncated(self, at: Position) -> Chunk | None:
        """Its file is another one or was emptied: the rest of what was read stands in a copy, if there is one."""
        try:
            fd = self._open(self._path)
        except UsageError:
            return None
        copy = self._copy(at)
        if copy is None:
            self._lost(at)
            self._take(fd)
            return self._moved(Position())
        os.close(fd)
        self._take(copy)
        return self._moved(at)

    def _moved(self, at: Position) -> Chunk:
        return Chunk([], pack(structs.replace(at, inode=self._inode)), [], 0)

    def _take(self, fd: int) -> None:
        """Read this one from now on."""
        use, self._use = self._use, Descriptor(fd)
        if use is not None:
            use.close()
        self._fd, self._inode, self._quiet = fd, os.fstat(fd).st_ino, 0

    def _lost(self, at: Position) -> None:
        self._news.append(
            f"{self.path}: the file that was read up to byte {at.offset:,} (line {at.line:,}) is neither here nor "
            "among its neighbours, so what was written behind that is not known; the file that is here now is read"
        )

    # -------------------------------------------------------------- looking for a file

    def _found(self, at: Position) -> int | None:
        """The file that a position is in: with its inode, else with the bytes before it."""
        for path, status in [*self._own(), *self._neighbours()]:
            if status.st_ino == at.inode and (fd := self._fitting(path, at)) is not None:
                return fd
        if not at.offset:
            return None if at.inode else self._open(self._path)
        for path, _ in self._own():
            if (fd := self._fitting(path, at)) is not None:
                return fd
        return self._copy(at)

    def _copy(self, at: Position) -> int | None:
        """A neighbour that has the bytes before a position."""
        if not at.offset:
            return None
        for path, _ in self._neighbours():
            if (fd := self._fitting(path, at)) is not None:
                return fd
        return None

    def _fitting(self, path: Path, at: Position) -> int | None:
        try:
            fd = self._open(path)
        except UsageError:
            return None
        try:
            self._before(fd, at)
        except (Changed, OSError):
            os.close(fd)
            return None
        return fd

    def _own(self) -> list[tuple[Path, os.stat_result]]:
        try:
            return [(self._path, self._path.stat())]
        except OSError:
            return []

    def _neighbours(self) -> list[tuple[Path, os.stat_result]]:
        """Files whose names begin with its own, latest first."""
        found = []
        for path in self._path.parent.glob(f"{glob.escape(self._path.name)}[.-]*"):
            try:
                status = path.stat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and path.suffix not in _PACKED:
                found.append((path, status))
        return sorted(found, key=lambda entry: -entry[1].st_mtime_ns)


class FollowedText(FollowedFile):
    """As `grape.connectors.files.TextFile`, followed."""

    kind = "text"


class FollowedJsonLines(FollowedFile):
    """As `grape.connectors.files.JsonLinesFile`, followed."""

    kind = "jsonl"
