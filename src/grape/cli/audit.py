"""``grape audit``: who changed what on a server; and how commands that change something themselves are written down."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct

from grape.cli.console import put, say
from grape.cli.home import HomeOption, home_of, or_exit
from grape.errors import GrapeError, StorageFailed, UsageError
from grape.model.section import Duration, read_section
from grape.server.audit import Asker, Audit, Entry
from grape.server.home import Home


class _Since(Struct, frozen=True):
    since: Duration


def audit(
    app: Annotated[str | None, typer.Option("--app", metavar="APP", help="Of this app only.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help='"2 h", "7 d", or 2026-05-01, 2026-05-01T12:00 of here.')
    ] = None,
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON lines, also on a terminal.")] = False,
) -> None:
    """Show who changed what on a server, when, and what came of it; oldest first: lines for people on a terminal, else
    JSON lines.

    \b
    grape audit --app orders --since "7 d"

    Exit codes: 0; 2 wrong use.
    """
    begin = or_exit(lambda: None if since is None else _moment(since))
    found = or_exit(lambda: list(Audit.of(Home(home_of(home)).path).entries(app, begin)))
    for entry in found:
        is_plain = as_json or not sys.stdout.isatty()
        put(msgspec.json.encode(entry).decode() if is_plain else _line(entry))


def _line(entry: Entry) -> str:
    what = " ".join(filter(None, (entry.verb, entry.app, entry.detail)))
    failed = "" if entry.result == "ok" else f": {entry.result}{f', {entry.why}' if entry.why else ''}"
    return f"{entry.time}  {entry.who} ({' '.join(filter(None, (entry.by, entry.address)))})  {what}{failed}"


def _moment(text: str) -> float:
    """
    Raises:
        UsageError: it is none.
    """
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass
    try:
        return time.time() - read_section(_Since, {"since": text}, "").since
    except ValueError:
        raise UsageError(
            f'--since {text!r:.60}: a time that has passed, "2 h" or "7 d", or a date, 2026-05-01'
        ) from None


@contextlib.contextmanager
def written_down(home: str | None, verb: str, app: str = "", detail: str = "") -> Iterator[None]:
    """What a command changes on a server without asking it, and whether that was possible."""
    place = Home(home_of(home)).path
    try:
        yield
    except GrapeError as e:
        _add(place, verb, app, detail, e)
        raise
    except typer.Exit:
        raise
    _add(place, verb, app, detail, None)


def _add(place: Path, verb: str, app: str, detail: str, error: GrapeError | None) -> None:
    if not place.is_dir():
        return
    asker = Asker(f"uid {os.getuid()}", "command", "", os.getpid())
    result, why = ("ok", "") if error is None else (error.code, str(error))
    try:
        Audit.of(place).add(asker, verb, app, detail, result, why)
    except StorageFailed as e:  # it is done by then
        say(f"this is not in the audit log: {e}")
