"""A source on its way to an engine: a thread that reads, packs and sends; what is durable makes room for more.

What was read before a failure is committed, whatever fails: a read that raised is made again, from the same position.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from grape.abc.source import Chunk, Source
from grape.client.connection import Connection
from grape.client.faults import Told, delay, failure, what_failed
from grape.client.names import check_slot
from grape.client.packing import Packed, Packer
from grape.errors import GrapeError, UsageError
from grape.model.routing import long_events
from grape.model.topology import TopologySpec
from grape.model.values import shown
from grape.protocol.door import (
    FRAME,
    WINDOW,
    Accepted,
    Append,
    CloseStream,
    FromEngine,
    Halt,
    Lookup,
    Named,
    Opened,
    OpenStream,
    Part,
    StreamOpened,
    Verdict,
)

_POLL: Final = 0.2
_SETTLE: Final = 0.02


class Feeder:
    """Feeds one source.

    Args:
        number: of its stream.

    Attributes:
        opened: where it goes on, once the engine has said so.
    """

    def __init__(self, number: int, source: Source, connection: Connection, told: Told) -> None:
        self.source = source
        self.opened: Future[StreamOpened] = Future()
        self._number = number
        self._connection = connection
        self._told = told
        self._advice = ""
        self._most = 0
        self._events: frozenset[str] = frozenset()
        self._topology: TopologySpec
        self._packer: Packer
        self._appends = 0
        self._unaccepted: deque[tuple[int, int]] = deque()
        self._in_flight = 0
        self._changed = threading.Condition()
        self._in_hand = False
        self._position = b""
        self._is_closed = False
        connection.streams[number] = self
        connection.send(
            OpenStream(number, source.name, in_order=source.terms.in_order, is_repeatable=source.is_repeatable)
        )

    def start(self, topology: TopologySpec, opened: Opened, advice: str = "") -> None:
        """``advice`` is said once it has given more than a batch holds."""
        stream = self.opened.result()
        self._topology, self._events = topology, frozenset(topology.events)
        self._packer = Packer(self.source, opened, stream, long_events(topology))
        self._appends = stream.number
        self._advice, self._most = advice, opened.limits.batch_target
        threading.Thread(target=self._run, name="grape-source", daemon=True).start()

    @property
    def is_closed(self) -> bool:
        """All of it is durable, or it was given up."""
        return self._is_closed

    def leave(self) -> None:
        """Give it up, as it is."""
        self._close(at_end=False)

    @property
    def has_rest(self) -> bool:
        """Something was read that nobody can read again, and is not durable yet."""
        source = self.source
        return not source.is_repeatable and bool(source.in_hand or self._in_hand or self._in_flight)

    @property
    def _gives_up(self) -> bool:
        """What has been read is left to the next run. What cannot be read again (a pipe) is not, while the run ends in
        order."""
        connection = self._connection
        return connection.is_ending and (self.source.is_repeatable or not connection.is_draining)

    # ------------------------------------------------------------------ the source's thread

    def _run(self) -> None:
        told = self._told
        try:
            try:
                ended = self._read_all()
            except BaseException:
                self._wait_until_durable()
                raise
            if ended and self._wait_until_durable() and self._say_the_end():
                self._close(at_end=True)
        except GrapeError as e:
            told.failed(e)
        except BaseException as e:  # nobody else would ever know
            told.failed(failure(f"source {self.source.name!r} failed", e, "the run ends"))

    def _read_all(self) -> bool:
        """To its end; False: the run ends before."""
        source, connection = self.source, self._connection
        position = self._position = self.opened.result().position
        while not connection.is_ending or (source.in_hand and not self._gives_up):
            chunk = self._read(position)
            for line in source.news():
                self._told.notice(line)
            if chunk is None:
                return True  # or the run ends, which whoever waits for what is in flight will see
            self._in_hand = True
            self._advise(chunk.size)
            for part in chunk.columns:
                if part.name not in self._events:
                    check_slot(part.name, self._topology)
            named = self._packer.named(chunk)
            if named:
                verdicts = self._look_up(named)
                if verdicts is None:
                    return False
                chunk = self._packer.without_known(chunk, verdicts)
                named = [one for one, verdict in zip(named, verdicts, strict=True) if verdict == "new"]
            packed = self._packer.pack(chunk, named)
            position = chunk.position
            if not self._append(packed):
                return False
            self._in_hand = False  # it counts as in flight
        return False

    def _read(self, position: bytes) -> Chunk | None:
        """One read, and those after it if it fails.

        Raises:
            UserError: the last one has failed, too, or in a way that another one will not mend.
        """
        source, retries = self.source, self.source.terms.retries
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
                self._told.notice(text)
                if not self._pause(wait):
                    return None
            except BaseException as e:  # no failure that comes and goes: it wants to end something
                end = "the run ends; what it gave before is in, the next run goes on from there"
                raise failure(f"source {source.name!r} raised what is no Exception", e, end) from e

    def _advise(self, size: int) -> None:
        self._most -= size
        if self._advice and self._most < 0:
            self._told.notice(self._advice)
            self._advice = ""

    def _say_the_end(self) -> bool:
        """Feed the event that says that it has ended, if it is wanted and was not fed. False: the run ends before."""
        if not self.source.terms.on_end or self._packer.has_ended:
            return True
        packed = self._packer.pack_end(self._position)
        return self._append(packed, at_end=True) and self._wait_until_durable()

    def _append(self, packed: Packed, *, at_end: bool = False) -> bool:
        """False: the run ends before."""
        self._position = packed.position
        if not self._wait_for_room(packed.bytes):
            return False
        appends: list[Append] = []
        *begun, rest = _frames(packed.parts)
        number, stream = self._appends, self._number
        for parts in begun:
            number += 1
            appends.append(Append(stream, number, b"", parts, more=True))
        self._appends = number = number + 1
        appends.append(
            Append(stream, number, packed.position, rest, packed.bad, [*packed.ids], packed.size, at_end=at_end)
        )
        with self._changed:
            self._unaccepted.append((number, packed.bytes))
            if not self._is_closed:
                self._connection.send(*appends)
        return True

    def _wait_for_room(self, size: int) -> bool:
        """Wait until ``size`` more bytes may be in flight, and count them; False: the run ends before."""
        with self._changed:
            while self._in_flight and self._in_flight + size > WINDOW:
                if self._gives_up:
                    return False
                self._changed.wait(_POLL)
            self._in_flight += size
        return not self._gives_up

    def _wait_until_durable(self) -> bool:
        """Wait until nothing is in flight; False: the run ends before."""
        with self._changed:
            while self._in_flight and not self._connection.is_ending:
                self._changed.wait(_POLL)
        return not self._connection.is_ending

    def _pause(self, seconds: float) -> bool:
        """False: the run ends before."""
        left = seconds
        while left > 0 and not self._connection.is_ending:
            step = min(left, _POLL)
            with self._changed:
                self._changed.wait_for(lambda: self._connection.is_ending, step)
            left -= step
        return not self._connection.is_ending

    def _look_up(self, named: list[Named]) -> list[Verdict] | None:
        """Which of these the engine wants; None: the run ends before it answers."""
        asked = self._connection.ask(lambda number: Lookup(self._number, number, named))
        while True:
            try:
                verdicts: list[Verdict] = asked.result(_POLL)
                return verdicts
            except GrapeError:  # the engine has ended
                return None
            except TimeoutError:
                if self._gives_up:
                    return None

    def _close(self, *, at_end: bool) -> None:
        with self._changed:
            if not self._is_closed:
                self._is_closed = True
                self._connection.send(CloseStream(self._number, at_end))

    def _settle(self) -> None:
        """The run ends: what cannot be read again is handed over, all else is left."""
        while self.has_rest and not self._connection.is_over:
            with self._changed:
                self._changed.wait(_SETTLE)
        self._close(at_end=False)

    # ------------------------------------------------------------------ the connection's thread

    def heard(self, message: FromEngine) -> None:
        match message:
            case StreamOpened():
                self.opened.set_result(message)
            case Accepted():
                with self._changed:
                    while self._unaccepted and self._unaccepted[0][0] <= message.number:
                        self._in_flight -= self._unaccepted.popleft()[1]
                    self._changed.notify_all()
            case Halt():
                self.source.is_stopped = True
                threading.Thread(target=self._settle, name="grape-source-end", daemon=True).start()

    def over(self) -> None:
        self.source.is_stopped = True
        with self._changed:
            self._changed.notify_all()
        if not self.opened.done():
            self.opened.set_exception(self._connection.ended.exception() or UsageError("the engine has ended"))


def _frames(parts: list[Part]) -> list[list[Part]]:
    """What goes into one frame each; at least one."""
    out: list[list[Part]] = [[]]
    size = 0
    for part in parts:
        if out[-1] and size + len(part.body) > FRAME:
            out.append([])
            size = 0
        out[-1].append(part)
        size += len(part.body)
    return out


def _checked(name: str, chunk: object) -> Chunk | None:
    if chunk is None or isinstance(chunk, Chunk):
        return chunk
    raise UsageError(f"source {name!r}: read() of a Source returns a Chunk or None, not {shown(chunk)}")


def opened(source: Source, position: bytes) -> None:
    """Open a source where it goes on.

    Raises:
        GrapeError: it cannot be.
    """
    _guarded(source.name, partial(source.open, position))


def _guarded(name: str, act: Callable[[], Any]) -> None:
    try:
        act()
    except GrapeError:
        raise
    except BaseException as e:
        raise failure(f"source {name!r} cannot be opened", e, "nothing was read") from e
