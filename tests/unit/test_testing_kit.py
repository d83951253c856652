"""The public kit: a topology in memory, on a fake clock."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Struct

from grape import Context, Emitted, Event, Node, Reply, State, Topology
from grape.errors import TopologyError, UnknownEvent, UsageError, UserError
from grape.testing import Answer, Crash, Harness


class Split(Node):
    def process(self, event: Event) -> None:
        for word in event.data.split():
            self.emit("word", key=word)


class Count(Node):
    seen = State(int, default=0)

    def process(self, event: Event) -> None:
        self.seen += 1
        self.emit("total", {"word": event.key, "count": self.seen}, key=event.key)


def wordcount() -> Topology:
    t = Topology("wordcount")
    t.add_slot("line", Split())
    t.add_slot("word", Count())
    t.add_output("total")
    return t


def pairs(events: list[Event]) -> list[tuple[str | None, Any]]:
    return [(event.key, event.data) for event in events]


# ------------------------------------------------------------------ without a harness


def test_a_handler_can_be_called_directly() -> None:
    node = Count()
    node.process(Event("word", key="a"))
    node.process(Event("word", key="a"))
    assert node.seen == 2
    assert node.emitted[-1] == Emitted("total", {"word": "a", "count": 2}, "a")


def test_a_function_can_be_called_directly_with_a_context() -> None:
    t = Topology("t")

    @t.slot("ask")
    def answer(data: int, context: Context) -> None:
        context.reply(data + 1)

    context = Context()
    answer(1, context)
    assert context.replies == [Reply(2)]


# ------------------------------------------------------------------ feeding and looking


def test_words_are_counted() -> None:
    with Harness(wordcount()) as run:
        run.feed("line", "a b a")
        run.settle()
        assert run.state("Count", "a") == {"seen": 2}
        assert run.state("Count", "nobody") == {}
        assert run.states("Count") == {"a": {"seen": 2}, "b": {"seen": 1}}
        totals = run.outputs("total")
        assert [e.data["count"] for e in totals if e.key == "a"] == [1, 2]
        assert len(totals) == 3
        assert run.outputs("total") == []
        assert run.dead() == []
        assert run.held() == []


def test_nothing_happens_before_settle() -> None:
    with Harness(wordcount()) as run:
        run.feed("line", "a")
        assert run.states("Count") == {}
        run.settle()
        assert run.states("Count") == {"a": {"seen": 1}}


def test_outputs_know_their_id_time_and_hops() -> None:
    with Harness(wordcount(), now=datetime(2024, 5, 1, tzinfo=UTC)) as run:
        fed = run.feed("line", "a")
        run.settle()
        (total,) = run.outputs("total")
        assert total.hops == 2
        assert total.time == run.now == datetime(2024, 5, 1, tzinfo=UTC).timestamp()
        assert total.id != fed


def test_ids_are_unique_across_partitions() -> None:
    """Batches are numbered per target log, so an id has to name the target too."""
    ids: list[str] = []

    class Note(Node):
        def process(self, event: Event) -> None:
            ids.append(event.id)

    t = Topology("t")
    t.add_slot("line", Split())
    t.add_slot("word", Note())
    with Harness(t) as run:
        ids += [run.feed("line", " ".join(f"w{i}" for i in range(20))) for _ in range(8)]
        run.settle()
    assert len(set(ids)) == len(ids) == 8 + 160


def test_ids_are_unique_where_several_nodes_hear_one_event() -> None:
    """Each of them chains into the same third one."""
    ids: list[str] = []

    class Note(Node):
        def process(self, event: Event) -> None:
            ids.append(event.id)
            if event.attempt == 1:
                raise ValueError("again")

    class Say(Node):
        def process(self, event: Event) -> None:
            self.emit("word", 1)
            self.emit("word", 2)

    t = Topology("t")
    for name in ("first", "second", "third"):
        t.add_slot("line", Say(name=name), emits="word")
    t.add_slot("word", Note(), retries=1, backoff=0.1)
    with Harness(t) as run:
        fed = run.feed("line", "a", key="k")
        run.settle()
        run.advance(10)
    assert set(ids) == {f"{fed}.{own}" for own in ("0", "1", "1-0", "1-1", "2-0", "2-1")}
    assert len(ids) == 12  # each ran twice, under the same id


def test_equal_runs_are_equal() -> None:
    def once() -> list[str]:
        with Harness(wordcount) as run:
            for i in range(20):
                run.feed("line", f"a b{i} c{i % 3}")
            run.settle()
            return [f"{e.id} {e.key} {e.data}" for e in run.outputs("total")]

    assert once() == once()


def test_state_is_decoded_to_its_type() -> None:
    class Point(Struct):
        x: int

    class Keep(Node):
        at = State(Point, default=None)
        names = State(list[str])

        def process(self, event: Event) -> None:
            self.at = Point(event.data)
            self.names.append(str(event.data))

    t = Topology("t")
    t.add_slot("in", Keep())
    with Harness(t) as run:
        run.feed("in", 1, key="k")
        run.feed("in", 2, key="k")
        run.settle()
        assert run.state("Keep", "k") == {"at": Point(2), "names": ["1", "2"]}


def test_expired_state_is_gone() -> None:
    class Keep(Node):
        last = State(int, default=0, ttl=60)

        def process(self, event: Event) -> None:
            self.last = event.data

    t = Topology("t")
    t.add_slot("in", Keep())
    with Harness(t) as run:
        run.feed("in", 1, key="k")
        run.settle()
        run.advance(59)
        assert run.state("Keep", "k") == {"last": 1}
        run.advance(1)
        assert run.state("Keep", "k") == {}
        assert run.states("Keep") == {}


# ------------------------------------------------------------------ time


def failing(times: int, **options: Any) -> Topology:
    t = Topology("failing")
    t.add_output("done")

    @t.slot("in", emits="done", **options)
    def work(data: str, event: Event) -> str:
        if event.attempt <= times:
            raise ValueError(f"{data} failed, attempt {event.attempt}")
        return data

    return t


def test_a_failed_event_is_retried_when_it_is_due() -> None:
    with Harness(failing(1, backoff=10.0)) as run:
        run.feed("in", "x", key="k")
        run.feed("in", "y", key="k")
        run.settle()
        first, second = run.held()
        assert (first.event, first.node, first.key, first.data, first.attempts) == ("in", "work", "k", "x", 1)
        assert first.kind == "ValueError"
        assert run.now <= first.due <= run.now + 10
        assert (second.data, second.behind) == ("y", True)
        assert run.outputs("done") == []
        run.advance(10)  # x has succeeded; y failed by itself, and waits in turn
        run.advance(10)
        assert pairs(run.outputs("done")) == [("k", "x"), ("k", "y")]
        assert run.held() == []


def test_after_the_last_attempt_it_is_a_dead_letter() -> None:
    with Harness(failing(99, retries=2)) as run:
        run.feed("in", "x", key="k")
        run.finish()
        (letter,) = run.dead()
        assert (letter.event, letter.node, letter.key, letter.data) == ("in", "work", "k", "x")
        assert (letter.kind, letter.attempts) == ("ValueError", 3)
        assert letter.text == "ValueError: x failed, attempt 3"
        assert "raise ValueError" in letter.traceback
        assert "grape/worker" not in letter.traceback


def test_timers_fire_in_their_order_each_at_its_time() -> None:
    fired: list[tuple[str, float]] = []
    t = Topology("t")

    @t.slot("start")
    def start(data: list[float], context: Context) -> None:
        for delay in data:
            context.emit("ring", str(delay), delay=delay)

    @t.slot("ring")
    def ring(data: str, event: Event) -> None:
        fired.append((data, event.time))

    with Harness(t, now=1000.0) as run:
        run.feed("start", [30.0, 10.0, 20.0])
        run.settle()
        assert fired == []
        run.advance(15)
        assert fired == [("10.0", 1010.0)]
        run.advance(100)
        assert fired == [("10.0", 1010.0), ("20.0", 1020.0), ("30.0", 1030.0)]
        assert run.now == 1115.0


def test_finish_waits_for_timers_and_says_when_there_is_no_end() -> None:
    t = Topology("t")

    @t.slot("tick")
    def tick(data: int, context: Context) -> None:
        if data:
            context.emit("tick", data - 1, delay=3600)

    with Harness(t) as run:
        begin = run.now
        run.feed("tick", 5)
        run.finish()
        assert run.now == begin + 5 * 3600
        run.feed("tick", 1000)
        with pytest.raises(UsageError, match="due in"):
            run.finish(within=86_400)


def test_async_handlers_sleep_on_the_fake_clock() -> None:
    t = Topology("t")
    t.add_output("done")

    @t.slot("in", emits="done")
    async def work(data: float) -> float:
        await asyncio.sleep(data)
        return data

    with Harness(t) as run:
        begin, real = run.now, time.monotonic()
        for seconds in (50.0, 5.0, 20.0):
            run.feed("in", seconds)
        run.settle()
        assert sorted(e.data for e in run.outputs("done")) == [5.0, 20.0, 50.0]
        assert 50 <= run.now - begin < 51  # all at once, plus the time until results are handed in
        assert time.monotonic() - real < 5


def test_an_async_handler_that_hangs_runs_into_its_timeout() -> None:
    t = Topology("t")

    @t.slot("in", timeout=7, retries=0)
    async def hang(data: Any) -> None:
        await asyncio.get_running_loop().create_future()

    with Harness(t) as run:
        run.feed("in")
        run.settle()
        (letter,) = run.dead()
        assert letter.kind == "timeout"


def test_an_async_handler_that_hangs_for_ever_is_an_error_of_use() -> None:
    t = Topology("t")

    @t.slot("in", timeout=0)
    async def hang(data: Any) -> None:
        await asyncio.get_running_loop().create_future()

    with Harness(t) as run:
        run.feed("in")
        with pytest.raises(UsageError, match="waits for something"):
            run.settle()


# ------------------------------------------------------------------ replies


def test_replies_are_found_by_the_id_of_the_event() -> None:
    t = Topology("t")

    @t.slot("ask")
    def ask(data: int, context: Context) -> None:
        context.reply("wait", final=False)
        context.emit("answer", data)

    @t.slot("answer", retries=0)
    def answer(data: int, context: Context) -> None:
        context.reply(100 // data)
        context.reply("too late")

    with Harness(t) as run:
        ten, zero = run.feed("ask", 10), run.feed("ask", 0)
        run.settle()
        replies = run.replies()
        assert replies[ten] == [Answer("wait", False), Answer(10, True)]
        wait, error = replies[zero]
        assert wait == Answer("wait", False)
        assert error.final
        assert error.data["error"]["code"] == "ZeroDivisionError"


def test_replies_are_found_with_listeners_in_two_pools() -> None:
    t = Topology("t")

    @t.slot("ask")
    def one(data: int, context: Context) -> None:
        context.reply("one", final=False)

    @t.slot("ask", pool="other")
    def two(data: int, context: Context) -> None:
        context.reply("two", final=False)

    with Harness(t) as run:
        asked = run.feed("ask", 1)
        run.settle()
        assert sorted(a.data for a in run.replies()[asked]) == ["one", "two"]


# ------------------------------------------------------------------ kills


def test_a_restart_loses_and_doubles_nothing() -> None:
    with Harness(wordcount) as run:
        run.feed("line", "a b")
        run.settle()
        run.feed("line", "a")
        run.restart()
        run.settle()
        run.restart()
        assert run.states("Count") == {"a": {"seen": 2}, "b": {"seen": 1}}
        assert sorted((e.key or "", e.data["count"]) for e in run.outputs("total")) == [("a", 1), ("a", 2), ("b", 1)]


@pytest.mark.parametrize("moves", range(0, 40, 3))
def test_a_kill_at_any_moment_loses_and_doubles_nothing(moves: int) -> None:
    """F6"""
    with Harness(wordcount) as run:
        for _ in range(5):
            run.feed("line", "a b a")
            run.crash(moves)
        run.settle()
        assert run.states("Count") == {"a": {"seen": 10}, "b": {"seen": 5}}
        assert len(run.outputs("total")) == 15


def test_timers_and_held_events_survive_a_restart() -> None:
    with Harness(lambda: failing(1)) as run:
        run.feed("in", "x", key="k")
        run.settle()
        run.restart()
        assert [held.data for held in run.held()] == ["x"]
        run.finish()
        assert pairs(run.outputs("done")) == [("k", "x")]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_event_that_ends_its_worker_is_found_and_becomes_a_dead_letter(is_async: bool) -> None:
    """F37: only the poison is given up; the others are not touched."""

    def build() -> Topology:
        t = Topology("t")
        t.add_output("done")

        def crash_on(data: str) -> str:
            if data == "poison":
                raise Crash
            return data

        async def crash_later(data: str) -> str:
            await asyncio.sleep(0)
            return crash_on(data)

        t.add_slot("in", crash_later if is_async else crash_on, emits="done", name="work")
        return t

    with Harness(build) as run:
        for data in ("one", "poison", "two"):
            run.feed("in", data, key="k")
        run.finish()
        (letter,) = run.dead()
        assert (letter.data, letter.kind, letter.node) == ("poison", "worker-died", "work")
        assert [e.data for e in run.outputs("done")] == ["one", "two"]
        assert any("replaced" in line for line in run.notices())


# ------------------------------------------------------------------ errors of use


def test_wrong_use_is_answered_with_what_was_meant() -> None:
    with Harness(wordcount()) as run:
        with pytest.raises(UnknownEvent, match=r"no slot 'lines'; did you mean 'line'\?"):
            run.feed("lines", "a")
        with pytest.raises(UnknownEvent, match="it is an output"):
            run.feed("total", "a")
        with pytest.raises(UsageError, match=r"no output 'totals'; did you mean 'total'\?"):
            run.outputs("totals")
        with pytest.raises(UsageError, match="It is a slot"):
            run.outputs("word")
        with pytest.raises(UsageError, match="no node 'count'; did you mean 'Count'"):
            run.state("count", "a")
        with pytest.raises(UsageError, match="'Split' declares no State"):
            run.states("Split")
        with pytest.raises(UsageError, match="forward only"):
            run.advance(-1)
        with pytest.raises(TypeError, match="a key is text"):
            run.feed("line", "a", key=1)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="cannot travel"):
            run.feed("line", object())


def test_a_closed_harness_says_so() -> None:
    run = Harness(wordcount())
    run.close()
    run.close()
    with pytest.raises(UsageError, match="closed"):
        run.settle()


def test_a_topology_that_cannot_be_built_is_refused_at_once() -> None:
    with pytest.raises(TopologyError, match="no slots"):
        Harness(Topology("empty"))
    with pytest.raises(UsageError, match="takes a Topology"):
        Harness("wordcount")  # type: ignore[arg-type]


def test_an_endless_cycle_ends_at_max_hops() -> None:
    """F38"""
    t = Topology("t")

    @t.slot("round")
    def go_round(data: int, context: Context) -> None:
        context.emit("round", data)

    with Harness(t) as run:
        run.feed("round", 1)
        run.settle()
        (letter,) = run.dead()
        assert letter.kind == "too-many-hops"


def test_what_goes_to_other_apps_can_be_looked_at() -> None:
    class Sell(Node):
        def process(self, event: Event) -> None:
            self.emit("stock@take", event.data, key="nails")
            self.emit("stock@take", event.data, key="nuts", delay=5)
            if event.data == "wrong":
                self.emit("stock@tkae")

    topology = Topology("shop")
    topology.add_slot("sell", Sell(), retries=0)
    with Harness(topology, apps={"stock": ["take"]}) as run:
        run.feed("sell", 1)
        run.feed("sell", "wrong")
        run.settle()
        assert [(e.name, e.key, e.data) for e in run.sent("stock")] == [("stock@take", "nails", 1)]
        assert "did you mean 'take'?" in run.dead()[0].text
        run.advance(5)
        assert [e.key for e in run.sent("stock")] == ["nuts"]
        with pytest.raises(UsageError, match="apps="):
            run.sent("other")
