"""All sources of a run: what they are told at the start, whether their events may come in, and how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from grape.abc.source import Chunk
from grape.engine.app import App
from grape.engine.engine import Engine
from grape.engine.intake import Feed
from grape.errors import GrapeError, UsageError
from grape.host.advice import advice, guarantees
from grape.host.assembly import Assembled
from grape.host.feeding import Feeder
from grape.host.host import Host
from grape.host.names import no_such


class Sources:
    """`grape.host.feeding.Door` of all of them.

    Args:
        notice: a line for people.
        max_dead: dead letters after which feeding stops. ``dead_before``: how many there were when the run began.

    Attributes:
        open: how many are not at their end. fed_bytes: of input that is durable.
        are_stopped: before the end of the input, as there were too many dead letters.
    """

    def __init__(
        self, assembled: Assembled, host: Host, notice: Callable[[str], None], max_dead: int, dead_before: int
    ) -> None:
        self.open = len(assembled.feeds)
        self.fed_bytes = 0
        self.are_stopped = False
        self._app: App = assembled.app
        self._engine: Engine = assembled.engine
        self._feeds: list[Feed] = assembled.feeds
        self._feeders: list[Feeder] = []
        self._host = host
        self._notice = notice
        self._max_dead = max_dead
        self._dead_before = dead_before
        self._advice: dict[str, str] = {}
        """What is to be said of sources once more than one batch has come of them."""

    def advise(self, *, goes_on: bool) -> None:
        """Say what is known of them before anything is read. ``goes_on``: later runs may go on from here."""
        app = self._app
        fresh = [feed.source for feed in self._feeds if not feed.head.position]
        if goes_on:
            for line in guarantees(fresh):
                self._notice(line)
        for name, line in advice(app.topology, fresh, app.partitions).items():
            size = next(source for source in fresh if source.name == name).total()
            if size is None:
                self._advice[name] = line
            elif size > app.limits.batch_target:
                self._notice(line)

    def start(self) -> None:
        for feed in self._feeds:
            advised = self._advice.get(feed.source.name, "")
            self._feeders.append(Feeder(feed, self, advised, self._app.limits.batch_target).start())

    @property
    def are_feeding(self) -> bool:
        """Something may still come of them."""
        return bool(self.open) and not self.are_stopped

    @property
    def have_too_many_dead(self) -> bool:
        """Whatever else they give would most likely die as well."""
        return bool(self._feeds) and self.dead_left < 0

    def stop_reading(self) -> None:
        """Nothing more is to be taken out of what cannot be read again."""
        for feed in self._feeds:
            feed.source.is_stopped = True

    @property
    def have_rest(self) -> bool:
        """Something was read that nobody can read again, and is not durable yet."""
        return any(feeder.has_rest for feeder in self._feeders)

    # ------------------------------------------------------------------ Door

    @property
    def is_ending(self) -> bool:
        """Sources are to stop."""
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
        return self._max_dead - self._dead_before - self._app.stats.dead

    def call(self, function: Callable[[], None]) -> None:
        """Run on the engine's thread."""
        self._host.call(function)

    def later(self, delay: float, function: Callable[[], None]) -> None:
        """Run on the engine's thread, in ``delay`` seconds."""
        self._host.later(delay, function)

    def check_chunk(self, chunk: Chunk) -> None:
        """
        Raises:
            UsageError: it has events that nothing listens to.
        """
        for part in chunk.columns:
            if part.name not in self._app.routing.listeners:
                topology = self._app.topology
                raise UsageError(no_such("slot", part.name, topology.events, topology))

    def may_feed(self, events: Iterable[str]) -> bool:
        """Whether such events may come in now: not while more have failed than may become dead letters, and not any
        more once they have."""
        if self.dead_left < 0:
            self.are_stopped = True
            self._host.wake()
            return False
        if self._app.holds > self.dead_left and self._will_retry():
            return False
        return self._engine.feeding_is_open(self._app.pools_of(events))

    def _will_retry(self) -> bool:
        """Some of what has failed gets another attempt by itself."""
        pools = self._engine.pools.values()
        return any(part.holds.next_due() is not None for pool in pools for part in pool.partitions.values())

    def fed(self, size: int) -> None:
        """So many bytes of input have become durable."""
        self.fed_bytes += size

    def source_ended(self) -> None:
        """All of a source is durable."""
        self.open -= 1
        self._host.wake()

    def notice(self, text: str) -> None:
        """A line for people."""
        self._notice(text)

    def stop_with(self, error: GrapeError) -> None:
        self._host.stop_with(error)
