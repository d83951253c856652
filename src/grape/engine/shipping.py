"""What handlers have written into other storages goes there: after its commit, again after a death, one version of an
object after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from grape.abc.elsewhere import Elsewhere
from grape.abc.transport import Transport
from grape.engine.app import App
from grape.engine.clock import Clock
from grape.errors import GrapeError, StorageFailed
from grape.model.objects import SHIPPED, WAITING, Done, ObjectWrite, Stored, Wanted, decode_stored, split_place

_AT_ONCE: Final = 32
"""Of one namespace."""
_PAGE: Final = 1_000
_SHORTEST: Final = 125_000
_LONGEST: Final = 30_000_000


class _Line:
    """What waits for one namespace. ``until``: its storage did not answer, and is not asked before."""

    def __init__(self) -> None:
        self.queue: deque[bytes] = deque()
        self.under_way: set[bytes] = set()
        self.again: set[bytes] = set()
        """Written anew while they were under way."""
        self.until = 0
        self.failures = 0
        self.is_told = False
        """Somebody was told that it does not answer."""

    def failed(self, now: int) -> bool:
        """Whether that is the first time."""
        if now < self.until:  # it was asked before the last failure
            return False
        self.failures += 1
        self.until = now + min(_LONGEST, _SHORTEST << min(self.failures - 1, 12))
        return self.failures == 1

    def answered(self) -> bool:
        """Whether somebody was told that it did not."""
        self.failures, self.until = 0, 0
        was_told, self.is_told = self.is_told, False
        return was_told

    def requeue(self, place: bytes) -> None:
        self.under_way.discard(place)
        self.again.discard(place)
        self.queue.append(place)


class Shipping:
    """Of one app. A row of what waits goes when it is there (`grape.model.objects`), so nothing else has to be
    remembered: whatever waits at a start is shipped."""

    def __init__(
        self, app: App, transport: Transport, elsewhere: Elsewhere, clock: Clock, notice: Callable[[str], None]
    ) -> None:
        self._app = app
        self._transport = transport
        self._elsewhere = elsewhere
        self._clock = clock
        self._notice = notice
        self._lines = {namespace: _Line() for namespace in app.elsewhere}
        self._sizes: dict[bytes, int] = {}
        """What waits, by place."""
        self._told: set[bytes] = set()
        """Of these it was told that they wait: one that hangs, while others go, is told of once."""
        self._stuck: set[bytes] = set()
        """Refused. Tried again when they are written anew, and at the next start."""

    @property
    def is_done(self) -> bool:
        """Nothing waits but what is refused."""
        return not self._sizes

    # ------------------------------------------------------------------ what waits

    def start(self) -> None:
        """Look what was left."""
        after, end = WAITING.encode(), bytes([ord(WAITING) + 1])
        strange: set[str] = set()
        while rows := self._transport.scan(self._app.objects, "object", after, _PAGE, end):
            for place, packed in rows:
                namespace = _namespace(place)
                if namespace in self._lines:
                    self._stuck.discard(place)
                    self._add(place, decode_stored(packed).size)
                elif namespace not in strange:
                    strange.add(namespace)
                    self._notice(
                        f"objects wait for the namespace {namespace!r} in another storage, and no storage was "
                        f"named for it; they stay until one is"
                    )
            after = rows[-1][0] + b"\0"
        self._pump()

    def committed(self, writes: Iterable[ObjectWrite]) -> None:
        """Those that are for another storage wait from now on."""
        for write in writes:
            if write.namespace.startswith(WAITING):
                self._stuck.discard(write.place)
                self._add(write.place, write.size)
        self._pump()

    def _add(self, place: bytes, size: int) -> None:
        line, before = self._lines[_namespace(place)], self._sizes.get(place)
        if place in line.under_way:
            line.again.add(place)
        elif before is None:
            line.queue.append(place)
        self._sizes[place] = max(0, size) + len(place)
        self._app.unshipped_bytes += self._sizes[place] - (before or 0)
        self._count()

    def _forget(self, place: bytes) -> None:
        self._app.unshipped_bytes -= self._sizes.pop(place, 0)
        self._told.discard(place)
        self._count()

    def _count(self) -> None:
        self._app.unshipped_objects = len(self._sizes)
        self._app.stuck_objects = len(self._stuck)

    # ------------------------------------------------------------------ it goes

    def tick(self, now: int) -> int | None:
        """Try again what is due; returns when to look again at the latest."""
        self._pump()
        return min((line.until for line in self._lines.values() if line.queue and line.until > now), default=None)

    def _pump(self) -> None:
        now = self._clock.now()
        for line in self._lines.values():
            while line.queue and line.until <= now and len(line.under_way) < _AT_ONCE:
                self._ship(line, line.queue.popleft())

    def _ship(self, line: _Line, place: bytes) -> None:
        (packed,) = self._transport.get(self._app.objects, "object", [place])
        if packed is None:
            self._forget(place)
            return
        stored = decode_stored(packed)
        line.under_way.add(place)
        self._elsewhere.ship(_namespace(place), split_place(place)[1], stored, partial(self._shipped, place, stored))

    def _shipped(self, place: bytes, stored: Stored, error: GrapeError | None) -> None:
        namespace = _namespace(place)
        line = self._lines[namespace]
        if error is None:
            if line.answered():
                self._notice(f"the storage of {namespace!r} takes objects again")
            write = ObjectWrite(*split_place(place), SHIPPED)
            self._transport.write_objects(
                self._app.objects, [(write, Wanted(stored.number))], partial(self._dropped, place)
            )
        elif isinstance(error, StorageFailed):
            if line.failed(self._clock.now()) and place not in self._told:
                line.is_told = True
                self._told.add(place)
                self._notice(f"{_shown(place)} waits for its storage, and is tried again: {error}")
            line.requeue(place)
        elif place in line.again:
            line.requeue(place)
        else:
            self._notice(f"{_shown(place)} is refused by its storage, and stays here: {error}")
            line.under_way.discard(place)
            self._stuck.add(place)
            self._forget(place)
        self._pump()

    def _dropped(self, place: bytes, found: Sequence[Done]) -> None:
        line = self._lines[_namespace(place)]
        if found[0].holds and place not in line.again:
            line.under_way.discard(place)
            self._forget(place)
        else:
            line.requeue(place)
        self._pump()


def _namespace(place: bytes) -> str:
    return split_place(place)[0].removeprefix(WAITING)


def _shown(place: bytes) -> str:
    return "/".join(split_place(place)).removeprefix(WAITING)[:200]
