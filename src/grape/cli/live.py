"""``grape status``, ``emit``, ``call`` and ``stop``: an engine that runs, spoken to by its directory, or by the name
that its app has on a server."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer
from rich.table import Table

from grape.apps.manifest import APP
from grape.cli.console import complain, put, put_table, say
from grape.cli.home import HomeOption, home_of, stop_server, told
from grape.errors import CallFailed, EngineError, GrapeError, NoAnswer, UsageError
from grape.model.numbers import AppNumbers, PoolNumbers
from grape.model.plural import counted
from grape.model.tracing import fresh_traceparent
from grape.running import ConnectedEngine, connect
from grape.server.home import Home
from grape.server.hosted import AppInfo
from grape.server.supervisor import Named

T = TypeVar("T")

EXIT_FAILED: Final = 1
_PATIENCE: Final = 30.0
EXIT_USE: Final = 2
EXIT_ENGINE: Final = 3

Data = Annotated[str | None, typer.Option(metavar="DIR", help="The data directory on which the engine runs.")]
Event = Annotated[
    str, typer.Argument(metavar="[APP@]EVENT", help="Its name: of a slot of the app; with that of an app on a server.")
]
Key = Annotated[str | None, typer.Option(metavar="KEY", help="The event's key.")]
Value = Annotated[
    str | None, typer.Argument(metavar="JSON", help="Its data: JSON, or - to read it from standard input. Else none.")
]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How long to wait.")]
Traced = Annotated[bool, typer.Option("--trace", help="Trace what comes of it, and say the id of the trace.")]


def status(
    app: Annotated[str, typer.Argument(metavar="[APP]", help="Of a server.")] = "",
    data: Data = None,
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="All that is measured, as one JSON object.")] = False,
) -> None:
    """Show what an engine that runs is doing: queues, workers, rates, latencies, by pool.

    \b
    grape status --data ./d
    grape status --data ./d --json | jq .pools.main.rate
    grape status orders
    """
    with connected(app, data, home) as engine:
        numbers = _said(engine.numbers)
    if as_json or not sys.stdout.isatty():
        put(msgspec.json.encode(numbers).decode())
    else:
        _show(numbers)


def emit(
    event: Event,
    value: Value = None,
    *,
    data: Data = None,
    home: HomeOption = None,
    key: Key = None,
    own_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Its own id: the same one again is accepted once.")
    ] = None,
    timeout: Timeout = 30.0,
    trace: Traced = False,
) -> None:
    """Hand an event to an engine that runs. It is durable when the command ends with 0.

    \b
    grape emit order '{"item": "nails", "count": 3}' --data ./d --key ann
    grape emit orders@order '{"item": "nails", "count": 3}' --key ann
    """
    app, name = split(event)
    with connected(app, data, home) as engine:
        _trace(engine, trace)
        _said(lambda: engine.emit(name, _value(value), key=key, id=own_id, timeout=timeout))


def call(
    event: Event,
    value: Value = None,
    *,
    data: Data = None,
    home: HomeOption = None,
    key: Key = None,
    timeout: Timeout = 30.0,
    trace: Traced = False,
) -> None:
    """Hand an event to an engine that runs, and print the replies to it as JSON lines; the last one is the answer.

    \b
    grape call question '"1+2"' --data ./d
    grape call orders@question '"1+2"'
    """
    app, name = split(event)
    with connected(app, data, home) as engine:
        _trace(engine, trace)
        replies = _said(lambda: engine.call_stream(name, _value(value), key=key, timeout=timeout))
        while (reply := _said(lambda: next(replies, None))) is not None:
            put(msgspec.json.encode(reply.data, enc_hook=repr).decode())


def stop(data: Data = None, home: HomeOption = None) -> None:
    """Have an engine that runs stop as Ctrl-C does, and wait until it has: what runs is committed, the rest waits. With
    --home: a server, and all its apps. (One app of it: grape app stop APP.)"""
    if data is None:
        stop_server(home)
        return
    with connected("", data, home) as engine:
        outcomes = _said(engine.stop)
    left = f"; {counted(outcomes.backlog, 'event')} left for the next run" if outcomes.backlog else ""
    say(f"{outcomes.app} has stopped{left}")


# ------------------------------------------------------------------ common to them


def split(event: str) -> tuple[str, str]:
    """The app, "" if none is said, and the event of it."""
    app, at, name = event.partition("@")
    return (app, name) if at and APP.fullmatch(app) else ("", event)


def connected(app: str, data: str | None, home: str | None) -> ConnectedEngine:
    """To the engine on ``data``, else to that of an app on a server."""

    def found() -> ConnectedEngine:
        if data is not None:
            return connect(data)
        if not app:
            raise UsageError(
                "which engine? --data DIR says on which directory it runs, APP@EVENT which app of a server"
            )
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return connect(str(Home(home_of(home)).data(app)))
            except UsageError:
                info = told(home, "wake", Named(app), AppInfo)  # which knows better why
            if info.wanted != "running" or info.state == "broken" or time.monotonic() > deadline:
                why = f": {info.why}" if info.why else ""
                raise UsageError(f"{app} does not run: it is {info.state}{why}")
            time.sleep(0.02)

    return _said(found)


def _trace(engine: ConnectedEngine, wanted: bool) -> None:
    """Whatever is handed in is traced, if that is wanted. (On stderr: what is printed is the answer.)"""
    if wanted:
        engine.traceparent = fresh_traceparent()
        say(f"trace {engine.traceparent.split('-')[1]}")


def _said(ask: Callable[[], T]) -> T:
    """The answer, or one line why there is none and the exit code for it."""
    try:
        return ask()
    except CallFailed as e:
        complain(str(e))
        raise typer.Exit(EXIT_FAILED) from None
    except GrapeError as e:
        complain(str(e))
        failed = isinstance(e, EngineError | NoAnswer)
        raise typer.Exit(EXIT_ENGINE if failed else EXIT_USE) from None


def _value(text: str | None) -> Any:
    """
    Raises:
        UsageError: it is no JSON.
    """
    if text is None:
        return None
    try:
        return msgspec.json.decode(sys.stdin.buffer.read() if text == "-" else text.encode())
    except (msgspec.DecodeError, UnicodeEncodeError) as e:
        hint = f"; text is written in quotes: '\"{text}\"'" if text.isidentifier() else ""
        raise UsageError(f"{text!r:.60} is no JSON: {e}{hint}") from None


def _show(numbers: AppNumbers) -> None:
    table = Table("pool", "state", "waits", "held", "workers", "events/s", "p50", "p99", box=None, pad_edge=False)
    for name, pool in numbers.pools.items():
        table.add_row(name, *_cells(pool))
    put_table(table)
    say(f"in {sum(numbers.fed.values()):,}, out {sum(numbers.taken.values()):,}, dead {numbers.dead:,}")


def _cells(pool: PoolNumbers) -> list[str]:
    workers = f"{pool.workers_active + pool.workers_idle} of {pool.workers_limit}"
    rate = next(iter(pool.rate.values()), 0.0)
    latencies = [f"{1e3 * pool.latency[q]:.1f} ms" if q in pool.latency else "" for q in ("0.5", "0.99")]
    return [pool.state, f"{pool.queue_events:,}", f"{pool.held:,}", workers, f"{rate:,.0f}", *latencies]
