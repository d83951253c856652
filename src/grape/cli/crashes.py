"""``grape crashes``: how workers ended that should not have."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from grape.cli.console import complain, put
from grape.cli.places import App, Data, HomeOption, OneApp, place_of
from grape.cli.run import EXIT_USE, fail
from grape.cli.state import print_lines
from grape.errors import GrapeError
from grape.processes.crashes import Crash, CrashLog
from grape.tools.directory import Directory

app = typer.Typer(no_args_is_help=True, help="How workers ended that should not have, and what they said last.")


@app.command("list")
def list_(name: OneApp = None, data: Data = None, app_name: App = None, home: HomeOption = None) -> None:
    """List crashes, oldest first; the newest 100 are kept: a table on a terminal, else JSON lines.

    \b
    grape crashes list --data words
    grape crashes show 3 --data words
    grape crashes list orders                      # of a server

    Exit codes: 0; 2 no data directory.
    """
    found = _all(place_of(data, name or app_name, home).data)
    if not sys.stdout.isatty():
        print_lines(
            {"number": number, "worker": c.worker, "pid": c.pid, "started": c.since, "ended": c.time, "why": c.why}
            for number, c in found
        )
        return
    for number, crash in found:
        first = crash.why.partition("\n")[0]
        put(f"{number:>5}  {_when(crash.time)}  {crash.worker:<14} {crash.pid:>7}  {first}")


@app.command()
def show(
    number: Annotated[int, typer.Argument(help="Of the crash, as `grape crashes list` shows it.")],
    data: Data = None,
    app_name: App = None,
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object also on a terminal.")] = False,
) -> None:
    """Show why a worker crashed, and the last lines that it printed (crashlog-limit of its pool's profile, 50): JSON
    (on a terminal as text).

    Exit codes: 0; 2 there is no such crash.
    """
    place = place_of(data, app_name, home).data
    crash = dict(_all(place)).get(number)
    if crash is None:
        complain(f"there is no crash {number} in {place}; see: grape crashes list --data {place}")
        raise typer.Exit(EXIT_USE)
    if as_json or not sys.stdout.isatty():
        lines: list[Any] = [{"level": level, "slot": slot, "text": text} for level, slot, text in crash.lines]
        print_lines([{"number": number, "worker": crash.worker, "pid": crash.pid, "why": crash.why, "lines": lines}])
        return
    put(f"worker {crash.worker} (pid {crash.pid}), {_when(crash.since)} to {_when(crash.time)}")
    put(crash.why)
    put(f"the last {len(crash.lines)} lines that it printed:" if crash.lines else "it had printed nothing")
    for level, slot, text in crash.lines:
        put(f"  {level:<8} {f'[{slot}] ' if slot else ''}{text}")


def _all(data: str) -> list[tuple[int, Crash]]:
    try:
        with Directory.open(data):
            return CrashLog(data).all()
    except GrapeError as e:
        fail(e)
        raise


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
