"""What is measured, for Prometheus: made from the catalogue of numbers, one family each.

Labels are names of apps, pools, slots and events of a topology, which an event cannot add to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from grape.model.numbers import AppNumbers, PoolNumbers, catalogue
from grape.model.numbers import Metric as Number
from grape.server.hosted import AppInfo

_STATES: Final = ("running", "paused", "starting", "stopping", "upgrading", "waiting", "broken", "parked", "stopped")
_MOST: Final = 2_000
"""Values of one family of one app."""


def shown(apps: Iterable[AppInfo]) -> bytes:
    """All of it, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(list(apps)))
    return generate_latest(registry)


class _Collector:
    def __init__(self, apps: list[AppInfo]) -> None:
        self._apps = apps

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("grape_app_up", "Whether the app takes events", labels=("app",))
        state = GaugeMetricFamily("grape_app_state", "1 for the state that the app is in", labels=("app", "state"))
        deaths = CounterMetricFamily(
            "grape_engine_deaths", "Of the app's engine, since the server began", labels=("app",)
        )
        about = GaugeMetricFamily("grape_app_info", "Always 1", labels=("app", "version", "digest"))
        for app in self._apps:
            up.add_metric((app.name,), float(app.serves))
            for one in _STATES:
                state.add_metric((app.name, one), float(app.state == one))
            deaths.add_metric((app.name,), app.deaths)
            about.add_metric((app.name, app.version, app.digest[:12]), 1)
        yield from (up, state, deaths, about)
        for number in catalogue():
            if number.kind != "state":
                yield self._family(number)

    def _family(self, number: Number) -> Metric:
        labels = ("app", *(("pool",) if number.scope == "pool" else ()), *number.labels)
        unit = f", {number.unit}" if number.unit else ""
        kind = CounterMetricFamily if number.kind == "counter" else GaugeMetricFamily
        prefix = "grape_pool" if number.scope == "pool" else "grape"
        family: Any = kind(f"{prefix}_{number.name}", f"{number.help}{unit}", labels=labels)
        for app in self._apps:
            if app.numbers is not None:
                for labels_of, value in list(_values(app.name, app.numbers, number))[:_MOST]:
                    family.add_metric(labels_of, value)
        return cast(Metric, family)


def _values(app: str, numbers: AppNumbers, number: Number) -> Iterator[tuple[tuple[str, ...], float]]:
    if number.scope == "app":
        yield from _of((app,), numbers, number)
    else:
        for pool, found in numbers.pools.items():
            yield from _of((app, pool), found, number)


def _of(labels: tuple[str, ...], numbers: AppNumbers | PoolNumbers, number: Number) -> Iterator[Any]:
    value = getattr(numbers, number.name)
    if isinstance(value, dict):
        for name, one in value.items():
            yield (*labels, str(name)), float(one)
    else:
        yield labels, float(value)
