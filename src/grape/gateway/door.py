"""The door of one engine, under asyncio: what is handed in, and the replies to it.

Everything belongs to one loop. What is said within one turn of it goes out with one system call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from grape.client import asynchronous
from grape.client.asynchronous import AsyncDoor
from grape.client.connection import error_of
from grape.client.events import ClientEvent
from grape.errors import Full, GrapeError, NoAnswer, Stopping
from grape.model.routing import eager_events
from grape.model.topology import Limits, TopologySpec
from grape.protocol.door import (
    Accepted,
    Append,
    Ask,
    Begun,
    Described,
    Emit,
    Emitted,
    Ended,
    Failed,
    FromClient,
    FromEngine,
    Opened,
    Replies,
    StreamOpened,
    TakeReplies,
)
from grape.protocol.framing import Piece, frame

MAX_ASKED: Final = 20_000
"""Events and questions of one gateway that an engine has not answered."""
MAX_BYTES: Final = 64 << 20
_UNKNOWN: Final = NoAnswer("the engine died before it answered: it is not known whether the event was accepted")


class Door(AsyncDoor):
    """A connection. Made by `knock`.

    Args:
        replied: gets batches of replies. gone: called when nothing more comes. heard: gets what is said of streams.

    Attributes:
        topology, limits: once it is open. events: that it takes.
    """

    def __init__(
        self,
        replied: Callable[[list[bytes]], None],
        gone: Callable[[], None],
        heard: Callable[[FromEngine], None] | None = None,
    ) -> None:
        super().__init__()
        self._heard_of_stream = heard
        self.partitions = 0
        self._replied = replied
        self._gone = gone
        self.topology: TopologySpec
        self.events: frozenset[str]
        self.eager: frozenset[str]
        self.limits: Limits
        self.traced = 0.0
        self.is_open = False
        self._heard_answer: dict[int, Callable[[], None]] = {}
        self._unsent: list[Piece] = []
        self._unsent_bytes = 0

    # ------------------------------------------------------------------ what is asked

    def hand_in(self, event: ClientEvent, request: str = "") -> asyncio.Future[None]:
        """Hand in an event: done when it is durable. ``request``: under which its caller waits for replies.

        Its errors:
            Stopping: it was not accepted, as the engine ends.
            NoAnswer: the engine is gone, and it is not known whether it was accepted.
            GrapeError: it was refused.
        """
        what = event.name, event.key, event.data, event.id, event.wait, request, event.trace, event.via
        return self._ask(Emit(self._next(), *what))

    def ask(self, verb: str, argument: Any = None, heard: Callable[[], None] | None = None) -> asyncio.Future[Any]:
        """The packed answer. ``heard``: called as it comes, before anything that the engine said after it."""
        message = Ask(self._next(), verb, msgspec.Raw(msgspec.msgpack.encode(argument)))
        if heard is not None:
            self._heard_answer[message.number] = heard
        return self._ask(message)

    def _ask(self, message: Emit | Ask) -> asyncio.Future[Any]:
        asked: asyncio.Future[Any] = self._loop.create_future()
        if not self.is_open:
            asked.set_exception(Stopping("the engine has ended"))
        elif len(self._asked) >= MAX_ASKED or self._unsent_bytes + self._waiting_bytes > MAX_BYTES:
            asked.set_exception(Full("too many events of this gateway wait for the engine"))
        else:
            self._asked[message.number] = asked
            self._write([frame(message)])
        return asked

    @property
    def _waiting_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, message: FromClient) -> None:
        if self.is_open:
            super().send(message)

    def send_append(self, append: Append) -> None:
        if self.is_open:
            super().send_append(append)

    def _write(self, pieces: Sequence[Piece]) -> None:
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += pieces
        self._unsent_bytes += sum(map(len, pieces))

    def _flush(self) -> None:
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if self._transport is not None:
            self._transport.write(b"".join(unsent) if len(unsent) > 1 else unsent[0])

    # ------------------------------------------------------------------ what is heard

    def _heard(self, message: FromEngine) -> None:
        match message:
            case Emitted():
                self._answered(message.number, None)
            case Replies():
                self._replied(message.batches)
            case Described():
                self.topology = message.topology
                self.events = frozenset((*message.topology.events, *message.topology.outputs))
                self.eager = eager_events(message.topology)
            case Opened():
                self.limits = message.limits
                self.traced = message.traced
                self.partitions = message.partitions
            case Begun():
                self.is_open = True
                if self._heard_of_stream is None:
                    self.send(TakeReplies())
                super()._heard(message)
            case StreamOpened() | Accepted() if self._heard_of_stream is not None:
                self._heard_of_stream(message)
            case Ended():
                self._over(Stopping("the engine has ended"), Stopping("the engine has ended: it was not accepted"))
            case Failed():
                self._over(error_of(message.code, message.text))
            case _:
                super()._heard(message)

    def _answered(self, number: int, found: Any) -> None:
        heard = self._heard_answer.pop(number, None)
        asked = self._asked.get(number)
        is_waited_for = asked is not None and not asked.done()
        super()._answered(number, found)
        if heard is not None and is_waited_for and not isinstance(found, GrapeError):
            heard()

    def _over(self, error: GrapeError, unanswered: GrapeError = _UNKNOWN) -> None:
        if self.is_open:
            self._loop.call_soon(self._gone)
        self.is_open = False
        self._end(error, unanswered)


async def knock(
    directory: str,
    replied: Callable[[list[bytes]], None],
    gone: Callable[[], None],
    heard: Callable[[FromEngine], None] | None = None,
) -> Door:
    """A connection to the engine that runs on ``directory``, which takes events; see `Door`.

    Raises:
        OSError: none runs there.
        GrapeError: it does not take events.
    """
    return await asynchronous.knock(directory, lambda: Door(replied, gone, heard))
