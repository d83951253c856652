"""``grape token``: who may ask over HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from grape.cli.audit import written_down
from grape.cli.console import put, say
from grape.cli.home import HomeOption, home_of, or_exit
from grape.gateway.access import FILE, create, read, revoke
from grape.server.home import Home

app = typer.Typer(help="Who may ask a server over HTTP, and what.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="What the token is called.")]


def _file(home: str | None) -> Path:
    return Home(home_of(home)).path / FILE


@app.command("create")
def create_token(
    name: Name,
    scope: Annotated[
        list[str],
        typer.Option("--scope", "-s", metavar="APP:VERB", help="emit, read, admin or *; APP may be *. Repeatable."),
    ],
    home: HomeOption = None,
    days: Annotated[float | None, typer.Option(metavar="N", min=0, help="For so many days; else for ever.")] = None,
) -> None:
    """Make a token. It is shown once; only its digest is stored. As soon as there is one, every request needs one.

    \b
    grape token create web --scope orders:emit
    """

    def make() -> str:
        path = _file(home)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with written_down(home, "token create", "", f"{name}: {' '.join(scope)}"):
            return create(path, name, tuple(scope), None if days is None else time.time() + days * 86_400)

    put(or_exit(make))


@app.command("list")
def list_tokens(home: HomeOption = None) -> None:
    """Show who has a token, and for what."""
    found = or_exit(lambda: read(_file(home)))
    if not found:
        say("no token: whoever is on this machine may ask")
    for token in found:
        end = "" if token.expires is None else time.strftime("\tuntil %Y-%m-%d %H:%M", time.localtime(token.expires))
        put(f"{token.name}\t{' '.join(token.scopes)}{end}")


@app.command("revoke")
def revoke_token(name: Name, home: HomeOption = None) -> None:
    """Take a token back, from the next request on."""

    def take_back() -> None:
        with written_down(home, "token revoke", "", name):
            revoke(_file(home), name)

    or_exit(take_back)
    put(f"{name} is taken back")
