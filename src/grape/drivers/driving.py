"""One driver at work: it waits for what its source has, wakes the app, and hands in.

Nothing is remembered that is not stored with the app: whatever fails, the stream is opened again, tells its position,
and the source goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from grape.drivers.sources import Source, Step
from grape.drivers.spec import STREAM
from grape.drivers.stream import DriverStream, open_stream
from grape.drivers.told import DriverState
from grape.errors import GrapeError, UsageError
from grape.gateway.doors import Doors
from grape.gateway.problems import Problem

_LOOK: Final = 0.1
_PATIENCE: Final = 10.0
_PAUSES: Final = (0.1, 0.5, 1.0, 2.0, 5.0)


class Driving:
    """
    Args:
        app: its name. digest: of the version that has the driver: no other one gets its events.
        event: that it makes. told: called with how it is, when that has changed.
    """

    def __init__(
        self, app: str, digest: str, name: str, event: str, source: Source, doors: Doors, told: Callable[[], None]
    ) -> None:
        self.name = name
        self._app = app
        self._digest = digest
        self._event = event
        self._source = source
        self._doors = doors
        self._told = told
        self._stream: DriverStream | None = None
        self._error = ""

    @property
    def state(self) -> DriverState:
        return DriverState(self._source.last, self._source.next, self._error or self._source.error)

    async def run(self) -> None:
        """Until it is cancelled."""
        failures = 0
        is_known = False
        try:
            while True:
                try:
                    step = await self._source.step() if is_known else None
                    if await self._is_there() or step is None:
                        is_known = True  # what is to be done follows from what is stored
                    else:
                        await self._hand_in(step)
                    failures = 0
                    self._say("")
                except (OSError, GrapeError, Problem, TimeoutError) as e:
                    self._say(str(e) or "the app does not answer")
                    await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
                    failures += 1
        finally:
            if self._stream is not None:
                self._stream.close()

    async def _is_there(self) -> bool:
        """Have a stream at an engine of the version that is meant. Whether it is another one than before: then the
        source has begun again."""
        if self._stream is not None and self._stream.is_open:
            return False
        while True:
            info = await self._doors.wake(self._app)
            if info is not None and info.serves and info.digest == self._digest:
                break
            if info is None or info.state in ("broken", "stopped", "waiting"):
                raise UsageError(f"the app is {'gone' if info is None else info.state}")
            await asyncio.sleep(_LOOK)
        stream = await open_stream(str(self._doors.home.data(self._app)), STREAM + self.name)
        try:
            info = await self._doors.look(self._app)
            if info is None or not info.serves or info.digest != self._digest:
                raise UsageError("the app is being changed")  # it may be the next version that has answered
            if self._event not in stream.door.topology.events:
                raise UsageError(f"the app has no slot {self._event!r:.100}")
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        self._source.begin(stream.position)
        return True

    async def _hand_in(self, step: Step) -> None:
        assert self._stream is not None
        appending = asyncio.ensure_future(self._stream.append(step.events, step.position))
        try:
            done, _ = await asyncio.wait([appending], timeout=_PATIENCE)
            if not done:
                self._say("the app takes nothing in now: its backlog is at its limit, or the disk is full")
            await appending
        finally:
            appending.cancel()
        self._source.took(step)

    def _say(self, error: str) -> None:
        self._error = error
        self._told()
