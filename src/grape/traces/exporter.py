"""From the doors of the apps to a collector. It holds nothing: how far it is stands at each app, behind what the
collector has taken, so every span arrives at least once, while it is kept."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import random
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from grape.bridge.apps import RunningApps
from grape.bridge.door import Door, knock
from grape.errors import GrapeError, ProtocolError
from grape.model import batch as codec
from grape.model.tracing import SPANS, Span, decode_spans
from grape.protocol.door import Batches, FromEngine, ReaderOpened, StartReader, Took
from grape.server.home import Home
from grape.server.neighbours import Running
from grape.traces.otlp import request_of
from grape.traces.posting import LATER, post, shown
from grape.traces.settings import Settings

READER: Final = "otlp"
_BACK: Final = 0.5
_MOST_BACK: Final = 60.0
_AT_ONCE: Final = 2_000
"""Spans of one request."""

Say = Callable[[str], None]


class Exporter:
    """
    Args:
        running: asks the server which apps run, once that is something else than what the argument says.
        say: a line for people.
    """

    def __init__(
        self, home: Home, settings: Settings, version: str, running: Callable[[Running], Awaitable[Running]], say: Say
    ) -> None:
        self._home = home
        self._settings = settings
        self._version = version
        self._say = say
        self._apps = RunningApps(running, self._serve)
        self._is_down = False

    async def run(self) -> None:
        """For ever.

        Raises:
            GrapeError: the server is gone.
        """
        await self._apps.follow()

    async def _serve(self, name: str) -> None:
        """One app, as long as it runs."""
        while name in self._apps.now.apps:
            with contextlib.suppress(OSError, GrapeError, TimeoutError):
                door = await knock(str(self._home.data(name)))
                reading = asyncio.ensure_future(self._read(name, door))
                try:
                    await asyncio.wait([reading, asyncio.ensure_future(_gone(door))], return_when="FIRST_COMPLETED")
                finally:
                    reading.cancel()
                    door.close()
            await asyncio.sleep(_BACK)

    async def _read(self, name: str, door: Door) -> None:
        given: asyncio.Queue[Batches] = asyncio.Queue()

        def hear(message: FromEngine) -> None:
            match message:
                case ReaderOpened():
                    door.send(StartReader(message.reader, 0, b""))
                case Batches():
                    given.put_nowait(message)

        reader = door.open_reader(SPANS, READER, hear)
        while True:
            batches = await given.get()
            spans = _spans(batches)
            for start in range(0, len(spans), _AT_ONCE):
                await self._send([(name, span) for span in spans[start : start + _AT_ONCE]])
            door.send(Took(reader, batches.number, sum(item.events - item.first for item in batches.items), 0, b""))

    async def _send(self, spans: list[tuple[str, Span]]) -> None:
        """Returns when the collector has them, or will never take them."""
        body = request_of(spans, self._settings.resource, self._version)
        pause = _BACK
        while True:
            try:
                status, wait = await asyncio.to_thread(post, self._settings, body)
                why = f"it answers {status}"
            except (OSError, http.client.HTTPException) as e:
                status, wait, why = 503, None, str(e) or type(e).__name__
            if status not in LATER:
                if 200 <= status < 300:
                    self._is_back()
                else:
                    self._say(f"the collector at {shown(self._settings)} refuses {len(spans):,} spans: {why}")
                return
            if not self._is_down:
                self._is_down = True
                self._say(f"the collector at {shown(self._settings)} takes no traces: {why}; it is tried again")
            await asyncio.sleep(max(pause * random.uniform(0.5, 1.0), min(wait or 0.0, _MOST_BACK)))
            pause = min(2 * pause, _MOST_BACK)

    def _is_back(self) -> None:
        if self._is_down:
            self._is_down = False
            self._say(f"the collector at {shown(self._settings)} takes traces again")


def _spans(batches: Batches) -> list[Span]:
    """What cannot be read is left out: it would be so the next time."""
    found: list[Span] = []
    for item in batches.items:
        batch = bytes(item.batch)
        header = codec.header_of(batch)
        own: list[Span] = []
        with contextlib.suppress(ProtocolError, msgspec.MsgspecError):
            for run in codec.runs_of(codec.body_of(batch, header)):
                own += decode_spans(run.data)
        found += own[item.first :]
    return found


async def _gone(door: Door) -> None:
    await asyncio.shield(door.gone)
