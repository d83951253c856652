"""Who changed what on a server, when, and what came of it: a line of JSON each, durable before it is answered.

Whatever changes something writes here: the server for those who ask it, by its socket or over HTTP, and commands that
work on the home themselves. What an app is told, and any secret, is never in it: names and results only.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from grape.errors import StorageFailed, UsageError
from grape.server.config import ServerConfig, effective
from grape.store.files import fsync_directory

FILE: Final = "audit.log"
_LOCK: Final = "audit.lock"
_LONGEST: Final = 500


class Entry(Struct, frozen=True, omit_defaults=True):
    """``time``: UTC. ``who``: "token NAME", "uid N", or "anybody" of this machine where no token is needed. ``by``:
    "socket", "http" or "command". ``address``: of who asked over HTTP. ``result``: "ok", else the code of the error,
    whose text is ``why``. ``detail``: of what was asked."""

    time: str
    who: str
    by: str
    verb: str
    result: str
    app: str = ""
    detail: str = ""
    why: str = ""
    address: str = ""
    pid: int = 0


class Asker(Struct, frozen=True):
    """Who asks a server. As `Entry`."""

    who: str
    by: str
    address: str = ""
    pid: int = 0


class OnBehalf(Struct, frozen=True, forbid_unknown_fields=True):
    """A verb that a gateway asks for somebody else. ``argument``: as it is packed."""

    who: str
    address: str
    verb: str
    argument: msgspec.Raw


class Done(Struct, frozen=True, forbid_unknown_fields=True):
    """What a gateway has had an engine do for somebody. As `Entry`."""

    who: str
    address: str
    verb: str
    app: str
    result: str
    detail: str = ""
    why: str = ""


class Audit:
    """The audit log of a home. Any number of processes and threads write to it.

    Args:
        size: bytes at which it is turned over. older: parts that are kept.
    """

    def __init__(self, home: Path, size: int, older: int) -> None:
        self.path = home / FILE
        self._size = size
        self._older = older

    @classmethod
    def of(cls, home: Path) -> Audit:
        """For a command, as the home's file of settings says; one that is wrong changes nothing here."""
        config = ServerConfig()
        with suppress(UsageError):
            config = effective(home, None, os.environ, {}).config
        return cls(home, int(config.audit_size), config.audit_older)

    def add(self, asker: Asker, verb: str, app: str = "", detail: str = "", result: str = "ok", why: str = "") -> None:
        """Durable when it returns. Blocking.

        Raises:
            StorageFailed: the disk refuses.
        """
        now = time.time()
        at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03}Z"
        why = why.partition("\n")[0][:_LONGEST]
        entry = Entry(at, asker.who, asker.by, verb, result, app, detail[:_LONGEST], why, asker.address, asker.pid)
        try:
            line = msgspec.json.encode(entry) + b"\n"
        except UnicodeEncodeError:  # names come from anywhere
            line = msgspec.json.encode(entry.__class__(at, ascii(asker.who), asker.by, verb, result)) + b"\n"
        try:
            with self._locked():
                self._append(line)
        except OSError as e:
            raise StorageFailed(f"{e.filename or self.path}: {e.strerror or e}") from None

    def _append(self, line: bytes) -> None:
        with suppress(FileNotFoundError):
            if self.path.stat().st_size + len(line) > self._size:
                self._turn_over()
        is_new = not self.path.exists()
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._give_away(fd)
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":  # whoever wrote it was killed
                line = b"\n" + line
            left = memoryview(line)
            while left:
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        if is_new:
            fsync_directory(self.path.parent)

    def _turn_over(self) -> None:
        if not self._older:
            self.path.unlink()
            return
        for number in range(self._older - 1, 0, -1):
            with suppress(FileNotFoundError):
                os.replace(self._part(number), self._part(number + 1))
        os.replace(self.path, self._part(1))

    def _part(self, number: int) -> Path:
        return self.path.with_name(f"{FILE}.{number}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.path.with_name(_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._give_away(fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _give_away(self, fd: int) -> None:
        """What root makes in the home of another user, the server of that user has to write to."""
        owner = self.path.parent.stat()
        if os.geteuid() == 0 and os.fstat(fd).st_uid != owner.st_uid:
            os.fchown(fd, owner.st_uid, owner.st_gid)

    def entries(self, app: str | None = None, since: float | None = None) -> Iterator[Entry]:
        """Oldest first; what cannot be read is left out.

        Raises:
            UsageError: it cannot be read at all.
        """
        for number in (*range(self._kept(), 0, -1), 0):
            path = self._part(number) if number else self.path
            try:
                with open(path, "rb") as file:
                    for line in file:
                        with suppress(msgspec.MsgspecError, ValueError):
                            entry = msgspec.json.decode(line, type=Entry)
                            if app in (None, entry.app) and (since is None or moment_of(entry) >= since):
                                yield entry
            except FileNotFoundError:
                continue
            except OSError as e:
                raise UsageError(f"{path}: {e.strerror}") from None

    def _kept(self) -> int:
        """Also of a time when more were."""
        numbers = [path.suffix[1:] for path in self.path.parent.glob(f"{FILE}.*")]
        return max((int(number) for number in numbers if number.isdecimal()), default=0)


def moment_of(entry: Entry) -> float:
    """Seconds of wall time."""
    return datetime.fromisoformat(entry.time).timestamp()
