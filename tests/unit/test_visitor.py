"""Visitors of a house: credit, what is under way when they go, names that run out; then whatever they may say."""

from __future__ import annotations

import contextlib
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grape.errors import GrapeError, ProtocolError, TooLarge
from grape.model import batch as codec
from grape.model.address import MAX_LOGS
from grape.protocol.door import (
    WINDOW,
    Accepted,
    Answer,
    Append,
    Ask,
    BadInput,
    Batches,
    Begin,
    CloseStream,
    Emit,
    Emitted,
    Failed,
    FromClient,
    Greeting,
    Lookup,
    Named,
    Open,
    OpenReader,
    OpenStream,
    Part,
    ReaderOpened,
    StartReader,
    Stop,
    StreamOpened,
    TakeReplies,
    Took,
    Unread,
    Verdicts,
)
from grape.protocol.framing import client_frames, frame
from unit.visiting import PARTITIONS, Client, Rig, part

LARGE: Final = codec.one("word", None, b"x" * (1 << 20))


def large(count: int) -> list[Part]:
    return [Part("word", i % PARTITIONS, 1, memoryview(LARGE)) for i in range(count)]


def streaming(rig: Rig, name: str = "s") -> Client:
    client = Client(rig)
    client.ask(OpenStream(0, name), StreamOpened)
    return client


def position(rig: Rig, name: str = "s") -> tuple[int, bytes]:
    """As the next client finds it."""
    client = Client(rig)
    opened = client.ask(OpenStream(0, name), StreamOpened)
    client.go()
    return opened.number, opened.position


# ------------------------------------------------------------------ streams


def test_over_the_window_a_client_is_cut_and_nothing_of_it_is_in() -> None:
    rig = Rig()
    client = streaming(rig)
    client.say(Append(0, 1, b"one", large(1)))  # its commit is under way, and stays so
    for number in range(2, 17):
        client.say(Append(0, number, b"more", large(1)))
    assert 16 * len(LARGE) > WINDOW
    with pytest.raises(ProtocolError, match="under way"):
        client.say(Append(0, 17, b"more", large(1)))
    client.go()
    rig.settle()
    assert position(rig) == (1, b"one")


@pytest.mark.parametrize(
    "beside",
    [
        {"bad": [BadInput("f:1", "word", b"x" * (1 << 20), "k", "t")]},
        {"bad": [BadInput("f:1", "word", b"", "k", "t" * (1 << 20))]},
        {"position": bytes(1 << 20)},
    ],
)
def test_what_is_no_event_counts_in_the_window(beside: dict[str, Any]) -> None:
    rig = Rig()
    client = streaming(rig)
    with pytest.raises(ProtocolError, match="under way"):  # noqa: PT012
        for number in range(1, 30):
            client.say(Append(0, number, **{"position": b"", "parts": [], **beside}))


def test_one_large_step_may_always_be() -> None:
    rig = Rig()
    client = streaming(rig)
    for number in range(1, 4):
        client.say(Append(0, number, b"", large(10), more=True))
    client.say(Append(0, 4, b"all", large(10)))
    rig.settle()
    assert client.last(Accepted).number == 4


def test_a_step_that_no_commit_holds_is_refused() -> None:
    rig = Rig(largest_commit=8 << 20)
    client = streaming(rig)
    client.say(Append(0, 1, b"", large(4), more=True))
    with pytest.raises(TooLarge, match="a step of"):
        client.say(Append(0, 2, b"", large(4), more=True))
    client.go()
    assert position(rig) == (0, b"")


def test_what_comes_together_is_one_commit_only_as_far_as_one_holds_it() -> None:
    rig = Rig(largest_commit=8 << 20)
    client = streaming(rig)
    for number in range(1, 11):
        client.say(Append(0, number, b"%d" % number, large(1)))
    rig.settle()
    assert client.last(Accepted).number == 10


def test_a_step_that_was_begun_is_forgotten_with_its_client() -> None:
    rig = Rig()
    client = streaming(rig)
    client.say(Append(0, 1, b"", [part("word", 1)], more=True))
    client.go()
    client = streaming(rig)
    client.ask(Append(0, 1, b"p", [part("word", 2)]), Accepted)
    assert rig.app.stats.fed == {"word": 1}


@pytest.mark.parametrize("is_repeatable", [True, False])
def test_what_was_under_way_when_its_client_goes(is_repeatable: bool) -> None:
    """A commit is decided. What waits behind it is given up if it can be read again."""
    rig = Rig()
    client = Client(rig)
    client.ask(OpenStream(0, "s", is_repeatable=is_repeatable), StreamOpened)
    for number in (1, 2, 3):
        client.say(Append(0, number, b"%d" % number, [part("word", number)]))
    client.go()
    other = Client(rig)
    other.say(OpenStream(0, "s"))
    assert other.last(Failed).code == "in-use"
    rig.settle()
    assert position(rig) == ((1, b"1") if is_repeatable else (3, b"3"))


def test_what_comes_before_the_run_begins_waits_and_nothing_of_it_is_in() -> None:
    """A run that cannot begin removes the directory that it has made, and whatever would be in there."""
    rig = Rig(begins=False)
    stream = OpenStream(0, "s", is_repeatable=False)
    rig.owner.ask(stream, StreamOpened)
    rig.owner.say(Append(0, 1, b"one", [part("word", 1)]))
    rig.advance(1)
    assert (rig.owner.count(Accepted), rig.app.stats.fed) == (0, {})
    rig.begin()
    assert rig.owner.last(Accepted) == Accepted(0, 1)
    assert rig.app.stats.fed == {"word": 1}


def test_ids_that_were_promised_are_free_with_their_client() -> None:
    rig = Rig()
    client, other = streaming(rig), streaming(rig, "r")
    asked = [Named("a", 1, None)]
    assert client.ask(Lookup(0, 1, asked), Verdicts).verdicts == ["new"]
    assert other.ask(Lookup(0, 1, asked), Verdicts).verdicts == ["known"]
    client.go()
    assert other.ask(Lookup(0, 2, asked), Verdicts).verdicts == ["new"]


# ------------------------------------------------------------------ names


def test_numbers_of_streams_and_readers_that_run_out_are_refused() -> None:
    rig = Rig()
    client = streaming(rig, "known")
    rig.app.record = msgspec.structs.replace(rig.app.record, next_log=MAX_LOGS - 1_025)
    client.ask(OpenStream(1, "last"), StreamOpened)
    assert client.ask(OpenStream(2, "new"), Failed).code == "full"
    assert client.ask(OpenReader(2, None, "new"), Failed).code == "full"
    client.go()
    assert position(rig, "known") == (0, b"")
    assert position(rig, "last") == (0, b"")


def test_replies_are_asked_for_once() -> None:
    rig = Rig()
    first, second = Client(rig), Client(rig)
    first.say(TakeReplies())
    first.go()
    second.say(TakeReplies(), TakeReplies())
    rig.settle()
    assert len(rig.house.fan.listeners) == 1


# ------------------------------------------------------------------ readers


def reading(rig: Rig, length: int = 0) -> Client:
    client = Client(rig)
    client.ask(OpenReader(0, None, "mine"), ReaderOpened)
    client.say(StartReader(0, length, b""))
    return client


def test_a_reader_that_comes_while_one_before_it_is_committed() -> None:
    rig = Rig()
    first = reading(rig, 5)  # its commit is under way, and stays so
    first.go()
    second = Client(rig)
    second.say(OpenReader(0, None, "mine"))
    assert second.last(ReaderOpened).length == 0
    second.say(StartReader(0, 7, b""))
    rig.settle()
    second.go()
    assert Client(rig).ask(OpenReader(0, None, "mine"), ReaderOpened).length == 7


def test_length_that_comes_while_what_wrote_nowhere_is_committed() -> None:
    rig = Rig()
    rig.put(1, 2, 3)
    client = Client(rig)
    client.ask(OpenReader(0, "total", "mine"), ReaderOpened)
    client.ask(StartReader(0, 0, b""), Batches)
    client.ask(Took(0, 1, 1, 0, b""), Batches)
    rig.house.readers[-1].flush()  # as it is done by itself some milliseconds later; that commit is under way
    client.say(Took(0, 2, 1, 5, b"tail"))
    rig.settle()
    (item,) = client.last(Batches).items
    assert (item.first, item.events) == (2, 3)
    assert rig.app.stats.taken["total"] == 2  # that commit was heard of, too
    client.go()
    assert Client(rig).ask(OpenReader(0, "total", "mine"), ReaderOpened) == ReaderOpened(0, 5, b"tail")


def test_what_was_given_when_its_client_goes_is_given_again() -> None:
    rig = Rig()
    rig.put(1, 2, 3)
    for taken in range(3):
        client = Client(rig)
        client.ask(OpenReader(0, "total", "mine"), ReaderOpened)
        (item,) = client.ask(StartReader(0, taken, b""), Batches).items
        assert item.first == taken
        client.ask(Took(0, client.last(Batches).number, 1, taken + 1, b""), Batches)
        client.go()
        rig.settle()


# ------------------------------------------------------------------ whatever they say

NUMBERS: Final = [0, 1, 2, 3, -1, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)]
NAMES: Final = ["s", "r", "word", "away", "total", "", "total=@unreadable", "reply=@api", "n" * 17_000, "é\0", "main"]
BODIES: Final = [
    codec.one("word", "k", 1),
    codec.one("away", None, 1),
    codec.one("word", None, 1, hops=3),
    codec.one("word", None, 1, ids={0: "own"}),
    codec.encode_run(codec.RunMeta(["word"]), 3, None, [1, 2, 3]),
    b"",
    b"garbage",
    codec.one("word", "k", 1)[:-1],
]
DATA: Final = [b"", b"\xc0", b"\xc1", b"x" * 5_000]
EVIL: Final[list[Any]] = [*NUMBERS, *NAMES, *DATA, *BODIES, None, True, []]
places = st.sampled_from([0, 0, 0, 1])
parts = st.builds(
    lambda body, partition: Part("word", partition, 3 if body is BODIES[4] else 1, memoryview(body)),
    st.sampled_from([BODIES[0], BODIES[3], BODIES[4]]),
    st.integers(0, PARTITIONS - 1),
)
named = st.lists(st.sampled_from([Named("i", 1, None), Named("j", 2, "k")]), max_size=2)
bad = st.builds(BadInput, st.just("f:1"), st.just("word"), st.just(b"raw"), st.just("bad"), st.just("text"))
unread = st.builds(
    Unread, st.just(0), st.integers(0, 2), st.just(1), st.just("total"), st.none(), st.just(b""), st.just("")
)
messages: st.SearchStrategy[FromClient] = st.one_of(
    st.builds(OpenStream, st.just(1), st.sampled_from(["s", "r"]), st.booleans(), st.booleans()),
    st.builds(
        Append,
        places,
        st.sampled_from([1, 1, 1, 1, 0]),
        st.just(b"p"),
        st.lists(parts, min_size=1, max_size=3),
        st.lists(bad, max_size=1),
        named,
        st.integers(0, 3),
        st.sampled_from([False, False, True]),
        st.sampled_from([False, False, True]),
    ),
    st.builds(OpenReader, st.integers(1, 2), st.sampled_from([None, "total"]), st.sampled_from(["mine", "m", "n"])),
    st.builds(StartReader, st.integers(0, 2), st.integers(0, 3), st.just(b"")),
    st.builds(
        Took, places, st.just(0), st.integers(0, 3), st.integers(0, 2), st.just(b""), st.lists(unread, max_size=1)
    ),
    st.builds(Lookup, places, st.just(1), named),
    st.builds(CloseStream, places, st.booleans()),
    st.builds(
        Emit, st.just(1), st.sampled_from(["word", "away"]), st.none() | st.just("k"), st.just(b"\x01"), st.just("")
    ),
    st.builds(Ask, st.just(1), st.sampled_from(["numbers", "progress", "none"])),
    st.sampled_from([TakeReplies(), Greeting(1), Open(), Begin(), Stop()]),
)
forgeries = st.none() | st.tuples(st.integers(0, 40), st.integers(0, 40))
steps = st.lists(st.tuples(messages, forgeries, st.sampled_from(["settle", "go on", "wait"])), max_size=14)
SETTINGS: Final = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


def forged(message: FromClient, where: int, what: int) -> FromClient | None:
    """The message with another value, of the same type, at one place. None: no decoder takes it."""
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    places: list[tuple[list[Any], int]] = []

    def walk(values: list[Any], first: int) -> None:
        for i in range(first, len(values)):
            places.append((values, i))
            if isinstance(values[i], list):
                walk(values[i], 0)

    walk(packed, 1)
    if not places:
        return None
    values, i = places[where % len(places)]
    fitting = [value for value in EVIL if type(value) is type(values[i])] or EVIL
    values[i] = fitting[what % len(fitting)]
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=FromClient)
    except msgspec.MsgspecError:
        return None


class Hostile:
    """Comes again whenever it is cut. ``expected``: events that have to be in."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.expected = 0
        self._emits = 0
        self._comings = 0
        self._heads: dict[str, int] = {}
        self.come()

    def come(self) -> None:
        client = self.client = Client(self.rig)
        self._names = {0: "s"}
        self.looked_up: list[Named] = []
        self._events: dict[str, dict[int, int]] = {}
        opened = client.ask(OpenStream(0, "s"), StreamOpened)
        assert opened.number == self._heads.get("s", 0)
        self._comings += 1
        client.ask(OpenReader(0, "total", f"mine {self._comings}"), ReaderOpened)
        head = client.last(ReaderOpened)
        client.say(StartReader(0, head.length, head.tail))
        self.rig.settle()

    def do(self, message: FromClient, forgery: tuple[int, int] | None) -> None:
        client = self.client
        if isinstance(message, Append) and message.stream in self._names:
            message = msgspec.structs.replace(message, number=self._next(message.stream) - 1 + message.number)
        if isinstance(message, Lookup):  # what is durable by now would never be promised again
            fresh = [one._replace(id=f"{one.id}{self._comings}") for one in message.ids]
            message = msgspec.structs.replace(message, ids=fresh)
        if isinstance(message, Append) and message.ids:
            message = msgspec.structs.replace(message, ids=self.looked_up)
        if isinstance(message, Took) and client.count(Batches):
            message = msgspec.structs.replace(message, number=client.last(Batches).number)
        if forgery is not None:
            made = forged(message, *forgery)
            if made is None:
                return
            message = made
        if isinstance(message, Append):  # nobody works here, so that nothing that waits for that would ever be in
            message = msgspec.structs.replace(message, at_end=False)
        if isinstance(message, Emit) and message.id:  # each is another event
            self._emits += 1
            message = msgspec.structs.replace(message, id=f"{message.id}{self._emits}")
        try:
            client.say(message)
        except (ProtocolError, TooLarge):
            self.go()
            self.come()
            return
        match message:
            case Lookup():
                self.looked_up = message.ids
            case OpenStream() if message.name not in self._names.values():  # else it is refused, as it is in use
                self._names.setdefault(message.stream, message.name)
            case Append():
                events = self._events.setdefault(self._names[message.stream], {})
                events.setdefault(message.number, sum(part.events for part in message.parts))

    def _next(self, stream: int) -> int:
        name = self._names[stream]
        return max([self._heads.get(name, 0), *self._events.get(name, {})]) + 1

    def go(self) -> None:
        """Then what was accepted is in, and nothing else."""
        self.client.go()
        self.rig.advance(1.0)
        self.expected += self.client.count(Emitted)
        for name, events in self._events.items():
            before, (number, _) = self._heads.get(name, 0), position(self.rig, name)
            self.expected += sum(count for at, count in events.items() if before < at <= number)
            self._heads[name] = number
        assert sum(self.rig.app.stats.fed.values()) == self.expected


def still_works(rig: Rig) -> None:
    """For a client that keeps the rules."""
    client = Client(rig)
    opened = client.ask(OpenStream(0, "of the other"), StreamOpened)
    client.ask(Append(0, opened.number + 1, b"p", [part("word", 1)]), Accepted)
    assert client.last(Accepted).number == opened.number + 1
    assert client.ask(Emit(9, "word", "k", b"\x01"), Emitted).number == 9
    client.ask(Ask(1, "progress"), Answer)
    client.ask(OpenReader(0, "total", "of the other"), ReaderOpened)
    assert [item.events for item in client.ask(StartReader(0, 0, b""), Batches).items] == [3]
    client.say(Took(0, 1, 3, 5, b""))
    client.go()
    rig.advance(1.0)


def packed(argument: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(argument))


TEMPLATES: Final[list[list[FromClient]]] = [
    [OpenStream(1, "r", False, True)],
    [Append(0, 1, b"p", [Part("word", 1, 1, memoryview(BODIES[0]))], [BadInput("f", "word", b"r", "k", "t")], size=3)],
    [Lookup(0, 1, [Named("i", 1, "k")]), Append(0, 1, b"p", [], ids=[Named("i", 1, "k")], at_end=True)],
    [Lookup(0, 1, [Named("i", 1, "k")])],
    [OpenReader(1, "total", "m")],
    [OpenReader(1, "total", "m"), OpenReader(2, "total", "m")],
    [OpenReader(1, "total", "m"), StartReader(1, 1, b"t")],
    [Took(0, 1, 3, 1, b"t", [Unread(0, 0, 1, "total", "k", b"r", "t")])],
    [Took(0, 1, 1, 0, b"", []), Took(0, 1, 1, 0, b"", [Unread(0, 1, 1, "total", None, b"", "")])],
    [CloseStream(0, True)],
    [Emit(1, "word", "k", b"\x01", "i", 5, "r")],
    [Ask(1, "progress")],
    [Ask(1, "retry", packed({"ids": ["main.0-0", "main.1-h0"], "held": True}))],
    [Ask(1, "bury-events", packed({"ids": ["main.0:0.0"]}))],
    [Ask(1, "delete-state", packed({"node": "Count", "keys": [b"k", b"l"]}))],
]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: type(template[-1]).__name__)
def test_every_field_with_every_value(template: list[FromClient]) -> None:
    """The last message with each field forged in each way, said twice, with and without waiting in between."""
    rig = Rig()
    rig.put(1, 2, 3)
    hostile = Hostile(rig)
    *before, last = template
    for where in range(20):
        for what in range(14):
            for message in before:
                hostile.do(message, None)
            if what % 3:
                rig.settle()
            hostile.do(last, (where, what))
            if what % 2:
                rig.settle()
            hostile.do(last, (where, what))
            if hostile.looked_up:  # what was promised is fed
                hostile.do(Append(0, 1, b"p", [], ids=hostile.looked_up), None)
            hostile.go()
            hostile.come()
    hostile.go()
    still_works(rig)


@SETTINGS
@given(steps)
def test_whatever_a_client_says_is_its_own_matter(said: list[tuple[FromClient, tuple[int, int] | None, str]]) -> None:
    rig = Rig()
    rig.put(1, 2, 3)
    hostile = Hostile(rig)
    for message, forgery, then in said:
        hostile.do(message, forgery)
        if then != "go on":
            rig.settle()
        if then == "wait":
            rig.advance(0.05)
    hostile.go()
    assert len(rig.house.readers) == len(rig.house.visitors) == 1  # the owner's
    still_works(rig)


@SETTINGS
@given(st.lists(messages, max_size=6), st.data())
def test_whatever_bytes_come(said: list[FromClient], draw: st.DataObject) -> None:
    rig = Rig()
    rig.put(1, 2, 3)
    client = Client(rig, greets=False)
    packed = bytearray(b"".join(bytes(frame(message)) for message in [Greeting(1), *said]))
    for _ in range(draw.draw(st.integers(0, 6))):
        packed[draw.draw(st.integers(0, len(packed) - 1))] = draw.draw(st.integers(0, 255))
    packed += draw.draw(st.binary(max_size=20))
    frames = client_frames()
    with contextlib.suppress(GrapeError):
        at = 0
        while at < len(packed):
            place = frames.buffer()
            size = min(len(place), len(packed) - at)
            place[:size] = packed[at : at + size]
            for message in frames.filled(size):
                client.visitor.received(message)
            frames.check()
            at += size
    client.go()
    rig.advance(1.0)
    still_works(rig)
