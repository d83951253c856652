"""What clients hand in: checked once more, then accepted once.

A client's event has no number of its own, as those of streams have. It is accepted by one commit, of its partition in
the first pool that listens, which sends it to all of them; with an ``id`` it is remembered there for the dedup-horizon.
An eager one is accepted by the commit of what comes of it, if its worker has nothing else to do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
from msgspec import structs

from grape.engine.engine import Engine
from grape.engine.grouping import Grouping
from grape.engine.partition.partition import Partition
from grape.engine.partition.spans import came_in
from grape.errors import Conflict, Full, ProtocolError, Stopping, TooLarge, UnknownEvent
from grape.model.address import MAX_ID_BYTES, check_key, check_text, partition_of
from grape.model.batch import Context
from grape.model.ids import content_of
from grape.model.near import did_you_mean
from grape.model.objects import ObjectWrite
from grape.model.stored import KEPT, NO_POOLS
from grape.model.tracing import MAX_VIA, NOBODY, Trace, sampled
from grape.protocol.door import Emit

_BESIDE: Final = 1_000
"""Bytes of an event in a commit beside its data and key, about, with the row of its id."""
_MOST_EAGER: Final = 1 << 16
"""Bytes of an event, which is kept for each of its nodes until it has run; to write a larger one takes longer."""
_LONGEST_WAIT: Final = 1 << 62
_skip: Final = msgspec.msgpack.Decoder(msgspec.Raw).decode


def check_emit(event: Emit, max_event: int) -> Emit:
    """
    Raises:
        ProtocolError: what no client of ours sends: a name, key, id or wait that cannot be one, data that is none.
        TooLarge: data over ``max_event`` bytes.
    """
    try:
        check_text(event.name, "the name of an event", MAX_ID_BYTES)
        if event.key is not None:
            check_key(event.key)
        for text, what in ((event.id, "id"), (event.request, "request")):
            if text:
                check_text(text, what, MAX_ID_BYTES)
        _skip(event.data)
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as e:
        raise ProtocolError(f"an event that cannot be one: {e}") from None
    if event.wait is not None and not 0 <= event.wait <= _LONGEST_WAIT:
        raise ProtocolError(f"an event that is to wait for {event.wait} us")
    if len(event.data) > max_event:
        raise TooLarge(f"an event of {len(event.data)} bytes; the limit is {max_event}")
    return event


class Clients:
    """Takes in what clients have checked. Engine's thread only."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._app = engine.app
        self._spread = 0
        self._groupings: dict[str, Grouping] = {}
        self._rng = random.Random()

    def accept(self, event: Emit, now: int, durable: Callable[[], None], write: ObjectWrite | None = None) -> None:
        """``durable`` is called when it is, also if it was accepted before. ``write``: an object that is written with
        it, by one commit; its bytes are there, or in it.

        Raises:
            UnknownEvent: nothing listens to it.
            Full: nothing can be taken in now, or not here. Stopping: nor later.
            Conflict: its id was used for another event.
            EngineError: the engine had to stop.
        """
        engine, app = self._engine, self._app
        logs, is_pushed = self._logs(event)
        first = next(iter(engine.pools)) if is_pushed else logs[0]
        number = self._partition_of(event, first, now)
        home = self._home(event, first, number)
        size = (len(event.data) + len(event.key or "") + _BESIDE) * len(logs)
        if not home.ledger.has_room(size + (0 if write is None else write.weight)):
            raise Full("what has come before it is being committed")
        known = self._remembered(event.id, number) if event.id else None
        content = content_of(event.name, event.key, event.data)
        is_call = event.request.startswith(KEPT)
        if known is not None and known[0] != content:
            raise Conflict(f"the id {event.id!r:.300} was used for another event")
        if known is not None and is_call and not known[1]:
            raise Conflict(f"the id {event.id!r:.300} was used for this event before, but nobody waited for an answer")
        if known is None:
            if is_call and event.key is not None and event.id and self._is_used(event.id):
                raise Conflict(f"the id {event.id!r:.300} was used for an event of another key")
            is_eager = (
                event.name in app.eager
                and write is None
                and len(event.data) <= _MOST_EAGER
                and home.number == number
                and engine.pools[home.pool].may_be_eager(home)
            )
            if write is not None:
                self._write(home, write, now)
            if event.id:
                home.memory.remember(event.id, content, now, is_call=is_call)
            due = 0 if event.wait is None else now + event.wait
            trace = self._traced(event, home, now) if not is_pushed and (event.trace or app.traced) else ""
            context = Context() if is_pushed else Context(event.request, number if event.request else 0, trace, due)
            app.stats.fed[event.name] += 1
            if is_eager:
                home.eager.take_in(event, app.routing.listeners[event.name][0].nodes, context, now)
                home.ledger.then(durable)
                engine.hand_out_eagerly(home, now)
                return
            for log in logs:
                home.memory.take_in(log, number, event.name, event.key, event.data, event.id, context, now)
        home.ledger.then(durable)
        home.flush()

    def _logs(self, event: Emit) -> tuple[list[str], bool]:
        """Where it goes, and whether that is an output. Errors are those of `accept`."""
        engine, app = self._engine, self._app
        if engine.failure is not None:
            raise engine.failure
        logs = app.logs_of(event.name)
        if not logs:
            hint = did_you_mean(event.name, app.topology.events, f"it has {', '.join(map(repr, app.topology.events))}")
            raise UnknownEvent(f"app {app.record.name!r} has no slot {event.name!r:.300}; {hint}")
        is_pushed = event.name in app.routing.outputs
        if is_pushed and event.request:
            raise UnknownEvent(
                f"{event.name!r} is an output of app {app.record.name!r}: it answers nothing; emit to it"
            )
        pools = [] if is_pushed else logs
        if engine.draining:
            raise Stopping("the engine is stopping")
        if not engine.intake_is_open(pools):
            raise Full(engine.gate.over_limit(pools) or engine.gate.no_room())
        return logs, is_pushed

    def _write(self, home: Partition, write: ObjectWrite, now: int) -> None:
        home.ledger.put_object(write if write.time else structs.replace(write, time=now))
        if write.blob:
            pins = self._app.pins
            pins.hold(write.checksum, write.size)
            home.ledger.then(partial(pins.let_go, write.checksum))

    def _traced(self, event: Emit, home: Partition, now: int) -> str:
        """What its context carries, as it has come in; "": it is not traced."""
        found = sampled(event.trace) if event.trace else None
        if found is not None and found.parent == NOBODY:
            found = Trace(found.trace, "")
        if found is None:
            if event.trace or self._rng.random() >= self._app.traced:
                return ""
            found = Trace(f"{self._rng.getrandbits(128) or 1:032x}", "")
        span = f"{self._rng.getrandbits(64) or 1:016x}"
        home.ledger.trace([came_in(found, span, event.name, event.key, event.id, event.via[:MAX_VIA], now)], now)
        return str(Trace(found.trace, span))

    def _is_used(self, event_id: str) -> bool:
        """Also for an event of another key. The answers to calls are found by their ids alone; where nothing is
        answered, an id is that of an event of its key, as all partitions would have to be asked for each."""
        return any(self._remembered(event_id, number) is not None for number in range(self._app.partitions))

    def _remembered(self, event_id: str, number: int) -> tuple[int, bool] | None:
        """In whatever pool it was accepted: the code may have moved since."""
        for name in self._app.record.logs:
            if not name.startswith(NO_POOLS):
                known = self._engine.remembered(name, number, event_id)
                if known is not None:
                    return known
        return None

    def _partition_of(self, event: Emit, pool: str, now: int) -> int:
        """One that has neither key nor id goes to any that is served here."""
        place = event.key or event.id
        if place:
            return partition_of(place, self._app.partitions)
        here = self._engine.pools[pool]
        is_alone = here.is_long or event.name in self._app.eager
        grouping = self._groupings.get(event.name)
        if grouping is None:
            grouping = self._groupings[event.name] = Grouping(lambda: self._next_partition(pool))
        return grouping.next(1 if is_alone else here.paces.most(event.name), now)

    def _next_partition(self, pool: str) -> int:
        mine = self._engine.pools[pool].partitions
        for _ in range(self._app.partitions):
            self._spread = (self._spread + 1) % self._app.partitions
            if self._spread in mine:
                break
        return self._spread

    def _home(self, event: Emit, pool: str, number: int) -> Partition:
        """The partition that accepts it: that of its key, or any other, which sends it there. An id is remembered in
        its own partition alone.

        Raises:
            Full: none can here.
        """
        mine = self._engine.pools[pool].partitions
        home = mine.get(number)
        if home is None and not event.id:
            home = next(iter(mine.values()), None)
        if home is None:
            raise Full(f"partition {number} of pool {pool!r}, to which it goes, is served by another engine")
        return home
