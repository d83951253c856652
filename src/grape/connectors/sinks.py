"""Sinks: committed outputs and replies as JSON lines, in a file exactly once or on standard output."""

from __future__ import annotations

import fcntl
import os
import select
import stat
from pathlib import Path

from grape.abc.source import Sink
from grape.connectors.reading import TAIL, hash_of
from grape.errors import UsageError


class JsonLinesSink(Sink):
    """A file of JSON lines that one taker appends to, each line once, whatever is killed when.

    A file that has content when it is taken to for the first time is refused: it is not known whether these lines are
    what this run will write again.

    Args:
        path: of a regular file, which is made if it is not there.
        name: tells the taker from all others, for ever.
    """

    def __init__(self, path: str | Path, name: str) -> None:
        self._path = Path(path).expanduser().resolve()
        self.path = str(self._path)
        self.name = name
        self._fd = -1
        self._length = 0
        self._last = b""

    def open(self, length: int, tail: bytes) -> tuple[int, bytes]:
        self.close()
        self._fd = self._open(length)
        try:
            self._lock()
            self._cut_back(length, tail)
        except BaseException:
            self.close()
            raise
        return self._length, hash_of(self._last)

    def write(self, lines: list[bytes]) -> tuple[int, bytes]:
        if lines:
            self._check_alone()
            data = b"\n".join(lines) + b"\n"
            try:
                self._write(data)
                os.fsync(self._fd)
            except OSError:
                # Not needed for the next run, which cuts it off anyway; but the file should end with a whole line.
                os.ftruncate(self._fd, self._length)
                raise
            self._length += len(data)
            self._last = data[-TAIL:] if len(data) >= TAIL else (self._last + data)[-TAIL:]
        return self._length, hash_of(self._last)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _write(self, data: bytes) -> None:
        view, at = memoryview(data), self._length
        while view:
            written = os.pwrite(self._fd, view, at)
            view, at = view[written:], at + written

    def _check_alone(self) -> None:
        status = os.fstat(self._fd)
        if not status.st_nlink:
            raise UsageError(f"{self.path}: was removed while outputs were written to it; what it held is lost")
        if status.st_size != self._length:
            raise UsageError(
                f"{self.path}: has {status.st_size} bytes, but {self._length} bytes were written: something else "
                "changes it. Leave it alone while a run writes it, and run again"
            )

    # -------------------------------------------------------------- opening

    def _open(self, length: int) -> int:
        path = self._path
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            if length:
                fd = os.open(path, flags)
            else:
                try:
                    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                except FileExistsError:
                    fd = os.open(path, flags)
                else:
                    self._sync_directory()
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise UsageError(f"{self.path}: there is no directory {path.parent}") from None
            raise UsageError(
                f"{self.path}: is not there any more, but {length} bytes were written to it. Bring it back, or take "
                "to a file of another name: it gets what comes from now on"
            ) from None
        except IsADirectoryError:
            raise UsageError(f"{self.path}: is a directory; name a file in it") from None
        except OSError as e:
            raise UsageError(f"{self.path}: cannot be written: {e.strerror}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise UsageError(
                f"{self.path}: is not a regular file and cannot be cut back after a kill; "
                "take to standard output (without =FILE) and redirect that"
            )
        return fd

    def _sync_directory(self) -> None:
        fd = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _holder(os.fstat(self._fd))
            who = "another process" if pid is None else "this process" if pid == os.getpid() else f"process {pid}"
            raise UsageError(f"{self.path}: {who} writes it; outputs need a file each, with one writer") from None
        except OSError as e:
            raise UsageError(f"{self.path}: cannot be locked: {e.strerror}") from None

    def _cut_back(self, length: int, tail: bytes) -> None:
        size = os.fstat(self._fd).st_size
        if size < length:
            raise UsageError(
                f"{self.path}: has {size} bytes, but {length} bytes were written to it; it was cut or replaced. "
                "Bring it back, or take to a file of another name: it gets what comes from now on"
            )
        if size and not length and not tail:
            raise UsageError(
                f"{self.path}: has {size} bytes already, and none of them were written from this data directory. "
                "Move it away or remove it, name another file, or continue the run that wrote it with its --data"
            )
        last = os.pread(self._fd, min(TAIL, length), length - min(TAIL, length))
        found = hash_of(last)
        if tail and found != tail:
            raise UsageError(
                f"{self.path}: the {len(last)} bytes before byte {length} have the hash {found.hex()}, but when they "
                f"were written it was {tail.hex()}; it was edited or replaced. "
                "Bring it back, or take to a file of another name: it gets what comes from now on"
            )
        if size > length:
            os.ftruncate(self._fd, length)
            os.fsync(self._fd)
        self._length, self._last = length, last


def _holder(status: os.stat_result) -> int | None:
    """The pid that holds the flock of a file, if the kernel tells it."""
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    pids: dict[bool, int] = {}
    try:
        with open("/proc/locks") as locks:
            for line in locks:
                fields = line.split()  # "1: FLOCK ADVISORY WRITE 4711 08:01:123456 0 EOF"
                if len(fields) < 6 or fields[1] != "FLOCK":
                    continue
                where, _, inode = fields[5].rpartition(":")
                if inode == str(status.st_ino) and int(fields[4]) > 0:
                    # Some file systems tell another device to stat than to this list.
                    pids[where == device] = int(fields[4])
    except (OSError, ValueError):
        return None
    return pids.get(True, pids.get(False))


class StdoutSink(Sink):
    """Lines to a file descriptor: at least once over a kill, as what was printed cannot be taken back.

    Args:
        name: tells the taker from all others, for ever.
        fd: where to.
    """

    is_shown = True

    def __init__(self, name: str, *, fd: int = 1) -> None:
        self.name = name
        self._fd = fd
        self._length = 0

    def open(self, length: int, tail: bytes) -> tuple[int, bytes]:
        try:
            os.fstat(self._fd)
        except OSError as e:
            raise UsageError(f"{self.name}: standard output cannot be written: {e.strerror}") from None
        self._length = length
        return length, tail

    def write(self, lines: list[bytes]) -> tuple[int, bytes]:
        data = b"".join([line + b"\n" for line in lines])
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # somebody else who has the descriptor made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
        self._length += len(data)
        return self._length, b""
