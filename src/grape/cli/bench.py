"""``grape bench``: load for an event of an app on a server, over HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Annotated, Any, Final
from urllib.parse import quote

import msgspec
import typer
from msgspec import structs

from grape.cli.console import complain, put
from grape.cli.home import or_exit
from grape.cli.live import Event, split
from grape.errors import UsageError
from grape.remote.load import Load, Outcome, run

_QUANTILES: Final = (0.5, 0.9, 0.99, 0.999, 1.0)


def bench(
    event: Event,
    value: Annotated[
        str, typer.Argument(metavar="[JSON]", help="Its data; {n} in it is the number of the request.")
    ] = "null",
    url: Annotated[str, typer.Option(metavar="URL", envvar="GRAPE_URL", help="Of the server.")] = (
        "http://127.0.0.1:8080"
    ),
    token: Annotated[str, typer.Option(metavar="TOKEN", envvar="GRAPE_TOKEN", help="If it wants one.")] = "",
    calls: Annotated[
        bool, typer.Option("--call", help="Wait for the answer of the app, not only until durable.")
    ] = False,
    key: Annotated[
        str, typer.Option(metavar="TEXT", help="Of the events; {k} in it is the number modulo --keys. '': none.")
    ] = "k{k}",
    keys: Annotated[int, typer.Option(metavar="N", min=1, help="How many different.")] = 1_000,
    processes: Annotated[int, typer.Option("--processes", "-t", metavar="N", min=1, max=256, help="That send.")] = 1,
    connections: Annotated[
        int, typer.Option("--connections", "-c", metavar="N", min=1, help="Open at once, in each process.")
    ] = 16,
    rate: Annotated[
        float, typer.Option("--rate", "-r", metavar="N", min=0, help="Requests a second; 0: as they are answered.")
    ] = 0.0,
    seconds: Annotated[float, typer.Option("--seconds", "-s", metavar="N", min=0, help="How long.")] = 10.0,
    total: Annotated[int, typer.Option("--total", "-n", metavar="N", min=0, help="Requests; 0: any number.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
) -> None:
    """Send an event to an app again and again, and say how many a second and how long each took.

    With --rate each request is measured from the moment at which it should have gone out, so that a server that stands
    still shows in all of them. Without it the next one goes out when the last one was answered.

    \b
    grape bench orders@order '{"count": 1}' --seconds 20 -c 64
    grape bench orders@order '{"count": 1}' --call --rate 500
    """
    app, name = split(event)
    or_exit(lambda: _check(app, event, value, url, is_endless=not seconds and not total))
    load = Load(
        url,
        _path(app, name, key, calls=calls),
        value.encode(),
        _headers(token),
        connections,
        rate / processes,
        seconds,
        total,
        keys,
        step=processes,
    )
    outcome = run_all([_share(load, i, processes) for i in range(processes)])
    put(msgspec.json.encode(_as_dict(outcome)).decode() if as_json else "\n".join(_lines(outcome)))
    if not outcome.statuses:
        complain(f"nothing was answered at {url}: {next(iter(outcome.errors), 'no request was sent')}")
    if outcome.errors or any(not status.startswith("2") for status in outcome.statuses):
        raise typer.Exit(1)


def _check(app: str, event: str, value: str, url: str, *, is_endless: bool) -> None:
    """
    Raises:
        UsageError: something of it cannot be.
    """
    if not app:
        raise UsageError(f"{event!r:.100}: say of which app, as in orders@order")
    if is_endless:
        raise UsageError("--seconds 0 needs a --total")
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--url {url!r:.100}: it begins with http:// or https://")
    try:
        msgspec.json.decode(value.replace("{n}", "0").replace("{k}", "0").encode())
    except msgspec.DecodeError as e:
        raise UsageError(f"{value!r:.100} is no JSON: {e}") from None


def _path(app: str, event: str, key: str, *, calls: bool) -> str:
    query = [*([f"key={quote(key, safe='{}')}"] if key else []), *(["wait=30"] if calls else [])]
    return f"/apps/{quote(app)}/events/{quote(event)}{'?' if query else ''}{'&'.join(query)}"


def _headers(token: str) -> tuple[tuple[str, str], ...]:
    return (("content-type", "application/json"), *((("authorization", f"Bearer {token}"),) if token else ()))


def _share(load: Load, number: int, processes: int) -> Load:
    total = load.total // processes + (number < load.total % processes) if load.total else 0
    return structs.replace(load, offset=number, total=total)


def run_all(loads: list[Load]) -> Outcome:
    """Each in a process of its own."""
    if len(loads) == 1:
        return asyncio.run(run(loads[0]))
    whole = Outcome()
    with ProcessPoolExecutor(len(loads), get_context("spawn")) as pool:
        for packed in pool.map(
            _run_packed, [msgspec.msgpack.encode(load) for load in loads if load.total or load.seconds]
        ):
            whole.merge(msgspec.msgpack.decode(packed, type=Outcome))
    return whole


def _run_packed(packed: bytes) -> bytes:
    return msgspec.msgpack.encode(asyncio.run(run(msgspec.msgpack.decode(packed, type=Load))))


def _as_dict(outcome: Outcome) -> dict[str, Any]:
    answered = outcome.latencies.total
    return {
        "seconds": outcome.seconds,
        "answered": answered,
        "rate": answered / outcome.seconds if outcome.seconds else 0.0,
        "latency": {f"{share:g}": outcome.latencies.quantile(share) for share in _QUANTILES},
        "statuses": outcome.statuses,
        "errors": outcome.errors,
        "late": outcome.late,
    }


def _lines(outcome: Outcome) -> list[str]:
    found = _as_dict(outcome)
    latencies = ", ".join(
        f"{'max' if share == 1 else f'p{share * 100:g}'} {outcome.latencies.quantile(share) * 1e3:,.2f} ms"
        for share in _QUANTILES
    )
    lines = [f"{found['answered']:,} answered in {found['seconds']:.1f} s: {found['rate']:,.0f}/s", latencies]
    statuses = Counter(outcome.statuses)
    if set(statuses) - {"200", "202"}:
        lines.append("statuses: " + ", ".join(f"{status} {count:,}" for status, count in sorted(statuses.items())))
    lines += [f"failed: {count:,} times: {what}" for what, count in outcome.errors.items()]
    if outcome.late:
        lines.append(
            f"{outcome.late:,} went out late: all connections were busy (more --connections, or a lower --rate)"
        )
    return lines
