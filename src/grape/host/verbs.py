"""What can be asked at the door, by its name."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from grape.engine.app import App
from grape.engine.engine import Engine
from grape.host.house import Verb
from grape.host.streams import Say, Streams
from grape.protocol.door import Answer, Ask
from grape.protocol.outcomes import Counts, Progress

_encode = msgspec.msgpack.Encoder().encode


def telemetry(engine: Engine, streams: Streams, pids: Callable[[], list[tuple[str, int]]]) -> dict[str, Verb]:
    """ "numbers": `grape.model.numbers.AppNumbers`. "progress": `Progress`."""

    def numbers(ask: Ask, say: Say) -> None:
        say(Answer(ask.number, msgspec.Raw(_encode(engine.numbers()))))

    def progress(ask: Ask, say: Say) -> None:
        say(Answer(ask.number, msgspec.Raw(_encode(progress_of(engine, streams, pids())))))

    return {"numbers": numbers, "progress": progress}


def progress_of(engine: Engine, streams: Streams, pids: list[tuple[str, int]]) -> Progress:
    app, pools = engine.app, engine.pools
    return Progress(
        finished=app.stats.finished,
        backlog=app.backlog_events,
        held=app.holds,
        dead=max(0, app.stats.dead - app.stats.revived),
        workers=sum(1 for pool in pools.values() for worker in pool.workers.values() if worker.serves),
        degraded=[name for name, pool in pools.items() if pool.is_degraded],
        due=engine.next_due(),
        streams=streams.left,
        fed_bytes=streams.fed_bytes,
        pids=[("engine", os.getpid()), *pids],
    )


def counts_of(app: App) -> Counts:
    stats = app.stats
    return Counts(
        fed=dict(stats.fed),
        emitted=dict(stats.emitted),
        processed=dict(stats.processed),
        taken=dict(stats.taken),
        failures=dict(stats.failures),
        dropped={o: stats.emitted[o] for o in app.topology.outputs if o not in app.taken and stats.emitted[o]},
        finished=stats.finished,
        commits=stats.commits,
        worker_deaths=stats.worker_deaths,
        stale_frames=stats.stale_frames,
    )
