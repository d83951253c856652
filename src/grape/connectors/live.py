"""Sinks of a program that runs the engine itself: a queue that it reads, and a function that is called."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final

from grape.abc.source import Sink
from grape.errors import Full
from grape.model.event import Event

_QUICK: Final = 256
"""Events that may be decoded on the thread that listens to the engine."""


class QueueSink(Sink):
    """Keeps what is taken until somebody asks for it, at most ``limit`` parts."""

    form = "events"

    def __init__(self, event: str, limit: int = 256) -> None:
        self.name = f"{event}=@api"
        self._queue: SimpleQueue[list[Event]] = SimpleQueue()
        self._begun: deque[Event] = deque()
        self._lock = threading.Lock()
        self.listeners: set[Callable[[], object]] = set()
        """Called when something has come, on a thread of the engine."""
        self._limit = limit
        self._space = threading.Semaphore(limit)
        self._closed = False

    def is_quick(self, lines: int) -> bool:
        # Each of them may come in a write of its own, and that thread must not wait for a reader.
        return lines <= _QUICK and self._queue.qsize() + lines <= self._limit

    def open(self, length: int, tail: bytes) -> tuple[int, bytes]:
        return 0, b""

    def write(self, lines: list[Any]) -> tuple[int, bytes]:
        while not self._space.acquire(timeout=0.1):
            if self._closed:
                raise Full("the engine was closed while outputs were waiting")
        self._queue.put(lines)
        self.wake()
        return 0, b""

    def wake(self) -> None:
        """Let those that wait look again."""
        for listener in tuple(self.listeners):
            listener()

    def get(self, timeout: float | None) -> Event | None:
        """The next event; None: none came in time."""
        with self._lock:
            if self._begun:
                return self._begun.popleft()
        try:
            events = self._queue.get(timeout=timeout) if timeout != 0 else self._queue.get_nowait()
        except Empty:
            return None
        self._space.release()
        with self._lock:
            self._begun.extend(events)  # whoever reads no further leaves the rest to the next one
            return self._begun.popleft()

    def close(self) -> None:
        self._closed = True


class CallSink(Sink):
    """Calls a function with every event, on a thread of the engine."""

    form = "events"

    def __init__(self, event: str, call: Callable[[Event], Any]) -> None:
        self.name = f"{event}=@{getattr(call, '__qualname__', 'call')}"
        self._call = call

    def open(self, length: int, tail: bytes) -> tuple[int, bytes]:
        return 0, b""

    def write(self, lines: list[Any]) -> tuple[int, bytes]:
        call = self._call
        for self.taken, event in enumerate(lines):
            call(event)
        return 0, b""
