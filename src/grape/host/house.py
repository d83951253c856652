"""What is behind the door: one app from its description to its end, and those who have come to it.

Nothing here reads or writes a socket: visitors bring messages, and are given some.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from grape.engine.clients import Clients, check_emit
from grape.engine.clock import Clock
from grape.engine.feed import Feed
from grape.engine.outlet import UNREADABLE, DeadOutputs, Take
from grape.errors import Full, GrapeError, InUse, NoAnswer, ProtocolError, UsageError
from grape.host.assembly import Assembled
from grape.host.attaching import Attaching, TakenBy
from grape.host.host import Host
from grape.host.readers import Around, Reader, ReplyFan
from grape.host.streams import Say, Stream, Streams, nobody
from grape.model.address import check_text
from grape.model.foreign import AT
from grape.model.topology import TopologySpec
from grape.model.tracing import SPANS
from grape.protocol.door import (
    VERSION,
    Append,
    Ask,
    Begin,
    Begun,
    CloseStream,
    Described,
    Emit,
    Emitted,
    Failed,
    FromClient,
    FromEngine,
    Greeting,
    Lookup,
    Open,
    Opened,
    OpenReader,
    OpenStream,
    ReaderOpened,
    Refused,
    StartReader,
    Stop,
    StreamOpened,
    TakeReplies,
    Took,
    Verdicts,
)

Verb = Callable[[Ask, Say], None]

_API_REPLIES: Final = TakenBy(None, "reply=@api")
_MAX_NAME: Final = 16_384
_PATIENCE: Final = 5.0
_UNKNOWN: Final = "the engine ended before the event was durable: it is not known whether it is"


class House:
    """One app. It is described first, then its owner has it opened, then begun; other clients are let in from then on.

    Args:
        data: where its directory is.
        notice: a line for people.
        ordered: called when the owner says something that a run waits for.

    Attributes:
        verbs: what can be asked, by name.
        leaving: called when a client is gone, with what it was answered by.
        is_wanted, is_begun: the owner has said `Open`, `Begin`.
        is_serving: events are taken. is_deserted: the owner is gone.
        coming_readers: names of those that are being opened.
    """

    def __init__(self, host: Host, clock: Clock, data: str, notice: Callable[[str], None]) -> None:
        self.host = host
        self.clock = clock
        self.data = data
        self.notice = notice
        self.verbs: dict[str, Verb] = {}
        self.leaving: list[Callable[[Say], None]] = []
        self.visitors: list[Visitor] = []
        self.readers: list[Reader] = []
        self.coming_readers: set[str] = set()
        self.fan = ReplyFan(host.soon, host.later)
        self.is_wanted = False
        self.is_begun = False
        self.is_serving = False
        self.is_deserted = False
        self._has_asked_for_replies = False
        self._described: Described | None = None
        self._opened: Opened | None = None
        self._inside: Inside | None = None
        self._end: FromEngine | None = None

    # ------------------------------------------------------------------ what the run tells

    def described(self, topology: TopologySpec) -> None:
        self._described = Described(VERSION, topology, self.data)
        for visitor in tuple(self.visitors):
            if visitor.is_owner and visitor.is_greeted:
                visitor.say(self._described)

    def opened(self, assembled: Assembled, streams: Streams) -> None:
        """It can be given streams and readers now."""
        app = assembled.app
        self._inside = Inside(assembled, streams, Clients(assembled.engine))
        self._opened = Opened(app.partitions, app.record.incarnation, app.limits, app.traced)
        for visitor in tuple(self.visitors):
            if visitor.is_owner and visitor.is_greeted:
                visitor.say(self._opened)

    def begun(self) -> None:
        """Events are taken, from everybody, and given."""
        self.is_serving = True
        self.inside.streams.begun()
        for reader in self.readers:
            if not self.coming_readers:  # one that comes may still need what the others are done with
                reader.take.let_go()
            reader.wake()
        if self.fan.take is not None:
            self.fan.take.let_go()
        for visitor in tuple(self.visitors):
            if visitor.is_owner:
                visitor.say(Begun())
            elif visitor.is_greeted:
                self.let_in(visitor)

    def over(self, message: FromEngine) -> None:
        """It has ended, or could not go on."""
        self._end = message
        for visitor in tuple(self.visitors):
            visitor.over(message)

    @property
    def is_over(self) -> bool:
        """The last word has been said."""
        return self._end is not None

    # ------------------------------------------------------------------ those who come

    @property
    def has_owner(self) -> bool:
        """Who has, and has said its first word."""
        return any(visitor.is_owner and visitor.is_greeted for visitor in self.visitors)

    def unread(self, say: Say) -> int:
        """Bytes that were said by this and are not taken yet."""
        return sum(visitor.unread() for visitor in self.visitors if visitor.say == say)

    @property
    def inside(self) -> Inside:
        """
        Raises:
            ProtocolError: it is not open.
        """
        if self._inside is None:
            raise ProtocolError("the app is not open yet")
        return self._inside

    def greet(self, visitor: Visitor) -> None:
        if self._end is not None:
            visitor.say(self._end)
        elif visitor.is_owner:
            if self._described is not None:
                visitor.say(self._described)
        elif self.is_begun:
            self.let_in(visitor)

    def let_in(self, visitor: Visitor) -> None:
        assert self._described is not None
        assert self._opened is not None
        for message in (self._described, self._opened, Begun()):
            visitor.say(message)

    @property
    def readers_are_idle(self) -> bool:
        """Everything that somebody takes has been taken and committed."""
        return self.fan.is_idle and all(reader.is_idle for reader in self.readers)

    def flush(self) -> bool:
        """Commit how far all are; returns whether that is done."""
        takes = [reader.take for reader in self.readers] + ([] if self.fan.take is None else [self.fan.take])
        for reader in self.readers:
            reader.flush()
        self.fan.flush()
        return not any(take.is_settled or take.is_busy for take in takes)

    def left(self, visitor: Visitor) -> None:
        self.visitors.remove(visitor)
        if visitor.is_owner:
            self.is_deserted = True
        self.host.wake()

    def is_being_read(self, name: str) -> bool:
        """By a reader of this name."""
        return name in self.coming_readers or any(reader.taken_by.name == name for reader in self.readers)

    def wants_replies(self, say: Say) -> None:
        """
        Raises:
            ProtocolError: it is not open.
        """
        attaching = self.inside.attaching
        if say not in self.fan.listeners:
            self.fan.listeners.append(say)
            self.fan.wake()
        if not self._has_asked_for_replies:
            self._has_asked_for_replies = True
            attaching.take(_API_REPLIES, lambda take, _: self.fan.begin(take))

    def keep_replies(self) -> None:
        """Also if nobody asks: some are kept. Those who were there before have some seconds to come back."""
        if not self._has_asked_for_replies:
            self._has_asked_for_replies = True
            self.inside.attaching.take(_API_REPLIES, lambda take, _: self.fan.begin(take, _PATIENCE))


class Inside:
    """What there is once the directory is open."""

    def __init__(self, assembled: Assembled, streams: Streams, clients: Clients) -> None:
        self.app = assembled.app
        self.engine = assembled.engine
        self.attaching: Attaching = assembled.attaching
        self.streams = streams
        self.clients = clients


class Visitor:
    """One client, as the engine sees it.

    Args:
        say: to the client.
        is_owner: it has started this engine.
        unread: bytes that were said and not taken yet.
    """

    def __init__(self, house: House, say: Say, *, is_owner: bool, unread: Callable[[], int] = lambda: 0) -> None:
        self.unread = unread
        self.is_owner = is_owner
        self.is_greeted = False
        self.say: Say = say
        self._house = house
        self._streams: dict[int, Stream | None] = {}
        self._readers: dict[int, Reader | None] = {}
        self._is_gone = False
        self._accepted: set[int] = set()
        house.visitors.append(self)

    def received(self, message: FromClient) -> None:
        """
        Raises:
            ProtocolError: that is not what may come now; nothing more may be taken of it.
        """
        if not self.is_greeted and not isinstance(message, Greeting):
            raise ProtocolError("the first word is a greeting")
        match message:
            case Append():
                self._stream(message.stream).append(message, is_ours=self.is_owner)
            case Emit():
                self._emit(message)
            case Took():
                self._reader(message.reader).took(message)
            case Lookup():
                verdicts = self._stream(message.stream).feed.lookup(message.ids)
                self.say(Verdicts(message.number, verdicts))
            case CloseStream():
                self._stream(message.stream).close(at_end=message.at_end)
                self._streams[message.stream] = None
            case StartReader():
                self._reader(message.reader).start(message.length, message.tail)
            case Ask():
                self._ask(message)
            case _:
                self._other(message)

    def _other(self, message: FromClient) -> None:
        """What comes once."""
        house = self._house
        match message:
            case Greeting():
                if self.is_greeted:
                    raise ProtocolError("it has greeted before")
                if message.version != VERSION:
                    raise ProtocolError(f"a client of version {message.version}; this engine speaks version {VERSION}")
                self.is_greeted = True
                house.greet(self)
                house.host.wake()
            case OpenStream():
                self._open_stream(message)
            case OpenReader():
                self._open_reader(message)
            case TakeReplies():
                house.wants_replies(self._say_now)
            case Stop():
                house.host.stop()
            case Open() | Begin():
                if not self.is_owner:
                    raise ProtocolError("only who has started the engine opens and begins")
                house.is_wanted = True
                house.is_begun = house.is_begun or isinstance(message, Begin)
                house.host.wake()

    def over(self, message: FromEngine) -> None:
        """The last word. What of its events was taken in and has not become durable by now it is told of; whatever else
        it has no answer to was not taken in."""
        for number in self._accepted:
            self.say(Refused(number, NoAnswer.code, _UNKNOWN))
        self.say(message)

    def gone(self) -> None:
        """It hears nothing more."""
        if self._is_gone:
            return
        self._is_gone = True
        house = self._house
        for hear in house.leaving:
            hear(self.say)
        self.say = nobody
        for stream in self._streams.values():
            if stream is not None:
                stream.cut()
        for reader in self._readers.values():
            if reader is not None:
                reader.cut()
                house.readers.remove(reader)
        if self._say_now in house.fan.listeners:
            house.fan.listeners.remove(self._say_now)
        house.left(self)

    def _say_now(self, message: FromEngine) -> None:
        """As long as it is there."""
        self.say(message)

    # ------------------------------------------------------------------ streams and readers

    def _stream(self, number: int) -> Stream:
        stream = self._streams.get(number)
        if stream is None:
            raise ProtocolError(f"stream {number} is not open")
        return stream

    def _reader(self, number: int) -> Reader:
        reader = self._readers.get(number)
        if reader is None:
            raise ProtocolError(f"reader {number} is not open")
        return reader

    def _open_stream(self, message: OpenStream) -> None:
        inside = self._house.inside
        number, name = message.stream, message.name
        if number in self._streams:
            raise ProtocolError(f"stream {number} is open already")
        _check_name(name)
        if name.endswith(UNREADABLE):
            raise ProtocolError(f"a stream has the name {name!r:.300}, which is the engine's own")
        if inside.streams.is_open(name):
            self._refuse(InUse(f"the source {name!r:.300} is being read by another client"))
            return

        def there(feed: Feed) -> None:
            if self._is_gone:
                inside.streams.unexpected(name)
                return
            stream = Stream(number, feed, inside.streams, self.say, is_repeatable=message.is_repeatable)
            self._streams[number] = stream
            inside.streams.opened(stream)
            head = feed.head
            self.say(
                StreamOpened(
                    number,
                    head.number,
                    head.position,
                    head.fed,
                    head.spread,
                    feed.partition,
                    head.ended,
                    feed.calls,
                )
            )

        inside.streams.expected(name)
        try:
            inside.attaching.feed(name, in_order=message.in_order, then=there)
        except Full as e:
            inside.streams.unexpected(name)
            self._refuse(e)
        else:
            self._streams.setdefault(number, None)

    def _open_reader(self, message: OpenReader) -> None:
        house, inside = self._house, self._house.inside
        number, by = message.reader, TakenBy(message.event, message.name)
        if number in self._readers:
            raise ProtocolError(f"reader {number} is open already")
        _check_name(message.name)
        if message.name == _API_REPLIES.name:
            raise ProtocolError(f"a reader has the name {message.name!r}, which is the engine's own")
        if house.is_being_read(message.name):
            self._refuse(InUse(f"{message.name!r:.300} is being written by another client"))
            return
        is_own = by.event is not None and (by.event.startswith(AT) or by.event == SPANS)  # no output of the app's
        if (
            by.event is not None
            and by.event not in inside.app.taken
            and not (is_own and by.log in inside.app.record.logs)
        ):
            if by.event not in inside.app.topology.outputs or house.is_begun:
                text = f"output {by.event!r:.300} is not taken in this run: its workers do not send it"
                self._refuse(UsageError(f"{text}; name it when the run is started"))
                return
            inside.app.taken |= {by.event}
        if by.event is None:
            inside.attaching.calls = True

        def there(take: Take, dead: DeadOutputs) -> None:
            house.coming_readers.discard(by.name)
            if self._is_gone:
                return
            host = house.host
            around = Around(
                self._say_now, house.notice, host.stir, lambda: house.is_serving, host.soon, host.later, house.clock
            )
            reader = Reader(number, by, take, dead, around)
            self._readers[number] = reader
            house.readers.append(reader)
            self.say(ReaderOpened(number, take.head.length, take.head.tail))

        house.coming_readers.add(by.name)
        try:
            inside.attaching.take(by, there)
        except (Full, UsageError) as e:
            house.coming_readers.discard(by.name)
            self._refuse(e)
        else:
            self._readers.setdefault(number, None)

    def _refuse(self, error: GrapeError) -> None:
        """What a client needs cannot be; it may go."""
        self.say(Failed(error.code, str(error)))

    # ------------------------------------------------------------------ events and questions

    def _emit(self, message: Emit) -> None:
        house = self._house
        say, number = self.say, message.number
        try:
            if not house.is_begun:
                raise Full("the engine has not begun")
            inside = house.inside
            event = check_emit(message, inside.app.limits.max_event)

            def durable() -> None:
                self._accepted.discard(number)
                say(Emitted(number))

            inside.clients.accept(event, house.clock.now(), durable)
            self._accepted.add(number)
            house.host.stir()
        except ProtocolError:
            raise
        except GrapeError as e:
            say(Refused(number, e.code, str(e)))

    def _ask(self, message: Ask) -> None:
        verb = self._house.verbs.get(message.verb)
        if verb is None:
            known = ", ".join(sorted(self._house.verbs)) or "none yet"
            self.say(Refused(message.number, "unsupported", f"no verb {message.verb!r:.100} here; there are {known}"))
            return
        try:
            verb(message, self.say)
        except ProtocolError:
            raise
        except GrapeError as e:
            self.say(Refused(message.number, e.code, str(e)))


def _check_name(name: str) -> None:
    """Of a stream or reader.

    Raises:
        ProtocolError: it cannot have it.
    """
    try:
        check_text(name, "the name of a stream or reader", _MAX_NAME)
    except ValueError as e:
        raise ProtocolError(str(e)) from None
