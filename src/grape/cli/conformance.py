"""``grape conformance``: does a worker in some language, or an engine, do what it has to?"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from grape.cli.console import complain, put, say
from grape.cli.run import EXIT_ENGINE, EXIT_OK, EXIT_USE
from grape.testing.conformance.cases import all_cases
from grape.testing.conformance.door import OWN, attempt, door_cases
from grape.testing.conformance.peer import Failed
from grape.testing.conformance.run import conform, lines_subject, worker_subject

app = typer.Typer(no_args_is_help=True, help="Prove that a worker, or an engine, does what it has to.")


@app.callback()
def _root() -> None:
    pass


@app.command()
def worker(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="What runs the worker: its conformance app.")
    ],
    lines: Annotated[bool, typer.Option("--lines", help="It reads and writes lines of JSON.")] = False,
    chapter: Annotated[list[str] | None, typer.Option("--chapter", help="Only this one. Repeatable.")] = None,
    known: Annotated[
        Path | None,
        typer.Option("--known", metavar="FILE", help="JSON: title of a case -> why it fails. It then has to fail."),
    ] = None,
) -> None:
    """Run all cases against a worker, each with a process of its own.

    The worker is the conformance app in its language: nodes with given names that do given things
    (docs/conformance.md). A base speaker is run behind its adapter. Exit code 0: all cases hold.

        grape conformance worker -- python -m grape.worker --target grape.testing.conformance.app:topology
    """
    expected: dict[str, str] = {}
    if known is not None:
        try:
            expected = json.loads(known.read_text())
        except (OSError, ValueError) as e:
            complain(f"--known {known}: {e}")
            raise typer.Exit(EXIT_USE) from None
    cases = list(all_cases())
    chapters = list(dict.fromkeys(case.chapter for case in cases))
    _check_chapters(chapter, chapters)
    strange = sorted(expected.keys() - {case.title for case in cases})
    if strange:
        complain(f"--known {known}: there is no case {strange[0]!r} (titles are 'chapter: name')")
        raise typer.Exit(EXIT_USE)
    try:
        subject = lines_subject(command) if lines else worker_subject(command)
    except (Failed, OSError) as e:
        complain(f"the worker cannot be started: {e}")
        raise typer.Exit(EXIT_USE) from None
    told = _Told()
    for outcome in conform(subject, known=expected, chapters=chapter or ()):
        note = "" if outcome.known is None else f" (fails, as is known: {outcome.known})"
        why = outcome.error or f"it is known to fail ({outcome.known}), but does not"
        told.case(outcome.case.chapter, outcome.case.name, None if outcome.is_good else why, note)
    for left in chapter or chapters:
        if not subject.is_asked(left):
            say(left, "bold")
            say("  not asked: the worker does not have this capability", "yellow")
    told.end()


@app.command()
def door(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND...", help="What starts the engine; without it Grape's own is asked."),
    ] = None,
    chapter: Annotated[list[str] | None, typer.Option("--chapter", help="Only this one. Repeatable.")] = None,
) -> None:
    """Play the clients of an engine (docs/door.md), each case at an engine of its own.

    The command gets two arguments: the data directory, and the descriptor of the owner's socket. The engine is one of
    the conformance app (docs/conformance.md), which stays open. Exit code 0: all cases hold.

        grape conformance door
        grape conformance door --chapter streams -- ./my-engine --app conformance
    """
    cases = list(door_cases())
    chapters = list(dict.fromkeys(case.chapter for case in cases))
    _check_chapters(chapter, chapters)
    asked = [case for case in cases if case.chapter in (chapter or chapters)]
    told = _Told()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for case, error in zip(asked, threads.map(partial(attempt, command=command or OWN), asked), strict=True):
            told.case(case.chapter, case.name, error)
    told.end()


def _check_chapters(wanted: Iterable[str] | None, chapters: list[str]) -> None:
    unknown = sorted(set(wanted or ()) - set(chapters))
    if unknown:
        complain(f"there is no chapter {unknown[0]!r}; there are {', '.join(chapters)}")
        raise typer.Exit(EXIT_USE)


class _Told:
    """What was said of the cases so far."""

    def __init__(self) -> None:
        self._good = self._bad = 0
        self._chapter = ""

    def case(self, chapter: str, name: str, error: str | None, note: str = "") -> None:
        if chapter != self._chapter:
            self._chapter = chapter
            say(chapter, "bold")
        if error is None:
            self._good += 1
            say(f"  holds  {name}{note}", "yellow" if note else "green")
        else:
            self._bad += 1
            say(f"  fails  {name}", "red")
            say(f"      {error}")

    def end(self) -> None:
        """
        Raises:
            Exit: always.
        """
        put(f"{self._good} of {self._good + self._bad} cases hold")
        if not self._good + self._bad:
            raise typer.Exit(EXIT_USE)
        raise typer.Exit(EXIT_OK if not self._bad else EXIT_ENGINE)
