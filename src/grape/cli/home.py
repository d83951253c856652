"""Where the server's home is, for every command that speaks to one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from grape.cli.console import complain, say
from grape.client.connection import dial_server
from grape.errors import EngineError, GrapeError, NoAnswer

T = TypeVar("T")

EXIT_USE, EXIT_ENGINE = 2, 3

HomeOption = Annotated[
    str | None,
    typer.Option(
        "--home",
        metavar="HOME",
        envvar="GRAPE_HOME",
        help="The server's directory; else ~/.local/share/grape, of root /var/lib/grape.",
    ),
]


def home_of(given: str | None) -> str:
    """The home that is meant."""
    if given:
        return given
    if os.geteuid() == 0:
        return "/var/lib/grape"
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return os.path.join(base, "grape")


def told(home: str | None, verb: str, argument: Any, kind: type[T]) -> T:
    """Ask the server. What it refuses ends the command, with one line."""

    def ask() -> T:
        connection = dial_server(home_of(home)).start()
        try:
            asked: Future[msgspec.Raw] = connection.ask_verb(verb, argument)
            return msgspec.msgpack.decode(asked.result(), type=kind)
        finally:
            connection.close()

    return or_exit(ask)


def or_exit(ask: Callable[[], T]) -> T:
    """What ``ask`` gives, or one line why there is nothing, and the exit code for it."""
    try:
        return ask()
    except GrapeError as e:
        complain(str(e))
        failed = isinstance(e, EngineError | NoAnswer)
        raise typer.Exit(EXIT_ENGINE if failed else EXIT_USE) from None


def stop_server(home: str | None) -> None:
    """Have a server stop, and wait until it has."""

    def stop() -> None:
        connection = dial_server(home_of(home)).start()
        try:
            asked: Future[msgspec.Raw] = connection.ask_verb("shutdown")
            asked.result()
            with contextlib.suppress(GrapeError):
                connection.ended.result()
        finally:
            connection.close()

    or_exit(stop)
    say("the server has stopped")
