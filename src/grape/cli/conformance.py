"""``grape conformance``: does a worker in some language do what it has to?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from grape.cli.console import complain, put, say
from grape.cli.run import EXIT_ENGINE, EXIT_OK, EXIT_USE
from grape.testing.conformance.cases import all_cases
from grape.testing.conformance.peer import Failed
from grape.testing.conformance.run import conform, lines_subject, worker_subject

app = typer.Typer(no_args_is_help=True, help="Prove that a worker in another language does what it has to.")


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
    unknown = sorted(set(chapter or ()) - set(chapters))
    if unknown:
        complain(f"there is no chapter {unknown[0]!r}; there are {', '.join(chapters)}")
        raise typer.Exit(EXIT_USE)
    strange = sorted(expected.keys() - {case.title for case in cases})
    if strange:
        complain(f"--known {known}: there is no case {strange[0]!r} (titles are 'chapter: name')")
        raise typer.Exit(EXIT_USE)
    try:
        subject = lines_subject(command) if lines else worker_subject(command)
    except (Failed, OSError) as e:
        complain(f"the worker cannot be started: {e}")
        raise typer.Exit(EXIT_USE) from None
    good, bad = 0, 0
    seen = ""
    for outcome in conform(subject, known=expected, chapters=chapter or ()):
        if outcome.case.chapter != seen:
            seen = outcome.case.chapter
            say(seen, "bold")
        if outcome.is_good:
            good += 1
            note = "" if outcome.known is None else f" (fails, as is known: {outcome.known})"
            say(f"  holds  {outcome.case.name}{note}", "yellow" if note else "green")
        else:
            bad += 1
            why = outcome.error or f"it is known to fail ({outcome.known}), but does not"
            say(f"  fails  {outcome.case.name}", "red")
            say(f"      {why}")
    for left in chapter or chapters:
        if not subject.is_asked(left):
            say(left, "bold")
            say("  not asked: the worker does not have this capability", "yellow")
    put(f"{good} of {good + bad} cases hold")
    if not good + bad:
        raise typer.Exit(EXIT_USE)
    raise typer.Exit(EXIT_OK if not bad else EXIT_ENGINE)
