"""What an app printed: one line a record, in a file that is turned over."""

from __future__ import annotations

import logging
import os
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from grape.processes.output import Line
from grape.protocol.door import Said
from grape.tools.terminal import shown

MAX_BYTES: Final = 10 << 20
OLDER: Final = 5
_LONGEST: Final = 16 << 10


class AppLog:
    """The log of one app. Any thread. What cannot be written is not kept: nothing depends on it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = _Private(
            path, maxBytes=MAX_BYTES, backupCount=OLDER, delay=True, encoding="utf-8", errors="backslashreplace"
        )
        self._file.setFormatter(logging.Formatter("%(message)s"))

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
        where, text = shown(worker, line)
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]} .. ({len(text) - _LONGEST:,} more)"
        now = time.time()
        at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03}Z"
        self._file.handle(logging.makeLogRecord({"msg": f"{at} [{where}] {text}"}))

    def close(self) -> None:
        """It holds no file open; whoever adds something opens it again."""
        self._file.close()


class _Private(RotatingFileHandler):
    """A file for its owner alone; an error of the disk is nobody's to hear."""

    def _open(self):  # type: ignore[no-untyped-def]
        return open(self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=_for_owner)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
