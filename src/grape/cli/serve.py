"""``grape serve``: many applications in one server."""

from __future__ import annotations

import asyncio
import resource
from typing import Annotated

import typer

from grape.cli.console import say
from grape.cli.home import home_of, or_exit
from grape.server.gateways import Http
from grape.server.home import Home
from grape.server.supervisor import PARK_AFTER
from grape.server.supervisor import serve as run_server

SERVE_HELP = """Host as many apps as one wishes, each in an engine process of its own, until Ctrl-C or SIGTERM.

HOME holds what is deployed and what the apps have stored; it is made if it is not there.

\b
grape serve ./home
grape app deploy ./orders --home ./home        # in another terminal
grape app list --home ./home
grape emit orders@order '{"item": "nails"}' --home ./home"""


def serve(
    home: Annotated[
        str | None,
        typer.Argument(
            metavar="HOME",
            envvar="GRAPE_HOME",
            help="Else ~/.local/share/grape, of root /var/lib/grape.",
            show_default=False,
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where HTTP is served; port 0: any that is free.")
    ] = Http().listen,
    has_http: Annotated[bool, typer.Option("--http/--no-http", help="Whether it is.")] = True,
    gateways: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Processes that serve it.")] = 1,
    park_after: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="An app with nothing to do for so long needs no process; 0: never."
        ),
    ] = PARK_AFTER,
    certificate: Annotated[
        str, typer.Option("--tls-certificate", metavar="FILE", help="Serve HTTPS, with this chain (PEM).")
    ] = "",
    key: Annotated[str, typer.Option("--tls-key", metavar="FILE", help="The key of its certificate (PEM).")] = "",
    origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Pages of this origin may ask from browsers. Repeatable."),
    ] = None,
) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection or an app each takes some
    place = Home(home_of(home))
    say(f"serving {place.path}; stop with Ctrl-C")
    http = Http(listen, gateways, tuple(origin or ()), certificate, key) if has_http else None
    or_exit(lambda: asyncio.run(run_server(place, say, http, park_after)))
