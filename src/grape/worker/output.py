"""What handlers print and log: whole lines on the pipes to the engine, marked with level and slot.

``sys.stdout`` and ``sys.stderr`` are text streams as Python has them, over a binary stream that marks lines: buffer,
fileno, encoding, errors, reconfigure and detach do what they always do. They write to the descriptors 1 and 2
themselves, so what a handler does to those happens to its prints as well.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from grape.authoring.raised import shown
from grape.model.levels import LEVELS
from grape.worker import children
from grape.worker.logs import Levels, fields_of

MARK: Final = "\x1e"
"""Stands before level and slot and behind both, at the beginning of a marked line."""
FIELD: Final = "\x1f"
"""Stands between a slot, the id of the event that runs, that of its trace, and the fields of a record."""
_LONGEST: Final = 64 << 10
"""Bytes of a line that are kept until its end; as much as the engine takes for one."""

Speaker = Callable[[], str]
"""The node that runs right now, "" for none; with the id of the event that it handles, and that of its trace if it
has one, each behind a `FIELD`."""


def _nobody() -> str:
    return ""


class MarkedPipe(io.BufferedIOBase):
    """A descriptor whose lines are marked with the node that runs. What has no end yet waits for it, or for a flush."""

    mode = "wb"

    def __init__(self, descriptor: int, name: str) -> None:
        self.name = name
        self.raw = io.FileIO(descriptor, "wb", closefd=False)
        self.speaker: Speaker = _nobody
        self._descriptor = descriptor
        self._line = b""
        self._is_amid = False
        """The beginning of the last line is written already."""
        self._lock = threading.RLock()
        children.at_fork(self._forked)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any, /) -> int:
        if self.closed:
            raise ValueError("write to closed file")
        data = bytes(data) if isinstance(data, bytes | bytearray) else memoryview(data).tobytes()
        with self._lock:
            whole, end, self._line = (self._line + data).rpartition(b"\n")
            if end:
                self._put(whole + end)
            if len(self._line) > _LONGEST:
                self.flush()
        return len(data)

    def flush(self) -> None:
        """Write what there is, the beginning of a line too."""
        if self.closed:
            raise ValueError("flush of closed file")
        with self._lock:
            rest, self._line = self._line, b""
            if rest:
                self._put(rest)

    def say(self, lines: Iterable[str], level: str, slot: str | None = None, fields: str = "") -> None:
        """Lines of our own, whatever has become of the stream. ``slot`` None: the node that runs. ``fields``: of the
        record, as JSON; they stand at its first line."""
        with contextlib.suppress(OSError, ValueError), self._lock:
            if self._is_amid or self._line:
                self.write(b"\n")
            who = self._who(slot)
            mark, first = _mark(level, who), _mark(level, who, fields)
            text = "".join(f"{mark if i else first}{line}\n" for i, line in enumerate(lines))
            self._write(text.encode("utf-8", "backslashreplace"))

    def _put(self, data: bytes) -> None:
        mark = _mark("", self._who(None)).encode()
        if mark:
            *lines, rest = data.split(b"\n")
            first = b"" if self._is_amid else mark
            marked = first + (b"\n" + mark).join(lines) + b"\n" if lines else b""
            if rest:
                marked += (mark if lines else first) + rest
            self._write(marked)
        else:
            self._write(data)
        self._is_amid = not data.endswith(b"\n")

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.raw.write(view) or 0 :]

    def _who(self, slot: str | None) -> str:
        said = self.speaker() if slot is None else slot
        return FIELD.join(map(shown, said.split(FIELD)))

    def _forked(self) -> None:
        """In a child: what waits is its parent's, and whoever held the lock is not here."""
        self._line = b""
        self._lock = threading.RLock()


def _mark(level: str, who: str, fields: str = "") -> str:
    if fields:
        who += FIELD * (3 - who.count(FIELD)) + fields
    return f"{MARK}{level}{MARK}{who}{MARK}" if level or who else ""


class _LogLines(logging.Handler):
    """Stands in for `logging.lastResort`, as long as the app configures nothing: records keep their level."""

    def __init__(self, pipe: MarkedPipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._pipe.say(self.format(record).split("\n"), _level(record.levelno), None, fields_of(record))
        except Exception:
            self.handleError(record)


def _basic_config(configure: Callable[..., None]) -> Callable[..., None]:
    """Of `logging`, also called by `logging.info()` and the like. Who says nothing, or a level, has configured no
    handler: his records keep what they are."""

    def basicConfig(**options: Any) -> None:
        if options.keys() - {"level"}:
            configure(**options)
        elif options.get("level") is not None and not logging.root.handlers:
            logging.root.setLevel(options["level"])

    return basicConfig


def _level(number: int) -> str:
    """The one of ours that it is, or is just above."""
    return LEVELS[min(len(LEVELS) - 1, max(0, number // 10 - 1))]


class Output:
    """The standard streams of a worker; made before its app is loaded, so that all that it configures writes there."""

    def __init__(self) -> None:
        self._kept = (sys.stdout, sys.stderr)  # else they would close the descriptors
        self.out = MarkedPipe(1, "<stdout>")
        self.err = MarkedPipe(2, "<stderr>")
        self._streams = [_text_stream(self.out), _text_stream(self.err)]
        sys.stdout, sys.stderr = self._streams
        sys.__stdout__, sys.__stderr__ = self._streams  # type: ignore[misc]
        logging.lastResort = _LogLines(self.err)
        logging.basicConfig = _basic_config(logging.basicConfig)
        self.levels = Levels()

    def speak_for(self, speaker: Speaker) -> None:
        """From now on lines are marked with what ``speaker`` says."""
        self.out.speaker = self.err.speaker = speaker

    def level_by(self, node: Callable[[], str]) -> Callable[[Mapping[str, str], Iterable[str]], None]:
        """What is told how much to log, and by which nodes; ``node``: that runs."""
        self.levels.node = node
        return self.levels.set

    def complain(self, text: str, slot: str | None = None) -> None:
        """An error that no event has. ``slot`` None: the node that runs."""
        self.err.say(text.rstrip("\n").split("\n"), "error", slot)

    def flush(self) -> None:
        """Write what still waits, whatever the app has done to its streams. Never raises."""
        for stream in (sys.stdout, sys.stderr, *self._streams):
            with contextlib.suppress(BaseException):
                stream.flush()


def _text_stream(pipe: MarkedPipe) -> io.TextIOWrapper:
    stream = io.TextIOWrapper(pipe, "utf-8", "backslashreplace", line_buffering=True)
    stream.mode = "w"  # type: ignore[misc]
    return stream
