"""What handlers print and log: whole lines on the pipes to the engine, marked with level and slot."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any, Final

from grape.worker.runtime import Runtime

MARK: Final = "\x1e"
"""Stands before level and slot and behind both, at the beginning of a marked line."""


class MarkedStream(io.TextIOBase):
    """A text stream that marks each line with the node that runs."""

    def __init__(self, raw: Any, runtime: Runtime) -> None:
        self._raw = raw
        self._runtime = runtime
        self._line = ""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        if lines:
            self.write_lines(lines)
        return len(text)

    def write_lines(self, lines: list[str], level: str = "") -> None:
        slot = self._runtime.speaker()
        mark = f"{MARK}{level}{MARK}{slot}{MARK}" if level or slot else ""
        self._raw.write("".join(f"{mark}{line}\n" for line in lines))
        self._raw.flush()

    def flush(self) -> None:
        self._raw.flush()

    def finish(self) -> None:
        """Write what has no newline yet."""
        if self._line:
            self.write("\n")


class _LogLines(logging.Handler):
    """Stands in for `logging.lastResort`, as long as the app configures nothing: records keep their level."""

    def __init__(self, stream: MarkedStream) -> None:
        super().__init__(logging.WARNING)
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._stream.write_lines(self.format(record).split("\n"), record.levelname.lower())
        except Exception:
            self.handleError(record)


def install(runtime: Runtime) -> None:
    """From now on ``print`` and ``logging`` are marked."""
    sys.stdout = MarkedStream(sys.stdout, runtime)
    sys.stderr = stderr = MarkedStream(sys.stderr, runtime)
    logging.lastResort = _LogLines(stderr)
