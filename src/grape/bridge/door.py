"""The door of one engine, as the bridge uses it: who opens streams and readers hears what is said of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from grape.client import asynchronous
from grape.client.asynchronous import AsyncDoor
from grape.errors import EngineError, GrapeError, NoAnswer
from grape.model.topology import Limits
from grape.protocol.door import (
    Accepted,
    Ask,
    Batches,
    Described,
    Ended,
    Failed,
    FromEngine,
    Halt,
    Opened,
    OpenReader,
    OpenStream,
    ReaderOpened,
    StreamOpened,
)

Hear = Callable[[FromEngine], None]


class Door(AsyncDoor):
    """A connection. Made by `knock`.

    Attributes:
        events, partitions, incarnation, limits: of its app, once it is open.
        gone: done when nothing more comes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: frozenset[str] = frozenset()
        self.partitions = 0
        self.incarnation = 0
        self.limits = Limits()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._streams: dict[int, Hear] = {}
        self._readers: dict[int, Hear] = {}

    @property
    def is_open(self) -> bool:
        return not self.gone.done()

    # ------------------------------------------------------------------ what is said

    def ask(self, verb: str, argument: Any) -> asyncio.Future[Any]:
        """The packed answer; its errors are those of the engine, or NoAnswer."""
        asked: asyncio.Future[Any] = self._loop.create_future()
        if not self.is_open:
            asked.set_exception(NoAnswer("the engine has gone"))
            return asked
        number = self._next()
        self._asked[number] = asked
        self.send(Ask(number, verb, msgspec.Raw(msgspec.msgpack.encode(argument))))
        return asked

    def open_stream(self, name: str, hear: Hear) -> int:
        """``hear`` gets what is said of it, first `StreamOpened`, or `Failed`."""
        number = self._next()
        self._streams[number] = hear
        self.send(OpenStream(number, name))
        return number

    def open_reader(self, output: str, name: str, hear: Hear) -> int:
        """As `open_stream`, first `ReaderOpened`."""
        number = self._next()
        self._readers[number] = hear
        self.send(OpenReader(number, output, name))
        return number

    def forget_stream(self, number: int) -> None:
        self._streams.pop(number, None)

    # ------------------------------------------------------------------ what is heard

    def _heard(self, message: FromEngine) -> None:
        match message:
            case Batches():
                self._tell(self._readers, message.reader, message)
            case StreamOpened() | Accepted():
                self._tell(self._streams, message.stream, message)
            case ReaderOpened():
                self._tell(self._readers, message.reader, message)
            case Described():
                self.events = frozenset(message.topology.events)
            case Opened():
                self.partitions, self.incarnation = message.partitions, message.incarnation
                self.limits = message.limits
            case Halt():
                pass  # what is not accepted is handed in again, at the next engine
            case Ended() | Failed():
                self._over(EngineError("the engine has ended"))
            case _:
                super()._heard(message)

    @staticmethod
    def _tell(listeners: dict[int, Hear], number: int, message: FromEngine) -> None:
        hear = listeners.get(number)
        if hear is not None:
            hear(message)

    def _over(self, error: GrapeError) -> None:
        super()._over(error)
        if not self.gone.done():
            self.gone.set_result(None)


async def knock(directory: str) -> Door:
    """A connection to the engine that serves ``directory``.

    Raises:
        OSError: none runs there.
        GrapeError: it does not serve.
    """
    return await asynchronous.knock(directory, Door)
