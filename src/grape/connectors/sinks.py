"""Sinks: committed outputs and replies as JSON lines, in a file exactly once or on standard output."""

from __future__ import annotations

import fcntl
import os
import select
import stat
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from grape.abc.source import Sink
from grape.authoring.raised import line_of
from grape.connectors.outputs import Part, Unreadable
from grape.connectors.reading import TAIL, hash_of
from grape.errors import UsageError

# ------------------------------------------------------------------ batches to lines


class _Line(Struct):
    event: str
    key: str | None
    data: Any
    id: str


class _Reply(Struct):
    id: str | None
    final: bool
    data: Any


def _in_json(value: Any) -> Any:
    """What JSON has no form for: extension types of msgpack, from workers in other languages, and keys of maps that are
    neither text nor numbers, which become the text of their JSON."""
    if isinstance(value, msgspec.msgpack.Ext):
        return value.data
    return _encoder.encode(value).decode()


_encoder: Final = msgspec.json.Encoder(enc_hook=_in_json)


def event_lines(part: Part) -> tuple[list[bytes], list[Unreadable]]:
    """Events as JSON objects ``{"event","key","data","id"}``, one a line, without newlines, and those that have no form
    in JSON.

    Bytes become base64, NaN and the infinities null, keys of maps text. An event whose data cannot be read as
    msgpack values has its bytes, as base64.
    """
    return _encoded(part, list(map(_Line, part.names, part.keys, part.data, part.ids)))


def reply_lines(part: Part) -> tuple[list[bytes], list[Unreadable]]:
    """Replies as JSON objects ``{"id","final","data"}``: see `event_lines`.

    ``id`` is that of the event that is answered.
    """
    finals = [name == "final" for name in part.names]
    return _encoded(part, list(map(_Reply, part.keys, finals, part.data)))


def _encoded(part: Part, lines: list[Any]) -> tuple[list[bytes], list[Unreadable]]:
    if not lines:
        return [], []
    try:
        return _encoder.encode_lines(lines)[:-1].split(b"\n"), []
    except Exception:  # one of them is something that JSON cannot say; below, which
        out: list[bytes] = []
        bad: list[Unreadable] = []
        for i, line in enumerate(lines):
            try:
                out.append(_encoder.encode(line))
            except Exception as e:
                text = f"an output cannot be written as JSON: {line_of(e)}"
                bad.append(Unreadable(part.indexes[i], 1, part.names[i], part.keys[i], b"", text))
        return out, bad


# ------------------------------------------------------------------ sinks


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


# ------------------------------------------------------------------ --take


def parse_take(text: str) -> tuple[str, str | None]:
    """What ``--take EVENT[=FILE]`` means: the event, and the absolute path of the file (None: standard output).

    Raises:
        UsageError: it cannot be understood.
    """
    event, equals, path = text.partition("=")
    event = event.strip()
    if not event or (equals and not path):
        raise UsageError(
            f"--take {text!r}: must be EVENT or EVENT=FILE; "
            "examples: --take total (to standard output), --take total=totals.jsonl"
        )
    if not equals or path == "-":
        return event, None
    return event, str(Path(path).expanduser().resolve())
