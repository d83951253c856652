"""Questions of workers that take a while: some of each at a time, and not without end."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from grape.engine.worker import Worker
from grape.errors import ProtocolError

_AT_ONCE: Final = 16
"""Of one worker. Each may have a chunk in memory."""
_MOST: Final = 10_000
"""That wait."""
_UNREAD: Final = 16 << 20
"""Bytes of answers that a worker has not read; until then it gets no more."""


class Turns:
    def __init__(self) -> None:
        self._waiting: dict[Worker, deque[Callable[[], None]]] = {}
        self._running: Counter[Worker] = Counter()

    def ask(self, worker: Worker, begin: Callable[[], None]) -> None:
        """Begin it now or later; `over` has to follow.

        Raises:
            ProtocolError: too many wait.
        """
        waiting = self._waiting.setdefault(worker, deque())
        if len(waiting) >= _MOST:
            raise ProtocolError(f"over {_MOST:,} questions for objects before the first ones were answered")
        waiting.append(begin)
        self._go_on(worker)

    def over(self, worker: Worker) -> None:
        """One of its questions has its answer."""
        if self._running[worker] > 0:
            self._running[worker] -= 1
            self._go_on(worker)

    def gone(self, worker: Worker) -> None:
        self._waiting.pop(worker, None)
        del self._running[worker]

    def tick(self) -> None:
        """It may be that some have read."""
        for worker in [worker for worker, waiting in self._waiting.items() if waiting]:
            self._go_on(worker)

    def _go_on(self, worker: Worker) -> None:
        waiting = self._waiting.get(worker)
        while waiting and self._running[worker] < _AT_ONCE and worker.link.unread <= _UNREAD:
            self._running[worker] += 1
            waiting.popleft()()
