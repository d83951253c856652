"""How the events of slots with a rate are held back: by asking the engine, which keeps it over all workers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from grape.errors import Unstoppable
from grape.protocol.messages import MOST_LEASED, FromWorker, Lease, Leased

_Slot = tuple[str, str]


class GivenBack(Unstoppable):
    """The event that waited for its turn is not to be begun by this worker any more, nor is what stands behind it in
    its work. What was finished before has been handed in."""


class Pacer:
    """Of one worker process.

    Args:
        send: puts a message on its way to the engine.
        wait: returns when something new may have come.
        is_unwanted: whether the work that runs is not to be gone on with.
    """

    def __init__(
        self, send: Callable[[FromWorker], None], wait: Callable[[], None], is_unwanted: Callable[[], bool]
    ) -> None:
        self._send = send
        self._wait = wait
        self._is_unwanted = is_unwanted
        self._is_taking = False
        self._has: dict[_Slot, int] = {}
        self._asked: set[_Slot] = set()
        self._turns: dict[_Slot, deque[asyncio.Future[None]]] = {}

    @property
    def is_waiting(self) -> bool:
        """An event waits for its turn. Called from another thread."""
        return self._is_taking or any(list(self._turns.values()))

    def leased(self, message: Leased) -> None:
        """The engine has given some."""
        slot = message.event, message.node
        self._asked.discard(slot)
        self._has[slot] = self._has.get(slot, 0) + message.count
        turns = self._turns.get(slot, ())
        while turns and self._has[slot]:
            turn = turns.popleft()
            if not turn.done():
                self._has[slot] -= 1
                turn.set_result(None)
        if turns:
            self._ask(slot, len(turns))

    def _ask(self, slot: _Slot, count: int) -> None:
        if slot not in self._asked:
            self._asked.add(slot)
            self._send(Lease(*slot, min(count, MOST_LEASED)))

    def take(self, slot: _Slot) -> None:
        """Wait for the turn of one event of a synchronous pool.

        Raises:
            GivenBack: see there.
        """
        self._is_taking = True
        try:
            while not self._is_unwanted():
                if self._has.get(slot):
                    self._has[slot] -= 1
                    return
                self._ask(slot, 1)
                self._wait()
        finally:
            self._is_taking = False
        raise GivenBack

    def turn(self, slot: _Slot) -> asyncio.Future[None]:
        """Done when it is the turn of one event of an asynchronous pool."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._has.get(slot):
            self._has[slot] -= 1
            turn.set_result(None)
            return turn
        turns = self._turns.setdefault(slot, deque())
        turns.append(turn)
        self._ask(slot, len(turns))
        return turn
