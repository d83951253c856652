"""``grape log``: what waits in the logs of pools. It is about events that are whole; `grape repair` is for damage."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from grape.cli.console import say
from grape.cli.events import (
    All,
    AsJson,
    ByEvent,
    ByKey,
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
from grape.engine.logged import Logged
from grape.errors import GrapeError
from grape.model.plural import counted
from grape.model.spots import Spot, parse_spot
from grape.tools.backlog import waiting
from grape.tools.choice import Choice
from grape.tools.directory import Directory
from grape.tools.orders import hand_on

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="As `grape log list` shows them: main.3:17.2")]
Damaged = Annotated[bool, typer.Option("--damaged", help="What no worker can take, only.")]

app = typer.Typer(
    help="What waits in the logs: look at it, drop it, move it to the dead letters.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_(
    name: OneApp = None,
    data: Data = None,
    app_name: App = None,
    home: HomeOption = None,
    node: ByNode = None,
    event: ByEvent = None,
    key: ByKey = None,
    damaged: Damaged = False,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """List events that wait to be worked on: a table on a terminal, else JSON lines.

    Exit codes: 0; 2 wrong use; 3 damaged.
    """
    choice = _choice(node, event, key, damaged)
    data, app_name, *_ = place_of(data, name or app_name, home)
    try:
        with Directory.open(data) as directory:
            found = filter(choice.fits, waiting(directory, directory.app(app_name)))
            list_all(found, limit, as_json, _row, _table, lambda n: counted(n, "event"))
    except GrapeError as e:
        fail(e)


@app.command("show")
def show(
    spot: Annotated[str, typer.Argument(metavar="ID", help="As `grape log list` shows it: main.3:17.2")],
    data: Data = None,
    app_name: App = None,
    home: HomeOption = None,
) -> None:
    """Show all of one event: JSON, with its data.

    Exit codes: 0; 1 there is no such event; 2 wrong use; 3 damaged.
    """
    data, app_name, *_ = place_of(data, app_name, home)
    try:
        with Directory.open(data) as directory:
            record = directory.app(app_name)
            wanted = parse_spot(record, spot)
            found = next((e for e in waiting(directory, record, wanted.partition) if e.spot == wanted), None)
    except GrapeError as e:
        fail(e)
        raise
    if found is None:
        say(f"no event {spot} waits (any more)")
        raise typer.Exit(1)
    whole = {**_row(found), "app": record.name, "event_id": found.event_id, "data": found.data()}
    show_whole(whole)


@app.command("drop")
def drop(
    data: Data = None,
    ids: Ids = None,
    every: All = False,
    app_name: App = None,
    home: HomeOption = None,
    node: ByNode = None,
    event: ByEvent = None,
    key: ByKey = None,
    damaged: Damaged = False,
) -> None:
    """Remove events that wait, for good, as if they had been worked off.

    What a worker has at this moment is waited for; if it is done then, it was not there.

    Exit codes: 0; 1 some were not there; 2 wrong use; 3 damaged, or the engine has ended meanwhile.
    """
    _take_out(place_of(data, app_name, home), ids or [], every, _choice(node, event, key, damaged), "drop")


@app.command("bury")
def bury(
    data: Data = None,
    ids: Ids = None,
    every: All = False,
    app_name: App = None,
    home: HomeOption = None,
    node: ByNode = None,
    event: ByEvent = None,
    key: ByKey = None,
    damaged: Damaged = False,
) -> None:
    """Move events that wait to the dead letters: `grape dead retry` puts them back.

    What a worker has at this moment is waited for; if it is done then, it was not there.

    Exit codes: 0; 1 some were not there; 2 wrong use; 3 damaged, or the engine has ended meanwhile.
    """
    _take_out(place_of(data, app_name, home), ids or [], every, _choice(node, event, key, damaged), "bury")


def _choice(node: str | None, event: str | None, key: str | None, damaged: bool) -> Choice:
    return Choice(node, event, "damaged" if damaged else None, key)


def _take_out(place: Place, ids: list[str], every: bool, choice: Choice, action: str) -> None:
    try:
        check_which(f"grape log {action}", ids, every, choice, "--node, --event, --key and --damaged")
        with place.written_down(f"log {action}"), hand_on(place.data) as hand:
            record = hand.directory.app(place.app)
            spots: list[Spot] = [parse_spot(record, text) for text in ids]
            if not ids:
                spots = [e.spot for e in waiting(hand.directory, record) if choice.fits(e)]
            changes = hand.take_out(record, spots, action == "bury")
    except GrapeError as e:
        fail(e)
        raise
    refused = say_refused(changes.refused, "events")
    done = "moved to the dead letters" if action == "bury" else "dropped"
    say(f"{counted(changes.held, 'event') if changes.held else 'nothing'} {done}{refused}")
    if changes.refused:
        raise typer.Exit(1)


def _row(event: Logged) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": event.spot.id,
        "event": event.event,
        "nodes": event.nodes,
        "key": event.key,
        "created": time_of(event.created),
    }
    return {**found, "problem": event.problem} if event.problem else found


def _table(events: list[Logged]) -> Table:
    columns = [
        *named("event", "nodes", "key", width=24),
        ("created", {"overflow": "fold"}),
        ("problem", {"overflow": "fold", "ratio": 1}),
    ]
    return table_of(columns, map(_cells, events))


def _cells(event: Logged) -> list[str]:
    made = short_time_of(event.created)
    return [event.spot.id, event.event, ", ".join(event.nodes), event.key or "", made, event.problem]
