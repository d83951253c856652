"""The command ``grape``."""

from __future__ import annotations

import platform
import signal
from importlib.metadata import version as package_version
from typing import Annotated, Final

import typer

from grape.cli import app as apps
from grape.cli import config, conformance, crashes, dead, held, log, profile, state, storage, token
from grape.cli.audit import audit
from grape.cli.backup import backup, restore
from grape.cli.bench import bench
from grape.cli.console import put
from grape.cli.dev import dev
from grape.cli.doctor import doctor
from grape.cli.exec import execute
from grape.cli.live import call, emit, status, stop
from grape.cli.queue import pull, pump, push, tail
from grape.cli.repair import repair
from grape.cli.run import EXIT_INT, run
from grape.cli.serve import SERVE_HELP, serve
from grape.cli.top import top
from grape.cli.why import why
from grape.hot import describe

_TALKING: Final = ("run", "serve", "conformance", "backup")
"""Commands that write to workers or engines, which may end: no signal must end them for that."""

app = typer.Typer(
    name="grape",
    help="Grape, a realtime pipeline engine: topologies with cycles, replies and exactly-once keyed state.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        put(f"grape {package_version('grape-engine')}, Python {platform.python_version()}, loops {describe()}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    # A run ends at once (`grape_command`) until it takes Ctrl-C into its own hands: nothing is open before. What is
    # raised instead may be raised where nobody hears it, in the middle of an import, and it would run on.
    if context.invoked_subcommand != "run" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupted)
    if context.invoked_subcommand not in _TALKING:
        # `grape dead list | head` ends as `cat` does, without a word.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


app.command()(run)
app.command(help=SERVE_HELP)(serve)
for live in (status, top, bench, emit, call, stop, tail, pull, push, pump):
    app.command()(live)
apps.app.command("dev")(dev)
app.add_typer(apps.app, name="app")
app.add_typer(config.app, name="config")
app.add_typer(token.app, name="token")
app.add_typer(profile.app, name="profile")
app.add_typer(dead.app, name="dead")
app.add_typer(held.app, name="held")
app.add_typer(log.app, name="log")
app.add_typer(state.app, name="state")
app.add_typer(crashes.app, name="crashes")
app.add_typer(storage.app, name="storage")
app.command("exec")(execute)
app.add_typer(conformance.app, name="conformance")
app.command()(why)
app.command()(doctor)
app.command()(repair)
app.command()(audit)
app.command()(backup)
app.command()(restore)


def _interrupted(number: int, frame: object) -> None:
    """Ctrl-C: whatever was opened is closed, and nothing is said."""
    raise SystemExit(EXIT_INT)


def main() -> None:
    """Entry point."""
    app()
