"""Which data directory a command is about: the one that is named, or that of an app of a server."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import typer

from grape.cli.audit import written_down
from grape.cli.home import HomeOption, home_of, or_exit
from grape.errors import UsageError
from grape.model.near import did_you_mean
from grape.server.home import Home

__all__ = ["App", "Data", "HomeOption", "OneApp", "Place", "place_of"]

Data = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="The data directory; it may be in use. Or --app of a server."),
]
App = Annotated[
    str | None,
    typer.Option("--app", metavar="APP", help="The app of a server; with --data, if the directory holds several."),
]
OneApp = Annotated[str | None, typer.Argument(metavar="[APP]", help="Of a server: as --app.", show_default=False)]


class Place(NamedTuple):
    """``data``: the directory. ``app``: which one in it; None: the only one. ``name``, ``home``: of the app on its
    server, if it was said so."""

    data: str
    app: str | None
    name: str = ""
    home: str | None = None

    def written_down(self, verb: str) -> contextlib.AbstractContextManager[None]:
        """What is changed of an app of a server stands in its audit log."""
        return written_down(self.home, verb, self.name) if self.name else contextlib.nullcontext()


def place_of(data: str | None, app: str | None, home: str | None) -> Place:
    """The directory that is meant; what cannot be ends the command."""
    return or_exit(lambda: Place(data, app) if data is not None else _of_server(app, home))


def _of_server(app: str | None, home: str | None) -> Place:
    """
    Raises:
        UsageError: there is no such app, or it is not said which one.
    """
    place = Home(home_of(home))
    names = place.names() if place.apps.is_dir() else []
    if app is None:
        if len(names) != 1:
            raise UsageError(
                f"which one? --app APP says which app of the server ({_listed(names)} in {place.path}), --data DIR "
                f"which data directory"
            )
        app = names[0]
    if app not in names:
        hint = did_you_mean(app, names, f"there are {_listed(names)}")
        raise UsageError(f"there is no app {app!r:.100} in {place.path}; {hint}")
    found = place.data(app)
    if not (found / "format").exists():
        raise UsageError(f"{app} has not run yet: nothing of it is stored")
    return Place(str(found), None, app, str(place.path))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
