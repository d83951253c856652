"""How the events of slots with a rate are held back: by asking the engine, which keeps it over all workers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from grape.protocol.messages import FromWorker, Lease, Leased
from grape.worker.stage import Stage
from grape.worker.units.unit import Unit

_Slot = tuple[str, str]


class Pacer:
    """Of one worker process.

    Args:
        send: puts a message on its way to the engine. wait: returns when something new may have come.
    """

    def __init__(self, send: Callable[[FromWorker], None], wait: Callable[[], None]) -> None:
        self.is_waiting = False
        """A synchronous node waits for its turn. Looked at by another thread."""
        self._send = send
        self._wait = wait
        self._has: dict[_Slot, int] = {}
        self._asked: set[_Slot] = set()
        self._tasks: dict[_Slot, deque[asyncio.Future[None]]] = {}

    def leased(self, message: Leased) -> None:
        """The engine has given some."""
        slot = message.event, message.node
        self._asked.discard(slot)
        self._has[slot] = self._has.get(slot, 0) + message.count
        tasks = self._tasks.get(slot, ())
        while tasks and self._has[slot]:
            turn = tasks.popleft()
            if not turn.done():
                self._has[slot] -= 1
                turn.set_result(None)
        if tasks:
            self._ask(slot, len(tasks))

    def _ask(self, slot: _Slot, count: int) -> None:
        if slot not in self._asked:
            self._asked.add(slot)
            self._send(Lease(*slot, count))

    def pieces(self, unit: Unit, stage: Stage) -> Iterator[Stage]:
        """The stage in pieces, each when its turn has come."""
        start = 0
        while start < stage.count:
            name = stage.name_of(start)
            end = start + 1
            slot = unit.slots[name]
            if slot.rate:
                while end < stage.count and stage.name_of(end) == name:
                    end += 1
                end = start + self._take((name, unit.node), min(end - start, slot.burst))
            yield stage if end - start == stage.count else stage.pick(list(range(start, end)))
            start = end

    def _take(self, slot: _Slot, wanted: int) -> int:
        self.is_waiting = True
        try:
            while not self._has.get(slot):
                self._ask(slot, wanted)
                self._wait()
        finally:
            self.is_waiting = False
        taken = min(wanted, self._has[slot])
        self._has[slot] -= taken
        return taken

    async def turn(self, slot: _Slot) -> None:
        """The turn of one event of an async node."""
        if self._has.get(slot):
            self._has[slot] -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tasks = self._tasks.setdefault(slot, deque())
        tasks.append(turn)
        self._ask(slot, len(tasks))
        await turn
