"""The time in which a run works: what is due is done, until all is done, or it has to end before."""

from __future__ import annotations

import time
from typing import Final

from grape.engine.clock import Clock
from grape.errors import Interrupted
from grape.host.assembly import Assembled
from grape.host.host import Host
from grape.host.house import House
from grape.host.options import Options
from grape.host.streams import Streams

_DRAIN: Final = 5.0
_STALL: Final = 3.0
_TICK: Final = 0.005
_IDLE: Final = 0.25


class Serving:
    """One engine that has been started, with its streams and those who read from it."""

    def __init__(
        self, assembled: Assembled, streams: Streams, house: House, host: Host, clock: Clock, options: Options
    ) -> None:
        self._app = assembled.app
        self._engine = assembled.engine
        self._streams = streams
        self._house = house
        self._host = host
        self._clock = clock
        self._keeps_open = options.keep_open
        self._waits = options.wait
        self._full_since = 0.0

    @property
    def feeding_stopped(self) -> bool:
        """Before the end of the input, as there were too many dead letters."""
        return self._streams.are_stopped

    async def until_over(self) -> bool:
        """Serve; returns whether it was stopped with work left.

        Raises:
            GrapeError: it cannot be gone on.
        """
        host, streams = self._host, self._streams
        ticked = 0.0
        while True:
            host.check()
            host.look_anew()
            if self._house.is_deserted:
                raise Interrupted("whoever started the engine has gone")
            timeout = ticked + _TICK - time.monotonic()
            if timeout <= 0:  # what is due is looked for now and then, not after every message
                timeout = self._tick()
                ticked = time.monotonic()
            if host.is_stopping:
                return await self._drain()
            if streams.have_too_many_dead:
                streams.stop_feeding()
                self._engine.drain()
                if not self._engine.in_flight and self._house.readers_are_idle:
                    return False
            if self._is_over():
                return False
            await host.wait(timeout)

    def _tick(self) -> float:
        """Do what is due; returns in how many seconds to look again at the latest."""
        wake = self._engine.tick()
        self._engine.check_room()
        self._check_stall()
        return _IDLE if wake is None else min(_IDLE, max(0.0005, (wake - self._clock.now()) / 1e6))

    def _check_stall(self) -> None:
        """Sources wait while the disk is full, for as long as working off what waits may make room. One that stays open
        goes on: whoever hands in is refused, and somebody may make room."""
        if self._keeps_open or not (self._streams.are_feeding and self._engine.gate.is_full and self._engine.finished):
            self._full_since = 0.0
        elif not self._full_since:
            self._full_since = time.monotonic()
        elif time.monotonic() - self._full_since > _STALL:
            self._host.stop_with(self._engine.gate.stalled())

    def _is_over(self) -> bool:
        if (
            self._keeps_open
            or self._streams.are_feeding
            or self._app.backlog_events
            or not self._house.readers_are_idle
        ):
            return False
        return self._engine.finished or (not self._waits and self._engine.waits_only_for_time)

    async def _drain(self) -> bool:
        """What is running is committed, for five seconds at most."""
        engine, host, streams, app = self._engine, self._host, self._streams, self._app
        engine.drain()
        deadline = time.monotonic() + _DRAIN
        streams.halt()
        while (
            (engine.in_flight or streams.have_rest or not self._house.flush())
            and time.monotonic() < deadline
            and host.is_draining
        ):
            host.look_anew()
            await host.wait(0.05)
        host.check()
        return bool(app.backlog_events or app.holds or app.timers or app.unshipped_objects or streams.left)
