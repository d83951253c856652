"""``grape serve``: many applications in one server."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from grape.cli.console import say
from grape.cli.home import home_of, or_exit
from grape.logs.sending import Sink
from grape.logs.sinks import CONSOLE, FILE, sinks_of
from grape.server.config import FILE_VARIABLE, Effective, ServerConfig, effective, here, places_of
from grape.server.home import Home
from grape.server.log import LogKind, ServerLog
from grape.server.supervisor import serve as run_server

SERVE_HELP = """Host as many apps as one wishes, each in an engine process of its own, until Ctrl-C or SIGTERM.

HOME holds what is deployed and what the apps have stored; it is made if it is not there. What is not said here is taken
from the environment (GRAPE_SERVER_LISTEN for --listen), then from HOME/grape-server.toml: `grape config show`.

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
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", envvar=FILE_VARIABLE, help="Settings; else HOME/grape-server.toml."),
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where HTTP is served; port 0: any that is free.")
    ] = None,
    http: Annotated[bool | None, typer.Option("--http/--no-http", help="Whether it is.")] = None,
    gateways: Annotated[int | None, typer.Option(metavar="N", min=1, max=64, help="Processes that serve it.")] = None,
    park_after: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help='An app with nothing to do for so long ("10 min") needs no process; 0: never.'
        ),
    ] = None,
    tls_certificate: Annotated[
        str | None, typer.Option(metavar="FILE", help="Serve HTTPS, with this chain (PEM).")
    ] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="The key of its certificate (PEM).")] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Pages of this origin may ask from browsers. Repeatable."),
    ] = None,
    max_package: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Largest package that is taken over HTTP.")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(metavar="text|json", help="Of the logs of apps and of the server itself.")
    ] = None,
    log_to: Annotated[
        str | None,
        typer.Option(metavar="KIND,KIND", help="Where logs go: file (the default), console, syslog, journald, otlp."),
    ] = None,
    log_syslog: Annotated[
        str | None, typer.Option(metavar="URL", help="udp://HOST:514, tcp://HOST:514; unix:///dev/log.")
    ] = None,
    log_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where the server's own log goes, instead of standard error.")
    ] = None,
    log_size: Annotated[str | None, typer.Option(metavar="SIZE", help="At which a log is turned over.")] = None,
    log_older: Annotated[int | None, typer.Option(metavar="N", min=0, help="Older parts of a log to keep.")] = None,
) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection or an app each takes some
    place = Home(home_of(home))
    options = {
        "listen": listen,
        "http": http,
        "gateways": gateways,
        "park-after": park_after,
        "tls-certificate": tls_certificate,
        "tls-key": tls_key,
        "origins": tuple(origin) if origin else None,
        "max-package": max_package,
        "log-format": log_format,
        "log-to": None if log_to is None else tuple(filter(None, map(str.strip, log_to.split(",")))),
        "log-syslog": log_syslog,
        "log-file": log_file,
        "log-size": log_size,
        "log-older": log_older,
    }
    told: Effective = or_exit(lambda: effective(place.path, config, os.environ, options))
    log, sinks = or_exit(lambda: _logs(told.config))
    for stranger in told.strangers:
        log.say(stranger, "warning")
    log.say(f"serving {place.path}; stop with Ctrl-C")
    or_exit(lambda: asyncio.run(run_server(place, log.say, told.config, sinks)))
    log.close()


def _logs(config: ServerConfig) -> tuple[ServerLog, Sequence[Sink]]:
    """The server's own, and where its records and those of its apps go beside files.

    Raises:
        UsageError: one of them cannot be.
    """
    file = here(config.log_file)
    is_shown = CONSOLE not in config.log_to and FILE in config.log_to
    log = ServerLog(Path(file) if file else None, LogKind.of(config), say, is_shown=is_shown)
    log.sinks = sinks_of(places_of(config), os.environ, log.say)
    return log, log.sinks
