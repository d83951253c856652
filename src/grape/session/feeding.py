"""A source on its way into the log: a thread that reads and prepares, and the engine's thread that commits.

While one commit is under way the source goes on; what it has prepared meanwhile becomes one commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Protocol

from grape.abc.source import Chunk
from grape.engine.intake import Feed, Prepared
from grape.errors import GrapeError, UserError

IN_FLIGHT: Final = 16 << 20
"""Bytes that a source may have prepared before they are durable; one chunk may always be."""
_RETRY: Final = 0.005


class Host(Protocol):
    """The session, as its feeders see it. Only ``call`` and ``is_ending`` may be used on the source's thread."""

    @property
    def is_ending(self) -> bool:
        """Sources are to stop."""

    def call(self, function: Callable[[], None]) -> None:
        """Run on the engine's thread."""

    def later(self, delay: float, function: Callable[[], None]) -> None:
        """Run on the engine's thread, in ``delay`` seconds."""

    def check_chunk(self, chunk: Chunk) -> None:
        """
        Raises:
            UsageError: it has events that nothing listens to.
        """

    def may_feed(self, events: Iterable[str]) -> bool:
        """Whether such events may come in now."""

    def fed(self, size: int) -> None:
        """So many bytes of input have become durable."""

    def source_ended(self) -> None:
        """All of it is durable."""

    def stop_with(self, error: GrapeError) -> None: ...


class Feeder:
    """Feeds one source."""

    def __init__(self, feed: Feed, host: Host) -> None:
        self._feed = feed
        self._host = host
        self._waiting: list[Prepared] = []
        self._in_flight = 0
        self._changed = threading.Condition()
        self._retrying = False

    def start(self) -> None:
        threading.Thread(target=self._read, name="grape-source", daemon=True).start()

    # ------------------------------------------------------------------ the source's thread

    def _read(self) -> None:
        feed, host = self._feed, self._host
        position = feed.head.position
        try:
            while not host.is_ending and (chunk := feed.source.read(position)) is not None:
                host.check_chunk(chunk)
                prepared = feed.prepare(chunk)
                position = chunk.position
                if not self._wait_for_room(prepared.bytes):
                    return
                host.call(partial(self._offer, prepared))
            if self._wait_for_room(IN_FLIGHT):  # nothing is in flight any more
                host.call(host.source_ended)
        except GrapeError as e:
            host.call(partial(host.stop_with, e))
        except Exception as e:
            error = UserError(f"source {feed.source.name!r} failed: {type(e).__name__}: {e}")
            host.call(partial(host.stop_with, error))

    def _wait_for_room(self, size: int) -> bool:
        """Wait until ``size`` more bytes may be in flight, and count them; False: the run ends before."""
        with self._changed:
            while self._in_flight and self._in_flight + size > IN_FLIGHT:
                if self._host.is_ending:
                    return False
                self._changed.wait(0.2)
            self._in_flight += size
        return not self._host.is_ending

    # ------------------------------------------------------------------ the engine's thread

    def _offer(self, prepared: Prepared) -> None:
        self._waiting.append(prepared)
        self._commit()

    def _commit(self) -> None:
        """Commit all that waits, unless a commit is under way or nothing may come in."""
        if not self._waiting or self._feed.is_busy or self._host.is_ending:
            return
        if not self._host.may_feed({name for prepared in self._waiting for name in prepared.counts}):
            if not self._retrying:
                self._retrying = True
                self._host.later(_RETRY, self._retry)
            return
        batch, self._waiting = self._waiting, []
        self._feed.commit(batch, partial(self._committed, batch))

    def _retry(self) -> None:
        self._retrying = False
        self._commit()

    def _committed(self, batch: list[Prepared]) -> None:
        self._host.fed(sum(prepared.size for prepared in batch))
        with self._changed:
            self._in_flight -= sum(prepared.bytes for prepared in batch)
            self._changed.notify()
        self._commit()
