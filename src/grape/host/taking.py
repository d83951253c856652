"""A taker on its way: outputs are read, written to their sink, and then their position is committed.

What was taken before a failure is committed, whatever fails; the sink gets the rest again. What cannot be read becomes
a dead letter, and taking goes on behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final

from msgspec import Struct

from grape.abc.source import Sink
from grape.abc.transport import Rows, Table
from grape.connectors.json_lines import event_lines, reply_lines
from grape.connectors.outputs import Part, Unreadable, parts_of
from grape.engine.clock import Clock
from grape.engine.outlet import DeadOutputs, Take, Taken, TakenBatch, dead_key
from grape.errors import GrapeError, StorageFailed
from grape.host.faults import delay, failure, what_failed
from grape.model import batch as codec
from grape.model.stored import DeadLetter

_TAKE_BYTES: Final = 4 << 20
_LINES_AT_ONCE: Final = 1 << 16
_UNREADABLE: Final = "unreadable-output"


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
    unreadable: list[tuple[TakenBatch, Unreadable]] = []
    error: BaseException | None = None


class Told(Struct, frozen=True):
    """Whom a taker tells: that everything there is has been taken, that it cannot go on, and lines for people."""

    idle: Callable[[], None]
    failed: Callable[[GrapeError], None]
    notice: Callable[[str], None]


class Taking:
    """One taker.

    Args:
        executor: runs writes that may wait.
        dead: where what cannot be read goes.

    Raises:
        UsageError: the sink is not what was written before.
    """

    def __init__(
        self, taker: Taker, take: Take, executor: Executor, dead: DeadOutputs, clock: Clock, told: Told
    ) -> None:
        self.take = take
        self._taker = taker
        self._executor = executor
        self._dead = dead
        self._clock = clock
        self._told = told
        self._failures = 0
        self._fresh = asyncio.Event()
        sink = taker.sink
        try:
            self._begin = sink.open(take.head.length, take.head.tail)
        except GrapeError:
            raise
        except BaseException as e:
            raise failure(f"the sink {sink.name!r} cannot be opened", e, "nothing was taken") from e

    def wake(self) -> None:
        """Something came into the output."""
        self._fresh.set()

    async def run(self) -> None:
        """Take, until cancelled."""
        take = self.take
        try:
            if self._begin != (take.head.length, take.head.tail):
                # The sink starts elsewhere: that must stand before anything is written.
                await self._commit(Taken([], frozenset()), *self._begin)
            while True:
                taken = take.read(_TAKE_BYTES)
                if taken is None:
                    self._told.idle()
                    await self._fresh.wait()
                    self._fresh.clear()
                    continue
                await self._take(taken)
        except GrapeError as e:
            self._told.failed(e)
        except Exception as e:
            self._told.failed(failure(f"taking {self._taker.sink.name!r} failed", e, "the run ends"))

    async def _take(self, taken: Taken) -> None:
        """
        Raises:
            GrapeError: its sink failed for the last time.
        """
        sink, take = self._taker.sink, self.take
        late: list[set[int]] = [set()] * len(taken.items)
        rows: list[tuple[Table, Rows]] = []
        if self._taker.event is None:
            late, rows = take.after_final(taken.batches)
        write = partial(write_out, sink, taken, late, (take.head.length, take.head.tail), self._taker.event is None)
        if sink.is_quick(taken.events):
            written = write()
        else:
            written = await asyncio.get_running_loop().run_in_executor(self._executor, write)
        if written.unreadable:
            await self._bury(written.unreadable)
        if written.error is None:
            await self._commit(taken, written.length, written.tail, rows)
            self._failures = 0
            return
        if written.done:
            await self._commit(taken, written.length, written.tail, None, written.done)
            self._failures = 0
        else:
            take.give_back(taken)
        await self._failed(written.error)

    async def _failed(self, error: BaseException) -> None:
        """Wait for the next attempt.

        Raises:
            GrapeError: there is none.
        """
        sink = self._taker.sink
        if isinstance(error, GrapeError):
            raise error
        self._failures += 1
        what = f"taking {sink.name!r} failed"
        if isinstance(error, Exception) and self._failures <= sink.retries and not isinstance(error, BrokenPipeError):
            wait = delay(self._failures)
            text = f"{what}: {what_failed(error)}; retry {self._failures} of {sink.retries} in {wait:.1f} s"
            self._told.notice(text)
            await asyncio.sleep(wait)
            return
        if isinstance(error, OSError) and sink.form == "lines":
            raise StorageFailed(f"{sink.name}: {error}")
        tried = f"{what}, {self._failures} times" if self._failures > 1 else what
        raise failure(tried, error, "the next run goes on with what it failed on") from error

    async def _bury(self, unreadable: list[tuple[TakenBatch, Unreadable]]) -> None:
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        now = self._clock.now()
        letters = [
            (dead_key(item.number, item.position, one.at), self._letter(item, one, now)) for item, one in unreadable
        ]
        self._dead.bury(letters, lambda: None if durable.done() else durable.set_result(None))
        await durable
        events = sum(one.events for _, one in unreadable)
        self._told.notice(
            f"output {self._taker.event or 'replies'!r}: {events:,} events cannot be read and are dead letters: "
            f"{unreadable[0][1].text}"
        )

    def _letter(self, item: TakenBatch, one: Unreadable, now: int) -> DeadLetter:
        header = codec.header_of(item.batch)
        name = one.name or self._taker.event or "reply"
        many = f" (all {one.events:,} events from here on)" if one.events > 1 else ""
        place = f"output {self._taker.event or 'replies'}, partition {item.number}"
        origin = f"{place}, event {header.id_prefix}{one.at}"
        body = codec.one(name, None, one.raw)
        return DeadLetter(
            "", name, "", one.key, header.created, body, 0, now, _UNREADABLE, f"{one.text}{many}", origin=origin
        )

    async def _commit(
        self,
        taken: Taken,
        length: int,
        tail: bytes,
        rows: list[tuple[Table, Rows]] | None = None,
        done: int | None = None,
    ) -> None:
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        then = lambda: None if durable.done() else durable.set_result(None)  # noqa: E731
        self.take.commit(taken, length, tail, then, rows, done)
        await durable


# ------------------------------------------------------------------ on the sink's thread


def write_out(
    sink: Sink, taken: Taken, late: Sequence[set[int]], begin: tuple[int, bytes], is_replies: bool = False
) -> Written:
    """Write what was taken, some at a time. Raises nothing: what the sink raises is in the result, whatever it is."""
    written = Written(0, *begin)
    try:
        if sink.form == "batches":
            written.length, written.tail = sink.write(taken.batches)
            written.done = taken.events
        elif sink.form == "events":
            _write_events(sink, taken, written)
        else:
            _write_lines(sink, taken, late, is_replies, written)
    except BaseException as e:
        written.error = e
    return written


def _parts(taken: Taken) -> Iterator[tuple[int, TakenBatch, Part]]:
    """Each with its item and its number."""
    for i, item in enumerate(taken.items):
        for part in parts_of(item.batch, item.first):
            yield i, item, part


def _write_events(sink: Sink, taken: Taken, written: Written) -> None:
    at: dict[int, int] = {}
    for i, item, part in _parts(taken):
        begin = at.get(i, item.first)
        at[i] = part.end
        written.unreadable += [(item, one) for one in part.unreadable]
        if part.indexes:
            sink.taken = 0
            try:
                written.length, written.tail = sink.write(part.events())
            except BaseException:
                written.done += part.indexes[sink.taken] - begin
                raise
        written.done += part.end - begin


def _write_lines(sink: Sink, taken: Taken, late: Sequence[set[int]], is_replies: bool, written: Written) -> None:
    """Replies are written as one: which of them are late is committed with all of them."""
    to_lines = reply_lines if is_replies else event_lines
    at: dict[int, int] = {}
    lines: list[bytes] = []
    unreadable: list[tuple[TakenBatch, Unreadable]] = []
    done = 0

    def flush() -> None:
        nonlocal lines, unreadable
        written.length, written.tail = sink.write(lines)
        written.done = done
        written.unreadable += unreadable
        lines, unreadable = [], []

    for i, item, part in _parts(taken):
        found, bad = to_lines(part)
        if late[i]:
            lost = {one.at for one in bad}
            rows = [index for index in part.indexes if index not in lost]
            found = [line for line, index in zip(found, rows, strict=True) if index not in late[i]]
        lines += found
        unreadable += [(item, one) for one in [*part.unreadable, *bad]]
        done += part.end - at.get(i, item.first)
        at[i] = part.end
        if len(lines) >= _LINES_AT_ONCE and not is_replies:
            flush()
    flush()
