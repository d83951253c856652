"""What an engine measures, as one value."""

from __future__ import annotations

from collections.abc import Mapping

from grape.engine.app import App
from grape.engine.pool import Pool
from grape.model.numbers import AppNumbers


def numbers_of(app: App, pools: Mapping[str, Pool], now: int) -> AppNumbers:
    """At ``now`` (microseconds)."""
    stats = app.stats
    return AppNumbers(
        fed=dict(stats.fed),
        emitted=dict(stats.emitted),
        processed=dict(stats.processed),
        taken=dict(stats.taken),
        failures=dict(stats.failures),
        dead=stats.dead,
        replies=stats.replies,
        late_replies=stats.late_replies,
        stale_frames=stats.stale_frames,
        duplicates=sum(pool.duplicates for pool in stats.pools.values()),
        commits=stats.commits,
        worker_deaths=stats.worker_deaths,
        backlog_events=app.backlog_events,
        backlog_bytes=app.backlog_bytes,
        outgoing_events=app.outgoing_events,
        outgoing_bytes=app.outgoing_bytes,
        unshipped_objects=app.unshipped_objects,
        unshipped_bytes=app.unshipped_bytes,
        stuck_objects=app.stuck_objects,
        timers=app.timers,
        pools={name: pool.numbers(now) for name, pool in pools.items()},
    )
