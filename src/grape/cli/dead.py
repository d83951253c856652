"""``grape dead``: look at what was given up, try it again, drop it."""

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
    help="Dead letters, and events that were stopped (on_fail='stop').", no_args_is_help=True, rich_markup_mode=None
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
    """List dead letters and stopped events: a table on a terminal, else JSON lines.

    Exit codes: 0; 2 wrong use; 3 damaged.
    """
    choice = Choice(node, event, kind, key)
    try:
        with Directory.open(data) as directory:
            letters = directory.letters(directory.app(app_name))
            show_all(filter(lambda letter: choice.fits(letter.row), letters), limit, as_json, "no dead letters")
    except GrapeError as e:
        fail(e)


@app.command("show")
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="As `grape dead list` shows it: main.3-17")],
    data: Data,
    app_name: App = None,
    as_json: AsJson = False,
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
    """Put dead letters back into the log; let stopped events be tried again. The next `grape run` does it.

    Exit codes: 0; 1 some could not be; 2 wrong use, or the directory is in use; 3 damaged.
    """
    change(data, "retry", ids or [], every, Choice(node, event, kind, key), app_name, held=False)


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
    """Remove dead letters and stopped events for good; what lined up behind a stopped event goes on.

    Exit codes: 0; 1 some were not there; 2 wrong use, or the directory is in use; 3 damaged.
    """
    change(data, "drop", ids or [], every, Choice(node, event, kind, key), app_name, held=False)
