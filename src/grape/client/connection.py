"""The socket to an engine, and the thread that reads it. Any thread may send."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

import msgspec

from grape import errors
from grape.client.unsent import Unsent
from grape.errors import EngineError, GrapeError, ProtocolError
from grape.protocol.decoding import decode_as
from grape.protocol.door import (
    VERSION,
    Accepted,
    Answer,
    Append,
    Ask,
    Batches,
    Begun,
    Described,
    Emitted,
    Ended,
    Failed,
    FromClient,
    FromEngine,
    Greeting,
    Halt,
    Opened,
    ReaderOpened,
    Refused,
    Replies,
    Said,
    StreamOpened,
    Verdicts,
)
from grape.protocol.framing import SEND_BUFFER, Piece, append_frame, door_frames, frame
from grape.protocol.outcomes import Outcomes
from grape.protocol.place import CONTROL, DOOR, door_of

T = TypeVar("T")

_PATIENCE: Final = 30.0
_NOT_BEGUN: Final = "the engine has not begun"
_BY_CODE: Final = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, GrapeError) and kind is not errors.CallFailed
}


class Listener(Protocol):
    """A stream or a reader of this client."""

    def heard(self, message: FromEngine, /) -> None:
        """On the connection's thread: it must not wait."""

    def over(self) -> None:
        """Nothing more comes."""


class Connection:
    """
    Args:
        end: of the socket. how_it_ended: in words, when the engine is gone without a word.

    Attributes:
        described, opened, begun, ended: what the engine tells once.
        said: gets lines for people. replies: gets batches of replies. Both on the connection's thread.
        halted: called when streams are to end.
    """

    def __init__(self, end: socket.socket, how_it_ended: Callable[[], str]) -> None:
        self.described: Future[Described] = Future()
        self.opened: Future[Opened] = Future()
        self.begun: Future[None] = Future()
        self.ended: Future[Outcomes] = Future()
        self.said: Callable[[Said], None] = _nothing
        self.replies: Callable[[Replies], None] = _nothing
        self.is_halted = False
        self.halts_in_order = False
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._socket = end
        self._how_it_ended = how_it_ended
        self._sending = threading.Lock()
        self._unsent = Unsent(end)
        self._numbers = itertools.count(1)
        self._asked: dict[int, Future[Any]] = {}
        self.streams: dict[int, Listener] = {}
        self.readers: dict[int, Listener] = {}
        self._thread = threading.Thread(target=self._read, name="grape-door", daemon=True)

    def start(self) -> Connection:
        self._thread.start()
        self.send(Greeting(VERSION))
        return self

    def let_in(self) -> Opened:
        """Wait until the engine takes events.

        Raises:
            NoAnswer: it has not begun in time.
            GrapeError: it has ended.
        """
        opened = answered(self.opened, _PATIENCE, _NOT_BEGUN)
        answered(self.begun, _PATIENCE, _NOT_BEGUN)
        return opened

    # ------------------------------------------------------------------ any thread

    def send(self, *messages: FromClient) -> None:
        """What comes after the end goes nowhere: whoever waits hears of that."""
        pieces: list[Piece] = []
        for message in messages:
            pieces += append_frame(message) if isinstance(message, Append) else [frame(message)]
        with self._sending:
            self._unsent.send(pieces)

    def ask(
        self, question: Callable[[int], FromClient], heard: Callable[[Future[Any]], object] | None = None
    ) -> Future[Any]:
        """Send what ``question`` makes with a number of its own; the answer, or what the engine refuses it with.
        ``heard``: called with it as it comes, before anything that the engine said after it."""
        number = next(self._numbers)
        asked: Future[Any] = Future()
        if heard is not None:
            asked.add_done_callback(heard)
        self._asked[number] = asked
        self.send(question(number))
        if self.is_over:
            self._give_up(number, asked, errors.Stopping("the engine has ended"))
        return asked

    def ask_verb(
        self, verb: str, argument: Any = None, heard: Callable[[Future[Any]], object] | None = None
    ) -> Future[Any]:
        """As `ask`."""
        packed = msgspec.Raw(msgspec.msgpack.encode(argument))
        return self.ask(lambda number: Ask(number, verb, packed), heard)

    @property
    def is_over(self) -> bool:
        """Nothing more comes."""
        return self.ended.done()

    @property
    def is_ending(self) -> bool:
        """Streams are to end."""
        return self.is_halted or self.is_over

    @property
    def is_draining(self) -> bool:
        """It ends in order: what is under way is still committed."""
        return self.halts_in_order and not self.is_over

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread.ident and threading.current_thread() is not self._thread:
            self._thread.join()
        self._socket.close()

    # ------------------------------------------------------------------ its own thread

    def _read(self) -> None:
        with suppress(OSError):  # whom the engine wakes does not take its processor from it, where both have the same
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        frames = door_frames()
        error: GrapeError | None = None
        try:
            while True:
                try:
                    count = self._socket.recv_into(frames.buffer())
                except OSError:
                    break
                if not count:
                    break
                for message in frames.filled(count):
                    self._heard(message)
                frames.check()
        except ProtocolError as e:
            error = EngineError(f"what the engine says cannot be understood: {e}")
        except BaseException as e:  # of whoever listens: nobody would ever hear anything again, and not know why
            error = EngineError(f"what the engine said could not be taken in: {e!r}")
        if not self.ended.done():
            self._end(None, error or EngineError(self._how_it_ended()))

    def _heard(self, message: FromEngine) -> None:
        match message:
            case Accepted() | StreamOpened():
                self.streams[message.stream].heard(message)
            case Batches() | ReaderOpened():
                self.readers[message.reader].heard(message)
            case Emitted():
                self._answer(message.number, None)
            case Replies():
                self.replies(message)
            case Verdicts():
                self._answer(message.number, message.verdicts)
            case Refused():
                self._answer(message.number, None, error_of(message.code, message.text))
            case Answer():
                self._answer(message.number, message.value)
            case Said():
                self.said(message)
            case _:
                self._heard_once(message)

    def _heard_once(self, message: FromEngine) -> None:
        match message:
            case Described():
                self.described.set_result(message)
            case Opened():
                self.opened.set_result(message)
            case Begun():
                self.begun.set_result(None)
            case Halt():
                self.halts_in_order = message.in_order
                self.is_halted = True
                for stream in tuple(self.streams.values()):
                    stream.heard(message)
            case Ended():
                self._end(decode_as(Outcomes, message.outcomes), None)
            case Failed():
                self._end(None, error_of(message.code, message.text))

    def _answer(self, number: int, value: Any, error: GrapeError | None = None) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None:
            settle(asked, value, error)

    def _give_up(self, number: int, asked: Future[Any], error: GrapeError) -> None:
        self._asked.pop(number, None)
        settle(asked, None, error)

    def _end(self, outcomes: Outcomes | None, error: GrapeError | None) -> None:
        for told in (self.described, self.opened, self.begun):
            settle(told, None, error or EngineError("the engine has ended"))
        settle(self.ended, outcomes, error)
        for listener in (*self.streams.values(), *self.readers.values()):
            listener.over()
        unanswered: GrapeError = errors.Stopping("the engine has ended: it was not accepted")
        if error is not None:
            unanswered = errors.NoAnswer(f"{error}\nit is not known whether what was handed in was accepted")
        for number, asked in tuple(self._asked.items()):
            self._give_up(number, asked, unanswered)


def settle(asked: Future[Any], value: Any = None, error: BaseException | None = None) -> None:
    """The first one says what it is; whoever asked may have given it up."""
    with suppress(InvalidStateError):
        if error is not None:
            asked.set_exception(error)
        else:
            asked.set_result(value)


def error_of(code: str, text: str) -> GrapeError:
    """As it was raised in the engine."""
    return _BY_CODE.get(code, EngineError)(text)


def _nothing(message: object) -> None:
    pass


def answered(asked: Future[T], timeout: float | None, unsaid: str) -> T:
    """
    Raises:
        NoAnswer: nothing came in time.
        GrapeError: as the engine says.
    """
    try:
        return asked.result(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
    except TimeoutError as e:
        if isinstance(e, GrapeError):
            raise
        raise errors.NoAnswer(f"{unsaid} after {timeout:g} s") from None


def decoded(asked: Future[msgspec.Raw], kind: type[T]) -> Future[T]:
    """The answer as what it is."""
    made: Future[T] = Future()

    def answered(asked: Future[msgspec.Raw]) -> None:
        error = asked.exception()
        if error is not None:
            made.set_exception(error)
        else:
            made.set_result(decode_as(kind, asked.result()))

    asked.add_done_callback(answered)
    return made


def dial(directory: str) -> Connection:
    """To the engine that runs on ``directory``; not started yet.

    Raises:
        UsageError: none runs there, or it belongs to somebody else.
    """
    missing = "no engine runs on it (grape run ... --data, or grape.open, starts one)"
    return _dial(directory, DOOR, missing, "its door is for the user that has started the engine alone", "the engine")


def dial_server(home: str) -> Connection:
    """To the server whose home that is; not started yet.

    Raises:
        UsageError: there is none, or it belongs to somebody else.
    """
    missing = f"no server runs there; start it with: grape serve {home}"
    return _dial(home, CONTROL, missing, "its server is for the user that has started it alone", "the server")


def _dial(directory: str, name: str, missing: str, foreign: str, who: str) -> Connection:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with door_of(directory, name) as path:
            end.connect(path)
    except OSError as e:
        end.close()
        if isinstance(e, PermissionError):
            what = foreign
        elif not os.path.isdir(directory):
            what = "there is no such directory"
        else:
            what = missing
        raise errors.UsageError(f"{directory}: {what}") from None
    return Connection(end, lambda: f"{who} has gone without a word")
