"""`grape dead` and `grape held`: the same four commands, about two kinds of failed events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final

import typer
from msgspec import Struct
from rich.table import Table

from grape.cli.console import say
from grape.cli.events import (
    All,
    AsJson,
    ByEvent,
    ByKey,
    ByKind,
    ByNode,
    Limit,
    check_which,
    list_all,
    named,
    say_refused,
    short_time_of,
    show_whole,
    table_of,
    time_of,
)
from grape.cli.places import App, Data, HomeOption, OneApp, Place, place_of
from grape.cli.run import fail
from grape.engine.orders.order import Action
from grape.errors import Corrupt, GrapeError
from grape.model import spots
from grape.model.plural import counted
from grape.model.spots import parse_place, parse_places
from grape.model.stored import AppRecord, HoldEntry
from grape.protocol.orders import Changes
from grape.tools.choice import Choice
from grape.tools.directory import Directory, Letter
from grape.tools.orders import hand_on

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="As `list` shows them: main.3-17, main.3-h17")]

_CHANGE_CODES: Final = "2 wrong use; 3 damaged, or the engine has ended meanwhile."


class Letters(Struct, frozen=True):
    """A kind of failed events: how its command is called and what it says.

    ``what``: one of them. ``example``: of an id. ``held``: as `grape.tools.repair.Repair.retry` takes it. ``all_of``,
    ``one_of``: find them in a directory. The others are the help of the commands, without their exit codes.
    """

    command: str
    what: str
    nothing: str
    example: str
    held: bool
    all_of: Callable[[Directory, AppRecord], Iterable[Letter]]
    one_of: Callable[[Directory, AppRecord, spots.Place], Letter | None]
    help: str
    list_help: str
    retry_help: str
    drop_help: str


def app_of(kind: Letters) -> typer.Typer:
    """The commands about this kind."""
    app = typer.Typer(help=kind.help, no_args_is_help=True, rich_markup_mode=None)
    _add_list(app, kind)
    _add_show(app, kind)
    _add_change(app, kind, "retry", f"{kind.retry_help}\n\nExit codes: 0; 1 some could not be; {_CHANGE_CODES}")
    _add_change(app, kind, "drop", f"{kind.drop_help}\n\nExit codes: 0; 1 some were not there; {_CHANGE_CODES}")
    return app


def _add_list(app: typer.Typer, kind: Letters) -> None:
    @app.command("list", help=f"{kind.list_help}\n\nExit codes: 0; 2 wrong use; 3 damaged.")
    def list_(
        name: OneApp = None,
        data: Data = None,
        app_name: App = None,
        home: HomeOption = None,
        node: ByNode = None,
        event: ByEvent = None,
        kind_: ByKind = None,
        key: ByKey = None,
        limit: Limit = None,
        as_json: AsJson = False,
    ) -> None:
        choice = Choice(node, event, kind_, key)
        data, app_name, *_ = place_of(data, name or app_name, home)
        try:
            with Directory.open(data) as directory:
                found = (one for one in kind.all_of(directory, directory.app(app_name)) if choice.fits(one.row))
                list_all(found, limit, as_json, _row_of, _table, lambda n: f"{n:,} in all" if n else kind.nothing)
        except GrapeError as e:
            fail(e)


def _add_show(app: typer.Typer, kind: Letters) -> None:
    by_id = f"As `grape {kind.command} list` shows it: {kind.example}"
    whole = f"Show all of one {kind.what}: JSON, with its data and its traceback (on a terminal the traceback as text)."
    none = f"1 there is no such {kind.what.split()[-1]}"

    @app.command("show", help=f"{whole}\n\nExit codes: 0; {none}; 2 wrong use; 3 damaged.")
    def show(
        *,
        letter_id: str = typer.Argument(metavar="ID", help=by_id),
        data: Data = None,
        app_name: App = None,
        home: HomeOption = None,
        as_json: AsJson = False,
    ) -> None:
        data, app_name, *_ = place_of(data, app_name, home)
        try:
            with Directory.open(data) as directory:
                record = directory.app(app_name)
                letter = kind.one_of(directory, record, parse_place(record, letter_id))
                if letter is None:
                    say(f"there is no {kind.what} {letter_id} (any more)")
                    raise typer.Exit(1)
                show_whole(_all_of(letter, record), as_json, directory.text(letter))
        except GrapeError as e:
            fail(e)


def _add_change(app: typer.Typer, kind: Letters, action: Action, text: str) -> None:
    @app.command(action, help=text)
    def change(
        data: Data = None,
        ids: Ids = None,
        every: All = False,
        app_name: App = None,
        home: HomeOption = None,
        node: ByNode = None,
        event: ByEvent = None,
        kind_: ByKind = None,
        key: ByKey = None,
    ) -> None:
        place = place_of(data, app_name, home)
        _change(kind, action, place, ids or [], every, Choice(node, event, kind_, key))


def _change(kind: Letters, action: Action, place: Place, ids: list[str], every: bool, choice: Choice) -> None:
    """Those with these ids, those that fit, or all."""
    try:
        check_which(f"grape {kind.command} {action}", ids, every, choice, "--node, --event, --kind and --key")
        with place.written_down(f"{kind.command} {action}"), hand_on(place.data) as hand:
            directory = hand.directory
            record = directory.app(place.app)
            if ids:
                places: list[spots.Place] = [*parse_places(record, ids)]
            else:
                places = [letter.place for letter in kind.all_of(directory, record) if choice.fits(letter.row)]
            work = hand.retry if action == "retry" else hand.drop
            changes = work(record, places, kind.held)
            goes_on = hand.is_running
    except GrapeError as e:
        fail(e)
    _report(place.data, action, changes, goes_on)
    if changes.refused:
        raise typer.Exit(1)


def _report(data: str, action: Action, changes: Changes, goes_on: bool) -> None:
    refused = say_refused(changes.refused, "letters")
    done = {"retry": "put back", "drop": "dropped"}[action]
    counts = [
        counted(changes.dead, "dead letter") if changes.dead else "",
        counted(changes.stopped, "stopped event") if changes.stopped else "",
        counted(changes.held, "held event") if changes.held else "",
    ]
    text = " and ".join(filter(None, counts)) or "nothing"
    again = action == "retry" and not goes_on and changes.dead + changes.stopped + changes.held
    go_on = f"; run the app again with --data {data}" if again else ""
    say(f"{text} {done}{refused}{go_on}")


def _row_of(letter: Letter) -> dict[str, Any]:
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
        **_row_of(letter),
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
    columns = [
        *named("event", "node", "key", width=20),
        ("tries", {"justify": "right"}),
        *named("kind", width=24),
        ("text", {"overflow": "fold", "ratio": 1, "min_width": 16}),
        ("when", {"overflow": "fold"}),
    ]
    return table_of(columns, map(_cells, letters))


def _cells(letter: Letter) -> list[str]:
    row = letter.row
    origin = f"{letter.origin}: " if letter.origin else ""
    text = f"behind {letter.behind}" if letter.behind else origin + row.text
    return [letter.place.id, row.event, row.node, row.key or "", str(row.attempts), row.kind, text, _when(letter)]


def _when(letter: Letter) -> str:
    row = letter.row
    if isinstance(row, HoldEntry):
        return letter.status if row.stopped or letter.behind else f"next {short_time_of(row.due) or 'now'}"
    return short_time_of(letter.failed)
