"""``grape dead``: look at what was given up, try it again, drop it."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from grape.cli.console import put, put_table, say
from grape.cli.run import fail
from grape.cli.state import App, Data, print_lines, to_json
from grape.errors import Corrupt, GrapeError, UsageError
from grape.model.stored import AppRecord, HoldEntry
from grape.tools.directory import Directory, Letter, Place, parse_place
from grape.tools.repair import Action, Changes, Repair
from grape.tools.terminal import escaped

_SHOWN: Final = 500
"""Letters in a table, refusals in a list."""

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="As `grape dead list` shows them: main.3-17")]
All = Annotated[bool, typer.Option("--all", help="All of the app.")]

app = typer.Typer(
    help="Dead letters, and events that were stopped (on_fail='stop').", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_(
    data: Data,
    app_name: App = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines also on a terminal.")] = False,
) -> None:
    """List dead letters and stopped events: a table on a terminal, else JSON lines.

    Exit codes: 0; 2 wrong use; 3 damaged.
    """
    try:
        with Directory.open(data) as directory:
            letters = directory.letters(directory.app(app_name))
            if sys.stdout.isatty() and not as_json:
                shown = [letter for letter, _ in zip(letters, range(_SHOWN), strict=False)]
                more = sum(1 for _ in letters)
                if shown:
                    put_table(_table(shown))
                    total = len(shown) + more
                    say(f"{total:,} in all{f', the first {_SHOWN} are shown (--json: all)' if more else ''}")
                else:
                    say("no dead letters")
            else:
                print_lines(map(_row, letters))
    except GrapeError as e:
        fail(e)


@app.command("show")
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="As `grape dead list` shows it: main.3-17")],
    data: Data,
    app_name: App = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object also on a terminal.")] = False,
) -> None:
    """Show all of one letter: JSON, with its data and its traceback (on a terminal the traceback as text).

    Exit codes: 0; 1 there is no such letter; 2 wrong use; 3 damaged.
    """
    try:
        with Directory.open(data) as directory:
            record = directory.app(app_name)
            letter = directory.letter(parse_place(record, letter_id))
            if letter is None:
                say(f"there is no letter {letter_id} (any more)")
                raise typer.Exit(1)
            traceback = directory.text(letter)
            found = _all_of(letter, record)
    except GrapeError as e:
        fail(e)
    if sys.stdout.isatty() and not as_json:
        text = msgspec.json.format(to_json(found), indent=2).decode()
        put(text)
        if traceback:
            put("\n" + traceback.rstrip("\n"))
    else:
        print_lines([{**found, "traceback": traceback}])


@app.command("retry")
def retry(data: Data, ids: Ids = None, every: All = False, app_name: App = None) -> None:
    """Put dead letters back into the log; let stopped events be tried again. The next `grape run` does it.

    Exit codes: 0; 1 some could not be; 2 wrong use, or the directory is in use; 3 damaged.
    """
    _change(data, ids or [], every, app_name, "retry")


@app.command("drop")
def drop(data: Data, ids: Ids = None, every: All = False, app_name: App = None) -> None:
    """Remove dead letters and stopped events for good; what lined up behind a stopped event goes on.

    Exit codes: 0; 1 some were not there; 2 wrong use, or the directory is in use; 3 damaged.
    """
    _change(data, ids or [], every, app_name, "drop")


def _change(data: str, ids: list[str], every: bool, app_name: str | None, action: Action) -> None:
    try:
        if bool(ids) == every:
            raise UsageError(f"grape dead {action}: say which ones (ID...), or --all")
        with Repair(data) as repair:
            directory = repair.directory
            record = directory.app(app_name)
            places: list[Place] = [parse_place(record, text) for text in ids]
            if every:
                places = [letter.place for letter in directory.letters(record)]
            changes = repair.retry(record, places) if action == "retry" else repair.drop(record, places)
    except GrapeError as e:
        fail(e)
    _report(data, action, changes)
    if changes.refused:
        raise typer.Exit(1)


def _report(data: str, action: Action, changes: Changes) -> None:
    if len(changes.refused) <= _SHOWN:
        for letter_id, why in changes.refused.items():
            say(f"{letter_id}: {why}")
    else:
        for why, count in Counter(changes.refused.values()).most_common(_SHOWN):
            say(f"{count:,} letters: {why}")
    done = {"retry": "put back", "drop": "dropped"}[action]
    counts = [
        _count(changes.dead, "dead letter", "dead letters"),
        _count(changes.stopped, "stopped event", "stopped events"),
    ]
    text = " and ".join(filter(None, counts)) or "nothing"
    refused = f"; {len(changes.refused):,} refused" if changes.refused else ""
    go_on = f"; run the app again with --data {data}" if action == "retry" and changes.dead + changes.stopped else ""
    say(f"{text} {done}{refused}{go_on}")


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}" if number else ""


def _time(us: int | None) -> str | None:
    """Wall time (us) in ISO format with the zone of this machine."""
    if us is None:
        return None
    try:
        return datetime.fromtimestamp(us / 1e6).astimezone().isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None


def _row(letter: Letter) -> dict[str, Any]:
    row = letter.row
    return {
        "id": letter.place.id,
        "status": "stopped" if letter.place.stopped else "dead",
        "event": row.event,
        "node": row.node,
        "key": row.key,
        "attempts": row.attempts,
        "kind": row.kind,
        "text": row.text,
        "when": _time(letter.failed),
        "origin": letter.origin,
    }


def _all_of(letter: Letter, record: AppRecord) -> dict[str, Any]:
    row = letter.row
    found: dict[str, Any] = {
        **_row(letter),
        "app": record.name,
        "log": letter.place.log,
        "partition": letter.place.partition.number,
        "event_id": row.id,
        "created": _time(row.created),
    }
    if isinstance(row, HoldEntry):
        found["named_deaths"] = row.named_deaths
    if row.context is not None:
        found["context"] = {"request": row.context.request, "home": row.context.home, "trace": row.context.trace}
    try:
        found["data"] = letter.data()
    except Corrupt as e:
        found["data"] = None
        found["problem"] = str(e)
    return found


def _table(letters: list[Letter]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True, overflow="fold")
    for name in ("event", "node", "key"):
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=20)
    table.add_column("tries", justify="right")
    table.add_column("kind", overflow="ellipsis", no_wrap=True, max_width=24)
    table.add_column("text", overflow="fold", ratio=1, min_width=16)
    table.add_column("when", overflow="fold")
    for letter in letters:
        row = letter.row
        when = "stopped" if letter.place.stopped else (_time(letter.failed) or "")[:19].replace("T", " ")
        origin = f"{letter.origin}: " if letter.origin else ""
        cells = [letter.place.id, row.event, row.node, row.key or "", str(row.attempts), row.kind, origin + row.text]
        table.add_row(*(Text(escaped(cell)) for cell in cells), when)
    return table
