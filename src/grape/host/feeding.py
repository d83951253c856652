"""A source on its way into the log: a thread that reads and prepares, and the engine's thread that commits.

While one commit is under way the source goes on; what it has prepared meanwhile becomes one commit. What was read
before a failure is committed, whatever fails: a read that raised is made again, from the same position.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from grape.abc.source import Chunk
from grape.engine.intake import Feed, Prepared
from grape.errors import GrapeError, UsageError
from grape.host.faults import delay, failure, what_failed
from grape.model.values import shown

T = TypeVar("T")

IN_FLIGHT: Final = 16 << 20
"""Bytes that a source may have prepared before they are durable; one chunk may always be."""
_RETRY: Final = 0.005
_WORKED_OFF: Final = 0.02


class Door(Protocol):
    """What a feeder comes through. Only ``call``, ``is_ending`` and ``is_draining`` may be used on the source's
    thread."""

    @property
    def is_ending(self) -> bool:
        """Sources are to stop."""

    @property
    def is_draining(self) -> bool:
        """It ends in order: what is under way is still committed."""

    @property
    def is_worked_off(self) -> bool:
        """Nothing waits in the logs."""

    @property
    def dead_left(self) -> int:
        """How many more dead letters may come before feeding stops."""

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

    def notice(self, text: str) -> None:
        """A line for people."""

    def stop_with(self, error: GrapeError) -> None: ...


class Feeder:
    """Feeds one source. ``advice`` is said once it has given more than ``most`` bytes."""

    def __init__(self, feed: Feed, door: Door, advice: str = "", most: int = 0) -> None:
        self._advice = advice
        self._most = most
        self._feed = feed
        self._door = door
        self._waiting: list[Prepared] = []
        self._in_flight = 0
        self._changed = threading.Condition()
        self._retrying = False
        self._in_hand = False

    @property
    def has_rest(self) -> bool:
        """Something was read that nobody can read again, and is not durable yet."""
        source = self._feed.source
        return not source.is_repeatable and bool(source.in_hand or self._in_hand or self._waiting or self._in_flight)

    @property
    def _gives_up(self) -> bool:
        """What has been read is left to the next run. What cannot be read again (a pipe) is not, while the run ends in
        order."""
        return self._door.is_ending and (self._feed.source.is_repeatable or not self._door.is_draining)

    def start(self) -> Feeder:
        threading.Thread(target=self._run, name="grape-source", daemon=True).start()
        return self

    # ------------------------------------------------------------------ the source's thread

    def _run(self) -> None:
        door = self._door
        try:
            try:
                ended = self._read_all()
            except BaseException:
                self._wait_until_durable()
                raise
            if ended and self._wait_until_durable() and self._say_the_end():
                door.call(door.source_ended)
        except GrapeError as e:
            door.call(partial(door.stop_with, e))
        except BaseException as e:  # nobody else would ever know
            door.call(partial(door.stop_with, failure(f"source {self._feed.source.name!r} failed", e, "the run ends")))

    def _read_all(self) -> bool:
        """To its end; False: the run ends before."""
        feed, door = self._feed, self._door
        position = feed.head.position
        while not door.is_ending or (feed.source.in_hand and not self._gives_up):
            chunk = self._read(position)
            for line in feed.source.news():
                door.call(partial(door.notice, line))
            if chunk is None:
                return True  # or the run ends, which whoever waits for what is in flight will see
            self._in_hand = True
            self._advise(chunk.size)
            door.check_chunk(chunk)
            named = feed.named(chunk)
            if named:
                verdicts = self._ask(partial(feed.ids.check, named))
                if verdicts is None:
                    return False
                chunk = feed.without_known(chunk, verdicts)
                named = [one for one, verdict in zip(named, verdicts, strict=True) if verdict == "new"]
            prepared = feed.prepare(chunk, named)
            position = chunk.position
            if not self._wait_for_room(prepared.bytes):
                return False
            door.call(partial(self._offer, prepared))
            self._in_hand = False  # it counts as in flight
        return False

    def _read(self, position: bytes) -> Chunk | None:
        """One read, and those after it if it fails.

        Raises:
            UserError: the last one has failed, too, or in a way that another one will not mend.
        """
        source, retries = self._feed.source, self._feed.source.terms.retries
        failures = 0
        while True:
            try:
                return _checked(source.name, source.read(position))
            except GrapeError:
                raise
            except Exception as e:
                failures += 1
                what = f"source {source.name!r} failed"
                if failures > retries:
                    tried = f"{what}, {failures} times" if failures > 1 else what
                    end = "what it gave before is in; the next run goes on from there"
                    raise failure(tried, e, end) from e
                wait = delay(failures)
                text = f"{what}: {what_failed(e)}; retry {failures} of {retries} in {wait:.1f} s"
                self._door.call(partial(self._door.notice, text))
                if not self._pause(wait):
                    return None
            except BaseException as e:  # no failure that comes and goes: it wants to end something
                end = "the run ends; what it gave before is in, the next run goes on from there"
                raise failure(f"source {source.name!r} raised what is no Exception", e, end) from e

    def _advise(self, size: int) -> None:
        self._most -= size
        if self._advice and self._most < 0:
            self._door.call(partial(self._door.notice, self._advice))
            self._advice = ""

    def _say_the_end(self) -> bool:
        """Feed the event that says that it has ended, if it is wanted and was not fed: when what was fed before has
        been worked off. False: the run ends before."""
        if not self._feed.source.terms.on_end or self._feed.has_ended:
            return True
        while not self._ask(lambda: self._door.is_worked_off):
            if not self._pause(_WORKED_OFF):
                return False
        prepared = self._feed.prepare_end()
        if not self._wait_for_room(prepared.bytes):
            return False
        self._door.call(partial(self._offer, prepared))
        return self._wait_until_durable()

    def _wait_for_room(self, size: int) -> bool:
        """Wait until ``size`` more bytes may be in flight, and count them; False: the run ends before."""
        with self._changed:
            while self._in_flight and self._in_flight + size > IN_FLIGHT:
                if self._gives_up:
                    return False
                self._changed.wait(0.2)
            self._in_flight += size
        return not self._gives_up

    def _wait_until_durable(self) -> bool:
        """Wait until nothing is in flight; False: the run ends before."""
        with self._changed:
            while self._in_flight and not self._door.is_ending:
                self._changed.wait(0.2)
        return not self._door.is_ending

    def _pause(self, seconds: float) -> bool:
        """False: the run ends before."""
        left = seconds
        while left > 0 and not self._door.is_ending:
            step = min(left, 0.2)
            with self._changed:
                self._changed.wait_for(lambda: self._door.is_ending, step)
            left -= step
        return not self._door.is_ending

    def _ask(self, question: Callable[[], T]) -> T | None:
        """Ask on the engine's thread; None: the run ends before it answers."""
        answers: list[T] = []
        answered = threading.Event()

        def ask() -> None:
            answers.append(question())
            answered.set()

        self._door.call(ask)
        while not answered.wait(0.2):
            if self._gives_up:
                return None
        return answers[0]

    # ------------------------------------------------------------------ the engine's thread

    def _offer(self, prepared: Prepared) -> None:
        self._waiting.append(prepared)
        self._commit()

    def _commit(self) -> None:
        """Commit all that waits, unless a commit is under way or nothing may come in."""
        if not self._waiting or self._feed.is_busy or self._gives_up:
            return
        names = {name for prepared in self._waiting for name in prepared.counts}
        if not self._door.is_ending and not self._door.may_feed(names):
            if not self._retrying:
                self._retrying = True
                self._door.later(_RETRY, self._retry)
            return
        batch = self._allowed()
        del self._waiting[: len(batch)]
        self._feed.commit(batch, partial(self._committed, batch))

    def _allowed(self) -> list[Prepared]:
        """What waits, up to the chunk with which there are too many dead letters."""
        left = self._door.dead_left
        for i, prepared in enumerate(self._waiting, 1):
            left -= len(prepared.dead)
            if left < 0:
                return self._feed.first(self._waiting[:i])
        return self._feed.first(list(self._waiting))

    def _retry(self) -> None:
        self._retrying = False
        self._commit()

    def _committed(self, batch: list[Prepared]) -> None:
        self._door.fed(sum(prepared.size for prepared in batch))
        with self._changed:
            self._in_flight -= sum(prepared.bytes for prepared in batch)
            self._changed.notify()
        self._commit()


def _checked(name: str, chunk: object) -> Chunk | None:
    if chunk is None or isinstance(chunk, Chunk):
        return chunk
    raise UsageError(f"source {name!r}: read() of a Source returns a Chunk or None, not {shown(chunk)}")


def opened(feed: Feed) -> None:
    """Open a source where it goes on.

    Raises:
        GrapeError: it cannot be.
    """
    _guarded(feed.source.name, partial(feed.source.open, feed.head.position))


def _guarded(name: str, act: Callable[[], Any]) -> None:
    try:
        act()
    except GrapeError:
        raise
    except BaseException as e:
        raise failure(f"source {name!r} cannot be opened", e, "nothing was read") from e
