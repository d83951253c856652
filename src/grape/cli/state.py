"""``grape state``: look at keyed state."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec
import typer

from grape.cli.console import say
from grape.cli.places import App, Data, HomeOption, OneApp, place_of
from grape.cli.run import fail
from grape.errors import GrapeError
from grape.model.plural import counted
from grape.model.spots import near
from grape.tools.choice import limited
from grape.tools.directory import Directory
from grape.tools.orders import hand_on
from grape.tools.terminal import escaped

app = typer.Typer(help="Look at keyed state; also of a directory in use.", no_args_is_help=True)


@app.command("get")
def get(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys of the node.")],
    *,
    data: Data = None,
    node: Annotated[str, typer.Option("--node", metavar="NODE", help="The node whose state it is.")],
    app_name: App = None,
    home: HomeOption = None,
) -> None:
    """Print the state of some keys as JSON lines {"node","key","state"}.

    Exit codes: 0 some found; 1 none found; 2 wrong use; 3 damaged.
    """
    place = place_of(data, app_name, home)
    try:
        with Directory.open(place.data) as directory:
            record = directory.app(place.app)
            if node not in record.nodes:
                say(f"app {record.name!r} has no node {node!r}{near(node, record.nodes)}; {_nodes(record.nodes)}")
                raise typer.Exit(1)
            missing = dict.fromkeys(keys)
            rows = []
            for row in directory.state(record, node, dict.fromkeys(keys)):
                rows.append(row)
                missing.pop(row.key, None)
            print_lines(rows)
            for key in missing:
                say(f"{node} has no state of key {key}")
    except GrapeError as e:
        fail(e)
    if not rows:
        raise typer.Exit(1)


@app.command("list")
def list_(
    name: OneApp = None,
    data: Data = None,
    app_name: App = None,
    home: HomeOption = None,
    node: Annotated[str | None, typer.Option("--node", metavar="NODE", help="Of this node only.")] = None,
    prefix: Annotated[str, typer.Option("--prefix", metavar="P", help="Of keys that begin so only.")] = "",
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most N of them.")] = None,
) -> None:
    """Print keyed state as JSON lines {"node","key","state"}, by node and key. What cannot be read has a "problem".

    Exit codes: 0; 2 wrong use; 3 damaged.
    """
    place = place_of(data, name or app_name, home)
    try:
        with Directory.open(place.data) as directory:
            print_lines(limited(directory.states(directory.app(place.app), node, prefix), limit))
    except GrapeError as e:
        fail(e)


@app.command("delete")
def delete(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys of the node.")],
    *,
    data: Data = None,
    node: Annotated[str, typer.Option("--node", metavar="NODE", help="The node whose state it is.")],
    app_name: App = None,
    home: HomeOption = None,
) -> None:
    """Remove the state of some keys: the node's next event of such a key finds the defaults.

    An engine that runs on the directory does it: then it is so for the next event of the key.

    There is no `state set`: only the app's code knows the types of its values. A slot that writes them does it.

    Exit codes: 0; 1 some keys had none; 2 wrong use; 3 damaged, or the engine has ended meanwhile.
    """
    place = place_of(data, app_name, home)
    try:
        with place.written_down("state delete"), hand_on(place.data) as hand:
            changes = hand.delete_state(hand.directory.app(place.app), node, dict.fromkeys(keys))
    except GrapeError as e:
        fail(e)
    for key in changes.missing:
        say(f"{node} has no state of key {key.decode('utf-8', 'surrogateescape')}")
    for name, why in changes.refused.items():
        say(f"{name}: {why}")
    say(f"state of {counted(changes.states, 'key')} removed")
    if changes.missing or changes.refused:
        raise typer.Exit(1)


def _nodes(names: Iterable[str]) -> str:
    return f"its nodes: {', '.join(sorted(names))}"


def _in_json(value: Any) -> Any:
    """What JSON has no form for: extension types of msgpack, and keys of maps that are neither text nor numbers."""
    if isinstance(value, msgspec.msgpack.Ext):
        return value.data
    return to_json(value).decode()


to_json: Final = msgspec.json.Encoder(enc_hook=_in_json).encode


def print_lines(values: Iterable[Any]) -> None:
    """Each value as a line of JSON on standard output. What a terminal would act on is a JSON escape, also in a pipe:
    what comes out at its other end is shown, too."""
    out = sys.stdout.buffer
    for value in values:
        out.write(escaped(to_json(value).decode()).encode() + b"\n")
    out.flush()
