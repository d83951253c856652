"""Looking on at outputs: whoever asks says where it is, and gets what came since, or waits for it. Nothing is kept for
it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import msgspec

from grape.abc.transport import Arrival, Transport
from grape.engine.app import App
from grape.engine.clock import Clock
from grape.engine.queue import UNREADABLE_BATCH, OutputBatch
from grape.errors import Full
from grape.host.host import Host
from grape.host.once import Once
from grape.host.streams import Say
from grape.model.address import PartitionId
from grape.model.stored import OUTPUT
from grape.protocol.door import Answer
from grape.protocol.queues import Delivery, Tail, Tailed

_READ: Final = 1 << 20
_MOST: Final = 1_000
_MOST_UNREAD: Final = 16 << 20
"""Bytes with which nobody is told of more."""
_PAUSE: Final = 0.02
_encode: Final = msgspec.msgpack.Encoder().encode


class _Waiting(NamedTuple):
    number: int
    tail: Tail
    places: list[int]
    until: int
    say: Say


class Tails:
    """All who look on.

    Args:
        on_arrival: has a function called when something came into a log.
        unread: bytes that were said and are not taken yet. Many may look on over one connection, that of a gateway,
            which all other requests need, too.
    """

    def __init__(
        self,
        app: App,
        transport: Transport,
        on_arrival: Callable[[PartitionId, Callable[[Arrival], None]], None],
        host: Host,
        clock: Clock,
        unread: Callable[[Say], int],
    ) -> None:
        self._app = app
        self._transport = transport
        self._on_arrival = on_arrival
        self._host = host
        self._clock = clock
        self._unread = unread
        self._waiting: list[_Waiting] = []
        self._heard: set[str] = set()
        self._wake = Once(partial(host.later, 0.002), self._look)

    def ask(self, number: int, tail: Tail, places: list[int], say: Say) -> None:
        """``places``: where to begin, by partition.

        Raises:
            Full: too many wait.
        """
        if tail.event not in self._heard:
            self._heard.add(tail.event)
            for one in range(self._app.partitions):
                self._on_arrival(self._app.log(OUTPUT + tail.event, one), lambda _: self._wake())
        waiting = _Waiting(number, tail, places, self._clock.now() + int(tail.wait * 1e6), say)
        has_room = self._has_room(waiting)
        if has_room and self._serve(waiting):
            return
        if len(self._waiting) >= _MOST:
            raise Full(f"{_MOST:,} look on at outputs of this app already")
        self._waiting.append(waiting)
        self._host.later(tail.wait, self._wake)
        if not has_room:
            self._host.later(_PAUSE, self._wake)

    def left(self, say: Say) -> None:
        """Who was answered by this is gone."""
        self._waiting = [waiting for waiting in self._waiting if waiting.say != say]

    def _look(self) -> None:
        left: list[_Waiting] = []
        is_held_back = False
        for waiting in self._waiting:
            has_room = self._has_room(waiting)
            is_held_back |= not has_room
            if not has_room or not self._serve(waiting):
                left.append(waiting)
        self._waiting = left  # whoever asks again comes behind those who were held back
        if is_held_back:
            self._host.later(_PAUSE, self._wake)

    def _has_room(self, waiting: _Waiting) -> bool:
        return self._unread(waiting.say) < _MOST_UNREAD

    def _serve(self, waiting: _Waiting) -> bool:
        events = self._read(waiting)
        if not events and self._clock.now() < waiting.until:
            return False
        waiting.say(Answer(waiting.number, msgspec.Raw(_encode(Tailed(waiting.places, events)))))
        return True

    def _read(self, waiting: _Waiting) -> list[Delivery]:
        """Whole batches; ``places`` moves over them."""
        found: list[Delivery] = []
        size = 0
        for number, place in enumerate(waiting.places):
            if len(found) >= waiting.tail.count or size >= _READ:
                break
            log = self._app.log(OUTPUT + waiting.tail.event, number)
            for stored in self._transport.read(log, place, _READ):
                waiting.places[number] = stored.position + 1
                size += len(stored.batch)
                try:
                    batch = OutputBatch(number, stored.position, stored.batch)
                    found += [batch.delivery(i) for i in range(batch.header.events)]
                except UNREADABLE_BATCH:
                    continue  # whoever takes it is told
                if len(found) >= waiting.tail.count or size >= _READ:
                    break
        return found
