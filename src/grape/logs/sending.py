"""Records on their way to somebody who may be slow, away, or full: nobody waits for that, and what is too much is
dropped and counted."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from grape.logs.record import Entry

MOST: Final = 10_000
MOST_BYTES: Final = 16 << 20
"""Records, and about so many bytes of them, that wait for one who takes them."""
AT_ONCE: Final = 500
PATIENCE: Final = 2.0
"""Seconds that the last ones have at the end."""
_BACK: Final = 0.5
_MOST_BACK: Final = 30.0
_AGAIN: Final = 60.0
"""Seconds between two words about what is dropped."""


class Refused(Exception):
    """These records will never be taken."""


class Wire(Protocol):
    """The way to whoever takes records; used on one thread."""

    def send(self, entries: Sequence[Entry]) -> int:
        """How many of them, at least the first, are on their way now.

        Raises:
            OSError: none is; later they may be.
            Refused: none ever will be.
        """

    def close(self) -> None: ...


class Sink(Protocol):
    """Somewhere that records go. Any thread."""

    def put(self, entry: Entry) -> None:
        """Never waits."""

    def close(self) -> None: ...


class Sender(Sink):
    """See the module.

    Args:
        name: of whoever takes them, for people. tell: a line for people, with its level.
    """

    def __init__(self, name: str, wire: Wire, tell: Callable[[str, str], None]) -> None:
        self._name = name
        self._wire = wire
        self._tell = tell
        self._queue: deque[Entry] = deque()
        self._bytes = 0
        self._dropped = 0
        self._told = 0
        """Of those dropped."""
        self._told_at = 0.0
        self._is_down = False
        self._until: float | None = None
        """When it is to have ended, once that is wanted."""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"log to {name}", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        with self._changed:
            if len(self._queue) >= MOST or self._bytes >= MOST_BYTES or self._until is not None:
                self._dropped += 1
                return
            self._queue.append(entry)
            self._bytes += entry.size
            if len(self._queue) == 1:
                self._changed.notify()

    def close(self) -> None:
        """What waits may still go, for a short time."""
        with self._changed:
            self._until = time.monotonic() + PATIENCE
            self._changed.notify()
        self._thread.join(PATIENCE + 0.5)

    @property
    def _is_late(self) -> bool:
        return self._until is not None and time.monotonic() > self._until

    def _run(self) -> None:
        while batch := self._next():
            self._send(batch)
            self._tell_dropped(_AGAIN)
        self._wire.close()

    def _next(self) -> list[Entry]:
        """Those that are next, as soon as there are any; empty: it is over."""
        with self._changed:
            while not self._queue and self._until is None:
                self._changed.wait()
            if self._is_late:
                return []
            batch = [self._queue.popleft() for _ in range(min(AT_ONCE, len(self._queue)))]
            self._bytes -= sum(entry.size for entry in batch)
            return batch

    def _send(self, batch: list[Entry]) -> None:
        pause, at = _BACK, 0
        while at < len(batch) and not self._is_late:
            try:
                at += self._wire.send(batch[at:])
            except Refused as e:
                self._tell(f"{self._name} refuses {len(batch) - at:,} records: {e}", "warning")
                return
            except OSError as e:
                self._gone(e)
                self._wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _MOST_BACK)
            else:
                self._back()

    def _wait(self, seconds: float) -> None:
        with self._changed:
            if self._until is None:
                self._changed.wait_for(lambda: self._until is not None, seconds)
            else:
                time.sleep(min(0.1, seconds))

    # ------------------------------------------------------------------ what people hear of it

    def _gone(self, error: OSError) -> None:
        if not self._is_down:
            self._is_down = True
            self._tell(f"{self._name} takes no records: {error.strerror or error}; it is tried again", "warning")
        self._tell_dropped(_AGAIN)

    def _back(self) -> None:
        if self._is_down:
            self._is_down = False
            self._tell(f"{self._name} takes records again", "info")
            self._tell_dropped(0.0)

    def _tell_dropped(self, after: float) -> None:
        count, now = self._dropped - self._told, time.monotonic()
        if count and (now - self._told_at >= after or not self._told):
            self._told, self._told_at = self._told + count, now
            self._tell(f"{count:,} records were dropped: {self._name} did not take them in time", "warning")
