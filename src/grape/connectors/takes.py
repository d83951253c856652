"""What a take is: ``--take EVENT[=FILE]`` of the command line, and ``take=`` in Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from grape.abc.source import Sink
from grape.connectors.live import CallSink
from grape.connectors.sinks import JsonLinesSink, StdoutSink
from grape.errors import BadArgument, UsageError

_REPLIES: Final = "?"


def sink_of(event: str, what: Any) -> Sink:
    """The sink that a `Sink`, a path for JSON lines or a callable means.

    Raises:
        BadArgument: it is none of these.
    """
    if isinstance(what, Sink):
        return what
    if isinstance(what, str | os.PathLike):
        return _file(event, Path(os.fsdecode(what)).resolve())
    if callable(what):
        return CallSink(event, what)
    raise BadArgument(f"take[{event!r}] is a {type(what).__name__}: give a path, a Sink or a function")


def taken_to(event: str, path: str | None) -> Sink:
    """``path``: of a file for JSON lines; None: standard output."""
    return StdoutSink(f"{event}=-") if path is None else _file(event, Path(path))


def replies_to(path: str) -> Sink:
    """A file for replies as JSON lines."""
    return _file(_REPLIES, Path(path))


def _file(event: str, path: Path) -> Sink:
    return JsonLinesSink(path, f"{event}={path.resolve()}")


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
