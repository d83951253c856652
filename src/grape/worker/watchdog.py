"""The watchdog: a thread that shows that this process lives, and ends it when a handler overruns its time."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn

from grape.protocol.messages import Beat, FromWorker, Stuck
from grape.worker.blame import user_stack
from grape.worker.link import EXIT_LOST, LostSocket
from grape.worker.runtime import Overdue, Runtime

_SAMPLE: Final = 0.05
EXIT_STUCK: Final = 70


class Watchdog(threading.Thread):
    """Samples the running event; costs nothing per event.

    Args:
        runtime: what runs in ``main_thread``.
        send: sends a message at once, from any thread.
        beat: seconds between signs of life.
    """

    def __init__(self, runtime: Runtime, send: Callable[[FromWorker], None], beat: float) -> None:
        super().__init__(name="grape-watchdog", daemon=True)
        self._runtime = runtime
        self._send = send
        self._beat = beat
        self._main = threading.main_thread().ident
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        try:
            self._watch()
        except (BrokenPipeError, ConnectionResetError):
            return  # the engine is gone; whoever waits for it sees that
        except LostSocket:
            _leave(EXIT_LOST)

    def _watch(self) -> None:
        last_beat = time.monotonic()
        seen: tuple[object, int, int] | None = None
        since = last_beat
        while not self._stopped.wait(_SAMPLE):
            now = time.monotonic()
            if now - last_beat >= self._beat:
                last_beat = now
                self._send(Beat(self._runtime.is_running()))
            running = self._runtime.running
            if running is None:
                seen = None
                late = self._runtime.overdue(now)
                if late is not None:
                    self._report(late)
                continue
            unit, stage = running
            place = (stage, unit.position(), self._runtime.progress)
            if place != seen:
                seen, since = place, now
                continue
            index = min(unit.position(), stage.count - 1)
            slot = unit.slots.get(stage.name_of(index))
            if slot is not None and slot.timeout and now - since > slot.timeout:
                if not unit.is_exact:  # in careful mode it will be
                    _leave(EXIT_STUCK)
                self._report(Overdue(self._runtime.place, unit.node, stage.id_of(index), slot.timeout))

    def _report(self, late: Overdue) -> None:
        text = f"{late.node!r} ran over its timeout of {late.timeout:g} s (timeout= on its slot)"
        partition, epoch = late.place
        trace = user_stack(sys._current_frames().get(self._main or 0))
        self._send(Stuck(partition, epoch, late.event_id, late.node, text, trace))
        _leave(EXIT_STUCK)


def _leave(code: int) -> NoReturn:
    """At once, whatever has become of the streams."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
