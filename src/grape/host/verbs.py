"""What can be asked at the door, by its name."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from grape.engine.app import App
from grape.engine.engine import Engine
from grape.engine.pausing import Pause
from grape.errors import BadArgument
from grape.host.argument import argument_of
from grape.host.house import Verb
from grape.host.readers import ReplyFan
from grape.host.streams import Say, Streams
from grape.model.address import MAX_ID_BYTES
from grape.model.levels import Levels, check_level, ordered
from grape.model.stored import KEPT, KEPT_BRIEFLY, NO_POOLS
from grape.processes.workers import Workers
from grape.protocol.door import Answer, Ask
from grape.protocol.outcomes import Counts, Kept, Logged, Progress

_encode = msgspec.msgpack.Encoder().encode


def telemetry(engine: Engine, streams: Streams, pids: Callable[[], list[tuple[str, int]]]) -> dict[str, Verb]:
    """ "numbers": `grape.model.numbers.AppNumbers`. "progress": `Progress`."""

    def numbers(ask: Ask, say: Say) -> None:
        say(Answer(ask.number, msgspec.Raw(_encode(engine.numbers()))))

    def progress(ask: Ask, say: Say) -> None:
        say(Answer(ask.number, msgspec.Raw(_encode(progress_of(engine, streams, pids())))))

    return {"numbers": numbers, "progress": progress}


def pausing(pause: Pause) -> dict[str, Verb]:
    """ "pause": nothing is handed out any more (true), or it goes on (false)."""

    def set_it(ask: Ask, say: Say) -> None:
        pause.set(argument_of(ask, bool))
        say(Answer(ask.number, msgspec.Raw(_encode(None))))

    return {"pause": set_it}


def logging(engine: Engine, workers: Workers, own: Levels) -> dict[str, Verb]:
    """ "levels": what the operator says of how much handlers log, `Levels`; nil: nothing new. Answered with what counts
    now, and the nodes that there are: `Logged`. ``own``: what the app says of itself."""

    def set_them(ask: Ask, say: Say) -> None:
        orders: dict[str, str] | None = argument_of(ask, dict[str, str] | None)  # type: ignore[arg-type]
        if orders is not None:
            levels = ordered(own, {node: check_level(level) for node, level in orders.items()})
            workers.levels = levels
            engine.handshake.change_levels(levels)
        nodes = [node.name for node in engine.app.topology.nodes]
        say(Answer(ask.number, msgspec.Raw(_encode(Logged(workers.levels, nodes)))))

    return {"levels": set_them}


def answers(engine: Engine, fan: ReplyFan) -> dict[str, Verb]:
    """ "answer": `Kept`, of the call whose id is the argument."""

    def answer(ask: Ask, say: Say) -> None:
        request = argument_of(ask, str)
        if not request.startswith((KEPT, KEPT_BRIEFLY)) or len(request.encode()) > MAX_ID_BYTES:
            raise BadArgument(
                f"the replies to {request!r:.100} are not kept: the id of such a call begins with {KEPT!r}"
            )

        def found(replies: list[tuple[bytes, bool]]) -> None:
            known = bool(replies) or _is_known(engine, request.removeprefix(KEPT))
            say(Answer(ask.number, msgspec.Raw(_encode(Kept(known, replies)))))

        fan.kept(request, found)

    return {"answer": answer}


def _is_known(engine: Engine, event_id: str) -> bool:
    """Whether an event with this id was accepted, whatever its key."""
    app = engine.app
    pools = [name for name in app.record.logs if not name.startswith(NO_POOLS)]
    return any(
        engine.remembered(pool, number, event_id) is not None for pool in pools for number in range(app.partitions)
    )


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
        outgoing=app.outgoing_events + app.outgoing_replies + app.unshipped_objects,
    )


def counts_of(app: App) -> Counts:
    stats = app.stats
    return Counts(
        fed=dict(stats.fed),
        emitted=dict(stats.emitted),
        # (What was counted, and then waits behind another event, was taken back: perhaps it was all.)
        processed={name: count for name, count in stats.processed.items() if count},
        taken=dict(stats.taken),
        failures=dict(stats.failures),
        dropped={o: stats.emitted[o] for o in app.topology.outputs if o not in app.taken and stats.emitted[o]},
        finished=stats.finished,
        commits=stats.commits,
        worker_deaths=stats.worker_deaths,
        stale_frames=stats.stale_frames,
    )
