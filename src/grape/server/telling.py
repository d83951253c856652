"""How the processes beside engines log: on standard error, which their server reads and puts into its own log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

MARK: Final = "\x1e"
_NEWLINE: Final = "\x1f"
_LONGEST: Final = 64 << 10
_READ: Final = 64 << 10


def begin_logging(level: int = logging.WARNING) -> None:
    """In such a process: what is logged, from ``level`` on, goes to the server."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Marked("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class _Marked(logging.Formatter):
    """A record, its traceback with it, is one line."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", _NEWLINE)
        return f"{MARK}{record.levelname.lower()}{MARK}{text}"


async def listen(stream: asyncio.StreamReader, say: Callable[[str, str], None]) -> None:
    """In the server, until the process has ended: ``say`` gets text and level of each record. What comes without a
    mark is of the interpreter, which has failed."""
    rest = b""
    while data := await stream.read(_READ):
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > _LONGEST:
            lines.append(rest)
            rest = b""
        for line in lines:
            _say_line(line, say)
    _say_line(rest, say)


def _say_line(line: bytes, say: Callable[[str, str], None]) -> None:
    text = line.decode("utf-8", "backslashreplace")
    level = "error"
    if text.startswith(MARK) and text.count(MARK) >= 2:
        _, level, text = text.split(MARK, 2)
        text = text.replace(_NEWLINE, "\n")
    if text.strip():
        say(text, level)
