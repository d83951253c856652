"""``grape backup`` and ``grape restore``: what was stored at one moment, kept elsewhere and brought back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

from grape.cli.apart import apart
from grape.cli.audit import written_down
from grape.cli.console import err, is_plain, put, say
from grape.cli.home import HomeOption, home_of
from grape.cli.run import EXIT_OK
from grape.client.connection import dial_server
from grape.errors import UsageError
from grape.model.plural import counted
from grape.model.section import show_size
from grape.protocol.place import CONTROL
from grape.server.home import Home
from grape.server.saving import Ask, back_up_data, back_up_home, restore_data, restore_home
from grape.tools.backup import Backup

_EVERY: Final = 5.0
_ADVICE: Final = "what to do: grape doctor names what is damaged, also in a directory in use"

Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing while it goes on.")]


def backup(
    words: Annotated[
        list[str], typer.Argument(metavar="[APP...] TARGET", help="Of the server; else all. Where the backup is to be.")
    ],
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR", help="Of this data directory; it may be in use.")
    ] = None,
    home: HomeOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Look at every row of it, as `grape doctor` does.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write what is stored, as it is at one moment, into a new directory TARGET, while engines go on working.

    Of a server: its apps, all at the same moment, with their packages; without any APP also its profiles, digests of
    tokens and settings. It is durable, and whole, when the command ends with 0; one that was cut off is never called
    TARGET.

    \b
    grape backup /backups/monday --home home        # a server
    grape backup orders /backups/orders --home home
    grape backup /backups/words --data words

    Exit codes: 0; 2 wrong use; 3 damaged, or a disk refused.
    """
    *apps, target = words

    def work() -> int:
        with _progress(quiet) as progress:
            if data is not None:
                if apps:
                    raise UsageError(
                        f"--data {data} is one directory, without apps to choose: grape backup TARGET --data DIR"
                    )
                made = back_up_data(Path(data), Path(target), progress, verify)
            else:
                place = Home(home_of(home))
                with written_down(home, "backup", " ".join(apps), target), _asking(place) as ask:
                    made = back_up_home(place, apps, Path(target), ask, progress, verify)
        put(f"{target}: {_said(made)}")
        return EXIT_OK

    raise typer.Exit(apart(data or home_of(home), work, _ADVICE))


def restore(
    source: Annotated[str, typer.Argument(metavar="BACKUP", help="As `grape backup` has made it.")],
    apps: Annotated[list[str] | None, typer.Argument(metavar="[APP...]", help="Of it; else all.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR", help="Make this data directory of it, or of one APP in it.")
    ] = None,
    home: HomeOption = None,
    stopped: Annotated[bool, typer.Option("--stopped", help="Apps do not start with the server.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also beside apps of another moment with which they exchanged events.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Bring a backup back: apps into the home of a server that does not run, or a data directory. All of it is checked.

    What was there at the moment of the backup is, and nothing that came later: exactly-once goes on from there. Never
    let the same apps go on in two places that others hear of: both would give the same ids to different events.

    \b
    grape restore /backups/monday --home home
    grape restore /backups/monday orders --data ./look    # to look at

    Exit codes: 0; 2 wrong use, something is in the way; 3 the backup is damaged, or a disk refused.
    """

    def work() -> int:
        names = list(apps or ())
        with _progress(quiet) as progress:
            if data is not None:
                if len(names) > 1:
                    raise UsageError("one data directory is of one app; name one, or restore them with --home")
                made = restore_data(Path(source), names[0] if names else None, Path(data), progress)
                text = f"{data} is as {made.source} was at {_when(made.at)}"
            else:
                place = Home(home_of(home))
                with written_down(home, "restore", " ".join(names), source):
                    found = restore_home(Path(source), names, place, progress, stopped=stopped, force=force)
                text = f"{', '.join(found)} in {place.path}; grape serve {place.path}"
        put(text)
        return EXIT_OK

    raise typer.Exit(apart(source, work, "what to do: take an older backup; this one is not what was written"))


@contextlib.contextmanager
def _asking(home: Home) -> Iterator[Ask | None]:
    """The server that runs on a home, if one does."""
    if not (home.path / CONTROL).exists():
        yield None
        return
    try:
        connection = dial_server(str(home.path)).start()
    except UsageError:
        if home.is_served:  # by somebody who does not hear us
            raise
        yield None
        return
    try:

        def ask(verb: str, argument: Any) -> msgspec.Raw:
            answer: msgspec.Raw = connection.ask_verb(verb, argument).result()
            return answer

        yield ask
    finally:
        connection.close()


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A line that moves, on a terminal; elsewhere one every five seconds."""
    if quiet:
        yield lambda what, done, most: None
        return
    if not err.is_terminal or is_plain():
        last = time.monotonic()

        def tell(what: str, done: int, most: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _EVERY:
                last = time.monotonic()
                say(f"{what}: {show_size(done)}{f' of at most {show_size(most)}' if most else ''}")

        yield tell
        return
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), DownloadColumn()
    with Progress(*columns, console=err, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, most: progress.update(task, description=what, completed=done, total=most or None)


def _said(made: Backup) -> str:
    size = sum(file.size for file in made.files.values())
    what = counted(len(made.apps), "app") if made.kind == "home" else "one data directory"
    return f"{what} as of {_when(made.at)}, {counted(len(made.files), 'file')}, {show_size(size)}"


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
