"""Rates of slots, kept over all workers of an app: a worker asks for as many events as it is about to hand to a
handler, and gets so many as the bucket of the slot holds, or waits. Times are microseconds."""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from grape.engine.app import App
from grape.engine.worker import Worker
from grape.errors import ProtocolError
from grape.protocol.messages import MOST_LEASED, Lease, Leased

_SECOND: Final = 1e6


class Bucket:
    """A token bucket, pure: holds up to ``burst`` tokens, and gets ``rate`` more a second. It begins with one."""

    def __init__(self, rate: float, burst: int, now: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = 1.0
        self._at = now

    def take(self, wanted: int, now: int) -> int:
        """As many tokens as there are, at most ``wanted``."""
        passed = max(0, now - self._at)  # the clock may be set back
        self._tokens = min(self._burst, self._tokens + passed * self._rate / _SECOND)
        self._at = now
        taken = min(wanted, int(self._tokens))
        self._tokens -= taken
        return taken

    def due(self) -> int:
        """When there is one, at the earliest."""
        return self._at + max(1, int((1 - self._tokens) / self._rate * _SECOND) + 1) if self._tokens < 1 else self._at


class _Waiting(NamedTuple):
    worker: Worker
    lease: Lease


class Rates:
    """Of one app. Who asked first gets first."""

    def __init__(self, app: App, now: int) -> None:
        self._buckets = {(s.event, s.node): Bucket(s.rate, s.burst, now) for s in app.topology.slots if s.rate}
        self._waiting: dict[tuple[str, str], deque[_Waiting]] = {slot: deque() for slot in self._buckets}
        self._is_ending = False

    def ask(self, worker: Worker, lease: Lease, now: int) -> None:
        """
        Raises:
            ProtocolError: it may not ask that.
        """
        waiting = self._waiting.get((lease.event, lease.node))
        if waiting is None:
            raise ProtocolError(f"it asks for the rate of {lease.event!r:.300} at {lease.node!r:.300}, which has none")
        if not 1 <= lease.count <= MOST_LEASED or any(one.worker is worker for one in waiting):
            raise ProtocolError(f"it asks for {lease.count} events of a rate, or before the last question was answered")
        waiting.append(_Waiting(worker, lease))
        self.give(now)
        if self._is_ending:
            self._let_go(now)

    def end(self, now: int) -> None:
        """The engine ends. Workers that wait, now or from now on, are asked to end at once: a turn may come in an hour,
        and what waits for it has not begun."""
        self._is_ending = True
        self._let_go(now)

    def _let_go(self, now: int) -> None:
        for worker in {one.worker for waiting in self._waiting.values() for one in waiting}:
            if worker.serves:
                worker.dismiss(now)

    def give(self, now: int) -> int | None:
        """To those who wait, what there is by now; returns when there will be more, None: nobody waits."""
        dues = []
        for slot, waiting in self._waiting.items():
            while waiting:
                worker, lease = waiting[0]
                granted = self._buckets[slot].take(lease.count, now) if worker.serves else lease.count
                if not granted:
                    dues.append(self._buckets[slot].due())
                    break
                waiting.popleft()
                if worker.serves:
                    worker.link.send(Leased(lease.event, lease.node, granted))
        return min(dues, default=None)
