"""``grape profile``: how the operator of a server keeps and confines its apps."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from grape.cli.audit import written_down
from grape.cli.console import put, say
from grape.cli.home import HomeOption, home_of, or_exit
from grape.errors import UsageError
from grape.processes.profile_file import load_profiles
from grape.server.home import Home, check_name
from grape.store.files import make_directory, write_durably

app = typer.Typer(
    help="How the operator of a server keeps and confines its apps; goes before what an app's grape.toml says.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="APP", help="Its name; it need not be there yet.")]


def _place(name: str, home: str | None) -> Path:
    check_name(name)
    return Home(home_of(home)).profiles / f"{name}.toml"


@app.command("set")
def set_profile(
    name: Name,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A TOML file with tables [pool.NAME]; docs/pools.md.")],
    home: HomeOption = None,
) -> None:
    """Keep an app so, from its next start on.

    \b
    grape profile set orders strict.toml && grape app restart orders
    """

    def write() -> Path:
        place = _place(name, home)
        load_profiles(file, {})
        with written_down(home, "profile set", name):
            try:
                make_directory(place.parent)
                write_durably(place, Path(file).read_text())
            except OSError as e:
                raise UsageError(f"{e.filename or place}: {e.strerror}") from None
        return place

    put(str(or_exit(write)))
    say(f"it counts from the next start on: grape app restart {name}")


@app.command("show")
def show(name: Name, home: HomeOption = None) -> None:
    """Print how an app is kept."""

    def read() -> str:
        place = _place(name, home)
        try:
            return place.read_text()
        except FileNotFoundError:
            raise UsageError(f"{name} has no profile here: it is kept as its own grape.toml says") from None
        except OSError as e:
            raise UsageError(f"{place}: {e.strerror}") from None

    put(or_exit(read).rstrip("\n"))


@app.command("list")
def list_profiles(home: HomeOption = None) -> None:
    """Show which apps have one."""
    with contextlib.suppress(OSError):
        for place in sorted(Home(home_of(home)).profiles.glob("*.toml")):
            put(place.stem)


@app.command("remove")
def remove(name: Name, home: HomeOption = None) -> None:
    """Keep an app as its own grape.toml says, from its next start on."""

    def take_out() -> None:
        with written_down(home, "profile remove", name):
            try:
                _place(name, home).unlink()
            except FileNotFoundError:
                raise UsageError(f"{name} has no profile here") from None

    or_exit(take_out)
    say(f"it counts from the next start on: grape app restart {name}")
