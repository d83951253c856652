"""``grape held``: events that failed and wait for their next attempt, and what waits behind them."""

from __future__ import annotations

from typing import Annotated

import typer

from grape.cli.console import say
from grape.cli.letters import All, AsJson, ByEvent, ByKey, ByKind, ByNode, Ids, Limit, change, show_all, show_one
from grape.cli.run import fail
from grape.cli.state import App, Data
from grape.errors import GrapeError
from grape.tools.choice import Choice
from grape.tools.directory import Directory, parse_place

app = typer.Typer(
    help="Events that failed and wait for their next attempt, and what waits behind them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_(
    data: Data,
    app_name: App = None,
    node: ByNode = None,
    event: ByEvent = None,
    kind: ByKind = None,
    key: ByKey = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """List held events, with their last error and when they are tried next: a table on a terminal, else JSON lines.

    \b
    "status": held; stopped (on_fail="stop": for you to decide); behind (an event of the same node and key is held)
    "waiting": how many events wait behind it        "behind": the one that it waits for

    Exit codes: 0; 2 wrong use; 3 damaged.
    """
    choice = Choice(node, event, kind, key)
    try:
        with Directory.open(data) as directory:
            found = directory.held(directory.app(app_name))
            show_all(filter(lambda letter: choice.fits(letter.row), found), limit, as_json, "no held events")
    except GrapeError as e:
        fail(e)


@app.command("show")
def show(
    held_id: Annotated[str, typer.Argument(metavar="ID", help="As `grape held list` shows it: main.3-h17")],
    data: Data,
    app_name: App = None,
    as_json: AsJson = False,
) -> None:
    """Show all of one held event: JSON, with its data and its traceback (on a terminal the traceback as text).

    Exit codes: 0; 1 there is no such event; 2 wrong use; 3 damaged.
    """
    try:
        with Directory.open(data) as directory:
            record = directory.app(app_name)
            place = parse_place(record, held_id)
            letter = next((held for held in directory.held(record, place.partition) if held.place == place), None)
            if letter is None:
                say(f"there is no held event {held_id} (any more)")
                raise typer.Exit(1)
            show_one(directory, record, letter, as_json)
    except GrapeError as e:
        fail(e)


@app.command("retry")
def retry(
    data: Data,
    ids: Ids = None,
    every: All = False,
    app_name: App = None,
    node: ByNode = None,
    event: ByEvent = None,
    kind: ByKind = None,
    key: ByKey = None,
) -> None:
    """Let held events be tried at once, not when their back-off ends. The next `grape run` does it.

    Exit codes: 0; 1 some could not be; 2 wrong use, or the directory is in use; 3 damaged.
    """
    change(data, "retry", ids or [], every, Choice(node, event, kind, key), app_name, held=True)


@app.command("drop")
def drop(
    data: Data,
    ids: Ids = None,
    every: All = False,
    app_name: App = None,
    node: ByNode = None,
    event: ByEvent = None,
    kind: ByKind = None,
    key: ByKey = None,
) -> None:
    """Remove held events for good; what waits behind one goes on.

    Exit codes: 0; 1 some were not there; 2 wrong use, or the directory is in use; 3 damaged.
    """
    change(data, "drop", ids or [], every, Choice(node, event, kind, key), app_name, held=True)
