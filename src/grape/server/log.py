"""What a server and its apps say: one line a record, as text or as JSON, in files that are turned over."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from grape.client.session import lines_of
from grape.logs.record import Entry, Record, cut, fields_of, line_of, time_of
from grape.logs.sending import Sink
from grape.logs.sinks import FILE
from grape.processes.output import Line
from grape.protocol.door import Said
from grape.server.config import ServerConfig
from grape.tools.terminal import escaped, shown


class Say(Protocol):
    """Where a server says something of itself. ``part``: of it that says so."""

    def __call__(self, text: str, level: str = "info", part: str = "server") -> None: ...


class LogKind(Struct, frozen=True):
    """``is_json``: else text. ``size``: bytes at which a file is turned over. ``older``: files that are kept.
    ``is_kept``: there are files. ``sinks``: where records go beside them."""

    is_json: bool = False
    size: int = int(ServerConfig().log_size)
    older: int = ServerConfig().log_older
    is_kept: bool = True
    sinks: tuple[Sink, ...] = ()

    @classmethod
    def of(cls, config: ServerConfig, sinks: Iterable[Sink] = ()) -> LogKind:
        is_kept = FILE in config.log_to
        return cls(config.log_format == "json", int(config.log_size), config.log_older, is_kept, tuple(sinks))


class AppLog:
    """The log of one app. Any thread. What cannot be written is not kept: nothing depends on it."""

    def __init__(self, path: Path, app: str = "", kind: LogKind = LogKind()) -> None:
        self._app = app
        self._kind = kind
        self._file = _file(path, kind) if kind.is_kept else None

    def said(self, said: Said, version: str = "") -> None:
        """What an engine tells people. ``version``: of the app that it runs."""
        for worker, line in lines_of(said):
            self.add(worker, line, version)

    def note(self, text: str) -> None:
        """What the server itself has to say of the app."""
        for line in text.splitlines():
            self.add("server", Line("info", "", line))

    def add(self, worker: str, line: Line, version: str = "") -> None:
        """``worker``: who printed it."""
        at, kind = time.time_ns(), self._kind
        if self._file is not None and not kind.is_json:
            where, text = shown(worker, line)
            _put(self._file, f"{time_of(at)} [{where}] {cut(text)}")
        if kind.is_json or kind.sinks:
            self._record(at, worker, line, version)

    def _record(self, at: int, worker: str, line: Line, version: str) -> None:
        part = worker if worker in ("server", "engine") else "app"
        who = "" if part == "server" else worker
        about = self._app, who, line.slot, line.event, line.trace, version, fields_of(line.fields)
        record = Record(time_of(at), line.level, part, cut(line.text), *about)
        if self._file is not None and self._kind.is_json:
            _put(self._file, line_of(record, is_json=True))
        for sink in self._kind.sinks:
            sink.put(Entry(at, record))

    def close(self) -> None:
        """It holds no file open; whoever adds something opens it again."""
        if self._file is not None:
            self._file.close()


class ServerLog:
    """What the server says of itself, and what the processes beside its engines say. Any thread.

    Args:
        path: of its file; None: it is shown. show: a line for people, on standard error.

    Attributes:
        sinks: where records go beside that.
    """

    def __init__(self, path: Path | None, kind: LogKind, show: Callable[[str], None], *, is_shown: bool = True) -> None:
        self.sinks: Sequence[Sink] = kind.sinks
        self._is_json = kind.is_json
        self._show = show if is_shown else None
        self._file = _file(path, kind) if path is not None and kind.is_kept else None

    def say(self, text: str, level: str = "info", part: str = "server") -> None:
        """A `Say`."""
        at = time.time_ns()
        record = Record(time_of(at), level, part, cut(text))
        for sink in self.sinks:
            sink.put(Entry(at, record))
        if self._is_json:
            self._add(line_of(record, is_json=True))
        elif self._file is None:
            self._add(record.text)
        else:
            for line in record.text.splitlines():
                said = "" if level == "info" else f"{level.upper()} "
                self._add(f"{record.time} [{part}] {said}{escaped(line, chr(9))}")

    def _add(self, line: str) -> None:
        if self._file is not None:
            _put(self._file, line)
        elif self._show is not None:
            self._show(line)

    def close(self) -> None:
        """What sinks have not taken by now they may still take, for a moment."""
        for sink in self.sinks:
            sink.close()
        if self._file is not None:
            self._file.close()


def _put(file: RotatingFileHandler, line: str) -> None:
    file.handle(logging.makeLogRecord({"msg": line}))


def _file(path: Path, kind: LogKind) -> RotatingFileHandler:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    more = {"encoding": "utf-8", "errors": "backslashreplace"}
    file = _Private(path, maxBytes=kind.size, backupCount=kind.older, delay=True, **more)
    file.setFormatter(logging.Formatter("%(message)s"))
    return file


class _Private(RotatingFileHandler):
    """A file for its owner alone; an error of the disk is nobody's to hear."""

    def _open(self):  # type: ignore[no-untyped-def]
        return open(self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=_for_owner)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
