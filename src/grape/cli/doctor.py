"""``grape doctor``: what is in a data directory, and whether it is whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Annotated, Final

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from grape import builtins
from grape.abc.isolate import Ability
from grape.cli.apart import apart
from grape.cli.console import err, is_plain, put, put_table
from grape.cli.home import or_exit
from grape.cli.places import App, OneApp, place_of
from grape.cli.run import EXIT_ENGINE, EXIT_OK
from grape.errors import GrapeError
from grape.hot import describe
from grape.model.plural import counted
from grape.server.checkup import check_home
from grape.server.home import Home
from grape.tools.directory import Checkup, LogReport
from grape.tools.terminal import escaped

_SHOWN: Final = 100


def doctor(
    app: OneApp = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR", help="Check this data directory; it may be in use.")
    ] = None,
    app_name: App = None,
    home: Annotated[
        str | None, typer.Option("--home", metavar="HOME", help="Check this server and all its apps; or one APP of it.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only what is damaged.")] = False,
) -> None:
    """What this host can do to confine workers, by level; with --data, whether a data directory is whole: walk all of
    it, verify every checksum, count what waits.

    \b
    grape doctor                     # which isolates a profile can ask for
    grape doctor --data words
    grape doctor --home home         # packages, what is installed, tokens, what was left behind; then each app's data
    grape doctor orders --home home

    Exit codes: 0 whole; 2 no data directory of Grape; 3 damaged.
    """
    app = app or app_name
    if app is not None and data is None:
        data = place_of(None, app, home or os.environ.get("GRAPE_HOME")).data
    if data is not None:
        raise typer.Exit(_examined(data, quiet))
    if home is None:
        show_host()
        return
    raise typer.Exit(_examine_home(Home(home), quiet))


def _examined(data: str, quiet: bool) -> int:
    return apart(data, lambda: _examine(data, quiet), _advice(data))


def _examine_home(home: Home, quiet: bool) -> int:
    """It, and the directory of each app."""
    found = or_exit(lambda: list(check_home(home)))
    code = EXIT_ENGINE if any(finding.is_damage for finding in found) else EXIT_OK
    for finding in found:
        if finding.is_damage or not quiet:
            put(f"{'damaged' if finding.is_damage else 'left'}: {finding.what}\n  {finding.remedy}")
    if not quiet:
        used = "a server runs on it" if home.is_served else "no server runs on it"
        put(f"{home.path}: {counted(len(home.names()), 'app')}, {used}")
    for name in home.names():
        data = home.data(name)
        if (data / "format").exists():
            code = max(code, _examined(str(data), quiet))
        elif not quiet:
            put(f"{name}: it has stored nothing")
    return code


def show_host() -> None:
    """Which loops are in use, which levels of confinement this host can give, and what the others lack."""
    put(f"loops: {describe()}\n")
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    for title in ("isolate", "", "needs", "found, or what to do"):
        table.add_column(title, overflow="fold")
    for name in builtins.names("isolate"):
        try:
            rows = builtins.isolate(name).abilities()
        except GrapeError as e:
            rows = [Ability("to be loaded", False, str(e))]
        for i, row in enumerate(rows):
            found = row.why if row.works else "; ".join(filter(None, (row.why, row.remedy)))
            mark = Text("yes", "green") if row.works else Text("no", "red")
            table.add_row(name if not i else "", mark, row.name, escaped(found))
    put_table(table)


def _examine(data: str, quiet: bool) -> int:
    with Checkup(data) as checkup:
        with _progress() as progress:
            findings = checkup.run(progress)
        if not quiet:
            for line in _lines(checkup):
                put(line)
        for finding in findings[:_SHOWN]:
            put(f"damaged: {finding}")
        if len(findings) > _SHOWN:
            put(f"damaged: {len(findings) - _SHOWN:,} more")
        if findings:
            put(_advice(data))
        elif not quiet:
            put(f"whole: all {counted(checkup.rows, 'row')} are what was written")
    return EXIT_ENGINE if findings else EXIT_OK


def _advice(data: str) -> str:
    return (
        f"what to do: stop the engine and keep a copy of the directory; check disk and memory of the machine (dmesg). "
        f"Nothing damaged is ever used: the engine stops where it meets it. Restore the directory from a backup; or "
        f"take out exactly what is damaged, so that the rest can go on: grape repair --data {data}"
    )


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int], None] | None]:
    if not err.is_terminal or is_plain():
        yield None
        return
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("checking", total=None)
        yield lambda rows: progress.update(task, description=f"checking: {rows:,} rows")


def _lines(checkup: Checkup) -> Iterator[str]:
    used = "not in use" if checkup.holder is None else f"in use by process {checkup.holder.pid or '(unknown)'}"
    yield f"{checkup.path}: {_size(checkup.size)} on disk, {used}"
    if checkup.doubtful:
        yield "the last run ended with an I/O error: the next one checks everything before it starts"
    if checkup.strangers:
        yield f"not of Grape, and left alone: {', '.join(checkup.strangers)}"
    if not checkup.apps:
        yield "no apps"
    for record in checkup.apps:
        nodes = ", ".join(sorted(record.nodes))
        yield f"app {record.name}: {counted(record.partitions, 'partition')}; nodes {nodes}"
        for log in checkup.logs:
            if log.app == record.id:
                yield "  " + _log_line(log)


def _log_line(log: LogReport) -> str:
    parts: list[str] = []
    if log.what:
        what = log.what if log.events != 1 else log.what.replace("events", "event").replace("replies", "reply")
        parts.append(f"{log.events:,} {what} in {counted(log.batches, 'batch', 'batches')} ({_size(log.size)})")
    timers = "timer" if log.timers == 1 else "timers"
    parts += [
        f"{count:,} {name}"
        for name, count in (("held", log.held), ("stopped", log.stopped), (timers, log.timers), ("dead", log.dead))
        if count or log.is_pool
    ]
    parts += [log.note] if log.note else []
    return f"{log.title}: {', '.join(parts)}"


def _size(size: float) -> str:
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:.3g} GB"
