"""``grape why``: what led to an event, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from grape.cli.console import put, say
from grape.cli.events import AsJson, time_of
from grape.cli.home import HomeOption, home_of
from grape.cli.run import fail
from grape.cli.state import to_json
from grape.errors import GrapeError
from grape.model.plural import counted
from grape.model.tracing import Span, reason
from grape.server.home import Home
from grape.tools.terminal import escaped
from grape.tools.why import OUT, Apps, Step, Told, document, paths_of, walk

_HOW: Final = (
    "It was not traced, or longer ago than traces are kept (trace-age, 1 h). Traced is what comes with a W3C\n"
    "traceparent header that is sampled, what `grape emit --trace` hands in, and the share of events that\n"
    "trace = 0.01 in grape.toml says. What it printed is in HOME/apps/APP/log; what failed: grape dead list,\n"
    "grape held list."
)


def why(
    wanted: Annotated[str, typer.Argument(metavar="ID", help="Of an event, as handlers see it; or of a trace.")],
    app: Annotated[str, typer.Argument(metavar="[APP]", help="Of a server: it has to be installed there.")] = "",
    data: Annotated[str | None, typer.Option(metavar="DIR", help="The data directory of one app.")] = None,
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what led to an event and what came of it, through all apps of a server: which input, which code, which keys
    of state, which attempts. Of events that were traced, while that is kept.

    \b
    grape why 4bf92f3577b34da6a3ce929d0e0e4736
    grape why 0c2e6d1f-12.3-1.3-0-0 orders
    grape why order-17 --data ./d

    Exit codes: 0; 1 it was not traced, or is not kept any more; 2 wrong use; 3 damaged.
    """
    try:
        paths = {"": Path(data)} if data is not None else paths_of(Home(home_of(home)).path / "apps", app)
        apps = Apps(paths)
        found = apps.told(wanted)
        if not found:
            fates = apps.fates(wanted)
    except GrapeError as e:
        fail(e)
        raise
    if not found:
        if as_json:
            put(msgspec.json.encode({"id": wanted, "traced": False, "known": fates}).decode())
        else:
            for fate in fates:
                put(escaped(f"{fate.app}: {fate.text}"))
            say(f"no trace of {wanted} is kept. {_HOW}")
        raise typer.Exit(1)
    for told in found:
        put(to_json(document(told)).decode() if as_json else "\n".join(lines(told)))


def lines(told: Told) -> list[str]:
    """A trace as people read it."""
    steps = [step for step in walk(told.steps) if step.node]
    begun = min(step.start for step in walk(told.steps))
    ended = max(span.end for step in walk(told.steps) for span in step.attempts)
    errors = sum(span.outcome == "error" for step in steps for span in step.attempts)
    head = (
        f"trace {told.trace}: {counted(len(steps), 'step')}, {counted(errors, 'error')}, {(ended - begun) / 1e6:.1f} ms"
    )
    found = [head]
    for i, step in enumerate(told.steps):
        found += _lines(step, begun, "", "", i == len(told.steps) - 1)
    return [escaped(line) for line in found]


def _lines(step: Step, begun: int, indent: str, branch: str, is_last: bool) -> Iterator[str]:
    """Of a step and what it caused. A loop, as traces may be deep."""
    todo = [(step, indent, branch, is_last)]
    while todo:
        step, indent, branch, is_last = todo.pop()
        yield f"{indent}{branch}{_title(step)}"
        inner = indent if not branch else indent + ("   " if is_last else "│  ")
        for span in step.attempts:
            if step.node:
                yield f"{inner}{'│  ' if step.causes else '   '}{_ran(span, begun, len(step.attempts) > 1)}"
        if step.fate:
            yield f"{inner}{'│  ' if step.causes else '   '}now {step.fate}"
        last = len(step.causes) - 1
        todo += [
            (each, inner, "└─ " if i == last else "├─ ", i == last)
            for i, each in reversed(list(enumerate(step.causes)))
        ]


def _title(step: Step) -> str:
    app = f"{step.app}: " if step.app else ""
    key = "" if step.key is None else f" key {step.key!r}"
    mark = "  <== asked for" if step.is_asked else ""
    if not step.node:
        span = step.attempts[0]
        if span.outcome == OUT:
            return f"{app}{step.event} went out{key}  {step.id}{mark}"
        by = f" by {span.kind or 'a client'}"
        own = f" under id {step.id}" if step.id else ""
        parent = f", caused by span {span.parent} of its sender" if span.parent else ""
        return f"{app}{step.event} came in{by}{key}{own}, {time_of(span.start // 1_000)}{parent}{mark}"
    return f"{app}{step.event} > {step.node}{key}  {step.id}{mark}"


def _ran(span: Span, begun: int, several: bool) -> str:
    what = {"ok": "ok", "error": f"failed: {reason(span).partition(chr(10))[0]}"}
    outcome = what.get(span.outcome, f"left, to wait for the answer to {span.kind!r}")
    state = f", state {', '.join(map(_state, span.state))}" if span.state else ""
    worker = f", worker {span.worker}" if span.worker else ""
    code = f", {span.code}" if span.code else ""
    attempt = f"attempt {span.attempt}: " if several or span.attempt > 1 else ""
    took = f"{(span.end - span.start) / 1e6:.1f} ms at +{(span.start - begun) / 1e6:.1f} ms"
    return f"{attempt}{outcome}, {took}{state}{worker}{code}"


def _state(name: str) -> str:
    return f"{name[:-1]} (written)" if name.endswith("!") else f"{name} (read)"
