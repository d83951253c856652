"""``grape top``: what the apps of a server do, live in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
import typer
from msgspec import Struct
from rich.live import Live
from rich.table import Table

from grape.cli.console import live_console, put, put_table
from grape.cli.home import HomeOption, home_of, or_exit
from grape.client.connection import Connection, dial_server
from grape.errors import NoAnswer, UsageError
from grape.model.near import did_you_mean
from grape.model.numbers import AppNumbers, PoolNumbers
from grape.server.hosted import AppInfo

_STYLES: Final = {
    "running": "green",
    "broken": "red",
    "waiting": "red",
    "paused": "yellow",
    "parked": "dim",
    "stopped": "dim",
}


class Row(Struct, frozen=True):
    """An app, or a slot or pool of one, between two looks. Rates are events a second, None: not known."""

    name: str
    state: str
    coming: float | None
    done: float | None
    failed: float | None
    waiting: int
    held: int
    dead: int
    workers: str
    p50: float | None
    p99: float | None


def top(
    app: Annotated[str, typer.Argument(metavar="[APP]", help="Only this one: its pools and slots.")] = "",
    home: HomeOption = None,
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One look, over that time, then end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Each look as JSON lines, one an app or part of it.")] = False,
) -> None:
    """Show what the apps of a server do: events a second, what waits and fails, workers, latency; Ctrl-C ends it.

    \b
    grape top
    grape top orders
    grape top --json --once | jq .waiting
    """
    connection = or_exit(lambda: dial_server(home_of(home)).start())
    before = or_exit(lambda: _ask(connection, app))
    is_moving = sys.stdout.isatty() and not once and not as_json
    try:
        with Live(console=live_console(), auto_refresh=False, screen=True) if is_moving else _Still() as live:
            while True:
                at = time.monotonic()
                time.sleep(every)
                now = or_exit(lambda: _ask(connection, app))
                rows = rows_of(before, now, time.monotonic() - at, in_parts=bool(app))
                before = now
                if as_json:
                    for row in rows:
                        put(msgspec.json.encode(row).decode())
                    sys.stdout.flush()
                elif is_moving:
                    live.update(table_of(rows), refresh=True)
                else:
                    put_table(table_of(rows))
                if once or not (is_moving or as_json):
                    return
    finally:
        connection.close()


class _Still:
    """In the place of a live display."""

    def __enter__(self) -> Live:
        return Live(auto_refresh=False)

    def __exit__(self, *exc: object) -> None:
        pass


def _ask(connection: Connection, app: str) -> list[AppInfo]:
    """
    Raises:
        UsageError: there is no such app.
        NoAnswer: the server has gone.
    """
    asked = connection.ask_verb("apps")
    try:
        found = msgspec.msgpack.decode(asked.result(30), type=list[AppInfo])
    except TimeoutError:
        raise NoAnswer("the server does not answer") from None
    if app and not any(info.name == app for info in found):
        known = [info.name for info in found]
        raise UsageError(f"there is no app {app!r:.100}; {did_you_mean(app, known, f'there are {known}')}")
    return [info for info in found if not app or info.name == app]


# ------------------------------------------------------------------ what is shown


def rows_of(before: Sequence[AppInfo], now: Sequence[AppInfo], seconds: float, *, in_parts: bool) -> list[Row]:
    """Each app, ``in_parts``: followed by its pools and slots."""
    earlier = {info.name: info.numbers for info in before}
    rows = []
    for info in now:
        rows.append(_app_row(info, earlier.get(info.name), seconds))
        if in_parts and info.numbers is not None:
            rows += _parts(info.numbers, earlier.get(info.name), seconds)
    return rows


def _app_row(info: AppInfo, before: AppNumbers | None, seconds: float) -> Row:
    numbers = info.numbers
    if numbers is None:
        return Row(info.name, info.state, None, None, None, 0, 0, 0, "", None, None)
    pools = numbers.pools.values()
    active, idle = sum(pool.workers_active for pool in pools), sum(pool.workers_idle for pool in pools)

    def rate(total: int, earlier: int | None) -> float | None:
        return _rate(total, earlier, seconds)

    return Row(
        info.name,
        info.state,
        rate(sum(numbers.fed.values()), None if before is None else sum(before.fed.values())),
        rate(_finished(numbers), None if before is None else _finished(before)),
        rate(sum(numbers.failures.values()), None if before is None else sum(before.failures.values())),
        numbers.backlog_events + numbers.outgoing_events,
        sum(pool.held for pool in pools),
        numbers.dead,
        f"{active}/{active + idle}",
        max((pool.latency.get("0.5", 0.0) for pool in pools), default=0.0),
        max((pool.latency.get("0.99", 0.0) for pool in pools), default=0.0),
    )


def _finished(numbers: AppNumbers) -> int:
    return sum(pool.finished for pool in numbers.pools.values())


def _rate(total: int, before: int | None, seconds: float) -> float | None:
    """None: it has begun meanwhile, or was not there."""
    return None if before is None or total < before or seconds <= 0 else (total - before) / seconds


def _parts(numbers: AppNumbers, before: AppNumbers | None, seconds: float) -> list[Row]:
    rows = []
    for name, pool in numbers.pools.items():
        earlier = None if before is None else before.pools.get(name)
        rows.append(_pool_row(name, pool, earlier, seconds))
    for slot, count in numbers.processed.items():
        done = _rate(count, None if before is None else before.processed.get(slot, 0), seconds)
        failures = numbers.failures.get(slot, 0)
        failed = _rate(failures, None if before is None else before.failures.get(slot, 0), seconds)
        rows.append(Row(f"  {slot}", "", None, done, failed, 0, 0, 0, "", None, None))
    return rows


def _pool_row(name: str, pool: PoolNumbers, before: PoolNumbers | None, seconds: float) -> Row:
    return Row(
        f"  [{name}]",
        pool.state,
        None,
        _rate(pool.finished, None if before is None else before.finished, seconds),
        None,
        pool.queue_events,
        pool.held,
        0,
        f"{pool.workers_active}/{pool.workers_active + pool.workers_idle}",
        pool.latency.get("0.5"),
        pool.latency.get("0.99"),
    )


def table_of(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("APP")
    table.add_column("STATE")
    for head in ("IN/S", "DONE/S", "FAILED/S", "WAITING", "HELD", "DEAD", "WORKERS", "P50", "P99"):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            row.state,
            _shown_rate(row.coming),
            _shown_rate(row.done),
            _shown_rate(row.failed),
            _count(row.waiting),
            _count(row.held),
            _count(row.dead),
            row.workers,
            _seconds(row.p50),
            _seconds(row.p99),
            style=_STYLES.get(row.state, ""),
        )
    return table


def _shown_rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.1f}"


def _count(count: int) -> str:
    return f"{count:,}" if count else ""


def _seconds(seconds: float | None) -> str:
    if not seconds:
        return ""
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"
