"""What the bridge hands in at once: as much as the other door takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from msgspec import structs

from grape.bridge.door import Door
from grape.bridge.link import _Inlet, _unread
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.topology import Limits
from grape.protocol.door import FRAME, WINDOW, Accepted, Append, Batch, FromEngine, StreamOpened, size_beside
from grape.protocol.framing import append_frame


class Engine:
    """The other door, which accepts step by step, and says what no engine takes."""

    events: frozenset[str] = frozenset()
    partitions = 4
    limits = Limits()
    is_open = True

    def __init__(self) -> None:
        self.gone = asyncio.get_running_loop().create_future()
        self.dead = 0
        self._under_way: list[tuple[int, int]] = []

    def open_stream(self, name: str, hear: Callable[[FromEngine], None]) -> int:
        self._hear = hear
        asyncio.get_running_loop().call_soon(hear, StreamOpened(1, 0, b"", 0, 0, None, False, False))
        return 1

    def send_append(self, append: Append) -> None:
        assert sum(size for _, size in self._under_way) <= WINDOW
        assert sum(map(len, append_frame(append))) < FRAME
        self._under_way.append((append.number, size_beside(append.position, append.bad, ())))
        self.dead += len(append.bad)
        asyncio.get_running_loop().call_later(0.01, self._accept)

    def _accept(self) -> None:
        number, _ = self._under_way.pop(0)
        self._hear(Accepted(1, number))


def batch(position: int, events: int) -> Batch:
    body = codec.encode_run(codec.RunMeta(["there@gone"]), events, None, [1] * events)
    sealed = codec.seal(body, events, PartitionId(1, 1, 0), PartitionId(1, 2, 0), 7, position, 0, [], 0)
    return Batch(0, position, memoryview(sealed), events)


def test_many_small_events_for_a_slot_that_is_gone_stay_within_the_window() -> None:
    """As dead letters they are a hundred times as large as they were."""

    async def run() -> int:
        engine = Engine()
        inlet = await _Inlet.open("here", 7, "@there", "there", cast(Door, cast(Any, engine)))
        assert inlet is not None
        assert await inlet.take([batch(position, 30_000) for position in range(20)])
        return engine.dead

    assert asyncio.run(run()) == 600_000


def test_what_no_app_gets_any_more_is_given_up_piece_by_piece() -> None:
    """All of it at once is more than a frame."""
    left = [batch(0, 5), batch(1, 5)]
    done, unread = _unread(left, "there", 7)
    assert (done, [(one.item, one.at) for one in unread]) == (7, [(0, i) for i in range(5)] + [(1, 0), (1, 1)])
    left = [structs.replace(left[1], first=2)]
    done, unread = _unread(left, "there", 7)
    assert (done, [(one.item, one.at) for one in unread]) == (3, [(0, 2), (0, 3), (0, 4)])
