"""What a server and its apps say: one line a record, as text or as JSON, in files that are turned over."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from grape.processes.output import Line
from grape.protocol.door import Said
from grape.server.config import ServerConfig
from grape.tools.terminal import escaped, shown

_LONGEST: Final = 16 << 10
_FAILED: Final = re.compile(r"'.*' failed at event (.+?); (?:no further|next) attempt")
"""What an engine says of an event that has failed (`grape.engine.first`)."""


class Say(Protocol):
    """Where a server says something of itself. ``part``: of it that says so."""

    def __call__(self, text: str, level: str = "info", part: str = "server") -> None: ...


class Record(Struct, frozen=True, omit_defaults=True):
    """A line of a log as JSON. ``time``: UTC. ``level``: "stdout" or "stderr" of what was printed, else as of a log
    record. ``part``: of the server that says it, or "app". ``worker``: who printed it, of an app. ``slot``: the node
    that ran. ``event``: the id of the one that has failed, or that is traced and was handled; then with ``trace``."""

    time: str
    level: str
    part: str
    text: str
    app: str = ""
    worker: str = ""
    slot: str = ""
    event: str = ""
    trace: str = ""


class LogKind(Struct, frozen=True):
    """``is_json``: else text. ``size``: bytes at which a file is turned over. ``older``: files that are kept."""

    is_json: bool = False
    size: int = int(ServerConfig().log_size)
    older: int = ServerConfig().log_older

    @classmethod
    def of(cls, config: ServerConfig) -> LogKind:
        return cls(config.log_format == "json", int(config.log_size), config.log_older)


class AppLog:
    """The log of one app. Any thread. What cannot be written is not kept: nothing depends on it."""

    def __init__(self, path: Path, app: str = "", kind: LogKind = LogKind()) -> None:
        self._app = app
        self._is_json = kind.is_json
        self._file = _file(path, kind)

    def said(self, said: Said) -> None:
        """What an engine tells people."""
        for i, (worker, level, slot, text) in enumerate(said.lines):
            self.add(worker, Line(level, slot, text, *said.about.get(i, ())))

    def note(self, text: str) -> None:
        """What the server itself has to say of the app."""
        for line in text.splitlines():
            self.add("server", Line("info", "", line))

    def add(self, worker: str, line: Line) -> None:
        """``worker``: who printed it."""
        at = _time()
        if self._is_json:
            failed = _FAILED.match(line.text) if line.level == "error" else None
            event = line.event if failed is None else failed[1]
            part = worker if worker in ("server", "engine") else "app"
            who = "" if part == "server" else worker
            what = at, line.level, part, _cut(line.text), self._app, who, line.slot, event, line.trace
            _put(self._file, _json(Record(*what)))
            return
        where, text = shown(worker, line)
        _put(self._file, f"{at} [{where}] {_cut(text)}")

    def close(self) -> None:
        """It holds no file open; whoever adds something opens it again."""
        self._file.close()


class ServerLog:
    """What the server says of itself, and what the processes beside its engines say. Any thread.

    Args:
        path: of its file; None: it is shown. show: a line for people, on standard error.
    """

    def __init__(self, path: Path | None, kind: LogKind, show: Callable[[str], None]) -> None:
        self._is_json = kind.is_json
        self._show = show
        self._file = None if path is None else _file(path, kind)

    def say(self, text: str, level: str = "info", part: str = "server") -> None:
        """A `Say`."""
        if self._is_json:
            self._add(_json(Record(_time(), level, part, _cut(text))))
        elif self._file is None:
            self._show(_cut(text))
        else:
            at = _time()
            for line in _cut(text).splitlines():
                self._add(f"{at} [{part}] {'' if level == 'info' else f'{level.upper()} '}{escaped(line, chr(9))}")

    def _add(self, line: str) -> None:
        if self._file is None:
            self._show(line)
        else:
            _put(self._file, line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _time() -> str:
    now = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03}Z"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} .. ({len(text) - _LONGEST:,} more)"


def _json(record: Record) -> str:
    """In which nothing is that a terminal would act on."""
    try:
        return escaped(msgspec.json.encode(record).decode())
    except UnicodeEncodeError:  # of a text that never was one
        plain = {name: value.encode("utf-8", "backslashreplace").decode() for name, value in _fields(record).items()}
        return escaped(msgspec.json.encode(Record(**plain)).decode())


def _fields(record: Record) -> dict[str, str]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


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
