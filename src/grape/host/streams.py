"""What comes into an engine by streams: whether it may come in now, and how far each is.

While one commit of a stream is under way it goes on; what has come meanwhile becomes one commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from grape.engine.app import App
from grape.engine.engine import Engine
from grape.engine.feed import Feed, Prepared
from grape.errors import ProtocolError
from grape.host.host import Host
from grape.host.once import Once
from grape.model.address import PartitionId
from grape.protocol.door import WINDOW, Accepted, Append, FromEngine, Halt

_RETRY: Final = 0.005

Say = Callable[[FromEngine], None]


class Stream:
    """One stream of one client.

    Args:
        number: by which the client knows it. ``say``: to the client.
    """

    def __init__(self, number: int, feed: Feed, streams: Streams, say: Say, *, is_repeatable: bool) -> None:
        self.feed = feed
        self.is_repeatable = is_repeatable
        self.say = say
        self._number = number
        self._streams = streams
        self._waiting: list[Prepared] = []
        self._in_flight = 0
        self._is_closing = False
        self._at_end = False
        self._retry_later = Once(partial(streams.later, _RETRY), self._retry)

    @property
    def _gives_up(self) -> bool:
        """What has come is left to the next run. What cannot be read again (a pipe) is not, while a run that has begun
        ends in order."""
        streams = self._streams
        return streams.is_ending and (self.is_repeatable or not (streams.have_begun and streams.is_draining))

    def append(self, append: Append, *, is_ours: bool) -> None:
        """``is_ours``: made by the code that this engine is of, in the process that has started it.

        Raises:
            ProtocolError: it is not what may come now.
        """
        if self._is_closing:
            raise ProtocolError(f"stream {self.feed.name!r:.300}: an append after its end")
        if self._in_flight > WINDOW:
            raise ProtocolError(f"stream {self.feed.name!r:.300}: over {WINDOW} bytes under way")
        if self.feed.is_known(append):
            self.say(Accepted(self._number, self.feed.head.number))
            return
        prepared = self.feed.prepare(append, is_ours=is_ours)
        if prepared is not None:
            self._in_flight += prepared.bytes
            self._waiting.append(prepared)
            self._commit()

    def close(self, *, at_end: bool) -> None:
        """Nothing more comes. ``at_end``: what has come is committed before it is closed; else it is given up if it can
        be read again."""
        self._is_closing = True
        self._at_end = at_end
        if not at_end and self.is_repeatable:
            self._waiting.clear()
        self._check_closed()

    def cut(self) -> None:
        """Its client is gone."""
        self._is_closing = True
        self.say = nobody
        if self.is_repeatable:
            self._waiting.clear()
        self._check_closed()

    def _check_closed(self) -> None:
        if self._is_closing and not self.feed.is_busy and (not self._waiting or self._gives_up):
            self._at_end = self._at_end and not self._waiting
            self._waiting.clear()
            self.feed.forget()
            self._streams.closed(self, at_end=self._at_end)

    def _commit(self, *, is_later: bool = False) -> None:
        """Commit all that waits, unless a commit is under way or nothing may come in. What says that the input has
        ended waits until what came before has arrived, which is after its commit, and has been worked off."""
        streams = self._streams
        if not self._waiting or self.feed.is_busy or self._gives_up or not streams.have_begun:
            return
        names = {name for prepared in self._waiting for name in prepared.counts}
        too_early = self._waiting[0].at_end and not (is_later and streams.is_worked_off)
        if not streams.is_ending and (too_early or not streams.may_feed(names, is_of_other=self.feed.is_of_other)):
            self._retry_later()
            return
        steps = self._allowed(*streams.room_for(names))
        del self._waiting[: len(steps)]
        self.feed.commit(steps, partial(self._committed, steps))

    def _allowed(self, events: int, size: int) -> list[Prepared]:
        """What waits, one step at least, up to that with which so many events or bytes are in, or there are too many
        dead letters, or which has to wait by itself."""
        left = self._streams.dead_left
        for i, step in enumerate(self._waiting):
            if step.at_end and i:
                return self.feed.first(self._waiting[:i])
            left -= len(step.dead)
            events -= step.events
            size -= step.weight
            if min(left, events, size) < 0:
                return self.feed.first(self._waiting[: i + 1])
        return self.feed.first(list(self._waiting))

    def _retry(self) -> None:
        self._commit(is_later=True)
        self._check_closed()

    def _committed(self, steps: list[Prepared]) -> None:
        self._in_flight -= sum(step.bytes for step in steps)
        self._streams.fed_bytes += sum(step.size for step in steps)
        self.say(Accepted(self._number, self.feed.head.number))
        self._streams.soon(self.go_on)  # when what was committed has arrived, and counts as waiting

    def go_on(self) -> None:
        """Nothing is under way: commit what waits."""
        self._commit()
        self._check_closed()


def nobody(message: FromEngine) -> None:
    """Who was told before is gone."""


class Streams:
    """All of one engine.

    Args:
        max_dead: dead letters after which feeding stops. ``dead_before``: how many there were when the run began.

    Attributes:
        fed_bytes: of input that is durable. has_had_any: streams, ever.
        have_begun: the run has. What comes earlier waits: a run that cannot begin leaves no trace.
        are_stopped: before the end of the input, as there were too many dead letters.
    """

    def __init__(self, app: App, engine: Engine, host: Host, max_dead: int, dead_before: int) -> None:
        self.fed_bytes = 0
        self.have_begun = False
        self.are_stopped = False
        self.has_had_any = False
        self._open: dict[str, Stream | None] = {}
        self._unfinished: dict[str, bool] = {}
        self._app = app
        self._engine = engine
        self._host = host
        self._max_dead = max_dead
        self._dead_before = dead_before

    def begun(self) -> None:
        """Whatever comes is taken, and what has come."""
        self.have_begun = True
        for stream in tuple(self._open.values()):
            if stream is not None:
                stream.go_on()

    def expected(self, name: str) -> None:
        """A stream of this name is being opened."""
        self.has_had_any = True
        self._open[name] = None

    def unexpected(self, name: str) -> None:
        """Its client has left meanwhile."""
        self._open.pop(name, None)
        self._host.wake()

    def opened(self, stream: Stream) -> None:
        self._open[stream.feed.name] = stream
        self._unfinished[stream.feed.name] = stream.is_repeatable

    def is_open(self, name: str) -> bool:
        return name in self._open

    def freed(self, log: PartitionId) -> None:
        """A commit that a stream knew nothing of was under way in its log, and is no more."""
        for stream in tuple(self._open.values()):
            if stream is not None and stream.feed.id == log:
                stream.go_on()

    def closed(self, stream: Stream, *, at_end: bool) -> None:
        """All that it was to give is durable, or given up."""
        name = stream.feed.name
        if self._open.get(name) is stream:
            del self._open[name]
            if at_end:
                self._unfinished.pop(name, None)
            self._host.wake()

    @property
    def can_go_on(self) -> bool:
        """Another run can read the rest of one."""
        return any(self._unfinished.values())

    @property
    def are_feeding(self) -> bool:
        """Something may still come."""
        return bool(self._open) and not self.are_stopped

    @property
    def have_too_many_dead(self) -> bool:
        """Whatever else comes would most likely die as well."""
        return self.has_had_any and self.dead_left < 0

    @property
    def left(self) -> int:
        """How many were opened that are not at their end."""
        return len(self._unfinished)

    def stop_feeding(self) -> None:
        """Too many dead letters: nothing more comes in."""
        if not self.are_stopped:
            self.are_stopped = True
            self.halt()
            self._host.wake()

    def halt(self) -> None:
        """They are to end."""
        for stream in tuple(self._open.values()):
            if stream is not None:
                stream.say(Halt(self.is_draining))

    @property
    def have_rest(self) -> bool:
        """Something was read that nobody can read again, and is not durable yet."""
        return any(stream is not None and not stream.is_repeatable for stream in self._open.values())

    @property
    def is_ending(self) -> bool:
        """Streams are to end."""
        return self._host.is_stopping or self.are_stopped or self._host.fatal is not None

    @property
    def is_draining(self) -> bool:
        """It ends in order: what is under way is still committed."""
        return self._host.is_draining

    @property
    def is_worked_off(self) -> bool:
        """Nothing waits in the logs."""
        return not self._app.backlog_events

    @property
    def dead_left(self) -> int:
        """How many more dead letters may come before feeding stops."""
        return self._max_dead - self._dead_before - self._app.stats.dead + self._app.stats.revived

    def later(self, delay: float, function: Callable[[], None]) -> None:
        self._host.later(delay, function)

    def soon(self, function: Callable[[], None]) -> None:
        self._host.soon(function)

    def may_feed(self, events: Iterable[str], *, is_of_other: bool = False) -> bool:
        """Whether such events may come in now, from outside or another app: not while more have failed than may become
        dead letters, and not any more once they have."""
        if self.dead_left < 0:
            self.stop_feeding()
            return False
        if self._app.holds > self.dead_left and self._will_retry():
            return False
        pools = self._app.pools_of(events)
        return self._engine.feeding_is_open(pools, is_of_other=is_of_other)

    def room_for(self, events: Iterable[str]) -> tuple[int, int]:
        """How many more events and bytes may come in with one commit of such events."""
        return self._engine.gate.room_for(self._app.pools_of(events))

    def _will_retry(self) -> bool:
        """Some of what has failed gets another attempt by itself."""
        pools = self._engine.pools.values()
        return any(part.holds.next_due() is not None for pool in pools for part in pool.partitions.values())
