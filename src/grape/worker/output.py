"""What handlers print and log: whole lines on the pipes to the engine, marked with the slot that wrote them."""

from __future__ import annotations

import io
import sys
from typing import Any, Final

from grape.worker.runtime import Runtime

MARK: Final = "\x1e"
"""Stands before and behind the slot's name at the beginning of a marked line."""


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
            running = self._runtime.running
            mark = f"{MARK}{running[0].node}{MARK}" if running is not None else ""
            self._raw.write("".join(f"{mark}{line}\n" for line in lines))
            self._raw.flush()
        return len(text)

    def flush(self) -> None:
        self._raw.flush()

    def finish(self) -> None:
        """Write what has no newline yet."""
        if self._line:
            self.write("\n")


def install(runtime: Runtime) -> None:
    """From now on ``print`` and ``logging`` are marked."""
    sys.stdout = MarkedStream(sys.stdout, runtime)
    sys.stderr = MarkedStream(sys.stderr, runtime)
