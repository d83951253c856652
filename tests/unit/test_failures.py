"""What becomes of a failed event, in a partition without an engine."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from grape.engine.first import Failed
from grape.engine.partition.failures import Failures
from grape.errors import Corrupt
from grape.model import batch as codec
from grape.model.batch import Context
from grape.model.stored import (
    REPLIES,
    REPLY_DEAD,
    DeadLetter,
    HeldCall,
    HoldEntry,
    decode_dead,
    decode_hold,
    encode,
    row_key,
)
from grape.model.topology import Limits
from grape.model.tracing import span_of
from grape.protocol.messages import Call, Emitted, RetryItem
from unit.desk import Desk, failure

SECOND = 1_000_000
CALLER = Context("17", 0, "trace")


def fail(desk: Desk, context: Context | None = None, **fields: Any) -> Failed | None:
    what = desk.partition.failures.fail(failure(**fields), context, desk.now)
    desk.settle()
    return what


def entries(desk: Desk) -> dict[int, HoldEntry]:
    return {int.from_bytes(key, "big"): decode_hold(value) for key, value in desk.rows("hold").items()}


def letters(desk: Desk) -> list[DeadLetter]:
    return [decode_dead(value) for value in desk.rows("dead").values()]


def texts(desk: Desk, key: bytes) -> bytes | None:
    return desk.rows("text").get(key)


class TestAttempts:
    def test_it_is_held_until_its_next_attempt_and_locks_its_key(self) -> None:
        desk = Desk()
        failed = fail(desk, CALLER, trace="Traceback")
        due = desk.now + SECOND
        assert failed == Failed("Count", "word", "1-0", "ValueError", "no", "Traceback", due, False)
        (entry,) = entries(desk).values()
        body = codec.one("word", "k", 0)
        assert entry == HoldEntry(
            *("Count", "word", "1-0", "k", 5, body, 1, 0, due),
            locks=True, context=CALLER, kind="ValueError", text="no", trace=entry.trace,
        )  # fmt: skip
        assert texts(desk, entry.trace) == b"Traceback"
        assert desk.partition.next_due() == due
        assert desk.app.stats.failures == {"word>Count": 1}
        assert desk.app.holds == 1
        assert letters(desk) == []

    def test_the_wait_doubles_and_after_the_last_attempt_it_is_a_dead_letter(self) -> None:
        desk = Desk()
        fail(desk)
        fail(desk, hold=0)
        assert entries(desk)[0].attempts == 2
        assert entries(desk)[0].due == desk.now + 2 * SECOND
        failed = fail(desk, hold=0, text="at last", trace="T")
        assert failed is not None
        assert (failed.due, failed.stopped) == (0, False)
        assert entries(desk) == {}
        assert desk.app.holds == 0
        assert desk.app.stats.dead == 1
        (letter,) = letters(desk)
        what = (letter.node, letter.event, letter.id, letter.key, letter.created, letter.attempts, letter.failed)
        assert what == ("Count", "word", "1-0", "k", 5, 3, desk.now)
        assert (letter.kind, letter.text, texts(desk, letter.trace)) == ("ValueError", "at last", b"T")
        assert letter.body == codec.one("word", "k", 0)
        assert desk.app.stats.failures == {"word>Count": 3}

    def test_what_is_final_is_not_tried_again(self) -> None:
        desk = Desk()
        fail(desk, final=True)
        assert (len(letters(desk)), entries(desk)) == (1, {})

    def test_a_slot_that_stops_keeps_it_and_its_key_for_an_operator(self) -> None:
        desk = Desk()
        failed = fail(desk, event="strict", node="Strict")
        assert failed is not None
        assert failed.stopped
        (entry,) = entries(desk).values()
        assert (entry.stopped, entry.locks) == (True, True)
        assert desk.partition.next_due() is None
        assert desk.partition.finished

    def test_a_slot_without_order_locks_nothing(self) -> None:
        desk = Desk()
        fail(desk, event="loose", node="Loose")
        (entry,) = entries(desk).values()
        assert not entry.locks
        assert desk.partition.holds.locked() == []

    def test_deaths_that_name_it_are_counted_by_themselves(self) -> None:
        desk = Desk(Limits(named_deaths=2))
        fail(desk, named=True)
        (entry,) = entries(desk).values()
        assert (entry.named_deaths, entry.attempts, entry.careful) == (1, 1, True)
        fail(desk, hold=0)  # an ordinary one beside it
        assert (entries(desk)[0].named_deaths, entries(desk)[0].attempts) == (1, 2)
        fail(desk, hold=0, named=True)
        assert len(letters(desk)) == 1

    def test_deaths_have_a_limit_of_their_own(self) -> None:
        desk = Desk(Limits(named_deaths=1))
        fail(desk, named=True)  # of three attempts
        assert len(letters(desk)) == 1
        desk = Desk(Limits(named_deaths=9))
        for _ in range(5):  # of three attempts
            fail(desk, named=True, hold=-1 if not entries(desk) else 0)
        assert letters(desk) == []
        assert entries(desk)[0].named_deaths == 5

    def test_long_words_are_cut_and_no_trace_is_no_text(self) -> None:
        desk = Desk()
        fail(desk, kind="K" * 300, text="t" * 20_000, trace="T" * 20_000)
        fail(desk, id="1-1", key="other")
        first, second = entries(desk).values()
        assert (first.kind, first.text, texts(desk, first.trace)) == ("K" * 255, "t" * 16_000, b"T" * 16_000)
        assert second.trace == b""

    def test_the_same_trace_is_stored_once_and_one_that_is_no_text_all_the_same(self) -> None:
        desk = Desk()
        for i in range(3):
            fail(desk, id=f"1-{i}", key=f"k{i}", trace="T\ud800")
        assert list(desk.rows("text").values()) == [b"T?"]


class TestLines:
    def test_what_comes_behind_it_waits_without_an_attempt(self) -> None:
        desk = Desk()
        fail(desk)
        assert fail(desk, id="1-1", behind=True) is None
        second = entries(desk)[1]
        assert (second.behind, second.attempts, second.locks) == (True, 0, False)
        assert desk.app.stats.failures == {"word>Count": 1}
        assert desk.partition.holds.locked() == [("Count", "k")]
        desk.clock.advance(1)
        work = desk.work()
        assert [(r.hold, r.attempt, r.rest) for r in work.retries] == [(0, 2, False), (1, 1, False)]

    def test_who_was_tried_and_still_waits_stays_where_it_stands(self) -> None:
        desk = Desk()
        fail(desk)
        fail(desk, id="1-1", behind=True)
        before = entries(desk)
        assert fail(desk, hold=1, behind=True) is None
        assert entries(desk) == before
        assert desk.app.holds == 2

    def test_when_it_becomes_the_first_and_fails_it_locks(self) -> None:
        desk = Desk()
        fail(desk)
        fail(desk, id="1-1", behind=True)
        desk.partition.failures.release(0, desk.now)
        fail(desk, hold=1)
        assert [(e.behind, e.locks, e.attempts) for e in entries(desk).values()] == [(False, True, 1)]

    def test_behind_a_dead_one_the_next_is_due(self) -> None:
        desk = Desk()
        fail(desk)
        fail(desk, id="1-1", behind=True)
        fail(desk, hold=0, final=True)
        assert list(entries(desk)) == [1]
        assert desk.partition.next_due() == desk.now


class TestReplies:
    def test_a_caller_is_told_that_it_is_dead(self) -> None:
        desk = Desk()
        fail(desk, CALLER, final=True)
        error = {"code": "ValueError", "text": "no", "node": "Count", "note": REPLY_DEAD}
        assert desk.replies == [("17", "final", {"error": error})]
        assert letters(desk)[0].context == CALLER
        assert desk.app.stats.replies == 1

    def test_a_caller_is_told_nothing_before(self) -> None:
        desk = Desk()
        fail(desk, CALLER)
        assert desk.replies == []

    def test_a_handler_that_waits_gets_an_error(self) -> None:
        desk = Desk()
        fail(desk, Context("3:0", 1, pool="far"), final=True)
        ((_, _, runs),) = desk.sent(desk.app.log(f"{REPLIES}far", 1))
        assert codec.names_of(runs[0]) == ["error"]
        assert codec.keys_of(runs[0]) == ["3:0"]


class TestGivingUp:
    """No worker can handle it."""

    def entry(self, event: str = "word", node: str = "Count") -> HoldEntry:
        return HoldEntry(node, event, "1-0", "k", 5, codec.one(event, "k", 0), attempts=4)

    def test_it_is_a_dead_letter(self) -> None:
        desk = Desk()
        desk.partition.failures.end(self.entry(), "t" * 20_000, -1, desk.now)
        desk.settle()
        (letter,) = letters(desk)
        assert (letter.kind, letter.text, letter.attempts) == ("worker-died", "t" * 16_000, 5)

    def test_so_it_is_if_its_slot_is_gone(self) -> None:
        desk = Desk()
        desk.partition.failures.end(self.entry("gone", "Gone"), "", -1, desk.now)
        desk.settle()
        assert len(letters(desk)) == 1

    def test_it_leaves_the_hold_list(self) -> None:
        desk = Desk()
        fail(desk)
        desk.partition.failures.end(entries(desk)[0], "", 0, desk.now)
        desk.settle()
        assert (len(letters(desk)), entries(desk), desk.app.holds) == (1, {}, 0)

    def test_a_slot_that_stops_keeps_it(self) -> None:
        desk = Desk()
        desk.partition.failures.end(self.entry("strict", "Strict"), "died", -1, desk.now)
        desk.settle()
        (entry,) = entries(desk).values()
        assert (entry.stopped, entry.locks, entry.kind, entry.attempts) == (True, True, "worker-died", 5)
        assert letters(desk) == []

    def test_an_operator_gives_one_up_in_his_words(self) -> None:
        desk = Desk()
        desk.partition.failures.give_up(self.entry(), "dropped", "by hand")
        desk.settle()
        (letter,) = letters(desk)
        assert (letter.kind, letter.text, letter.failed, letter.attempts) == ("dropped", "by hand", desk.now, 4)


def test_it_is_full_with_so_many_events_or_bytes() -> None:
    desk = Desk(Limits(hold_events=2))
    fail(desk)
    assert not desk.partition.failures.is_full
    fail(desk, id="1-1", key="other")
    assert desk.partition.failures.is_full
    size = len(next(iter(desk.rows("hold").values())))
    for most, full in ((size, True), (size + 1, False)):
        small = Desk(Limits(hold_bytes=most))
        fail(small)
        assert small.partition.failures.is_full is full


def test_everything_is_there_after_a_restart() -> None:
    desk = Desk()
    fail(desk)
    fail(desk, id="1-1", behind=True)
    fail(desk, id="1-2", call=call())
    size = desk.partition.holds.size
    desk.restart()
    held = desk.partition.holds
    assert (len(held), held.size, held.locked(), desk.app.holds) == (3, size, [("Count", "k")], 3)
    assert held.next_due() == desk.now + SECOND
    fail(desk, id="1-3", key="new")
    assert list(entries(desk)) == [0, 1, 2, 3]  # no number comes twice


def test_an_entry_that_is_not_what_was_written_is_said() -> None:
    desk = Desk()
    desk.ledger.put("hold", row_key(0), b"\xc1")
    desk.settle()
    with pytest.raises(Corrupt, match="hold entry"):
        Failures(desk.ledger, Desk().partition.failures._rng)
    with pytest.raises(Corrupt, match="a hold entry of partition main/0 is missing"):
        desk.partition.failures.entry(1)


# ------------------------------------------------------------------ calls


def call(digest: bytes = b"d", timeout: int = 10 * SECOND) -> Call:
    return Call("away", digest, timeout, [Emitted("far", 1, 1, codec.one("away", "x", 1, contexts=[0]))])


def ask(desk: Desk, context: Context | None = None, **fields: Any) -> None:
    assert fail(desk, context, call=call(), **fields) is None


def answer(desk: Desk, request: str, data: Any, is_error: bool = False) -> None:
    desk.partition.failures.answered(request, encode(data), is_error)
    desk.settle()


def asked(desk: Desk) -> list[Context]:
    """With what the requests came."""
    return [context for _, contexts, _ in desk.sent(desk.app.log("far", 1)) for context in contexts]


def retries(desk: Desk) -> list[RetryItem]:
    work = desk.partition.make_work(desk.now)
    desk.transport.pump()
    return [] if work is None else work.retries


class TestCalls:
    def test_the_event_waits_and_its_request_goes_out_with_the_same_commit(self) -> None:
        desk = Desk()
        ask(desk)
        (entry,) = entries(desk).values()
        assert entry.is_suspended
        assert entry.calls == [HeldCall("away", b"d")]
        assert (entry.attempts, entry.locks, entry.behind, entry.due) == (0, True, False, desk.now + 10 * SECOND)
        assert (entry.kind, entry.text, entry.trace) == ("call", "waits for the answer to 'away'", b"")
        assert desk.values(desk.app.log("far", 1)) == [1]
        assert [header.events for header, *_ in desk.sent(desk.app.log("far", 1))] == [1]
        assert asked(desk) == [Context("0:0", 0, "", desk.now + 10 * SECOND, "main")]
        assert desk.app.stats.failures == {}

    def test_its_request_inherits_trace_and_deadline(self) -> None:
        desk = Desk()
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        for id, deadline in (("1-0", desk.now + 5), ("1-1", desk.now + 60 * SECOND), ("1-2", 0)):
            ask(desk, replace(CALLER, deadline=deadline, trace=f"{trace}-00f067aa0ba902b7"), id=id, key=id)
        node = entries(desk)[0].node
        assert [(c.request, c.trace, c.deadline - desk.now) for c in asked(desk)] == [
            ("0:0", f"{trace}-{span_of(trace, '1-0', node, 1)}", 5),
            ("1:0", f"{trace}-{span_of(trace, '1-1', node, 1)}", 10 * SECOND),
            ("2:0", f"{trace}-{span_of(trace, '1-2', node, 1)}", 10 * SECOND),
        ]

    def test_a_trace_that_is_none_is_not_handed_on(self) -> None:
        desk = Desk()
        ask(desk, replace(CALLER, trace="trace"))
        assert [context.trace for context in asked(desk)] == [""]

    def test_with_the_answer_it_is_due_at_once(self) -> None:
        desk = Desk()
        ask(desk)
        desk.clock.advance(3)
        answer(desk, "0:0", "yes")
        entry = entries(desk)[0]
        assert entry.calls == [HeldCall("away", b"d", encode("yes"))]
        assert (entry.due, entry.text) == (desk.now, "has the answer to 'away'")
        (item,) = retries(desk)
        assert [(a.digest, a.data, a.is_error) for a in item.answers] == [(b"d", encode("yes"), False)]
        assert item.attempt == 1
        assert desk.app.stats.late_replies == 0

    def test_a_second_call_keeps_the_answer_to_the_first(self) -> None:
        desk = Desk()
        ask(desk)
        answer(desk, "0:0", 1)
        ask(desk, hold=0)
        assert [c.request for c in asked(desk)] == ["0:0", "0:1"]
        answer(desk, "0:1", 2, is_error=True)
        assert entries(desk)[0].calls == [
            HeldCall("away", b"d", encode(1)),
            HeldCall("away", b"d", encode(2), True),
        ]

    @pytest.mark.parametrize("request_", ["0:1", "0:", "0", "1:0", "", "x:0", "-1:0"])
    def test_an_answer_that_nothing_waits_for_is_dropped(self, request_: str) -> None:
        desk = Desk()
        ask(desk)
        before = entries(desk)
        answer(desk, request_, "late")
        assert entries(desk) == before
        assert desk.app.stats.late_replies == 1

    def test_so_is_a_second_answer_and_one_to_what_does_not_ask(self) -> None:
        desk = Desk()
        ask(desk)
        fail(desk, id="1-1", key="other")
        answer(desk, "0:0", "yes")
        answer(desk, "0:0", "again")
        answer(desk, "1:0", "what?")
        assert entries(desk)[0].calls[0].answer == encode("yes")
        assert desk.app.stats.late_replies == 2

    def test_answers_that_together_are_too_large_become_an_error(self) -> None:
        desk = Desk(Limits(max_event=100))
        ask(desk)
        answer(desk, "0:0", b"x" * 48)  # 50 bytes
        ask(desk, hold=0)
        answer(desk, "0:1", b"x" * 48)
        assert not entries(desk)[0].calls[-1].is_error
        ask(desk, hold=0)
        answer(desk, "0:2", b"x" * 1)
        last = entries(desk)[0].calls[-1]
        assert last.is_error
        error = msgspec.msgpack.decode(last.answer or b"")["error"]
        assert (error["code"], error["node"]) == ("too-large", "")
        assert "over 100 bytes (max-event)" in error["text"]

    def test_what_gets_no_answer_in_time_is_told(self) -> None:
        desk = Desk()
        ask(desk)
        desk.clock.advance(10)
        (item,) = retries(desk)
        (got,) = item.answers
        assert got.is_error
        error = {"code": "no-answer", "text": "no answer to 'away' in time", "node": ""}
        assert msgspec.msgpack.decode(got.data) == {"error": error}
        assert not entries(desk)[0].is_suspended
        answer(desk, "0:0", "late")
        assert desk.app.stats.late_replies == 1

    def test_a_later_attempt_gets_what_was_answered_well(self) -> None:
        desk = Desk()
        ask(desk)
        answer(desk, "0:0", 1)
        ask(desk, hold=0)
        answer(desk, "0:1", 2, is_error=True)
        fail(desk, hold=0)
        assert entries(desk)[0].calls == [HeldCall("away", b"d", encode(1))]

    def test_what_waits_for_answers_and_behind_that_is_backlog_and_no_failure(self) -> None:
        desk = Desk(Limits(hold_events=2))
        ask(desk)
        fail(desk, id="1-1", behind=True)
        size = sum(map(len, desk.rows("hold").values()))
        assert (desk.app.backlog_events, desk.app.backlog_bytes) == (2, size)
        assert not desk.partition.failures.is_full
        desk.restart()
        assert (desk.app.backlog_events, desk.app.backlog_bytes) == (2, size)
        answer(desk, "0:0", 1)
        assert (desk.app.backlog_events, desk.app.backlog_bytes) == (0, 0)
        assert desk.partition.failures.is_full
        desk.partition.failures.release(0, desk.now)
        desk.settle()
        assert (desk.app.backlog_events, desk.app.backlog_bytes) == (0, 0)
        ask(desk, hold=1)
        assert desk.app.backlog_events == 1
        desk.clock.advance(10)
        assert len(retries(desk)) == 1
        assert (desk.app.backlog_events, desk.app.backlog_bytes) == (0, 0)
        ask(desk, id="1-2", key="other")
        desk.partition.failures.release(2, desk.now)
        assert (desk.app.backlog_events, desk.app.backlog_bytes) == (0, 0)
