"""Whatever can be read but not read again: standard input, pipes, devices, files of /proc."""

from __future__ import annotations

import os
import select
import stat
from pathlib import Path
from typing import Any, Final

from grape.abc.source import Chunk, Columns, Source
from grape.connectors.files import parser_of
from grape.connectors.lines import MAX_EVENT, RAW
from grape.connectors.reading import BLOCK, Descriptor, pack, shown_path
from grape.errors import UsageError

_NEWLINE: Final = 0x0A
_STDIN: Final = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
_KERNEL: Final = ("/proc", "/sys")


class Stream(Source):
    """Lines from a file descriptor that cannot be read again; every run reads it from where it stands.

    What has been read is handed on at once, so that a slow writer is not waited for. Its end is the end of the last
    line. A descriptor that was given stays open.

    Args:
        event: what the events are called.
        kind: "text" or "jsonl".
        max_event: bytes; a longer line is bad.
        key, id: as of `grape.connectors.files.TextFile`.
        path: what to open; None: read ``fd``.
        fd: the file descriptor.
        block: bytes a chunk aims at.
    """

    is_repeatable = False

    def __init__(
        self,
        event: str,
        kind: str = "text",
        max_event: int = MAX_EVENT,
        *,
        key: Any = None,
        id: Any = None,
        path: str | None = None,
        fd: int = 0,
        block: int = BLOCK,
    ) -> None:
        self.name = f"{event}=-" if path is None else f"{event}={shown_path(Path(path))}"
        self._parser = parser_of(kind, event, max_event, key, id)
        self.is_keyless = self._parser.key is None
        self._path = path
        self._what = "standard input" if path is None else path
        self._place = "<stdin>" if path is None else shown_path(Path(path))
        self._fd = fd
        self._block = block
        self._buffer = bytearray()
        self._searched = 0
        self._skipping = False
        self._at_end = False
        self._read_bytes = 0
        self._line = 0
        self._wake = -1
        self._use: Descriptor | None = None

    def open(self, position: bytes) -> None:
        self.close()
        own = []
        if self._path is not None:
            self._fd = _opened(self._path)
            own = [self._fd]
        try:
            mode = os.fstat(self._fd).st_mode
        except OSError as e:
            raise UsageError(f"{self.name}: {self._what} cannot be read: {e.strerror}") from None
        if stat.S_ISDIR(mode):
            raise UsageError(f"{self.name}: {self._what} is a directory")
        self.restarted = bool(position)
        self.is_stopped = self.in_hand = False
        woken, self._wake = os.pipe()
        self._use = Descriptor(woken, self._wake, *own)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(woken, select.POLLIN)

    def read(self, position: bytes) -> Chunk | None:
        if self._use is None:
            raise RuntimeError(f"{self.name} is not open")
        with self._use as usable:
            return self._read(self._use) if usable else None

    def total(self) -> int | None:
        try:
            status = os.fstat(self._fd)
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) and status.st_size else None

    def close(self) -> None:
        if self._use is not None:
            self._use.close(self._wake)

    def _read(self, use: Descriptor) -> Chunk | None:
        buffer, parser = self._buffer, self._parser
        taken = self._read_bytes
        while not use.is_closed():
            cut = buffer.rfind(b"\n", self._searched) + 1
            if cut and (len(buffer) >= self._block or self._at_end or not self._poll.poll(0)):
                return self._chunk(cut, taken)
            if not cut:
                self._searched = len(buffer)
                if len(buffer) >= parser.max_event + 2:
                    bad = parser.over(f"{self._place}:{self._line + 1}", bytes(buffer[:RAW]), None)
                    buffer.clear()
                    self._searched = 0
                    self._skipping = True
                    self._line += 1
                    return Chunk([], self._position(), [bad], self._read_bytes - taken)
                if self._at_end:
                    return self._chunk(len(buffer), taken) if buffer else None
            self.in_hand = bool(cut)
            if not self.is_stopped:
                self._poll.poll()
            if use.is_closed():
                break
            self.in_hand = True  # first this, then the look: see `Source`
            if self.is_stopped:
                cut = self._finish_line()
                self.in_hand = bool(cut)
                return self._chunk(cut, taken) if cut else None
            self._take(self._block)
        return None

    def _finish_line(self) -> int:
        """Read on to the end of a line that was cut by how much is read at once, as far as it is there, and no further.
        Returns where the last whole line ends."""
        buffer, most = self._buffer, self._parser.max_event + 2
        while buffer and buffer[-1] != _NEWLINE and len(buffer) < most and not self._at_end and self._has_more():
            self._take(1)
        return len(buffer) if self._at_end else buffer.rfind(b"\n") + 1

    def _has_more(self) -> bool:
        """A read would not wait."""
        return any(fd == self._fd for fd, _ in self._poll.poll(0))

    def _take(self, most: int) -> None:
        """Read what is there."""
        try:
            piece = os.read(self._fd, most)
        except (BlockingIOError, InterruptedError):
            return
        self._at_end = not piece
        self._read_bytes += len(piece)
        if self._skipping:
            end = piece.find(b"\n") + 1
            if not end:
                return
            self._skipping = False
            piece = piece[end:]
        self._buffer += piece

    def _chunk(self, cut: int, taken: int) -> Chunk:
        """What stands in the buffer up to ``cut``, or the part of it that the parser takes at once."""
        block = bytes(memoryview(self._buffer)[:cut])
        columns, bad, lines, size = self._parser.parse(block, self._place, self._line + 1)
        del self._buffer[:size]
        self._searched = 0
        self._line += lines
        # The next one to be read has lines of the same numbers.
        unnumbered = [Columns(part.name, part.keys, part.data, None, part.ids) for part in columns]
        return Chunk(unnumbered, self._position(), bad, self._read_bytes - taken)

    def _position(self) -> bytes:
        return pack((self._read_bytes, self._line))


def stream_path(place: str) -> str | None:
    """What to read ``place`` as, if it cannot be read again: "-" for standard input, an absolute path; None: it is
    a regular file, or not there.

    Raises:
        UsageError: it can be read by nobody.
    """
    path = os.path.abspath(os.path.expanduser(place))
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    is_stdin = path in _STDIN
    if stat.S_ISREG(mode) and not _is_of_kernel(path):
        return None
    if stat.S_ISDIR(mode):
        raise UsageError(f"{place}: is a directory; feed the files in it, one --feed each")
    if is_stdin:
        return "-"
    if stat.S_ISSOCK(mode):
        raise UsageError(
            f"{place}: is a socket, which is no file; pipe what it says into standard input (--feed EVENT=-)"
        )
    return path


def _is_of_kernel(path: str) -> bool:
    """A file that the kernel makes when it is read."""
    real = os.path.realpath(path)
    return real.startswith(tuple(f"{root}/" for root in _KERNEL))


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise UsageError(f"{path}: cannot be read: {e.strerror}") from None
