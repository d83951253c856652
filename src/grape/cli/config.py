"""``grape config``: what a server is told, and by whom."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from grape.cli.console import put, say
from grape.cli.home import HomeOption, home_of, or_exit
from grape.model.plural import counted
from grape.model.urls import without_secrets
from grape.server.config import FILE, FILE_VARIABLE, Effective, effective, read_file, schema, shown
from grape.server.home import Home

app = typer.Typer(
    help=f"The settings of a server: {FILE} in its home, GRAPE_SERVER_* in the environment.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Config = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", envvar=FILE_VARIABLE, help=f"Else HOME/{FILE}."),
]


@app.command("show")
def show(
    home: HomeOption = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON: {key: {value, from}}.")] = False,
) -> None:
    """Show what `grape serve` would run with, without options, and where each value comes from.

    Exit codes: 0; 2 something of it cannot be.
    """
    found: Effective = or_exit(lambda: effective(Home(home_of(home)).path, config, os.environ, {}))
    values = {field.encode_name: getattr(found.config, field.name) for field in msgspec.structs.fields(found.config)}
    for stranger in found.strangers:
        say(stranger)
    if as_json:
        plain = {key: {"value": _plain(value), "from": found.origins[key]} for key, value in values.items()}
        put(msgspec.json.format(msgspec.json.encode(plain)).decode())
        return
    width = max(len(f"{key} = {shown(value)}") for key, value in values.items())
    for key, value in values.items():
        put(f"{f'{key} = {shown(value)}':{min(width, 60)}}  # {found.origins[key]}")


@app.command("check")
def check(
    file: Annotated[str | None, typer.Argument(metavar="[FILE]", help=f"Else HOME/{FILE}.")] = None,
    home: HomeOption = None,
) -> None:
    """Check a file of settings, and the environment with it: what is wrong is told with its line.

    Exit codes: 0 it is right; 2 it is not, and why.
    """
    place = Path(file) if file is not None else Home(home_of(home)).path / FILE
    values = or_exit(lambda: read_file(place))
    found = or_exit(lambda: effective(Home(home_of(home)).path, str(place), os.environ, {}))
    for stranger in found.strangers:
        say(stranger)
    over = [f"{key} ({origin})" for key in values if (origin := found.origins[key]) != str(place)]
    more = f"; not counted: {', '.join(over)}" if over else ""
    put(f"{place} is right: {counted(len(values), 'setting')}{more}")


@app.command("schema")
def show_schema() -> None:
    """Print the JSON schema of such a file, for editors."""
    put(msgspec.json.format(msgspec.json.encode(schema())).decode())


def _plain(value: object) -> object:
    """As JSON has it."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in msgspec.to_builtins(value).items()}
    return float(value) if isinstance(value, float) else int(value)  # type: ignore[call-overload]
