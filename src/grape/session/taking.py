"""A taker on its way: outputs are read, written to their sink, and then their position is committed."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Final

from msgspec import Struct

from grape.abc.source import Sink
from grape.abc.transport import Rows, Table
from grape.connectors.sinks import json_lines, reply_lines
from grape.engine.outlet import Take, Taken
from grape.errors import GrapeError, StorageFailed, UserError

_TAKE_BYTES: Final = 4 << 20


class Taker(Struct):
    """A sink and what it takes: the event (None: replies)."""

    event: str | None
    sink: Sink


class Taking:
    """One taker.

    Args:
        executor: runs writes that may wait.
        idle: called when everything there is has been taken.
        failed: called when it cannot go on.

    Raises:
        UsageError: the sink is not what was written before.
    """

    def __init__(
        self,
        taker: Taker,
        take: Take,
        executor: Executor,
        idle: Callable[[], None],
        failed: Callable[[GrapeError], None],
    ) -> None:
        self.take = take
        self._taker = taker
        self._executor = executor
        self._idle = idle
        self._failed = failed
        self._fresh = asyncio.Event()
        self._begin = taker.sink.open(take.head.length, take.head.tail)

    def arrived(self, partition: int) -> None:
        """Something came into a partition of the output."""
        self.take.arrived(partition)
        self._fresh.set()

    async def run(self) -> None:
        """Take, until cancelled."""
        take, sink = self.take, self._taker.sink
        is_replies = self._taker.event is None
        lines = reply_lines if is_replies else json_lines
        loop = asyncio.get_running_loop()
        try:
            if self._begin != (take.head.length, take.head.tail):
                # The sink starts elsewhere: that must stand before anything is written.
                await self._commit(Taken([], frozenset(), 0), *self._begin)
            while True:
                taken = take.read(_TAKE_BYTES)
                if taken is None:
                    self._idle()
                    await self._fresh.wait()
                    self._fresh.clear()
                    continue
                late: list[set[int]] = [set()] * len(taken.batches)
                rows: list[tuple[Table, Rows]] = []
                if is_replies:
                    late, rows = take.after_final(taken.batches)
                write = partial(_write, sink, taken.batches, late, lines)
                if sink.is_quick(len(taken.batches)):
                    length, tail = write()
                else:
                    length, tail = await loop.run_in_executor(self._executor, write)
                await self._commit(taken, length, tail, rows)
        except GrapeError as e:
            self._failed(e)
        except OSError as e:
            self._failed(StorageFailed(f"{sink.name}: {e}"))
        except Exception as e:  # whatever a function that takes has raised
            frames = traceback.extract_tb(e.__traceback__)
            where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
            what = f"taking {sink.name!r} failed with {type(e).__name__}: {e}{where}"
            self._failed(UserError(f"{what}; the next run goes on with what it failed on"))

    async def _commit(
        self, taken: Taken, length: int, tail: bytes, rows: list[tuple[Table, Rows]] | None = None
    ) -> None:
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.take.commit(taken, length, tail, lambda: None if durable.done() else durable.set_result(None), rows)
        await durable


def _write(
    sink: Sink, batches: list[bytes], late: list[set[int]], lines: Callable[[bytes], list[bytes]]
) -> tuple[int, bytes]:
    if sink.is_raw:
        return sink.write(batches)
    out: list[bytes] = []
    for batch, skip in zip(batches, late, strict=True):
        of_batch = lines(batch)
        out += [line for i, line in enumerate(of_batch) if i not in skip] if skip else of_batch
    return sink.write(out)
