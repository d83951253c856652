"""What `grape dead` and `grape held` have in common: how failed events are chosen, shown and changed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from grape.cli.console import put, put_table, say
from grape.cli.run import fail
from grape.cli.state import print_lines, to_json
from grape.errors import Corrupt, GrapeError, UsageError
from grape.model.plural import counted
from grape.model.stored import AppRecord, HoldEntry
from grape.tools.choice import Choice, limited
from grape.tools.directory import Directory, Letter, Place, parse_place
from grape.tools.repair import Action, Changes, Repair
from grape.tools.terminal import escaped

SHOWN: Final = 500
"""Letters in a table, refusals in a list."""

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="As `list` shows them: main.3-17, main.3-h17")]
All = Annotated[bool, typer.Option("--all", help="All of the app.")]
ByNode = Annotated[str | None, typer.Option("--node", metavar="NODE", help="Of this node only.")]
ByEvent = Annotated[str | None, typer.Option("--event", metavar="EVENT", help="Of this event only.")]
ByKind = Annotated[str | None, typer.Option("--kind", metavar="KIND", help="That failed so only: ValueError, timeout.")]
ByKey = Annotated[str | None, typer.Option("--key", metavar="KEY", help="Of this key only.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most N of them.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON also on a terminal.")]


def show_all(letters: Iterable[Letter], limit: int | None, as_json: bool, none: str) -> None:
    """A table on a terminal, else JSON lines."""
    letters = limited(letters, limit)
    if not sys.stdout.isatty() or as_json:
        print_lines(map(row_of, letters))
        return
    shown = list(islice(letters, SHOWN))
    more = sum(1 for _ in letters)
    if not shown:
        say(none)
        return
    put_table(_table(shown))
    say(f"{len(shown) + more:,} in all{f', the first {SHOWN} are shown (--json: all)' if more else ''}")


def show_one(directory: Directory, record: AppRecord, letter: Letter, as_json: bool) -> None:
    """All of one letter: JSON; on a terminal the traceback as text."""
    traceback = directory.text(letter)
    found = _all_of(letter, record)
    if sys.stdout.isatty() and not as_json:
        put(msgspec.json.format(to_json(found), indent=2).decode())
        if traceback:
            put("\n" + traceback.rstrip("\n"))
    else:
        print_lines([{**found, "traceback": traceback}])


def change(data: str, action: Action, ids: list[str], every: bool, choice: Choice, app: str | None, held: bool) -> None:
    """Retry or drop letters, or (``held``) events on hold: those with these ids, those that fit, or all."""
    command = "held" if held else "dead"
    try:
        if sum((bool(ids), every, not choice.is_any)) != 1:
            raise UsageError(
                f"grape {command} {action}: say which ones: by ID..., or by --node, --event, --kind and --key, or --all"
            )
        with Repair(data) as repair:
            directory = repair.directory
            record = directory.app(app)
            if ids:
                places: list[Place] = [parse_place(record, text) for text in ids]
            else:
                found = directory.held(record) if held else directory.letters(record)
                places = [letter.place for letter in found if choice.fits(letter.row)]
            work = repair.retry if action == "retry" else repair.drop
            changes = work(record, places, held)
    except GrapeError as e:
        fail(e)
    _report(data, action, changes)
    if changes.refused:
        raise typer.Exit(1)


def _report(data: str, action: Action, changes: Changes) -> None:
    if len(changes.refused) <= SHOWN:
        for letter_id, why in changes.refused.items():
            say(f"{letter_id}: {why}")
    else:
        for why, count in Counter(changes.refused.values()).most_common(SHOWN):
            say(f"{count:,} letters: {why}")
    done = {"retry": "put back", "drop": "dropped"}[action]
    counts = [
        counted(changes.dead, "dead letter") if changes.dead else "",
        counted(changes.stopped, "stopped event") if changes.stopped else "",
        counted(changes.held, "held event") if changes.held else "",
    ]
    text = " and ".join(filter(None, counts)) or "nothing"
    refused = f"; {len(changes.refused):,} refused" if changes.refused else ""
    again = action == "retry" and changes.dead + changes.stopped + changes.held
    go_on = f"; run the app again with --data {data}" if again else ""
    say(f"{text} {done}{refused}{go_on}")


def time_of(us: int | None) -> str | None:
    """Wall time (us) in ISO format with the zone of this machine."""
    if not us:
        return None
    try:
        return datetime.fromtimestamp(us / 1e6).astimezone().isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None


def row_of(letter: Letter) -> dict[str, Any]:
    """What a list says of a letter."""
    row = letter.row
    found: dict[str, Any] = {
        "id": letter.place.id,
        "status": letter.status,
        "event": row.event,
        "node": row.node,
        "key": row.key,
        "attempts": row.attempts,
        "kind": row.kind,
        "text": row.text,
    }
    if isinstance(row, HoldEntry):
        due = None if letter.behind or row.stopped else time_of(row.due)
        return {**found, "next": due, "behind": letter.behind or None, "waiting": letter.waiting}
    return {**found, "when": time_of(letter.failed), "origin": letter.origin}


def _all_of(letter: Letter, record: AppRecord) -> dict[str, Any]:
    row = letter.row
    found: dict[str, Any] = {
        **row_of(letter),
        "app": record.name,
        "log": letter.place.log,
        "partition": letter.place.partition.number,
        "event_id": row.id,
        "created": time_of(row.created),
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
        origin = f"{letter.origin}: " if letter.origin else ""
        text = f"behind {letter.behind}" if letter.behind else origin + row.text
        cells = [letter.place.id, row.event, row.node, row.key or "", str(row.attempts), row.kind, text, _when(letter)]
        table.add_row(*(Text(escaped(cell)) for cell in cells))
    return table


def _when(letter: Letter) -> str:
    row = letter.row
    if isinstance(row, HoldEntry):
        if row.stopped or letter.behind:
            return letter.status
        return f"next {(time_of(row.due) or 'now')[:19].replace('T', ' ')}"
    return (time_of(letter.failed) or "")[:19].replace("T", " ")
