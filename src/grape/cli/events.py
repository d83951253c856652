"""How events that lie in a directory are chosen, listed and counted: for `grape dead`, `grape held` and `grape log`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from grape.cli.console import put, put_table, say
from grape.cli.state import print_lines, to_json
from grape.errors import UsageError
from grape.tools.choice import Choice, limited
from grape.tools.terminal import escaped

T = TypeVar("T")

SHOWN: Final = 500
"""Rows of a table, refusals in a list."""

All = Annotated[bool, typer.Option("--all", help="All of the app.")]
ByNode = Annotated[str | None, typer.Option("--node", metavar="NODE", help="Of this node only.")]
ByEvent = Annotated[str | None, typer.Option("--event", metavar="EVENT", help="Of this event only.")]
ByKind = Annotated[str | None, typer.Option("--kind", metavar="KIND", help="That failed so only: ValueError, timeout.")]
ByKey = Annotated[str | None, typer.Option("--key", metavar="KEY", help="Of this key only.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most N of them.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON also on a terminal.")]


def check_which(command: str, ids: Sequence[str], every: bool, choice: Choice, options: str) -> None:
    """
    Args:
        command: that asks. options: by which it may be said.

    Raises:
        UsageError: it is not said, or said in two ways, which events are meant.
    """
    if sum((bool(ids), every, not choice.is_any)) != 1:
        raise UsageError(f"{command}: say which ones: by ID..., or by {options}, or --all")


def list_all(
    found: Iterable[T],
    limit: int | None,
    as_json: bool,
    row_of: Callable[[T], dict[str, Any]],
    table_of: Callable[[list[T]], Table],
    count: Callable[[int], str],
) -> None:
    """A table on a terminal and how many there are in words, else JSON lines."""
    found = iter(limited(found, limit))
    if not sys.stdout.isatty() or as_json:
        print_lines(map(row_of, found))
        return
    shown = list(islice(found, SHOWN))
    more = sum(1 for _ in found)
    if shown:
        put_table(table_of(shown))
    say(f"{count(len(shown) + more)}{f', the first {SHOWN} are shown (--json: all)' if more else ''}")


def show_whole(whole: dict[str, Any], as_json: bool = False, traceback: str | None = None) -> None:
    """One event as JSON; on a terminal its traceback as text."""
    if not sys.stdout.isatty() or as_json:
        print_lines([whole if traceback is None else {**whole, "traceback": traceback}])
        return
    put(msgspec.json.format(to_json(whole), indent=2).decode())
    if traceback:
        put("\n" + traceback.rstrip("\n"))


def say_refused(refused: Mapping[str, str], what: str) -> str:
    """Which were, and why; returns how many, for the last line. ``what``: many of them are called."""
    if len(refused) <= SHOWN:
        for name, why in refused.items():
            say(f"{name}: {why}")
    else:
        for why, count in Counter(refused.values()).most_common(SHOWN):
            say(f"{count:,} {what}: {why}")
    return f"; {len(refused):,} refused" if refused else ""


def table_of(columns: Sequence[tuple[str, dict[str, Any]]], rows: Iterable[Sequence[str]]) -> Table:
    """Columns with their options; the first one is an id."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True, overflow="fold")
    for name, options in columns:
        table.add_column(name, **options)
    for cells in rows:
        table.add_row(*(Text(escaped(cell)) for cell in cells))
    return table


def named(*names: str, width: int) -> list[tuple[str, dict[str, Any]]]:
    """Columns of names, which are cut."""
    return [(name, {"overflow": "ellipsis", "no_wrap": True, "max_width": width}) for name in names]


def time_of(us: int | None) -> str | None:
    """Wall time (us) in ISO format with the zone of this machine."""
    if not us:
        return None
    try:
        return datetime.fromtimestamp(us / 1e6).astimezone().isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None


def short_time_of(us: int | None) -> str:
    """The same without zone and fractions; "" if there is none."""
    return (time_of(us) or "")[:19].replace("T", " ")
