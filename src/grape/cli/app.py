"""``grape app``: apps as directories with a manifest."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from grape.apps.running import options_of
from grape.cli.console import put, show_line
from grape.cli.run import fail
from grape.client.launching import fork_engine, launcher
from grape.client.session import Session
from grape.errors import GrapeError
from grape.model.plural import counted

app = typer.Typer(help="Apps as directories with a grape.toml.", no_args_is_help=True, rich_markup_mode=None)

APP_HELP = """Check the app in DIR: what its grape.toml says, its secrets, its code as its workers load it, its pools.

\b
[grape.toml]
name = "orders"
version = "1.2.0"
app = "orders.py:topology"            # as the argument of `grape run`
config = { depth = 3 }                # reaches topology(config)
env = { REGION = "eu" }
secrets = { API_KEY = { file = "/run/secrets/api" } }   # or env =, credential =
[pool.main]                           # docs/pools.md
pool-limit = 4

Exit codes: 0 it can run; 2 it cannot, and why; 3 the engine had to stop."""


@app.callback()
def _group() -> None:
    """More commands will come."""


@app.command("check", help=APP_HELP)
def check(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The directory that has the grape.toml.")] = ".",
    profile: Annotated[
        str | None, typer.Option(metavar="FILE", help="How its pools are to be kept here: a TOML file.")
    ] = None,
) -> None:
    try:
        manifest, options = options_of(directory, os.environ, profile)
        topology = Session(options, [], [], show_line, launcher(options, fork_engine)).describe()
    except GrapeError as e:
        fail(e)
        raise
    parts = [
        counted(len(topology.slots), "slot"),
        counted(len(topology.nodes), "node"),
        counted(len(topology.outputs), "output"),
        counted(len(topology.pools), "pool"),
    ]
    put(f"{manifest.name} {manifest.version} can run: {', '.join(parts)}")
