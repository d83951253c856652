"""What is stored of a partition, and what stands beside its log: without an engine."""

from __future__ import annotations

from typing import Any

import pytest

from grape.abc.transport import Commit, Send
from grape.engine.partition.answers import Answers
from grape.engine.partition.ledger import Ledger, grouped
from grape.errors import Corrupt, TooLarge
from grape.model import batch as codec
from grape.model.batch import Context
from grape.model.cursor import Progress
from grape.model.stored import (
    CLIENT_ID,
    REPLIES,
    DeadLetter,
    Expiry,
    decode_dead,
    decode_expiry,
    decode_head,
    encode,
    state_key,
    timer_key,
)
from grape.model.topology import Limits
from grape.protocol.messages import Call, Emitted
from grape.transports.memory import MemoryBroker
from unit.desk import Desk, failure

SECOND = 1_000_000


def text(desk: Desk, key: bytes) -> bytes | None:
    """As the next commit will have it."""
    (stored,) = desk.transport.get(desk.log, "text", [key])
    return desk.ledger.pending("text", key, stored)


class TestCommits:
    def test_what_is_written_counts_with_the_next_commit_and_is_seen_before(self) -> None:
        desk = Desk()
        ledger = desk.ledger
        assert ledger.settled
        ledger.put("text", b"a", b"1")
        assert not ledger.settled
        assert (text(desk, b"a"), desk.rows("text")) == (b"1", {})
        ledger.flush()
        ledger.put("text", b"b", b"2")
        assert (text(desk, b"a"), text(desk, b"b"), desk.rows("text")) == (b"1", b"2", {})
        ledger.put("text", b"a", None)  # the draft is younger than the commit
        assert text(desk, b"a") is None
        assert not ledger.settled
        desk.settle()
        assert desk.rows("text") == {b"b": b"2"}
        assert ledger.settled
        assert desk.app.stats.commits == 2

    def test_one_at_a_time_and_what_came_meanwhile_is_the_next(self) -> None:
        desk = Desk()
        said: list[str] = []
        desk.ledger.committed = lambda draft: said.append(f"committed {len(draft.then)}")
        desk.ledger.then(lambda: said.append("first"))
        desk.ledger.flush()
        desk.ledger.then(lambda: said.append("second"))
        desk.ledger.then(lambda: said.append("third"))
        desk.ledger.flush()
        assert said == []
        desk.transport.pump()
        assert said == ["committed 1", "first", "committed 2", "second", "third"]

    def test_nothing_to_store_is_no_commit(self) -> None:
        desk = Desk()
        desk.settle()
        assert desk.app.stats.commits == 0

    def test_a_commit_that_the_transport_refuses_is_the_draft_still(self) -> None:
        desk = Desk(broker=MemoryBroker(largest_commit=1_000))
        desk.ledger.put("text", b"k", b"x" * 2_000)
        with pytest.raises(TooLarge):
            desk.ledger.flush()
        assert text(desk, b"k") == b"x" * 2_000
        assert (desk.ledger.committing, desk.ledger.settled, desk.rows("text")) == (None, False, {})

    def test_the_room_of_a_draft(self) -> None:
        desk = Desk(broker=MemoryBroker(largest_commit=800))
        ledger = desk.ledger
        assert ledger.most == 700
        assert ledger.has_room(10_000)  # into an empty one goes anything
        ledger.put("text", b"12345", b"x" * 95)
        ledger.put("text", b"12345", None)
        assert ledger.draft.size == 105
        assert ledger.has_room(595)
        assert not ledger.has_room(596)
        ledger.send(">total", 0, b"body", 1, [], desk.now)
        assert ledger.draft.size == 105 + codec.HEADER_SIZE + 4

    def test_what_has_not_taken_effect(self) -> None:
        desk = Desk()
        ledger = desk.ledger
        assert ledger.uncommitted() == [ledger.draft]
        ledger.put("text", b"a", b"1")
        ledger.flush()
        assert ledger.uncommitted() == [ledger.draft, ledger.committing]

    def test_a_head_that_cannot_be_read_is_said(self) -> None:
        desk = Desk()
        term = desk.claim(desk.log).term
        desk.transport.commit(Commit(desk.log, term, 1, b"\xc1"))
        desk.transport.pump()
        with pytest.raises(Corrupt, match="the head of partition main/0 cannot be read"):
            Ledger(desk.app, "main", 0, desk.transport, desk.clock, desk.claim(desk.log))


class TestRows:
    def test_all_are_read_in_their_order_however_many(self) -> None:
        desk = Desk()
        keys = [b"%04d" % i for i in range(2_500)]
        for key in keys:
            desk.ledger.put("text", key, key)
        desk.settle()
        assert list(desk.ledger.rows("text")) == [(key, key) for key in keys]
        some = list(desk.ledger.rows("text", b"0010", b"1500"))
        assert [key for key, _ in some] == keys[10:1_500]

    def test_one_that_has_to_be_there(self) -> None:
        desk = Desk()
        desk.ledger.put("text", b"k", b"v")
        assert desk.ledger.row("text", b"k", bytes.decode, "note") == "v"
        desk.settle()
        assert desk.ledger.row("text", b"k", bytes.decode, "note") == "v"
        with pytest.raises(Corrupt, match="a stored note cannot be read"):
            desk.ledger.row("text", b"k", decode_head, "note")
        desk.ledger.put("text", b"k", None)
        with pytest.raises(Corrupt, match="a note of partition main/0 is missing"):
            desk.ledger.row("text", b"k", bytes.decode, "note")

    def test_dead_letters_are_numbered_over_restarts(self) -> None:
        desk = Desk()
        for i in range(3):
            desk.ledger.bury(DeadLetter("n", "e", str(i), None, 0, b"", 1, 0, "", ""))
            desk.settle()
            desk.restart()
        assert [int.from_bytes(key, "big") for key in desk.rows("dead")] == [0, 1, 2]
        assert [decode_dead(value).id for value in desk.rows("dead").values()] == ["0", "1", "2"]


class TestSending:
    def test_batches_are_numbered_per_log_over_restarts(self) -> None:
        desk = Desk()
        for target in (">total", "far", ">total"):
            desk.ledger.send(target, 1, codec.one("e", None, target), 1, [Context("1")], 77)
            desk.settle()
            desk.restart()
        headers = [header for header, *_ in desk.sent(desk.app.log(">total", 1))]
        assert [header.sequence for header in headers] == [0, 1]
        assert [(h.origin, h.created, h.events) for h in headers] == [(desk.log, 77, 1)] * 2
        assert {header.incarnation for header in headers} == {desk.app.record.incarnation}
        assert [header.sequence for header, *_ in desk.sent(desk.app.log("far", 1))] == [0]

    def test_replies_go_to_whom_they_are_for(self) -> None:
        desk = Desk()
        one, other = Context("1", 0), Context("2", 1)
        desk.ledger.reply(
            [
                (one, encode("a"), False),
                (other, encode("b"), True),
                (Context(), encode("c"), True),
                (one, b"\x07", True),
            ],
            desk.now,
        )
        desk.settle()
        assert desk.replies == [("1", "part", "a"), ("1", "final", 7)]
        ((_, _, runs),) = desk.sent(desk.app.log(REPLIES, 1))
        assert codec.keys_of(runs[0]) == ["2"]
        assert (desk.app.stats.replies, desk.app.stats.late_replies) == (3, 0)

    def test_a_handler_that_waits_gets_the_last_one_alone(self) -> None:
        desk = Desk()
        asker = Context("0:0", 1, pool="main")
        desk.ledger.reply([(asker, encode("part"), False), (asker, encode("all"), True)], desk.now)
        desk.settle()
        assert desk.values(desk.app.log(f"{REPLIES}main", 1)) == ["all"]
        assert (desk.app.stats.replies, desk.app.stats.late_replies) == (1, 1)

    def test_for_a_pool_that_is_gone_it_is_late(self) -> None:
        desk = Desk()
        desk.ledger.reply([(Context("0:0", 1, pool="gone"), encode("all"), True)], desk.now)
        desk.settle()
        assert (desk.app.stats.replies, desk.app.stats.late_replies) == (0, 1)

    def test_they_are_no_larger_than_a_batch(self) -> None:
        desk = Desk(Limits(batch_max=10))
        desk.ledger.reply([(Context(str(i)), encode("abcd"), True) for i in range(5)], desk.now)
        desk.settle()
        assert [header.events for header, *_ in desk.sent(desk.app.log(REPLIES, 0))] == [2, 2, 1]


@pytest.mark.parametrize(
    ("items", "groups"),
    [
        ([], []),
        ([3, 4, 3, 1], [[3, 4, 3], [1]]),  # ten at most
        ([11, 1], [[11], [1]]),
        ([1, 11, 10], [[1], [11], [10]]),
    ],
)
def test_groups(items: list[int], groups: list[list[int]]) -> None:
    assert list(grouped(items, lambda size: size, 10)) == groups


# ------------------------------------------------------------------ the parts beside the log


class TestBacklog:
    def test_it_is_what_waits_and_part_of_what_waits_in_the_app(self) -> None:
        desk = Desk()
        desk.app.backlog_events = 100
        desk.feed(1, 2, 3)
        desk.feed(4)
        size = sum(len(stored.batch) for stored in desk.transport.read(desk.log, 0, 1 << 20))
        assert (desk.partition.backlog.events, desk.partition.backlog.size) == (4, size)
        assert (desk.app.backlog_events, desk.app.backlog_bytes) == (104, size)
        work = desk.work()
        desk.say(work, ended=[], done=[(0, Progress(2))])
        assert (desk.partition.backlog.events, desk.partition.backlog.size) == (2, size)  # until it is finished
        desk.say(work, done=[(0, Progress(3))])
        last = len(desk.transport.read(desk.log, 1, 1)[0].batch)
        assert (desk.partition.backlog.events, desk.partition.backlog.size) == (1, last)
        assert (desk.app.backlog_events, desk.app.backlog_bytes) == (101, last)

    def test_it_is_the_same_after_a_restart(self) -> None:
        desk = Desk()
        desk.feed(1, 2, 3)
        desk.feed(4)
        desk.say(desk.work(), done=[(0, Progress(1, b"\1")), (1, Progress(1))])
        before = desk.partition.backlog.size
        desk.restart()
        assert (desk.partition.backlog.events, desk.partition.backlog.size) == (1, before)
        assert desk.app.backlog_events == 1

    @pytest.mark.parametrize("counts", [True, False])
    def test_after_a_commit_of_unknown_outcome_it_is_counted_anew(
        self, counts: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk = Desk()
        desk.feed(1, 2, 3)
        desk.feed(4, 5)
        work = desk.work()
        under_way: list[Commit] = []
        with monkeypatch.context() as lost:
            if counts:  # it took effect, and nobody says so
                lost.setattr(desk.partition, "done", lambda commit, outcome: under_way.append(commit))
            else:
                lost.setattr(desk.transport, "commit", under_way.append)
            desk.say(work, ended=[], done=[(0, Progress(3)), (1, Progress(1))])
        desk.partition.backlog.events += 7  # of which nothing is known any more
        desk.partition.done(under_way[0], "unknown")
        desk.transport.pump()
        size = len(desk.transport.read(desk.log, 1, 1)[0].batch)
        assert (desk.partition.backlog.events, desk.partition.backlog.size) == (1, size)
        desk.transport.pump()
        assert desk.partition.settled
        assert decode_head(desk.claim(desk.log).head).cursor.partial == {1: Progress(1)}

    def test_what_came_twice_is_not_counted_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk()
        desk.feed(1, 2, 3)
        desk.feed(4, 5, sequence=0)
        under_way: list[Commit] = []
        with monkeypatch.context() as lost:
            lost.setattr(desk.transport, "commit", under_way.append)
            assert desk.partition.make_work(desk.now) is not None
        desk.partition.done(under_way[0], "unknown")
        desk.transport.pump()
        size = len(desk.transport.read(desk.log, 0, 1)[0].batch)
        assert (desk.partition.backlog.events, desk.partition.backlog.size) == (3, size)


class TestExpiries:
    def record(self, *dues: int) -> bytes:
        """Of a state whose fields expire then."""
        names = [f"s{i}" for i in range(len(dues))]
        return codec.encode({**dict.fromkeys(names, 1), "": dict(zip(names, dues, strict=True))})

    def put(self, desk: Desk, key: bytes, *dues: int) -> None:
        desk.ledger.put("state", state_key(0, key), self.record(*dues))

    def expire(self, desk: Desk, now: int) -> None:
        desk.clock.advance_to(now)
        desk.partition.expiries.expire(desk.now)
        desk.transport.pump()

    def test_a_row_goes_when_it_is_due(self) -> None:
        desk = Desk()
        expiries = desk.partition.expiries
        assert expiries.next_due() is None
        start = desk.now
        self.put(desk, b"k", start + 10)
        expiries.add(start + 10, "state", state_key(0, b"k"))
        desk.ledger.put("text", b"t", b"v")
        expiries.add(start + 20, "text", b"t")
        assert expiries.next_due() is None  # while it is being stored
        desk.settle()
        assert expiries.next_due() == start + 10
        self.expire(desk, start + 9)
        assert len(desk.rows("state")) == 1
        self.expire(desk, start + 10)
        assert (desk.rows("state"), len(desk.rows("text"))) == ({}, 1)
        assert expiries.next_due() == start + 20
        self.expire(desk, start + 20)
        assert (desk.rows("text"), desk.rows("expiry")) == ({}, {})
        assert expiries.next_due() is None

    def test_it_is_known_after_a_restart(self) -> None:
        desk = Desk()
        for due in (30, 20):
            desk.partition.expiries.add(desk.now + due, "text", b"k")
        desk.settle()
        desk.restart()
        assert desk.partition.expiries.next_due() == desk.now + 20
        desk.partition.expiries.add(desk.now + 40, "text", b"k")
        desk.settle()
        assert len(desk.rows("expiry")) == 3

    def test_not_while_a_commit_is_under_way(self) -> None:
        desk = Desk()
        desk.partition.expiries.add(desk.now, "text", b"k")
        desk.settle()
        desk.ledger.put("text", b"other", b"v")
        desk.partition.expiries.expire(desk.now)
        desk.settle()
        assert len(desk.rows("expiry")) == 1

    def test_exactly_what_is_due(self) -> None:
        desk = Desk()
        start = desk.now
        for due in (10, 11, 12):
            desk.partition.expiries.add(start + due, "text", b"k")
        desk.settle()
        self.expire(desk, start + 10)
        assert len(desk.rows("expiry")) == 2
        assert desk.partition.expiries.next_due() == start + 11

    def test_state_that_was_written_again_stays_until_all_of_it_has_expired(self) -> None:
        desk = Desk()
        start = desk.now
        self.put(desk, b"k", start + 10, start + 50)
        desk.partition.expiries.add(start + 10, "state", state_key(0, b"k"))
        desk.settle()
        self.expire(desk, start + 10)
        assert len(desk.rows("state")) == 1
        assert desk.partition.expiries.next_due() == start + 50
        assert [decode_expiry(v) for v in desk.rows("expiry").values()] == [Expiry("state", state_key(0, b"k"))]
        self.expire(desk, start + 50)
        assert (desk.rows("state"), desk.rows("expiry")) == ({}, {})

    def test_state_that_never_expires_or_is_gone_is_left_alone(self) -> None:
        desk = Desk()
        desk.ledger.put("state", state_key(0, b"k"), codec.encode({"s": 1}))
        for key in (b"k", b"gone"):
            desk.partition.expiries.add(desk.now + 1, "state", state_key(0, key))
        desk.settle()
        self.expire(desk, desk.now + 1)
        assert (len(desk.rows("state")), desk.rows("expiry")) == (1, {})
        assert desk.partition.expiries.next_due() is None

    def test_a_bounded_number_at_once(self) -> None:
        desk = Desk()
        for i in range(700):
            desk.partition.expiries.add(desk.now + 1 + i % 2, "text", b"%d" % i)
        desk.settle()
        start = desk.now
        self.expire(desk, start + 2)
        assert len(desk.rows("expiry")) == 200
        assert desk.partition.expiries.next_due() is not None
        self.expire(desk, start + 2)
        assert desk.rows("expiry") == {}

    def test_no_more_than_a_commit_holds(self) -> None:
        desk = Desk()
        for i in range(10):
            desk.partition.expiries.add(desk.now + i, "text", b"%d" % i)
        desk.settle()
        desk.ledger.most = 8_792 + 2 * 17
        self.expire(desk, desk.now + 9)
        assert len(desk.rows("expiry")) == 7
        assert desk.partition.expiries.next_due() == int.from_bytes(min(desk.rows("expiry"))[:8], "big")

    def test_one_that_cannot_be_read_is_said(self) -> None:
        desk = Desk()
        desk.ledger.put("expiry", timer_key(desk.now, 0), b"\xc1")
        desk.settle()
        desk.restart()
        with pytest.raises(Corrupt, match="a stored expiry"):
            desk.partition.expiries.expire(desk.now)


class TestMemory:
    def test_an_event_of_a_client_goes_into_the_log(self) -> None:
        desk = Desk()
        asker = Context("17")
        desk.partition.memory.take_in("main", 0, "word", "k", encode(1), "", Context(), 55)
        desk.partition.memory.take_in("far", 0, "away", None, encode(2), "own", asker, 55)
        desk.settle()
        ((header, contexts, (run,)),) = desk.sent(desk.log)
        assert (header.events, header.created, contexts) == (1, 55, [])
        assert (codec.names_of(run), codec.keys_of(run), codec.data_of(run)) == (["word"], ["k"], [1])
        assert (run.meta.ids, run.meta.contexts) == (None, None)
        ((_, contexts, (run,)),) = desk.sent(desk.app.log("far", 0))
        assert (contexts, run.meta.ids, run.meta.contexts) == ([asker], {0: "own"}, [0])

    def test_its_id_is_remembered_for_some_time(self) -> None:
        desk = Desk(Limits(dedup_horizon=5.0))
        desk.partition.memory.remember("own", 77, desk.now)
        desk.settle()
        what = desk.now.to_bytes(8, "big") + (77).to_bytes(4, "big") + b"\0"  # which was no call
        assert desk.rows("text") == {CLIENT_ID + b"own": what}
        assert desk.partition.expiries.next_due() == desk.now + 5 * SECOND
        desk.clock.advance(5)
        desk.partition.expiries.expire(desk.now)
        desk.settle()
        assert desk.rows("text") == {}


class TestAnswers:
    def ask(self, desk: Desk, *keys: str) -> None:
        request = Emitted("far", 1, 1, codec.one("away", "x", 1, contexts=[0]))
        for key in keys:
            call = Call("away", b"d", 10 * SECOND, [request])
            desk.partition.failures.fail(failure(id=key, key=key, call=call), None, desk.now)
        desk.settle()

    def answer(self, desk: Desk, *answers: tuple[str, Any], sequence: int = 0, name: str = "final") -> None:
        """As another partition does."""
        meta = codec.RunMeta([name])
        body = codec.encode_run(meta, len(answers), [to for to, _ in answers], [data for _, data in answers])
        log = desk.app.log(f"{REPLIES}main", 0)
        batch = codec.seal(body, len(answers), desk.app.log("far", 1), log, 7, sequence, desk.now)
        desk.broker._log(log).append(Send(log, batch, len(answers)))

    def take(self, desk: Desk) -> None:
        desk.partition.answers.take()
        desk.settle()

    def due(self, desk: Desk) -> list[tuple[int, bytes, bool]]:
        return [(r.hold, r.answers[0].data, r.answers[0].is_error) for r in desk.work().retries]

    def test_each_is_given_to_the_event_that_waits_for_it(self) -> None:
        desk = Desk()
        self.ask(desk, "a", "b", "c")
        self.answer(desk, ("1:0", "x"), ("0:0", "y"))
        self.answer(desk, ("2:0", "z"), sequence=1, name="error")
        self.take(desk)
        assert desk.sent(desk.app.log(f"{REPLIES}main", 0)) == []
        assert not desk.partition.answers.has_more
        assert sorted(self.due(desk)) == [
            (0, encode("y"), False),
            (1, encode("x"), False),
            (2, encode("z"), True),
        ]

    def test_what_came_twice_is_given_once(self) -> None:
        desk = Desk(broker=MemoryBroker(forward_later=True))
        assert not desk.partition.answers.has_more
        self.ask(desk, "a")
        self.answer(desk, ("0:0", "x"))
        self.take(desk)
        self.answer(desk, ("0:0", "y"))
        self.answer(desk, ("0:0", "z"))
        self.take(desk)
        desk.partition.answers.take()
        assert desk.partition.settled
        assert desk.app.stats.late_replies == 0
        assert desk.sent(desk.app.log(f"{REPLIES}main", 0)) == []
        assert self.due(desk) == [(0, encode("x"), False)]

    def test_in_whatever_order_they_come_none_is_left(self) -> None:
        desk = Desk(broker=MemoryBroker(forward_later=True))
        self.ask(desk, "a", "b")
        self.answer(desk, ("1:0", "x"), sequence=1)
        self.take(desk)
        assert desk.partition.make_work(desk.now) is None
        self.answer(desk, ("0:0", "y"), sequence=0)
        self.take(desk)
        assert not desk.partition.answers.has_more
        assert sorted(hold for hold, *_ in self.due(desk)) == [0, 1]

    def test_for_nobody_they_are_gone_all_the_same(self) -> None:
        desk = Desk()
        self.answer(desk, ("9:0", "x"))
        self.take(desk)
        assert desk.app.stats.late_replies == 1
        assert desk.sent(desk.app.log(f"{REPLIES}main", 0)) == []

    def test_in_a_directory_of_older_code_there_is_no_log_for_them(self) -> None:
        desk = Desk()
        del desk.app.record.logs[f"{REPLIES}main"]
        ledger = Ledger(desk.app, "main", 0, desk.transport, desk.clock, desk.claim(desk.log))
        answers = Answers(ledger, desk.partition.failures)
        assert answers.log is None
        assert len(ledger._logs) == 1
        answers.take()
        assert not answers.has_more

    def test_what_was_damaged_and_taken_out_is_no_gap_where_forwarding_is_exact(self) -> None:
        desk = Desk()
        self.ask(desk, "a")
        self.answer(desk, ("0:0", "x"), sequence=5)
        self.take(desk)
        assert self.due(desk) == [(0, encode("x"), False)]

    def test_no_more_are_taken_than_a_commit_holds(self) -> None:
        desk = Desk(Limits(max_event=100))
        self.ask(desk, "a", "b", "c")
        for i in range(3):
            self.answer(desk, (f"{i}:0", "x" * 90), sequence=i)
        desk.ledger.most = 300
        desk.partition.answers.take()
        assert desk.partition.answers.has_more
        assert 0 < desk.ledger.draft.size <= 300
        desk.settle()
        for _ in range(2):
            self.take(desk)
        assert not desk.partition.answers.has_more
        assert len(self.due(desk)) == 3

    def test_a_damaged_one_is_said(self) -> None:
        desk = Desk()
        self.answer(desk, ("0:0", "x"))
        batches = desk.broker._logs[desk.app.log(f"{REPLIES}main", 0)].batches
        log = desk.app.log(f"{REPLIES}main", 0)
        batches[0] = Send(log, batches[0].batch[:-1] + b"\7", 1)
        with pytest.raises(Corrupt, match="checksum"):
            desk.partition.answers.take()
