"""What can be measured: one typed catalogue, which the summary, metrics and dashboards are made from.

A number is a field of `PoolNumbers` or `AppNumbers`; its annotation says what it is (`Metric`). So there is no number
that is not in the catalogue, and none in the catalogue that nobody fills.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any, Final, Literal, get_type_hints

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

    state: Annotated[str, _number("state", "", "running, idle, empty (no worker), or degraded")]
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


class Latencies:
    """Quantiles of the last one to two minutes, from counts in buckets that are an eighth wide at most, as an HDR
    histogram has them (Gil Tene's; here without its library: these are ten lines). Times are microseconds."""

    _KEPT: Final = 60_000_000

    def __init__(self) -> None:
        self._now: Counter[int] = Counter()
        self._before: Counter[int] = Counter()
        self._since = 0

    def add(self, latency: int, count: int) -> None:
        if latency < 8:
            bucket = max(latency, 0)
        else:
            shift = latency.bit_length() - 4
            bucket = (shift << 3) + (latency >> shift)  # its first four bits, of which the first is 1
        self._now[bucket] += count

    def turn(self, now: int) -> None:
        """Forget what is too old."""
        if now - self._since >= self._KEPT:
            self._before, self._now, self._since = self._now, Counter(), now

    def quantiles(self, wanted: tuple[float, ...]) -> dict[str, float]:
        """Seconds; empty if nothing was counted."""
        both = sorted((self._before + self._now).items())
        total = sum(count for _, count in both)
        found: dict[str, float] = {}
        for quantile in wanted if total else ():
            left = math.ceil(quantile * total)
            for bucket, count in both:
                left -= count
                if left <= 0:
                    found[f"{quantile:g}"] = self._middle(bucket) / 1e6
                    break
        return found

    @staticmethod
    def _middle(bucket: int) -> float:
        if bucket < 16:
            return float(bucket)
        shift = (bucket >> 3) - 1
        return ((bucket - (shift << 3)) + 0.5) * (1 << shift)


class Rate:
    """Of a counter, over some minutes: averages that forget exponentially, as a load average does."""

    _STEP: Final = 5_000_000

    def __init__(self, minutes: tuple[int, ...] = (1, 5, 15)) -> None:
        self._minutes = minutes
        self._rates = dict.fromkeys(minutes, 0.0)
        self._at = 0
        self._total = 0
        self._started = 0

    def look(self, now: int, total: int) -> None:
        """The counter stands at ``total``."""
        if not self._at:
            self._at = self._started = now
            self._total = total
        elapsed = now - self._at
        if elapsed < self._STEP:
            return
        rate = (total - self._total) * 1e6 / elapsed
        for minutes in self._minutes:
            # In the beginning it is the plain average: a young one is not pulled towards nothing.
            span = min(minutes * 60e6, now - self._started)
            self._rates[minutes] += (rate - self._rates[minutes]) * (1 - math.exp(-elapsed / span))
        self._at, self._total = now, total

    def rates(self, now: int, total: int) -> dict[str, float]:
        if self._at == self._started:  # nothing but the beginning is known
            elapsed = now - self._started
            return dict.fromkeys(map(str, self._minutes), (total - self._total) * 1e6 / elapsed if elapsed else 0.0)
        return {str(minutes): rate for minutes, rate in self._rates.items()}


class PoolStats:
    """What is counted in one pool."""

    def __init__(self) -> None:
        self.finished = 0
        self.duplicates = 0
        self.latencies = Latencies()
        self.rate = Rate()
        self.load = 0.0
        self._looked = 0

    def look(self, now: int, active: int, workers: int) -> None:
        """Now and then, some times a second."""
        self.latencies.turn(now)
        self.rate.look(now, self.finished)
        share = active / workers if workers else 0.0
        weight = 1.0 if not self._looked else 1 - math.exp(-(now - self._looked) / 60e6)
        self.load += (share - self.load) * weight
        self._looked = now
