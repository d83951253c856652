"""A taker on its way: what stands in an output comes from the engine, is written to its sink, and is committed then.

What was taken before a failure is committed, whatever fails; the sink gets the rest again. What cannot be read becomes
a dead letter, and taking goes on behind it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Final

from msgspec import Struct

from grape.abc.source import Sink
from grape.client.connection import Connection
from grape.client.faults import Told, delay, failure, what_failed
from grape.connectors.json_lines import event_lines, reply_lines
from grape.connectors.outputs import Part, Unreadable, parts_of
from grape.errors import GrapeError, StorageFailed, UsageError
from grape.protocol.door import Batch, Batches, FromEngine, OpenReader, ReaderOpened, StartReader, Took, Unread

_LINES_AT_ONCE: Final = 1 << 16


class Taker(Struct):
    """A sink and what it takes: the event (None: replies)."""

    event: str | None
    sink: Sink


class Written(Struct):
    """How far a write came: so many events of what was to be taken, and what the sink said. ``error``: what stopped
    it."""

    done: int
    length: int
    tail: bytes
    unread: list[Unread] = []
    error: BaseException | None = None


class Taking:
    """One taker. Writes are made on a thread of its own, or on the connection's if they cannot wait.

    Args:
        number: of its reader.

    Attributes:
        opened: what was written up to, once the engine has said so.
    """

    def __init__(self, number: int, taker: Taker, connection: Connection, told: Told) -> None:
        self.sink = taker.sink
        self.opened: Future[ReaderOpened] = Future()
        self._is_replies = taker.event is None
        self._number = number
        self._connection = connection
        self._told = told
        self._at: tuple[int, bytes] = (0, b"")
        self._failures = 0
        self._given: deque[tuple[Batches, Written | None]] = deque()
        self._changed = threading.Condition()
        self._is_over = False
        self._is_busy = False
        self._thread: threading.Thread | None = None
        connection.readers[number] = self
        connection.send(OpenReader(number, taker.event, taker.sink.name))

    def start(self) -> None:
        """
        Raises:
            UsageError: the sink is not what was written before.
        """
        opened, sink = self.opened.result(), self.sink
        try:
            self._at = sink.open(opened.length, opened.tail)
        except GrapeError:
            raise
        except BaseException as e:
            raise failure(f"the sink {sink.name!r} cannot be opened", e, "nothing was taken") from e
        self._connection.send(StartReader(self._number, *self._at))

    # ------------------------------------------------------------------ the connection's thread

    def heard(self, message: FromEngine) -> None:
        match message:
            case ReaderOpened():
                self.opened.set_result(message)
            case Batches() if not self._is_over:
                written = None
                if not self._is_busy and self.sink.is_quick(events_of(message.items)):
                    written = self._write(message)
                    if written.error is None:
                        return
                with self._changed:
                    self._is_busy = True
                    self._given.append((message, written))
                    self._changed.notify_all()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="grape-take", daemon=True)
                    self._thread.start()

    def over(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        if not self.opened.done():
            self.opened.set_exception(self._connection.ended.exception() or UsageError("the engine has ended"))

    # ------------------------------------------------------------------ its own, or the connection's if it cannot wait

    def _run(self) -> None:
        while (given := self._next()) is not None:
            self._guarded(*given)
            self._is_busy = False

    def _next(self) -> tuple[Batches, Written | None] | None:
        """What was given, and how it was written if that has failed already. None: nothing comes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._given or self._is_over)
            return self._given.popleft() if self._given and not self._is_over else None

    def _guarded(self, given: Batches, written: Written | None) -> None:
        try:
            while not self._take(given, written or self._write(given)):
                written = None
        except GrapeError as e:
            self.over()
            self._told.failed(e)
        except Exception as e:
            self.over()
            self._told.failed(failure(f"taking {self.sink.name!r} failed", e, "the run ends"))

    def _write(self, given: Batches) -> Written:
        """Write it, and say how much of it is where it belongs."""
        written = write_out(self.sink, given.items, self._at, self._is_replies)
        if written.error is None or written.done:
            self._at = written.length, written.tail
            self._failures = 0
            self._connection.send(
                Took(self._number, given.number, written.done, written.length, written.tail, written.unread)
            )
        return written

    def _take(self, given: Batches, written: Written) -> bool:
        """False: it has to be tried once more.

        Raises:
            GrapeError: the sink failed for the last time.
        """
        if written.error is None:
            return True
        self._failed(written.error)
        return bool(written.done)  # the rest is given again

    def _failed(self, error: BaseException) -> None:
        """Wait for the next attempt.

        Raises:
            GrapeError: there is none.
        """
        sink = self.sink
        if isinstance(error, GrapeError):
            raise error
        self._failures += 1
        what = f"taking {sink.name!r} failed"
        if isinstance(error, Exception) and self._failures <= sink.retries and not isinstance(error, BrokenPipeError):
            wait = delay(self._failures)
            text = f"{what}: {what_failed(error)}; retry {self._failures} of {sink.retries} in {wait:.1f} s"
            self._told.notice(text)
            with self._changed:
                self._changed.wait_for(lambda: self._is_over, wait)
            return
        if isinstance(error, OSError) and sink.form == "lines":
            raise StorageFailed(f"{sink.name}: {error}")
        tried = f"{what}, {self._failures} times" if self._failures > 1 else what
        raise failure(tried, error, "the next run goes on with what it failed on") from error


# ------------------------------------------------------------------ how it is written


def events_of(items: Sequence[Batch]) -> int:
    """So many are to be taken."""
    return sum(item.events - item.first for item in items)


def write_out(sink: Sink, items: Sequence[Batch], begin: tuple[int, bytes], is_replies: bool = False) -> Written:
    """Write what was taken, some at a time. Raises nothing: what the sink raises is in the result, whatever it is."""
    written = Written(0, *begin)
    try:
        if sink.form == "batches":
            written.length, written.tail = sink.write([item.batch for item in items])
            written.done = events_of(items)
        elif sink.form == "events":
            _write_events(sink, items, written)
        else:
            _write_lines(sink, items, is_replies, written)
    except BaseException as e:
        written.error = e
    return written


def _parts(items: Sequence[Batch]) -> Iterator[tuple[int, Batch, Part]]:
    """Each with its item and its number."""
    for i, item in enumerate(items):
        for part in parts_of(item.batch, item.first):
            yield i, item, part


def _write_events(sink: Sink, items: Sequence[Batch], written: Written) -> None:
    at: dict[int, int] = {}
    for i, item, part in _parts(items):
        begin = at.get(i, item.first)
        at[i] = part.end
        written.unread += [_unread(i, one) for one in part.unreadable]
        if part.indexes:
            sink.taken = 0
            try:
                written.length, written.tail = sink.write(part.events())
            except BaseException:
                written.done += part.indexes[sink.taken] - begin
                raise
        written.done += part.end - begin


def _write_lines(sink: Sink, items: Sequence[Batch], is_replies: bool, written: Written) -> None:
    """Replies are written as one: which of them are late is committed with all of them."""
    to_lines = reply_lines if is_replies else event_lines
    at: dict[int, int] = {}
    lines: list[bytes] = []
    unread: list[Unread] = []
    done = 0

    def flush() -> None:
        nonlocal lines, unread
        written.length, written.tail = sink.write(lines)
        written.done = done
        written.unread += unread
        lines, unread = [], []

    for i, item, part in _parts(items):
        found, bad = to_lines(part)
        if item.late:
            lost, late = {one.at for one in bad}, set(item.late)
            rows = [index for index in part.indexes if index not in lost]
            found = [line for line, index in zip(found, rows, strict=True) if index not in late]
        lines += found
        unread += [_unread(i, one) for one in [*part.unreadable, *bad]]
        done += part.end - at.get(i, item.first)
        at[i] = part.end
        if len(lines) >= _LINES_AT_ONCE and not is_replies:
            flush()
    flush()


def _unread(item: int, one: Unreadable) -> Unread:
    return Unread(item, one.at, one.events, one.name, one.key, one.raw, one.text)
