"""What a worker gets of a partition and hands in, without an engine."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from grape.engine.partition.careful import Root
from grape.engine.partition.results import size_of
from grape.errors import Corrupt, ProtocolError
from grape.model import batch as codec
from grape.model.batch import Context
from grape.model.cursor import Progress
from grape.model.stored import Expiry, decode_expiry, decode_head, encode, state_key, timer_name_key
from grape.model.topology import Limits
from grape.protocol.messages import Call, Named, Reply, Result, StateChanges, Timer, TimerName, Work
from grape.transports.memory import MemoryBroker
from unit.desk import Desk, emitted, failure


def fed(count: int, batches: int = 1, limits: Limits = Limits()) -> Desk:
    """A desk with so many events, in so many batches."""
    desk = Desk(limits)
    for at in range(batches):
        desk.feed(*range(count * at // batches, count * (at + 1) // batches))
    return desk


def fail_all(desk: Desk, *keys: str) -> None:
    """Events of these keys fail, and are due again."""
    for key in keys:
        desk.partition.failures.fail(failure(id=key, key=key), None, desk.now)
    desk.settle()
    desk.clock.advance(1)


class TestWorks:
    def test_a_batch_with_what_is_to_be_known_of_it(self) -> None:
        desk = Desk()
        desk.feed(10, 11, keys=["a", None])
        assert desk.partition.has_work(desk.now)
        work = desk.work()
        (item,) = work.batches
        prefix = f"00000007-{desk.source.pool}.0-{desk.log.pool}.0-0-"
        assert (item.position, item.id_prefix, item.created, item.events) == (0, prefix, desk.now, 2)
        assert (item.done, item.contexts, item.calls) == (Progress(), 0, False)
        (run,) = codec.runs_of(item.body)
        assert (codec.keys_of(run), codec.data_of(run)) == (["a", None], [10, 11])
        assert (work.partition, work.seq, work.retries, work.careful, work.named) == (0, 1, [], False, [])

    def test_one_after_the_other(self) -> None:
        desk = fed(1)
        work = desk.work()
        desk.feed(2)
        assert not desk.partition.has_work(desk.now)
        desk.say(work, done=[(0, Progress(1))])
        assert desk.partition.has_work(desk.now)
        following = desk.work()
        assert (following.seq, [b.position for b in following.batches]) == (2, [1])

    def test_without_anything_to_do_there_is_none(self) -> None:
        desk = Desk()
        assert not desk.partition.has_work(desk.now)
        assert desk.partition.make_work(desk.now) is None
        work = fed(1)
        work.say(work.work(), done=[(0, Progress(1))])
        assert work.partition.make_work(work.now) is None
        assert work.partition.finished

    def test_none_is_handed_out_while_a_commit_is_under_way_or_it_is_to_move(self) -> None:
        desk = fed(1)
        desk.ledger.put("text", b"k", b"v")
        assert not desk.partition.has_work(desk.now)
        desk.partition.flush()
        assert not desk.partition.has_work(desk.now)
        desk.settle()
        assert desk.partition.has_work(desk.now)
        desk.partition.dispatch.is_moving = True
        assert not desk.partition.has_work(desk.now)

    def test_what_was_begun_comes_again_from_where_it_is(self) -> None:
        desk = fed(5)
        desk.say(desk.work(), done=[(0, Progress(1, b"\2"))])  # events 0 and 3
        again = desk.work()
        assert [(b.position, b.done) for b in again.batches] == [(0, Progress(1, b"\2"))]
        desk.restart()
        assert desk.partition.backlog.events == 3
        assert [(b.position, b.done) for b in desk.work().batches] == [(0, Progress(1, b"\2"))]

    def test_several_are_out_only_where_handlers_are_async(self) -> None:
        desk = fed(1)
        desk.partition.dispatch.top_up = True
        first = desk.work()
        assert not desk.partition.has_work(desk.now)  # all is in work
        desk.feed(2)
        assert desk.partition.has_work(desk.now)
        second = desk.work()
        assert [b.position for b in second.batches] == [1]
        desk.say(second, done=[(1, Progress(1))])
        assert list(desk.partition.works) == [first.seq]

    def test_works_that_overlap_for_ever_do_not_gather_contexts_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are numbers of one table, which begins anew when nothing is out."""
        monkeypatch.setattr("grape.engine.partition.dispatch.MOST_CONTEXTS", 5)
        desk = Desk()
        desk.partition.dispatch.top_up = True
        out: list[Work] = []
        for i in range(40):
            desk.feed(i, contexts=[Context(str(i))])
            if desk.partition.has_work(desk.now):
                out.append(desk.work())
            assert len(desk.partition.dispatch.contexts) <= 5 + 1
            if len(out) > 1 or desk.partition.backlog.events > len(out):  # the newest stays out, unless it is held back
                work = out.pop(0)
                desk.say(work, done=[(item.position, Progress(1)) for item in work.batches])
        assert desk.partition.backlog.events < 10

    def test_with_a_full_hold_list_only_what_is_held_is_tried(self) -> None:
        desk = fed(1, limits=Limits(hold_events=1))
        desk.partition.failures.fail(failure(), None, desk.now)
        desk.settle()
        assert not desk.partition.has_work(desk.now)
        desk.clock.advance(1)
        assert desk.partition.has_work(desk.now)
        work = desk.work()
        assert (len(work.retries), work.batches) == (1, [])

    def test_what_is_not_there_any_more_is_said(self) -> None:
        desk = fed(2)
        desk.say(desk.work(), done=[(0, Progress(1))])
        desk.broker._logs[desk.log].batches.clear()
        with pytest.raises(Corrupt, match="main/0: the batch at 0 is not finished, and is gone"):
            desk.partition.make_work(desk.now)
        desk = Desk()
        fail_all(desk, "k")
        desk.broker._tables[desk.log, "hold"].rows.clear()
        with pytest.raises(Corrupt, match="hold entry 0 of partition main/0 is missing"):
            desk.partition.make_work(desk.now)

    def test_a_damaged_batch_is_said_with_its_place(self) -> None:
        desk = fed(1)
        batches = desk.broker._logs[desk.log].batches
        batches[0] = replace(batches[0], batch=batches[0].batch[:-1] + b"\7")
        with pytest.raises(Corrupt, match=r"main/0 at 0: .*fails its checksum"):
            desk.partition.make_work(desk.now)

    def test_duplicates_are_counted_and_gone(self) -> None:
        desk = fed(1)
        desk.feed(2, 3, sequence=0)
        desk.feed(4, sequence=1)
        assert desk.partition.backlog.events == 4
        work = desk.work()
        assert [b.position for b in work.batches] == [0, 2]
        assert desk.app.stats.pools["main"].duplicates == 1
        assert (desk.partition.backlog.events, desk.app.backlog_events) == (2, 2)
        desk.say(work, done=[(0, Progress(1)), (2, Progress(1))])
        assert (desk.partition.backlog.events, desk.partition.backlog.size) == (0, 0)
        assert desk.sent(desk.log) == []
        cursor = decode_head(desk.claim(desk.log).head).cursor
        assert (cursor.position, cursor.finished, cursor.partial) == (3, set(), {})

    def test_what_came_twice_and_nothing_else_is_no_work_and_goes_with_a_commit(self) -> None:
        desk = fed(1)
        desk.say(desk.work(), done=[(0, Progress(1))])
        desk.feed(2, sequence=0)
        desk.feed(3, sequence=0)
        assert desk.partition.make_work(desk.now) is None
        assert not desk.partition.settled
        desk.transport.pump()
        assert desk.sent(desk.log) == []
        assert desk.partition.make_work(desk.now) is None
        assert desk.app.stats.pools["main"].duplicates == 2
        assert (desk.app.backlog_events, desk.app.backlog_bytes) == (0, 0)

    def test_however_many_are_read_at_once_none_is_left_out(self) -> None:
        desk = fed(40, batches=20, limits=Limits(batch_max=100))
        assert [b.position for b in desk.work().batches] == list(range(20))


class TestHowMuch:
    def test_about_a_window_which_grows_while_works_are_finished(self) -> None:
        desk = fed(12_000, batches=120)
        sizes = []
        for _ in range(3):
            work = desk.work()
            sizes.append(sum(b.events for b in work.batches))
            desk.say(work, done=[(b.position, Progress(b.events)) for b in work.batches])
        assert sizes == [1_100, 2_100, 4_100]

    def test_which_shrinks_to_twice_what_was_done_when_a_worker_gives_back(self) -> None:
        desk = fed(3_000, batches=300)
        sizes = []
        for done in (20, 20, 3, 0):
            work = desk.work()
            sizes.append(len(work.batches))
            desk.say(work, done=[(b.position, Progress(10)) for b in work.batches[:done]])
        work = desk.work()
        assert [*sizes, len(work.batches)] == [103, 40, 20, 7, 7]  # half at most; 64 events at least

    def test_of_a_batch_counts_what_was_done_of_it(self) -> None:
        desk = fed(3_000, batches=3)
        work = desk.work()
        assert len(work.batches) == 2
        desk.say(work, done=[(0, Progress(100))])
        assert desk.partition.dispatch._window == 200

    def test_never_more_than_said_in_events_and_bytes(self) -> None:
        desk = fed(100, batches=10, limits=Limits(dispatch_events=25))
        assert len(desk.work().batches) == 3
        size = len(desk.transport.read(desk.log, 0, 1)[0].batch)
        for most, batches in ((size - 1, 1), (size, 1), (size + 1, 2), (2 * size, 2)):
            desk = fed(100, batches=10, limits=Limits(dispatch_bytes=most))
            assert len(desk.work().batches) == batches

    def test_what_is_done_of_a_batch_counts_not(self) -> None:
        desk = fed(40, batches=4, limits=Limits(dispatch_events=15))
        work = desk.work()
        assert len(work.batches) == 2
        desk.say(work, done=[(0, Progress(9))])
        assert len(desk.work().batches) == 3  # one event, ten, and ten

    def test_more_is_out_only_as_far_as_there_is_room(self) -> None:
        desk = fed(40, batches=4, limits=Limits(dispatch_events=20))
        desk.partition.dispatch.top_up = True
        work = desk.work()
        assert len(work.batches) == 2
        assert not desk.partition.has_work(desk.now)
        desk.say(work, ended=[], done=[(0, Progress(10))])
        assert desk.partition.has_work(desk.now)
        assert len(desk.work().batches) == 1


class TestRetries:
    def test_with_what_is_known_of_the_event(self) -> None:
        desk = Desk()
        context = Context("17", 1)
        desk.partition.failures.fail(failure(named=True), context, desk.now)
        desk.partition.failures.fail(failure(id="1-1", behind=True), None, desk.now)
        desk.settle()
        desk.clock.advance(1)
        (item,) = desk.work().retries
        body = codec.one("word", "k", 0)
        assert (item.hold, item.node, item.id, item.attempt, item.named_deaths) == (0, "Count", "1-0", 2, 1)
        assert (item.created, item.body, item.rest, item.context, item.answers) == (5, body, True, 0, [])
        assert desk.partition.dispatch.contexts == [context]

    def test_contexts_are_numbered_through_and_those_with_a_deadline_are_named(self) -> None:
        desk = Desk()
        one, two, three = Context("1", deadline=50), Context("2"), Context("3", deadline=60)
        fail_all(desk, "a")
        desk.partition.failures.fail(failure(id="b", key="b"), one, desk.now - 10**6)
        desk.settle()
        desk.feed(1, 2, contexts=[two, three])
        work = desk.work()
        assert [r.context for r in work.retries] == [-1, 1]
        assert [b.contexts for b in work.batches] == [2]
        assert desk.partition.dispatch.contexts == [Context(), one, two, three]
        assert (work.context_base, work.deadlines) == (0, {1: 50, 3: 60})

    def test_those_of_a_second_work_follow_while_the_first_is_out(self) -> None:
        desk = Desk()
        desk.partition.dispatch.top_up = True
        desk.feed(1, contexts=[Context("1", deadline=50)])
        first = desk.work()
        desk.feed(2, contexts=[Context("2", deadline=60)])
        second = desk.work()
        assert (second.context_base, second.deadlines) == (1, {1: 60})
        desk.say(second, done=[(1, Progress(1))], replies=[Reply(1, encode("x"), True)])
        desk.say(first, done=[(0, Progress(1))], replies=[Reply(0, encode("y"), True)])
        assert desk.replies == [("2", "final", "x"), ("1", "final", "y")]
        desk.feed(3, contexts=[Context("3")])
        assert desk.work().context_base == 0
        assert desk.partition.dispatch.contexts == [Context("3")]

    def test_events_that_are_calls_have_contexts_of_their_own(self) -> None:
        desk = Desk()
        desk.feed(1, 2, flags=codec.SELF_REPLY)
        work = desk.work()
        (item,) = work.batches
        assert (item.calls, item.contexts) == (True, 2)
        desk.say(work, done=[(0, Progress(2))], replies=[Reply(1, encode("x"), True)])
        assert desk.replies == [(f"{item.id_prefix}1", "final", "x")]

    def test_many_at_once_but_where_handlers_run_for_long(self) -> None:
        desk = fed(1)
        fail_all(desk, *(f"k{i}" for i in range(600)))
        assert len(desk.work().retries) == 500
        desk = fed(1)
        fail_all(desk, "a", "b")
        desk.partition.dispatch.is_long = True
        work = desk.work()
        assert (len(work.retries), work.batches) == (1, [])
        desk.say(work, retried=[0])
        desk.say(desk.work(), retried=[1])
        assert len(desk.work().batches) == 1

    def test_they_go_with_what_waits_in_the_log_unless_one_has_killed_a_worker(self) -> None:
        desk = fed(1)
        fail_all(desk, "a", "b")
        work = desk.work()
        assert (len(work.retries), len(work.batches), work.careful) == (2, 1, False)
        desk = fed(1)
        desk.partition.failures.fail(failure(named=True), None, desk.now)
        desk.settle()
        desk.clock.advance(1)
        work = desk.work()
        assert (len(work.retries), work.batches, work.careful) == (1, [], True)

    def test_what_was_tried_is_over_and_what_was_not_comes_again(self) -> None:
        desk = Desk()
        fail_all(desk, "a", "b")
        work = desk.work()
        desk.say(work, retried=[0])
        assert desk.app.holds == 1
        assert list(desk.rows("hold")) == [(1).to_bytes(8, "big")]
        assert [r.hold for r in desk.work().retries] == [1]


class TestCareful:
    """A worker has died over a work."""

    def died(self, desk: Desk) -> None:
        for work in list(desk.partition.works.values()):
            desk.partition.dispatch.suspect(work)
        desk.partition.reassign()

    def test_the_same_is_done_again_carefully_and_less_of_it(self) -> None:
        desk = fed(2_000, batches=20)
        assert len(desk.work().batches) == 11
        self.died(desk)
        work = desk.work()
        assert (work.careful, len(work.batches), work.epoch) == (True, 3, 1)
        desk.say(work, done=[(b.position, Progress(100)) for b in work.batches])
        work = desk.work()
        assert (work.careful, len(work.batches)) == (True, 3)
        for _ in range(2):
            desk.say(work, done=[(b.position, Progress(100)) for b in work.batches])
            work = desk.work()
        desk.say(work, done=[(b.position, Progress(100)) for b in work.batches])
        work = desk.work()
        assert (work.careful, len(work.batches)) == (False, 8)  # all that is left

    def test_what_is_done_carefully_says_nothing_of_how_much_a_worker_can_do(self) -> None:
        desk = fed(6_000, batches=60)
        desk.work()
        self.died(desk)
        for batches in (3, 3, 3, 3, 11):
            work = desk.work()
            assert len(work.batches) == batches
            desk.say(work, done=[(b.position, Progress(100)) for b in work.batches])

    def test_nothing_more_is_handed_out_meanwhile(self) -> None:
        desk = fed(600, batches=2)
        desk.partition.dispatch.top_up = True
        desk.work()
        self.died(desk)
        assert desk.partition.has_work(desk.now)
        desk.work()
        assert not desk.partition.has_work(desk.now)

    def test_held_ones_go_with_what_waits_in_the_log(self) -> None:
        desk = fed(1)
        fail_all(desk, "a")
        desk.work()
        self.died(desk)
        work = desk.work()
        assert (work.careful, len(work.retries), len(work.batches)) == (True, 1, 1)

    def test_what_was_handed_in_before_is_not_suspected(self) -> None:
        desk = fed(1)
        fail_all(desk, "a")
        desk.say(desk.work(), ended=[], done=[(0, Progress(1))], retried=[0])
        self.died(desk)
        assert not desk.partition.careful

    @pytest.mark.parametrize("handed_in", [{"retried": [0]}, {"failures": [failure(id="a", key="a", hold=0)]}])
    def test_a_held_one_is_not_suspected_when_it_was_handed_in_or_its_work_is_over(self, handed_in: Any) -> None:
        for fields in ({"ended": [], **handed_in}, {}):
            desk = Desk()
            fail_all(desk, "a")
            desk.work()
            self.died(desk)
            work = desk.work()
            assert desk.partition.careful
            desk.say(work, **fields)
            assert not desk.partition.careful

    @pytest.mark.parametrize(
        "moves", [{"done": [(0, Progress(1))]}, {"retried": [1]}, {"failures": [failure(id="b", key="b", hold=1)]}]
    )
    def test_a_root_that_many_died_over_has_all_its_lives_again_once_anything_is_handed_in(self, moves: Any) -> None:
        desk = fed(2)
        fail_all(desk, "a", "b")
        work = desk.work()
        dispatched = desk.partition.works[work.seq]
        for handed_in, given_up in (({}, True), (moves, False)):
            for _ in range(4):
                assert desk.partition.died_carefully(dispatched) is None
            desk.say(work, ended=[], **handed_in)
            found = desk.partition.died_carefully(dispatched)
            assert (found is not None) is given_up
            if found is not None:
                desk.partition.careful.forget(found)

    def test_what_an_operator_has_dropped_meanwhile_is_not_suspected(self) -> None:
        desk = Desk()
        fail_all(desk, "a", "b")
        work = desk.work()
        dispatched = desk.partition.works[work.seq]
        desk.partition.failures.release(0, desk.now)
        assert desk.partition.dispatch.first_root(dispatched) == Root(number=1)
        with pytest.raises(ProtocolError, match="retried entry 0, which is not in this work"):
            desk.say(work, retried=[0])
        desk.partition.failures.release(1, desk.now)
        assert desk.partition.dispatch.first_root(dispatched) is None
        self.died(desk)
        assert not desk.partition.careful

    def test_held_ones_too(self) -> None:
        desk = Desk()
        fail_all(desk, "a")
        desk.work()
        self.died(desk)
        work = desk.work()
        assert (work.careful, [r.hold for r in work.retries]) == (True, [0])
        desk.say(work, retried=[0])
        assert not desk.partition.careful

    def test_who_was_named_is_named_until_it_is_handed_in(self) -> None:
        desk = fed(2)
        desk.work()
        self.died(desk)
        named = Named("1-0", "Count", "worker-died", "died", True)
        desk.partition.careful.name(named)
        fail_all(desk, "a", "b")
        work = desk.work()
        assert (work.named, len(work.retries)) == ([named], 1)
        desk.say(work, ended=[], failures=[failure(named=True)])
        assert desk.partition.careful.named == {}

    def test_the_first_that_is_not_handed_in_is_known(self) -> None:
        desk = fed(4)
        desk.say(desk.work(), done=[(0, Progress(1, b"\1"))])
        fail_all(desk, "a")
        work = desk.work()
        dispatched = desk.partition.works[work.seq]
        assert desk.partition.dispatch.first_root(dispatched) == Root(number=0)
        desk.say(work, ended=[], retried=[0])
        assert desk.partition.dispatch.first_root(dispatched) == Root(0, 1)
        desk.say(work, ended=[], done=[(0, Progress(3))])
        assert desk.partition.dispatch.first_root(dispatched) == Root(0, 3)
        desk.say(work, ended=[], done=[(0, Progress(4))])
        assert desk.partition.dispatch.first_root(dispatched) is None


class TestResults:
    def test_all_of_it_is_one_commit(self) -> None:
        desk = fed(1)
        work = desk.work()
        node = desk.app.node_id("Count")
        name = TimerName("Count", b"k", "end")
        desk.say(
            work,
            done=[(0, Progress(1))],
            emitted=[emitted("out"), emitted("far", "away", "far", partition=1)],
            states=[StateChanges("Count", [b"a", b"b"], [b"\x80", None], [desk.now + 7, 0])],
            timers=[Timer(5, emitted("late")), Timer(6, emitted("later"), name)],
            counts={"word>Count": 1},
            emits={"total": 1},
        )
        assert desk.values(desk.app.log(">total", 0)) == ["out"]
        assert desk.values(desk.app.log("far", 1)) == ["far"]
        assert desk.rows("state") == {state_key(node, b"a"): b"\x80"}
        (expiry,) = desk.rows("expiry").values()
        assert decode_expiry(expiry) == Expiry("state", state_key(node, b"a"))
        assert [int.from_bytes(key[:8], "big") - desk.now for key in desk.rows("timer")] == [5, 6]
        assert list(desk.rows("text")) == [timer_name_key(node, b"k", "end")]
        assert desk.app.stats.commits == 1
        assert (desk.app.stats.processed, desk.app.stats.emitted) == ({"word>Count": 1}, {"total": 1})
        assert desk.app.stats.pools["main"].finished == 1
        assert (desk.app.backlog_events, desk.app.backlog_bytes) == (0, 0)
        assert desk.partition.quiet

    def test_a_timer_is_cancelled_by_its_name(self) -> None:
        desk = fed(2)
        name = TimerName("Count", b"k", "end")
        desk.say(desk.work(), done=[(0, Progress(1))], timers=[Timer(5, emitted(), name)])
        replaced = [Timer(0, None, name), Timer(7, emitted(), name)]
        desk.say(desk.work(), done=[(0, Progress(2))], timers=replaced)
        assert [int.from_bytes(key[:8], "big") - desk.now for key in desk.rows("timer")] == [7]
        desk.partition.timers.cancel(timer_name_key(desk.app.node_id("Count"), b"k", "end"))
        desk.settle()
        assert (desk.rows("timer"), desk.rows("text")) == ({}, {})

    def test_what_is_emitted_inherits_the_contexts_that_it_names(self) -> None:
        desk = Desk()
        one, two = Context("1"), Context("2")
        desk.feed(1, 2, contexts=[one, two])
        body = codec.one("total", None, 1, contexts=[0])
        late = emitted(body=codec.one("total", None, 2, contexts=[0]), contexts=[0])
        desk.say(
            desk.work(),
            done=[(0, Progress(2))],
            emitted=[emitted(body=body, contexts=[1])],
            timers=[Timer(1, late)],
            failures=[failure(context=1, final=True), failure(context=0, final=True)],
        )
        assert [contexts for _, contexts, _ in desk.sent(desk.app.log(">total", 0))] == [[two]]
        assert [request for request, *_ in desk.replies] == ["2", "1"]
        desk.clock.advance(1)
        desk.partition.timers.fire(desk.now)
        desk.settle()
        assert [contexts for _, contexts, _ in desk.sent(desk.app.log(">total", 0))] == [[two], [one]]

    def test_failures_are_told(self) -> None:
        desk = fed(2)
        failed = desk.say(
            desk.work(), done=[(0, Progress(2))], failures=[failure(), failure(id="1-1", behind=True), failure(id="x")]
        )
        assert [(what.id, what.due > desk.now) for what in failed] == [("1-0", True), ("x", True)]
        assert len(desk.rows("hold")) == 3

    def test_how_late_events_were_is_counted(self) -> None:
        desk = fed(3)
        desk.clock.advance(2)
        desk.say(desk.work(), done=[(0, Progress(3))])
        stats = desk.app.stats.pools["main"]
        assert stats.finished == 3
        (median,) = stats.latencies.quantiles((0.5,)).values()
        assert 1.75 <= median <= 2.25

    def test_a_batch_that_is_not_in_work_is_refused(self) -> None:
        desk = fed(2, batches=2, limits=Limits(dispatch_events=1))
        work = desk.work()
        with pytest.raises(ProtocolError, match="progress of batch 1, which is not in work"):
            desk.say(work, done=[(1, Progress(1))])
        with pytest.raises(ProtocolError, match="the end of work 2 of partition 0"):
            desk.say(work, ended=[2])
        desk.say(work, ended=[], done=[(0, Progress(1))])
        with pytest.raises(ProtocolError, match="progress of batch 0, which is finished"):
            desk.say(work, done=[(0, Progress(1))])

    def test_an_entry_that_was_handed_in_is_not_in_work_any_more(self) -> None:
        desk = Desk()
        fail_all(desk, "a", "b")
        work = desk.work()
        desk.say(work, ended=[], retried=[1])
        with pytest.raises(ProtocolError, match="retried entry 1, which is not in this work"):
            desk.say(work, ended=[], retried=[1])
        again = failure(id="a", key="a", hold=0)
        with pytest.raises(ProtocolError, match="entry 0 twice"):
            desk.say(work, failures=[again, again])
        desk.say(work, ended=[], failures=[again])
        with pytest.raises(ProtocolError, match="a failure of entry 0, which is not in this work"):
            desk.say(work, failures=[again])

    def test_one_that_no_commit_holds_is_refused(self) -> None:
        desk = Desk(broker=MemoryBroker(largest_commit=80_000))
        desk.feed(1)
        work = desk.work()
        changes = StateChanges("Count", [b"k"], [codec.encode({"seen": b"x" * 69_988})])
        with pytest.raises(ProtocolError, match="a result of 70300 bytes, and a commit holds 70000"):
            desk.say(work, states=[changes], retried=[0])
        desk.say(work, done=[(0, Progress(1))], states=[changes])
        assert len(desk.rows("state")) == 1

    def test_one_for_which_there_is_no_room_waits_for_the_next_commit(self) -> None:
        desk = Desk(broker=MemoryBroker(largest_commit=80_000))
        desk.feed(1, 2)
        work = desk.work()

        def state(size: int) -> Result:
            value = codec.encode({"seen": b"x" * size})
            return Result(0, work.epoch, [], [], states=[StateChanges("Count", [b"k"], [value])])

        large, small = state(60_000), state(1_000)
        assert not desk.partition.defers(large)  # into an empty draft goes anything
        desk.partition.apply(large)
        assert not desk.partition.defers(small)
        assert desk.partition.defers(large)
        assert desk.partition.defers(small)  # nothing overtakes what waits
        assert desk.partition.next_result() is None
        desk.settle()
        assert desk.partition.next_result() is large
        assert desk.partition.next_result() is small
        assert desk.partition.next_result() is None

    def test_about_how_large_it_is(self) -> None:
        def size(**fields: Any) -> int:
            return size_of(Result(0, 1, [], [], **fields))

        body = codec.one("total", None, 1)
        calls = Call("away", b"d", 1, [emitted(), emitted()])
        assert size() == 0
        assert size(emitted=[emitted(), emitted()]) == 2 * (len(body) + 300)
        assert size(timers=[Timer(1, emitted()), Timer(0, None)]) == len(body) + 300
        assert size(retried=[1, 2]) == 600
        assert size(replies=[Reply(0, b"1234", True)]) == 304
        held = len(failure().body)
        assert size(failures=[failure(text="no", trace="abc")]) == held + 5 + 300
        assert size(failures=[failure(text="", call=calls)]) == held + 2 * len(body) + 3 * 300
        assert size(states=[StateChanges("Count", [b"ab", b"c"], [b"1234", None])]) == 7


class TestRestarts:
    def test_what_a_worker_had_is_done_again_in_a_new_epoch(self) -> None:
        desk = fed(2)
        fail_all(desk, "a")
        desk.work()
        assert not desk.partition.has_work(desk.now)
        assert desk.partition.reassign() == 1
        again = desk.work()
        assert ([b.position for b in again.batches], [r.hold for r in again.retries]) == ([0], [0])
        assert again.epoch == 1

    def test_the_head_says_what_was_accepted_and_sent(self) -> None:
        desk = fed(2)
        desk.say(desk.work(), done=[(0, Progress(1))], emitted=[emitted(), emitted()])
        head = decode_head(desk.claim(desk.log).head)
        assert head.cursor.partial == {0: Progress(1)}
        assert head.sent == {desk.app.log(">total", 0).packed(): 2}
        assert list(head.seen.values()) == [1]
