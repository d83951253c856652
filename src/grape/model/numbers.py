"""What can be measured: one typed catalogue, which the summary, metrics and dashboards are made from.

A number is a field of `PoolNumbers` or `AppNumbers`; its annotation says what it is (`Metric`). So there is no number
that is not in the catalogue, and none in the catalogue that nobody fills.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta, Struct

Kind = Literal["counter", "gauge", "state"]


class Metric(Struct, frozen=True):
    """``name``: field. ``scope``: what there is one of for each. ``labels``: of the values, if it is a table. ``unit``:
    "events", "seconds", "bytes" .. or "". A counter only grows, within a run."""

    name: str
    scope: Literal["app", "pool"]
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    help: str


def _number(kind: Kind, unit: str, text: str, *labels: str) -> Meta:
    return Meta(description=text, extra={"kind": kind, "unit": unit, "labels": labels})


class PoolNumbers(Struct, frozen=True):
    """One pool at one moment."""

    state: Annotated[str, _number("state", "", "running, idle, paused, empty (no worker), or degraded")]
    reason: Annotated[str, _number("state", "", "why it is degraded: how the last worker ended")]
    queue_events: Annotated[int, _number("gauge", "events", "wait in its logs, those in work included")]
    queue_bytes: Annotated[int, _number("gauge", "bytes", "wait in its logs")]
    queue_limit: Annotated[int, _number("gauge", "events", "at which intake into it stops, over all pools")]
    queue_limit_bytes: Annotated[int, _number("gauge", "bytes", "at which intake into it stops, over all pools")]
    oldest_seconds: Annotated[float, _number("gauge", "seconds", "age of the oldest event that no worker has")]
    held: Annotated[int, _number("gauge", "events", "failed ones and those behind them, to be tried again")]
    workers_active: Annotated[int, _number("gauge", "workers", "with work")]
    workers_idle: Annotated[int, _number("gauge", "workers", "without")]
    workers_starting: Annotated[int, _number("gauge", "workers", "on their way")]
    workers_leaving: Annotated[int, _number("gauge", "workers", "asked to end")]
    workers_limit: Annotated[int, _number("gauge", "workers", "at most (pool-limit)")]
    workers_spawned: Annotated[int, _number("counter", "workers", "started")]
    workers_crashed: Annotated[int, _number("counter", "workers", "ended without having done anything")]
    load: Annotated[float, _number("gauge", "", "share of the workers that have work, over the last minute")]
    finished: Annotated[int, _number("counter", "events", "done with, whatever came of them")]
    rate: Annotated[dict[str, float], _number("gauge", "events/s", "finished, over 1, 5 and 15 minutes", "minutes")]
    latency: Annotated[
        dict[str, float], _number("gauge", "seconds", "from a batch's making to its event's end", "quantile")
    ]


class AppNumbers(Struct, frozen=True):
    """One app at one moment."""

    fed: Annotated[dict[str, int], _number("counter", "events", "that came in from outside", "event")]
    emitted: Annotated[dict[str, int], _number("counter", "events", "that handlers emitted", "event")]
    processed: Annotated[dict[str, int], _number("counter", "events", "that slots were given", "slot")]
    taken: Annotated[dict[str, int], _number("counter", "events", "that left by an output", "event")]
    failures: Annotated[dict[str, int], _number("counter", "events", "attempts that failed", "slot")]
    dead: Annotated[int, _number("counter", "events", "that became dead letters")]
    replies: Annotated[int, _number("counter", "replies", "to calls")]
    late_replies: Annotated[int, _number("counter", "replies", "after the final one, dropped")]
    stale_frames: Annotated[int, _number("counter", "messages", "of workers about partitions that they had lost")]
    duplicates: Annotated[int, _number("counter", "batches", "that a transport delivered again, dropped")]
    commits: Annotated[int, _number("counter", "commits", "of partitions")]
    worker_deaths: Annotated[int, _number("counter", "workers", "ended that should not have")]
    backlog_events: Annotated[int, _number("gauge", "events", "wait, over all pools")]
    backlog_bytes: Annotated[int, _number("gauge", "bytes", "wait, over all pools")]
    outgoing_events: Annotated[int, _number("gauge", "events", "wait for other apps of the server")]
    outgoing_bytes: Annotated[int, _number("gauge", "bytes", "wait for other apps of the server")]
    unshipped_objects: Annotated[int, _number("gauge", "objects", "written, not yet in their other storages")]
    unshipped_bytes: Annotated[int, _number("gauge", "bytes", "written, not yet in their other storages")]
    stuck_objects: Annotated[int, _number("gauge", "objects", "that their other storages refuse")]
    timers: Annotated[int, _number("gauge", "events", "emitted with a delay, not due yet")]
    pools: dict[str, PoolNumbers]


def catalogue() -> list[Metric]:
    """Everything that can be measured."""
    found: list[Metric] = []
    for scope, numbers in (("app", AppNumbers), ("pool", PoolNumbers)):
        for name, hint in get_type_hints(numbers, include_extras=True).items():
            for meta in getattr(hint, "__metadata__", ()):
                extra: dict[str, Any] = meta.extra
                found.append(msgspec.convert({"name": name, "scope": scope, "help": meta.description, **extra}, Metric))
    return found
