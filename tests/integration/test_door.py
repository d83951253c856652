"""The door of a real engine, with a client that has nothing of Grape's own: what docs/door.md says is what happens."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from tests.command import GRAPE, grape
from tests.door import (
    Client,
    Owner,
    come,
    data_of,
    engine,
    engine_process,
    part,
    path_of,
    wait_for_end,
)

from grape import Event, Node, Topology
from grape.host import door
from grape.model import batch as codec
from grape.model.topology import Limits
from grape.protocol.door import (
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
    Ended,
    Failed,
    FromClient,
    Greeting,
    Halt,
    Lookup,
    Named,
    Open,
    OpenReader,
    OpenStream,
    Part,
    ReaderOpened,
    Refused,
    Replies,
    StartReader,
    Stop,
    StreamOpened,
    TakeReplies,
    Took,
    Unread,
    Verdicts,
)
from grape.protocol.framing import MAX_FRAME, frame
from grape.protocol.outcomes import Outcomes

LIMITS: Final = Limits(max_event=100_000, batch_max=50_000, batch_target=20_000)
APP: Final = """
from grape import Node, Topology
t = Topology("door")
t.add_output("out")
class Echo(Node):
    def process(self, event):
        self.emit("out", event.data)
t.add_slot("x", Echo())
"""

t = Topology("door")
t.add_output("out")
t.add_output("other")


class Echo(Node):
    def process(self, event: Event) -> None:
        self.emit("out", event.data)


class Answers(Node):
    def process(self, event: Event) -> None:
        self.reply(event.data)


t.add_slot("x", Echo())
t.add_slot("ask", Answers())
t.add_slot("x", Echo(name="also"), pool="more")


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    """Of an engine that takes "out", with whatever else comes to it."""
    with engine(t, tmp_path / "d", partitions=4, limits=LIMITS) as owner:
        yield owner.begin_taking("out")


@pytest.fixture
def client(owner: Owner, tmp_path: Path) -> Iterator[Client]:
    client = come(tmp_path / "d").greeted()
    yield client
    client.close()


def another(owner: Owner) -> Client:
    return come(Path(owner.described.data)).greeted()


def still_serves(owner: Owner) -> None:
    """It takes events and gives them, one for each pool."""
    other = another(owner)
    other.ask(Emit(1, "x", None, codec.encode("still here")), for_=Emitted)
    found: list[Any] = []
    while found.count("still here") < 2:
        found += owner.take_some()
    other.close()


# ------------------------------------------------------------------ the socket


def test_the_socket_is_its_users_alone_and_goes_with_the_run(owner: Owner, client: Client, tmp_path: Path) -> None:
    path = path_of(tmp_path / "d")
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    owner.end_run()
    client.hear(Ended)
    client.close()
    owner.leave()
    assert not path.exists()


def test_a_directory_with_a_long_path(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 30) / ("er" * 60)
    data.parent.mkdir(parents=True)
    with engine(t, data) as owner:
        owner.begin_taking("out")
        still_serves(owner)
        owner.end_run()
        owner.leave()
    assert not path_of(data).exists()


def test_what_a_killed_engine_leaves_is_replaced(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(APP)
    owner = engine_process(app, tmp_path / "d").begin_taking("out")
    os.kill(owner.engine_pid, signal.SIGKILL)
    owner.leave()
    with pytest.raises(ConnectionRefusedError):
        come(tmp_path / "d")
    owner = engine_process(app, tmp_path / "d").begin_taking("out")
    assert stat.S_IMODE(path_of(tmp_path / "d").stat().st_mode) == 0o600
    client = come(tmp_path / "d").greeted()
    client.ask(Emit(1, "x", None, codec.encode(1)), for_=Emitted)
    client.close()
    assert owner.take(1) == [1]
    owner.end_run()
    owner.leave()


# ------------------------------------------------------------------ events and questions


def emit(number: int, data: Any, **fields: Any) -> Emit:
    return Emit(number, **{"name": "x", "key": None, "data": codec.encode(data), **fields})


def test_an_event_is_durable_or_refused_with_the_reason(owner: Owner, client: Client) -> None:
    assert client.ask(emit(7, "one"), for_=Emitted).number == 7
    refused = client.ask(emit(8, 1, name="xx"), for_=Refused)
    assert (refused.number, refused.code) == (8, "unknown-event")
    assert "did you mean 'x'?" in refused.text
    assert client.ask(emit(9, "t" * 100_001), for_=Refused).code == "too-large"
    for number in (10, 11):
        assert client.ask(emit(number, "two", key="k", id="same"), for_=Emitted).number == number
    assert client.ask(emit(12, "three", key="k", id="same"), for_=Refused).code == "conflict"
    assert sorted(owner.take(4)) == ["one", "one", "two", "two"]
    assert owner.end_run().counts.fed == {"x": 2}


def test_before_it_has_begun_nothing_comes_in(tmp_path: Path) -> None:
    with engine(t, tmp_path / "d") as owner:
        assert owner.ask(Ask(1, "numbers"), for_=Refused).code == "unsupported"
        owner.open()
        assert owner.ask(emit(1, 1), for_=Refused).code == "full"
        early = come(tmp_path / "d")
        early.say(Greeting(1), emit(3, 1))
        assert early.hear(Refused, number=3).code == "full"
        owner.begin()
        early.say(emit(4, 1))
        assert early.hear(Emitted).number == 4
        early.close()


def test_questions(owner: Owner, client: Client) -> None:
    numbers = msgspec.msgpack.decode(client.ask(Ask(3, "numbers"), for_=Answer).value)
    assert numbers["pools"].keys() == {"main", "more"}
    assert client.progress().backlog == 0
    assert client.engine_pid == os.getpid()
    refused = client.ask(Ask(4, "dance"), for_=Refused)
    assert (refused.number, refused.code) == (4, "unsupported")
    assert (
        "no verb 'dance' here; there are answer, bury-events, delete-state, drop, drop-events, levels, numbers, "
        in refused.text
    )


def test_each_finds_its_own_replies(owner: Owner, client: Client) -> None:
    other = another(owner)
    for each, name in ((client, "mine"), (other, "yours")):
        each.say(TakeReplies(), TakeReplies(), emit(1, name, name="ask", request=name))
    for each, name in ((client, "mine"), (other, "yours")):
        found: list[tuple[str | None, Any]] = []
        while name not in dict(found):
            for batch in each.hear(Replies).batches:
                for run in codec.runs_of(codec.body_of(batch, codec.header_of(batch))):
                    found += zip(codec.keys_of(run) or [], codec.data_of(run) or [], strict=True)
        assert dict(found)[name] == name
        assert len(found) == len(dict(found))  # also for who has asked twice


# ------------------------------------------------------------------ streams


def test_a_stream_goes_on_from_its_number_and_position(owner: Owner, client: Client) -> None:
    opened = client.stream("s")
    assert opened == StreamOpened(0, 0, b"", 0, 0, None, False, False)
    client.append(1, b"p1", part("x", 1, 2))
    client.append(2, b"p2", part("x", 3, partition=3), bad=[BadInput("f:3", "x", b"raw", "bad", "text")], size=99)
    client.say(Append(0, 1, b"again", [part("x", 7)]))  # is accepted, without effect
    client.hear(Accepted, number=2)
    assert client.progress().fed_bytes == 99
    client.say(CloseStream(0, at_end=False))
    assert client.stream("s", 1) == StreamOpened(1, 2, b"p2", 3, 2, None, False, False)
    assert sorted(owner.take(6)) == [1, 1, 2, 2, 3, 3]
    outcomes = owner.end_run()
    assert (outcomes.counts.fed, outcomes.dead_stored) == ({"x": 3}, 1)


def test_a_step_of_several_frames_is_one(owner: Owner, client: Client) -> None:
    client.stream("s")
    client.say(Append(0, 1, b"ignored", [part("x", 1)], more=True))
    assert not client.has_heard(Accepted)
    client.close()
    client = another(owner)
    assert client.stream("s").number == 0
    client.say(Append(0, 1, b"", [part("x", 2)], more=True))
    client.append(2, b"both", part("x", 3))
    client.close()
    assert another(owner).stream("s") == StreamOpened(0, 2, b"both", 2, 2, None, False, False)
    assert sorted(owner.take(4)) == [2, 2, 3, 3]


def test_a_stream_in_order_has_one_partition(owner: Owner, client: Client) -> None:
    assert client.stream("s").partition is None  # as it was opened the first time
    client.say(CloseStream(0, at_end=False))
    where = client.stream("s", 1, in_order=True).partition
    assert where is not None
    client.say(Append(1, 1, b"", [part("x", 1, partition=where)]))
    assert client.hear(Accepted).number == 1
    client.say(Append(1, 2, b"", [part("x", 1, partition=where ^ 1)]))
    assert is_cut(client)


def test_the_end_of_the_input(owner: Owner, client: Client) -> None:
    client.stream("s")
    client.append(1, b"p", part("x", 1))
    client.append(2, b"p", part("x", "end"), at_end=True)
    client.say(CloseStream(0, at_end=True))
    assert client.stream("s", 1) == StreamOpened(1, 2, b"p", 1, 2, None, True, False)
    assert sorted(map(str, owner.take(4))) == ["1", "1", "end", "end"]


def is_cut(client: Client, says: str = "") -> bool:
    """It hears why, and is not read any more."""
    failed = client.hear(Failed)
    assert failed.code == "protocol", failed
    assert says in failed.text, failed
    client.end.shutdown(socket.SHUT_WR)
    return not any(isinstance(message, Failed) for message in client.last_words())


def forged(events: int, body: bytes, name: str = "x", partition: int = 0) -> Part:
    return Part(name, partition, events, memoryview(body))


ONE: Final = codec.one("x", None, 1)
WRONG: Final[dict[str, tuple[FromClient, str]]] = {
    "a gap": (Append(0, 3, b"", [part("x", 1)]), "append 3 comes after 1"),
    "partition": (Append(0, 2, b"", [part("x", 1, partition=4)]), "partition 4 of 4"),
    "no partition": (Append(0, 2, b"", [part("x", 1, partition=-1)]), "partition -1"),
    "name": (Append(0, 2, b"", [part("y", 1)]), "no slot listens"),
    "another name": (Append(0, 2, b"", [forged(1, codec.one("ask", None, 1))]), "a run of ['ask']"),
    "the second part": (Append(0, 2, b"", [part("x", 1), forged(1, b"")]), ""),
    "count": (Append(0, 2, b"", [forged(2, ONE)]), "holds 1"),
    "no events": (Append(0, 2, b"", [forged(0, b"")]), "holds 0"),
    "less than none": (Append(0, 2, b"", [forged(-1, ONE)]), "holds 1"),
    "cut off": (Append(0, 2, b"", [forged(1, ONE[:-1])]), ""),
    "garbage": (Append(0, 2, b"", [forged(1, b"garbage garbage garbage")]), ""),
    "hops": (Append(0, 2, b"", [part("x", 1, hops=1)]), "what only an engine adds"),
    "only": (Append(0, 2, b"", [part("x", 1, only=["Echo"])]), "what only an engine adds"),
    "contexts": (Append(0, 2, b"", [part("x", 1, contexts=[0])]), "context"),
    "batch size": (Append(0, 2, b"", [part("x", *["t" * 1000] * 60)]), "the limit is 50000"),
    "event size": (Append(0, 2, b"", [part("x", "t" * 400_000)]), "the limit is"),
    "size": (Append(0, 2, b"", [part("x", 1)], size=-1), "size"),
    "huge size": (Append(0, 2, b"", [part("x", 1)], size=(1 << 64) - 1), "size"),
    "ids": (Append(0, 2, b"", [part("x", 1)], ids=[Named("i", 1, None)]), "promised"),
    "content": (Append(0, 2, b"", [part("x", 1)], ids=[Named("i", -1, None)]), "promised"),
    "a lookup of no id": (Lookup(0, 1, [Named("", 1, None)]), "id"),
    "a lookup of a long id": (Lookup(0, 1, [Named("i" * 1025, 1, None)]), "id"),
    "a lookup of no content": (Lookup(0, 1, [Named("i", 1 << 32, None)]), "content"),
    "a lookup of no key": (Lookup(0, 1, [Named("i", 1, "")]), "key"),
    "another stream": (Append(1, 2, b"", []), "stream 1 is not open"),
    "opened again": (OpenStream(0, "s2"), "stream 0 is open already"),
    "no name": (OpenStream(1, ""), "name"),
    "a long name": (OpenStream(1, "n" * 16_385), "name"),
    "a name of the engine's own": (OpenStream(1, "out=@unreadable"), "name"),
    "a reader's name of the engine's own": (OpenReader(1, None, "reply=@api"), "name"),
    "a reader without a name": (OpenReader(1, "out", ""), "name"),
    "not open": (Took(5, 1, 1, 0, b""), "reader 5 is not open"),
    "not the owner": (Begin(), "only who has started"),
    "nor here": (Open(), "only who has started"),
    "a key": (emit(1, 1, key=""), "a key has 1 to"),
    "an id": (emit(1, 1, id="i" * 1025), "id"),
    "a request": (emit(1, 1, request="r" * 1025), "request"),
    "no data": (Emit(1, "x", None, b""), ""),
    "two values": (Emit(1, "x", None, b"\xc0\xc0"), ""),
    "a wait": (emit(1, 1, wait=-1), "wait"),
    "an argument of no text": (Ask(1, "answer", msgspec.Raw(b"\xa1\xff")), "verb 'answer'"),  # F41
    "nor in a list": (Ask(1, "outgoing", msgspec.Raw(b"\x91\xa1\xff")), "verb 'outgoing'"),
    "a deep argument": (Ask(1, "outgoing", msgspec.Raw(b"\x91" * 100_000 + b"\xc0")), ""),
    "greeted again": (Greeting(1), "greet"),
}


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    with engine(t, tmp_path_factory.mktemp("door") / "d", partitions=4, limits=LIMITS) as owner:
        yield owner.begin_taking("out")


@pytest.mark.parametrize("what", WRONG)
def test_who_breaks_the_protocol_is_cut_and_changes_nothing(lasting: Owner, what: str) -> None:
    client = another(lasting)
    name = f"stream of {what}"
    client.stream(name)
    client.append(1, b"before", part("x", "fine"))
    message, says = WRONG[what]
    client.say(message)
    assert is_cut(client, says=says)
    opened = another(lasting).stream(name)
    assert (opened.number, opened.position, opened.fed) == (1, b"before", 1)


def test_an_engine_that_is_killed_before_it_accepts(tmp_path: Path) -> None:
    app, data = tmp_path / "app.py", tmp_path / "d"
    app.write_text(APP)
    accepted = 0
    for killed in (True, True, True, False):
        owner = engine_process(app, data).open()
        owner.ask(OpenReader(0, "out", "out=test"), for_=ReaderOpened)  # it begins to take in the last run
        opened = owner.begin().stream("s")
        number, at = opened.number, int(opened.position or b"0")
        assert opened.fed == at == 5 * number >= 5 * accepted
        for _ in range(40):
            number, at = number + 1, at + 5
            owner.say(Append(0, number, b"%d" % at, [part("x", *range(at - 5, at), partition=number % 32)]))
        while accepted < (number - 20 if killed else number):
            accepted = owner.hear(Accepted).number
        if killed:
            os.kill(owner.launched.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            owner.leave()
    owner.say(StartReader(0, 0, b""))
    assert sorted(owner.take(at)) == list(range(at))
    owner.end_run()
    owner.leave()


def test_a_stream_has_one_client_at_a_time(owner: Owner, client: Client) -> None:
    client.stream("s")
    other = another(owner)
    failed = other.ask(OpenStream(0, "s"), for_=Failed)
    assert failed.code == "in-use"
    assert other.ask(emit(1, 1), for_=Emitted).number == 1  # it may go on
    client.append(1, b"p", part("x", 1))
    client.close()
    third = another(owner)
    assert third.stream("s").position == b"p"


def named(*ids: str) -> list[Named]:
    return [Named(one, 1, None) for one in ids]


def test_promised_ids_are_free_when_their_client_goes(owner: Owner, client: Client) -> None:
    other = another(owner)
    client.stream("s")
    other.stream("r")
    assert client.ask(Lookup(0, 5, named("a", "b", "a")), for_=Verdicts) == Verdicts(5, ["new", "new", "known"])
    assert other.ask(Lookup(0, 1, named("a", "c")), for_=Verdicts).verdicts == ["known", "new"]
    client.append(1, b"p", part("x", 1), ids=named("b"))
    client.close()
    third = another(owner)
    third.stream("s")
    asked = [Named("a", 1, None), Named("b", 1, None), Named("b", 2, None), Named("c", 1, None)]
    assert third.ask(Lookup(0, 1, asked), for_=Verdicts).verdicts == ["new", "known", "conflict", "known"]
    third.append(2, b"q", part("x", 2), ids=named("a"))
    assert other.ask(Lookup(0, 1, named("a")), for_=Verdicts).verdicts == ["known"]


# ------------------------------------------------------------------ readers and replies


def test_what_was_not_taken_is_given_again(owner: Owner, client: Client) -> None:
    owner.take(0)
    assert client.reader("out", "mine") == ReaderOpened(0, 0, b"")
    client.ask(emit(1, "one", key="k"), for_=Emitted)
    first = client.hear(Batches)
    client.close()  # without a word of them
    client = another(owner)
    client.reader("out", "mine")
    again = client.hear(Batches)
    assert data_of(again)[: len(data_of(first))] == data_of(first)
    client.say(Took(0, again.number, len(data_of(again)), 7, b"tail"))
    taken = len(data_of(again))
    if taken < 2:
        client.take(2 - taken, length=7)
    client.ask(emit(2, "two", key="k"), for_=Emitted)
    assert "two" in data_of(client.hear(Batches))  # what came before it is durable
    client.close()
    client = another(owner)
    opened = client.reader("out", "mine")
    assert opened.length == 7
    assert client.take(2, length=9) == ["two", "two"]


def test_nothing_is_given_before_it_has_begun(tmp_path: Path) -> None:
    """It could not be committed, if the run ended before."""
    with engine(t, tmp_path / "d") as owner:
        owner.begin_taking("out").ask(emit(1, 1), for_=Emitted)
        owner.hear(Batches)
        owner.end_run()
    with engine(t, tmp_path / "d") as owner:
        owner.open().reader("out", "out=test")
        assert not owner.has_heard(Batches)
        owner.begin()
        assert owner.take(2) == [1, 1]


def test_a_part_may_be_taken(owner: Owner, client: Client) -> None:
    client.stream("s")
    client.append(1, b"", part("ask", 0))  # has no output
    client.reader("out", "mine")
    client.append(2, b"", part("x", *range(10)))
    found: list[Any] = []
    length = 0
    while len(found) < 20:
        given = client.hear(Batches)
        data = data_of(given)
        found.append(data[0])
        length += 1
        client.say(Took(0, given.number, 1, length, b""))
    assert sorted(found) == sorted([*range(10)] * 2)
    client.ask(emit(1, "next"), for_=Emitted)
    client.hear(Batches)
    client.close()
    assert another(owner).reader("out", "mine").length == 20


def test_what_cannot_be_read_is_a_dead_letter(owner: Owner, client: Client) -> None:
    client.reader("out", "mine")
    client.ask(emit(1, "one"), for_=Emitted)
    given = client.hear(Batches)
    unread = [Unread(0, 0, 1, "out", None, b"raw", "is not to my taste")]
    client.say(Took(0, given.number, len(data_of(given)), 1, b"", unread))
    client.take(2 - len(data_of(given)), length=2)
    client.ask(emit(2, "two"), for_=Emitted)
    client.hear(Batches)
    assert client.progress().dead == 1


WRONG_TAKES: Final[dict[str, tuple[Any, str]]] = {
    "number": (lambda given: Took(0, given.number + 1, 1, 0, b""), "was not given"),
    "too many": (lambda given: Took(0, given.number, 1 << 20, 0, b""), "more than it was given"),
    "less than none": (lambda given: Took(0, given.number, -1, 0, b""), "more than it was given"),
    "length": (lambda given: Took(0, given.number, 1, -1, b""), "length"),
    "huge length": (lambda given: Took(0, given.number, 1, 1 << 63, b""), "length"),
    "unread item": (lambda given: unread_took(given, 1 << 20, 0, 1), "more than it was given"),
    "unread at": (lambda given: unread_took(given, 0, -1, 1), "more than it was given"),
    "unread behind": (lambda given: unread_took(given, 0, 1 << 20, 1), "more than it was given"),
    "unread events": (lambda given: unread_took(given, 0, 0, 1 << 20), "more than it was given"),
    "unread none": (lambda given: unread_took(given, 0, 0, 0), "more than it was given"),
    "started again": (lambda given: StartReader(0, 0, b""), "started"),
    "opened again": (lambda given: OpenReader(0, "out", "other"), "reader 0 is open already"),
}


def unread_took(given: Batches, item: int, at: int, events: int) -> Took:
    return Took(0, given.number, 1, 0, b"", [Unread(item, at, events, "out", None, b"", "")])


@pytest.mark.parametrize("what", WRONG_TAKES)
def test_what_a_reader_cannot_say(lasting: Owner, what: str) -> None:
    client = another(lasting)
    name = f"reader of {what}"
    client.reader("out", name)
    client.ask(emit(1, what), for_=Emitted)
    given = client.hear(Batches)
    make, says = WRONG_TAKES[what]
    client.say(make(given))
    assert is_cut(client, says)
    client = another(lasting)
    assert client.reader("out", name) == ReaderOpened(0, 0, b"")
    assert data_of(client.hear(Batches))[: len(data_of(given))] == data_of(given)


def test_a_took_that_is_said_twice(owner: Owner, client: Client) -> None:
    client.reader("out", "mine")
    client.ask(emit(1, 1), for_=Emitted)
    given = client.hear(Batches)
    unread = [Unread(0, 0, 1, "out", None, b"raw", "bad")]
    client.say(*[Took(0, given.number, len(data_of(given)), 1, b"", unread)] * 2)
    assert is_cut(client, "was not given")
    still_serves(owner)


def test_a_reader_has_one_client_at_a_time(owner: Owner, client: Client) -> None:
    other = another(owner)
    client.say(OpenReader(0, "out", "mine"), OpenReader(1, "out", "mine"))
    assert client.hear(Failed).code == "in-use"  # also while the first is being opened
    client.hear(ReaderOpened, reader=0)
    assert other.ask(OpenReader(0, "out", "mine"), for_=Failed).code == "in-use"
    client.close()
    another(owner).reader("out", "mine")


def test_a_reader_belongs_to_one_output(tmp_path: Path) -> None:
    with engine(t, tmp_path / "d") as owner:
        owner.open()
        early = come(tmp_path / "d")
        early.say(Greeting(1))
        early.reader("out", "mine")
        early.close()
        while (failed := owner.ask(OpenReader(1, "other", "mine"), for_=Failed)).code == "in-use":
            pass  # until the engine has seen that the other is gone
        assert (failed.code, "another output" in failed.text) == ("usage", True)
        owner.reader("out", "mine", 1)


def test_an_output_that_nobody_takes_is_refused(owner: Owner, client: Client) -> None:
    for event in ("other", "no such"):
        failed = client.ask(OpenReader(0, event, "mine"), for_=Failed)
        assert failed.code == "usage"
        assert f"output {event!r} is not taken in this run" in failed.text
    client.ask(emit(1, 1), for_=Emitted)


# ------------------------------------------------------------------ those who do not behave


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "a frame says it has"),
        ((MAX_FRAME + 1).to_bytes(4, "little"), "the limit is"),
        (b"\x05\x00\x00\x00\xc0", "is not a message"),
        (b"\x02\x00\x00\x00\x91\x7f", "is not a message"),
        (b"\x02\x00\x00\x00\x91\x25", "is not a message"),  # an engine's
        (frame(Stop()), "the first word is a greeting"),
        (frame(Greeting(2)), "this engine speaks version 1"),
        (frame(Greeting(1)) + b"\x01\x00\x00\x00\x90", "is not a message"),
    ],
)
def test_what_is_no_client_is_cut(lasting: Owner, data: bytes, says: str) -> None:
    client = come(Path(lasting.described.data))
    client.send(data)
    assert is_cut(client, says)
    still_serves(lasting)


def test_who_never_reads_is_cut_at_its_bound(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MAX_UNREAD", 1 << 16)
    deaf = another(owner)
    question = bytes(frame(Ask(1, "numbers"))) * 1000
    with pytest.raises(OSError):  # noqa: PT012
        while True:
            deaf.send(question)
    still_serves(owner)


def test_who_asks_without_an_end_what_goes_out_is_refused(owner: Owner, client: Client) -> None:
    asked = msgspec.Raw(codec.encode([]))
    client.say(*(Ask(number, "outgoing", asked) for number in range(1_010)))
    assert client.hear(Refused).code == "full"
    still_serves(owner)


# ------------------------------------------------------------------ ends


def test_any_client_may_end_the_run_in_order(owner: Owner, client: Client) -> None:
    owner.stream("s", 5)
    client.say(emit(1, 1), Stop())
    assert owner.hear(Halt).in_order
    assert client.hear(Emitted)
    for each in (client, owner):
        outcomes = msgspec.msgpack.decode(each.hear(Ended).outcomes, type=Outcomes)
        assert (outcomes.counts.fed, outcomes.stopped) == ({"x": 1}, True)


def run_command(tmp_path: Path, feed: str, **streams: Any) -> subprocess.Popen[str]:
    app = tmp_path / "app.py"
    app.write_text(APP)
    command = [
        GRAPE,
        "run",
        "app.py",
        "--feed",
        f"x={feed}",
        "--data",
        "d",
        "--take",
        "out=out.jsonl",
        "--workers",
        "1",
    ]
    return subprocess.Popen(command, cwd=tmp_path, text=True, stderr=subprocess.PIPE, **streams)


def when_begun(process: subprocess.Popen[str], directory: Path) -> Client:
    while process.poll() is None:
        try:
            return come(directory).greeted()
        except (FileNotFoundError, ConnectionRefusedError):
            os.sched_yield()
    raise AssertionError(process.communicate())


def test_an_engine_ends_with_its_owner(tmp_path: Path) -> None:
    with run_command(tmp_path, "-", stdin=subprocess.PIPE) as process:
        client = when_begun(process, tmp_path / "d")
        watched = os.pidfd_open(client.engine_pid)
        process.kill()
        wait_for_end(watched)
        assert client.last_words() == []
    owner = engine_process(tmp_path / "app.py", tmp_path / "d").begin_taking("out")  # the directory is free
    owner.end_run()
    owner.leave()


def test_an_engine_that_is_killed_under_its_command(tmp_path: Path) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(f"{i}\n" for i in range(100_000)))
    with run_command(tmp_path, "in.jsonl") as process:
        client = when_begun(process, tmp_path / "d")
        pid = client.engine_pid
        while client.progress().finished < 1_000:
            pass
        os.kill(pid, signal.SIGKILL)
        assert "the engine was killed by signal 9 (SIGKILL)" in process.communicate()[1]
        assert process.returncode == 3
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) < 100_000
    done = grape("run", "app.py", "--feed", "x=in.jsonl", "--data", "d", "--take", "out=out.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line)["data"] for line in (tmp_path / "out.jsonl").read_text().splitlines()) == list(
        range(100_000)
    )
