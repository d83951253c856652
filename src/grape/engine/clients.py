"""What clients hand in: checked at one door before it touches anything, then accepted once.

A client's event has no number of its own, as those of sources have. It is accepted by one commit, of its partition in
the first pool that listens, which sends it to all of them; with an ``id`` it is remembered there for the dedup-horizon.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar
from zlib import crc32

from msgspec import Struct

from grape.engine.engine import Engine
from grape.engine.partition.partition import Partition
from grape.errors import BadArgument, Conflict, Full, UnknownEvent
from grape.model.address import check_key, check_text, partition_of
from grape.model.batch import Context
from grape.model.near import did_you_mean
from grape.model.stored import NO_POOLS
from grape.model.values import encode, seconds, shown, to_value

T = TypeVar("T")

MAX_ID_BYTES: Final = 1_024
MAX_TIMEOUT: Final = 1e9

_BESIDE: Final = 1_000
"""Bytes of an event in a commit beside its data and key, about, with the row of its id."""


class ClientEvent(Struct, frozen=True):
    """An event as a client means it, checked. ``data``: encoded. ``wait``: microseconds until its deadline."""

    name: str
    key: str | None
    data: bytes
    id: str = ""
    wait: int | None = None

    @property
    def content(self) -> int:
        """Tells it from other events under the same id."""
        return crc32(self.data, crc32(repr((self.name, self.key)).encode()))


def client_event(
    name: object, data: Any, key: object, event_id: object, deadline: object, max_event: int
) -> ClientEvent:
    """
    Args:
        event_id, deadline: None if there is none.

    Raises:
        BadArgument: a name, key, id or deadline that cannot be one.
        BadValue: data that cannot travel.
        TooLarge: data over ``max_event`` bytes.
    """
    if type(name) is not str or not name:
        raise BadArgument(f"the name of an event is text (str) of 1 character at least, not {shown(name)}")
    return ClientEvent(
        _checked(lambda: check_text(name, "the name of an event", MAX_ID_BYTES)),
        None if key is None else _checked(lambda: check_key(key)),
        bytes(encode(to_value(data, max_event))),
        "" if event_id is None else _checked(lambda: check_text(event_id, "id=", MAX_ID_BYTES)),
        None if deadline is None else int(check_seconds(deadline, "deadline=") * 1e6),
    )


def check_seconds(value: object, what: str) -> float:
    """
    Raises:
        BadArgument: it is no number of seconds.
    """
    if not isinstance(value, int | float | timedelta):
        raise BadArgument(f"{what} is a number of seconds, not {shown(value)}")
    return _checked(lambda: seconds(value, what))


def check_timeout(value: object) -> float | None:
    """Seconds to wait; None: without an end.

    Raises:
        BadArgument: it is neither.
    """
    return None if value is None else min(check_seconds(value, "timeout="), MAX_TIMEOUT)


def check_call_timeout(value: object) -> float | None:
    """`check_timeout` of a call, in which nothing can come in no time.

    Raises:
        BadArgument: it is none.
    """
    checked = check_timeout(value)
    if checked == 0:
        raise BadArgument("timeout=0: an answer takes some time; whoever wants none emits instead of calling")
    return checked


def _checked(check: Callable[[], T]) -> T:
    try:
        return check()
    except (TypeError, ValueError, OverflowError) as e:
        raise BadArgument(str(e)) from None


class Clients:
    """Takes in what clients have checked. Engine's thread only."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._app = engine.app
        self._spread = 0

    def accept(self, event: ClientEvent, now: int, durable: Callable[[], None], request: str = "") -> None:
        """``durable`` is called when it is, also if it was accepted before. ``request``: under which its caller waits
        for replies.

        Raises:
            UnknownEvent: nothing listens to it.
            Full: nothing can be taken in now, or not here.
            Conflict: its id was used for another event.
            EngineError: the engine had to stop.
        """
        engine, app = self._engine, self._app
        if engine.failure is not None:
            raise engine.failure
        listeners = app.routing.listeners.get(event.name)
        if listeners is None:
            hint = did_you_mean(event.name, app.topology.events, f"it has {', '.join(map(repr, app.topology.events))}")
            raise UnknownEvent(f"app {app.record.name!r} has no slot {event.name!r:.300}; {hint}")
        pools = [listener.pool for listener in listeners]
        if not engine.intake_is_open(pools):
            why = engine.gate.over_limit(pools)
            raise Full(why or "the disk is full but for the reserve, or the engine is stopping")
        number = self._partition_of(event, pools[0])
        home = self._home(event, pools[0], number)
        if not home.ledger.has_room((len(event.data) + len(event.key or "") + _BESIDE) * len(pools)):
            raise Full("what has come before it is being committed")
        known = self._remembered(event.id, number) if event.id else None
        if known not in (None, event.content):
            raise Conflict(f"the id {event.id!r:.300} was used for another event")
        if known is None:
            if event.id:
                home.memory.remember(event.id, event.content, now)
            due = 0 if event.wait is None else now + event.wait
            context = Context(request, number if request else 0, "", due)
            for pool in pools:
                home.memory.take_in(pool, number, event.name, event.key, event.data, event.id, context, now)
            app.stats.fed[event.name] += 1
        home.ledger.then(durable)
        home.flush()

    def _remembered(self, event_id: str, number: int) -> int | None:
        """In whatever pool it was accepted: the code may have moved since."""
        for name in self._app.record.logs:
            if not name.startswith(NO_POOLS):
                known = self._engine.remembered(name, number, event_id)
                if known is not None:
                    return known
        return None

    def _partition_of(self, event: ClientEvent, pool: str) -> int:
        """One that has neither key nor id goes to any that is served here."""
        place = event.key or event.id
        if place:
            return partition_of(place, self._app.partitions)
        mine = self._engine.pools[pool].partitions
        for _ in range(self._app.partitions):
            self._spread = (self._spread + 1) % self._app.partitions
            if self._spread in mine:
                break
        return self._spread

    def _home(self, event: ClientEvent, pool: str, number: int) -> Partition:
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
