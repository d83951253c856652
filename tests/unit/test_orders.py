"""Orders at the door, without a socket: what is checked, what they wait for, in which slices they are done."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from grape.engine.catalog import with_logs
from grape.engine.committer import Committer, Fenced
from grape.engine.logged import NOT_WAITING
from grape.engine.orders import order, orders, waiting
from grape.errors import ProtocolError
from grape.host.directory import count_dead
from grape.model import batch as codec
from grape.model.address import partition_of
from grape.model.cursor import Progress
from grape.model.stored import DeadLetter, HoldEntry, encode, row_key, state_key
from grape.protocol.door import Answer, Append, Ask, OpenStream, Refused, StreamOpened
from grape.protocol.messages import VERSION, Assign, Beat, Hello, Result, Revoke, Work
from grape.protocol.orders import MAX_ID, MOST, MOST_ORDERS, Changes
from unit.lying import CAPABILITIES, TOPOLOGY, LyingWorker
from unit.visiting import PARTITIONS, Client, Rig, part


class Operator(Client):
    """At a rig of its own, whose partitions rest as long as nobody `works`."""

    def __init__(self) -> None:
        super().__init__(Rig())
        self._appends = 0

    def order(self, verb: str, number: int = 1, **argument: Any) -> None:
        """It is given, and done as far as it can be now."""
        self.say(Ask(number, verb, msgspec.Raw(msgspec.msgpack.encode(argument))))
        self.rig.settle()

    @property
    def answer(self) -> Changes:
        return msgspec.msgpack.decode(self.last(Answer).value, type=Changes)

    def changes(self, verb: str, **argument: Any) -> Changes:
        before = self.count(Answer)
        self.order(verb, **argument)
        assert self.count(Answer) == before + 1
        return self.answer

    def feed(self, *batches: list[Any], partition: int = 0) -> None:
        """One batch each for pool "main"."""
        if not self._appends:
            self.ask(OpenStream(0, "fed"), StreamOpened)
        for data in batches:
            self._appends += 1
            self.say(Append(0, self._appends, b"p", [part("line", *data, partition=partition)]))
            self.rig.settle()

    def write(self, log: str, table: Any, rows: dict[int, Any], number: int = 0) -> None:
        """Rows, behind the engine's back, before it looks."""
        partition = self.rig.engine.pools[log].partitions[number]
        for key, row in rows.items():
            partition.ledger.put(table, row_key(key), encode(row))
            if table == "hold":
                partition.holds.add(key, row, 1)
                self.rig.app.holds += 1
        partition.flush()
        self.rig.settle()

    def works(self) -> LyingWorker:
        """Pool "main" has a worker, which takes all there is."""
        (worker,) = self.rig.engine.pools["main"].workers.values()
        for message in (Hello(VERSION, 1, "test", TOPOLOGY, CAPABILITIES), Beat()):
            self.rig.engine.received("main", 0, worker.link, message)
        self.rig.settle()
        assert isinstance(worker.link, LyingWorker)
        return worker.link

    def does(self, work: Work) -> None:
        """The worker is done with it."""
        (worker,) = self.rig.engine.pools["main"].workers.values()
        done = [(item.position, Progress(item.events)) for item in work.batches]
        self.rig.engine.received("main", 0, worker.link, Result(work.partition, work.epoch, [work.seq], done))
        self.rig.settle()


def letter(n: int, **fields: Any) -> DeadLetter:
    body = codec.one("line", None, n)
    return DeadLetter("Plain", "line", f"{n}", None, 1, body, 1, 1, "ValueError", "no", **fields)


def entry(n: int, **fields: Any) -> HoldEntry:
    own = {"attempts": 2, "due": 1 << 60, "locks": True, "kind": "ValueError", **fields}
    return HoldEntry("Plain", "line", f"{n}", "k", 1, codec.one("line", "k", n), **own)  # type: ignore[arg-type]


def ids(partition: Any) -> list[Any]:
    found = partition.ledger.transport.read(partition.id, 0, 1 << 30)
    return [
        value
        for stored in found
        for run in codec.runs_of(codec.body_of(stored.batch, codec.check(stored.batch)))
        for value in codec.data_of(run) or []
    ]


# ------------------------------------------------------------------ what is checked


@pytest.mark.parametrize(
    ("verb", "argument"),
    [
        ("retry", None),
        ("retry", {"ids": []}),
        ("retry", {"ids": ["main.0-0"] * (MOST + 1)}),
        ("retry", {"ids": ["m" * (MAX_ID + 1)]}),
        ("drop", {"ids": [1]}),
        ("drop", {"ids": ["main.0-0"], "held": "yes"}),
        ("drop-events", {"ids": "main.0:0.0"}),
        ("bury-events", {}),
        ("delete-state", {"node": "Count", "keys": []}),
        ("delete-state", {"node": "Count", "keys": [b""]}),
        ("delete-state", {"node": "Count", "keys": [b"k" * 4_097]}),
        ("delete-state", {"node": "Count", "keys": [b"k"] * (MOST + 1)}),
    ],
)
def test_what_is_no_order_breaks_the_protocol(verb: str, argument: Any) -> None:
    client = Operator()
    with pytest.raises(ProtocolError):
        client.say(Ask(1, verb, msgspec.Raw(msgspec.msgpack.encode(argument))))
    client.rig.settle()


@pytest.mark.parametrize(
    ("verb", "argument", "why"),
    [
        ("retry", {"ids": ["main.0-0", "nonsense"]}, "no id of a dead letter"),
        ("drop", {"ids": ["mian.0-0"]}, "its pools: main"),
        ("drop", {"ids": ["main.4-0"]}, "partitions 0 to 3"),
        ("drop-events", {"ids": ["mian.0:0.0"]}, "did you mean 'main'"),
        ("delete-state", {"node": "Cuont", "keys": [b"k"]}, "did you mean 'Count'"),
    ],
)
def test_what_cannot_be_is_refused(verb: str, argument: Any, why: str) -> None:
    client = Operator()
    client.write("main", "dead", {0: letter(0)})
    client.order(verb, **argument)
    assert client.last(Refused).code == "usage"
    assert why in client.last(Refused).text
    assert not client.count(Answer)


def test_what_is_not_there() -> None:
    client = Operator()
    found = client.changes("retry", ids=["main.0-0", "main.3-h7"], held=True)
    assert found == Changes(refused=dict.fromkeys(("main.0-0", "main.3-h7"), "there is no such letter (any more)"))
    assert client.changes("drop-events", ids=["main.1:5.0"]).refused == {"main.1:5.0": "no such event waits (any more)"}
    assert client.changes("delete-state", node="Count", keys=[b"a", b"b", b"\xff"]).missing


# ------------------------------------------------------------------ letters


def test_letters_go_back_in_order_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """F6: each with the removal of its row in one commit; the engine does something else between two."""
    monkeypatch.setattr(order, "AT_ONCE", 2)
    client = Operator()
    client.write("main", "dead", {n: letter(n) for n in range(5)})
    before = client.rig.app.stats.commits
    changes = client.changes("retry", ids=[f"main.0-{n}" for n in (4, 0, 3, 1, 2)])
    assert changes == Changes(dead=5)
    assert client.rig.app.stats.commits == before + 3
    partition = client.rig.engine.partition("main", 0)
    assert ids(partition) == [0, 1, 2, 3, 4]
    assert partition.backlog.events == 5
    assert partition.ledger.transport.scan(partition.id, "dead", b"", 9) == []


def test_an_answer_comes_when_it_is_durable() -> None:
    client = Operator()
    client.write("main", "dead", {0: letter(0)})
    client.say(Ask(1, "drop", msgspec.Raw(msgspec.msgpack.encode({"ids": ["main.0-0"]}))))
    while client.rig.host.due:
        client.rig.host.due.popleft()()
    assert not client.count(Answer)
    client.rig.settle()
    assert client.answer == Changes(dead=1)


def test_a_held_line_keeps_its_order() -> None:
    client = Operator()
    behind = entry(1, locks=False, behind=True, attempts=0, due=0)
    client.write("main", "hold", {0: entry(0), 1: behind, 2: entry(2, stopped=True)})
    assert client.changes("drop", ids=["main.0-h0"]).refused  # it is no dead letter
    assert client.changes("retry", ids=["main.0-h1", "main.0-h2"], held=True) == Changes(held=1, stopped=1)
    holds = client.rig.engine.partition("main", 0).holds
    assert [held.number for held, _ in holds.take_due(client.rig.clock.now(), 9, 1 << 20)] == []
    assert client.changes("drop", ids=["main.0-h0"], held=True) == Changes(held=1)
    assert [held.number for held, _ in holds.take_due(client.rig.clock.now(), 9, 1 << 20)] == [1, 2]
    assert client.rig.app.holds == 2


def test_what_cannot_be_read_is_refused_by_itself() -> None:
    client = Operator()
    broken = letter(0)
    broken.body = b"\xc1"
    client.write("main", "dead", {0: broken, 1: letter(1)})
    changes = client.changes("retry", ids=["main.0-0", "main.0-1"])
    assert changes.dead == 1
    assert "the event of main.0-0 cannot be read" in changes.refused["main.0-0"]
    assert client.changes("drop", ids=["main.0-0"]) == Changes(dead=1)


def test_letters_of_pools_that_are_gone() -> None:
    client = Operator()
    rig = client.rig
    rig.app.record = with_logs(rig.app.record, ["old"])
    old = rig.app.log("old", 2)
    found: list[Committer] = []
    rig.engine.claim({old: "old/2"}, lambda claimed: found.append(claimed[old]))
    rig.settle()
    rows = [(row_key(n), encode(letter(n))) for n in range(2)]
    found[0].submit(b"", (), [("dead", rows)], then=lambda: None)
    rig.settle()
    assert client.changes("drop", ids=["old.2-1", "old.2-7"]).dead == 1
    assert client.changes("retry", ids=["old.2-0"]) == Changes(dead=1)
    assert ids(rig.engine.partition("main", 2)) == [0]
    assert rig.transport.scan(old, "dead", b"", 9) == []


# ------------------------------------------------------------------ what waits


def test_an_event_far_behind_is_dropped_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_WALKED", 2)
    monkeypatch.setattr(waiting, "_READ", 1)
    client = Operator()
    client.feed(*([n, n + 100] for n in range(10)))
    before = client.rig.app.stats.commits
    assert client.changes("drop-events", ids=["main.0:7.0", "main.0:7.1", "main.0:9.1"]) == Changes(held=3)
    assert client.rig.app.stats.commits > before + 3
    assert client.rig.app.backlog_events == 17
    sent = client.works()
    given = [item for message in sent.sent if isinstance(message, Work) for item in message.batches]
    assert [item.position for item in given] == [0, 1, 2, 3, 4, 5, 6, 8, 9]


def test_one_that_is_too_far_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_MOST_OPEN", 4)
    client = Operator()
    client.feed(*([n] for n in range(10)))
    changes = client.changes("bury-events", ids=["main.0:2.0", "main.0:8.0"])
    assert changes.held == 1
    assert "batches wait before it" in changes.refused["main.0:8.0"]
    assert client.rig.app.stats.dead == 1


def test_a_batch_is_taken_out_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "AT_ONCE", 2)
    client = Operator()
    client.feed([0, 1, 2, 3, 4])
    assert client.changes("bury-events", ids=["main.0:0", "main.0:0.3"]) == Changes(held=5)
    assert client.rig.app.backlog_events == 0
    assert client.changes("retry", ids=[f"main.0-{n}" for n in range(5)]) == Changes(dead=5)
    assert ids(client.rig.engine.partition("main", 0)) == [0, 1, 2, 3, 4]


# ------------------------------------------------------------------ what they wait for


def test_what_a_worker_has_is_waited_for() -> None:
    client = Operator()
    client.feed([1])
    sent = client.works()
    work = sent.last(Work)
    client.order("drop-events", ids=["main.0:0.0"])
    client.feed([2])
    assert not client.count(Answer)
    client.does(work)
    assert client.answer.refused == {"main.0:0.0": "no such event waits (any more)"}
    assert [item.position for item in sent.last(Work).batches] == [1]


def test_it_is_refused_when_that_takes_too_long() -> None:
    client = Operator()
    client.feed([1])
    sent = client.works()
    work = sent.last(Work)
    client.order("drop-events", ids=["main.0:0.0"])
    client.feed([2])
    client.rig.advance(orders.REST - 0.1)
    assert not client.count(Answer)
    client.rig.advance(0.2)
    assert "a worker has had 1 events of partition main/0 for over 5 s" in client.answer.refused["main.0:0.0"]
    client.does(work)  # and it goes on
    assert [item.position for item in sent.last(Work).batches] == [1]


def test_a_worker_that_dies_has_nothing_any_more() -> None:
    client = Operator()
    client.feed([1], [2])
    client.works()
    client.order("drop-events", ids=["main.0:0.0"])
    assert not client.count(Answer)
    (worker,) = client.rig.engine.pools["main"].workers.values()
    client.rig.engine.gone("main", 0, worker.link, "it was killed")
    client.rig.settle()
    assert client.answer == Changes(held=1)
    assert client.rig.app.backlog_events == 1


def test_a_worker_forgets_what_it_knew_of_state() -> None:
    client = Operator()
    home = partition_of("a", PARTITIONS)
    partition = client.rig.engine.partition("main", home)
    partition.ledger.put("state", state_key(client.rig.app.node_id("Count"), b"a"), encode({"seen": 1}))
    partition.flush()
    client.rig.settle()
    sent, before = client.works(), partition.epoch
    assert client.changes("delete-state", node="Count", keys=[b"a"]) == Changes(states=1)
    revoked, assigned = [m for m in sent.sent if isinstance(m, Revoke | Assign)][-2:]
    assert revoked == Revoke(home, before)
    assert assigned == Assign(home, before + 1, [], False, True)


def test_so_many_may_be_under_way() -> None:
    client = Operator()
    client.feed([1])
    work = client.works().last(Work)
    for n in range(MOST_ORDERS):
        client.order("drop-events", number=n, ids=["main.0:0.0"])
    client.order("drop-events", number=1_000, ids=["main.0:0.0"])
    assert client.last(Refused).number == 1_000
    assert client.last(Refused).code == "full"
    client.does(work)
    assert client.count(Answer) == MOST_ORDERS
    assert client.answer.refused == {"main.0:0.0": "no such event waits (any more)"}


def test_whoever_has_gone_needs_no_answer() -> None:
    client = Operator()
    client.feed([1])
    work = client.works().last(Work)
    client.order("drop-events", ids=["main.0:0.0"])
    client.go()
    client.does(work)
    assert not client.rig.engine.partition("main", 0).dispatch.is_resting


def test_an_engine_that_ends_refuses() -> None:
    client = Operator()
    client.write("main", "dead", {0: letter(0)})
    client.rig.engine.drain()
    assert client.changes("drop", ids=["main.0-0"]).refused == {"main.0-0": "the engine is ending"}


def test_a_partition_that_another_engine_has() -> None:
    client = Operator()
    client.feed([1])
    client.works()
    client.order("drop-events", ids=["main.0:0.0"])
    partition = client.rig.engine.partition("main", 0)
    client.rig.engine._lose(partition, Fenced("partition main/0 was taken over"))
    client.rig.settle()
    assert client.answer.refused == {"main.0:0.0": "another engine has its partition"}


# ------------------------------------------------------------------ found by reading once more


def test_nobody_gets_a_partition_between_two_slices_of_what_it_remembers() -> None:
    client = Operator()
    rig = client.rig
    client.ask(OpenStream(0, "fed"), StreamOpened)
    link = client.works()
    partition = rig.engine.pools["main"].partitions[0]
    node = rig.app.node_id("Count")
    keys = [key for key in (f"k{i}" for i in range(9_000)) if partition_of(key, PARTITIONS) == 0][:600]
    for key in keys:
        partition.ledger.put("state", state_key(node, key.encode()), b"old")
    partition.flush()
    rig.settle()
    epoch, sent = partition.epoch, len(link.sent)
    order = msgspec.Raw(msgspec.msgpack.encode({"node": "Count", "keys": [key.encode() for key in keys]}))
    client.say(Ask(1, "delete-state", order))
    while rig.host.due:
        rig.host.due.popleft()()  # the first slice is in a commit
    client.say(Append(0, 1, b"p", [part("line", 1, partition=0)]))
    rig.transport.step()  # and an event that came in the same moment
    rig.settle()
    assert client.answer.states == 600
    assert [each.epoch for each in link.sent[sent:] if isinstance(each, Work)] == [epoch + 1]


def test_of_a_slice_whose_partition_was_lost_nobody_says_that_it_is_done() -> None:
    client = Operator()
    rig = client.rig
    client.write("main", "dead", {0: letter(0), 1: letter(1)})
    partition = rig.engine.pools["main"].partitions[0]
    client.say(Ask(1, "drop", msgspec.Raw(msgspec.msgpack.encode({"ids": ["main.0-0", "main.0-1"]}))))
    while rig.host.due:
        rig.host.due.popleft()()
    assert partition.ledger.committing is not None
    rig.engine.trouble(partition, Fenced("partition main/0 was taken over by another engine"))
    rig.transport._queue.clear()
    rig.settle()
    assert client.answer.dead == 0
    assert "may be done, or not" in client.answer.refused["main.0"]


def test_what_is_buried_has_not_failed() -> None:
    client = Operator()
    rig = client.rig
    rig.streams._max_dead = 3
    client.feed(list(range(6)))
    assert client.changes("bury-events", ids=[f"main.0:0.{i}" for i in range(6)]).held == 6
    assert rig.streams.dead_left == 3
    assert count_dead(rig.app, rig.transport) == 6
    assert count_dead(rig.app, rig.transport, failed=True) == 0


def test_for_what_is_not_there_nothing_is_taken_note_of() -> None:
    client = Operator()
    client.feed(*[[i] for i in range(300)])
    partition = client.rig.engine.pools["main"].partitions[0]
    before = len(partition.inbox.open), len(encode(partition.head))
    missing = "main.0:999999999999999999.0"
    assert client.changes("drop-events", ids=[missing]).refused == {missing: NOT_WAITING}
    assert (len(partition.inbox.open), len(encode(partition.head))) == before
