"""What the jobs of an async pool have done, by partition, until it is handed in: when nothing runs any more, by the
clock, or when it is much."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from typing import Final

from grape.protocol.messages import Result
from grape.worker.effects import Assigned, Effects
from grape.worker.runtime import Runtime

FLUSH_SECONDS: Final = 0.020
FLUSH_BYTES: Final = 16 << 20


class HandIn:
    """
    Args:
        send: sends a result.
        broken: told of what a result could not be made for.

    Attributes:
        by_hand: only `flush` hands in, the clock does not: careful mode says when.
        is_over: nothing is handed in any more.
    """

    def __init__(
        self, runtime: Runtime, send: Callable[[Result], None], broken: Callable[[BaseException], None]
    ) -> None:
        self._runtime = runtime
        self._send = send
        self._broken = broken
        self._effects: dict[int, Effects] = {}
        self._ended: dict[int, list[int]] = {}
        self._open: Counter[int] = Counter()
        """Works that have not ended, by partition."""
        self._is_due = False
        self.by_hand = False
        self.is_over = False

    def effects_of(self, part: Assigned) -> Effects:
        effects = self._effects.get(part.number)
        if effects is None:
            # A result is handed in long before it is too large; only one event can make it so, which is looked at.
            effects = self._effects[part.number] = Effects(self._runtime.limits, sys.maxsize)
        return effects

    def enter(self, part: Assigned) -> None:
        """What happens now belongs to ``part``."""
        self._runtime.ground.enter(part, self.effects_of(part))

    def begun(self, part: Assigned) -> None:
        """Something will come of a work."""
        if self._runtime.assigned(part.number) is part:  # else `forget` has been, and would not be again
            self._open[part.number] += 1

    def ended(self, part: Assigned, seq: int) -> None:
        """Nothing more comes of a work."""
        self.effects_of(part)
        self._ended.setdefault(part.number, []).append(seq)
        if self._runtime.assigned(part.number) is part:
            self._open[part.number] -= 1
        if any(self._open.values()):
            self.soon()
        else:  # there is nothing to wait for
            asyncio.get_running_loop().call_soon(self._now)

    def forget(self, partition: int) -> None:
        """It is no longer the worker's."""
        self._effects.pop(partition, None)
        self._ended.pop(partition, None)
        self._open.pop(partition, None)

    def if_much(self, part: Assigned) -> None:
        """Hand in if it is more than should lie here."""
        if self.effects_of(part).size > FLUSH_BYTES:
            self.flush()

    def soon(self) -> None:
        """Something was done."""
        if any(effects.size > FLUSH_BYTES for effects in self._effects.values()):
            self.flush()
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._now)

    def _now(self) -> None:
        self._is_due = False
        if self.by_hand:
            return
        try:
            self.flush()
        except BaseException as e:
            self._broken(e)

    def flush(self) -> None:
        """Hand in what is finished."""
        self._is_due = False
        if self.is_over:
            return
        effects, self._effects = self._effects, {}
        ended, self._ended = self._ended, {}
        for number, of_part in effects.items():
            part = self._runtime.assigned(number)
            if part is not None:
                self._send(self._runtime.result(part, of_part, ended.get(number, [])))
