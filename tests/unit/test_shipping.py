"""Objects in other storages: written after the commit, in the order of its writes each, over any number of deaths."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grape import Event, Node, State, Topology
from grape.errors import BadArgument, GrapeError, StorageFailed
from grape.testing import Harness


class Copy(Node):
    count: int = State(int, default=0)

    def process(self, event: Event) -> None:
        self.count += 1
        there, what = self.storage["there"], event.data
        if "put" in what:
            there.put(what.get("key", event.key), what["put"], tags=what.get("tags", ()))
        if "remove" in what:
            there.remove(what["remove"])
        if what.get("fail"):
            raise ValueError("it fails after it has written")
        if "get" in what:
            self.emit("got", there.get(what["get"]))
        if "stat" in what:
            about = there.stat(what["stat"])
            self.emit("got", None if about is None else [about.size, list(about.tags), about.version])
        if "list" in what:
            self.emit("got", [about.key for about in there.list(what["list"])])
        if "range" in what:
            self.emit("got", there.get(what["range"], 2, 5))


def topology() -> Topology:
    t = Topology("shop")
    t.add_slot("do", Copy(), retries=0)
    t.add_output("got")
    return t


def harness(right: str = "write") -> Harness:
    return Harness(topology, namespaces={"there": right}, elsewhere=["there"])


def outputs(run: Harness) -> list[Any]:
    run.settle()
    return [event.data for event in run.outputs("got")]


@pytest.mark.parametrize("size", [0, 5, 64 << 10, (64 << 10) + 1, 3_000_000])
def test_what_is_written_arrives_and_is_read_from_there(size: int) -> None:
    with harness() as run:
        data = bytes(i % 251 for i in range(size))
        run.feed("do", {"put": data, "tags": ["b", "a"]}, key="k")
        run.settle()
        assert run.objects("there") == {"k": data}
        for what in ({"get": "k"}, {"stat": "k"}, {"list": ""}, {"range": "k"}):
            run.feed("do", what, key="other")
        assert outputs(run) == [data, [size, ["a", "b"], "1"], ["k"], data[2:5]]
        run.feed("do", {"remove": "k"}, key="x")
        run.settle()
        assert run.objects("there") == {}
        run.feed("do", {"get": "k"}, key="x")
        assert outputs(run) == [None]


def test_what_others_have_put_there_is_read() -> None:
    with harness("read") as run:
        run.put_object("photo", b"bytes", "there")
        run.feed("do", {"get": "photo"}, key="k")
        run.feed("do", {"put": b"no"}, key="k")
        assert outputs(run) == [b"bytes"]
        assert "may only read" in run.dead()[0].text


def test_of_an_event_that_fails_nothing_arrives() -> None:
    with harness() as run:
        run.feed("do", {"put": b"1"}, key="k")
        run.feed("do", {"put": b"2", "fail": True}, key="k")
        run.feed("do", {"remove": "k", "fail": True}, key="k")
        run.settle()
        assert run.objects("there") == {"k": b"1"}


def test_while_the_storage_does_not_answer_what_was_written_is_seen_all_the_same() -> None:
    with harness() as run:
        there = run._machine.elsewhere
        run.put_object("old", b"old", "there")
        there.refuses = lambda key: StorageFailed("it is away")
        run.feed("do", {"put": b"new"}, key="k")
        run.feed("do", {"remove": "old"}, key="k")
        run.advance(100)
        run.feed("do", {"get": "k"}, key="other")
        run.feed("do", {"get": "old"}, key="other")
        run.feed("do", {"get": "else"}, key="another")
        run.advance(1)
        assert [event.data for event in run.outputs("got")] == [b"new", None]
        assert "it is away" in run.dead()[0].text
        assert run._machine.app.unshipped_objects == 2
        assert sum("waits for its storage" in notice for notice in run._machine.notices) == 1
        there.refuses = lambda key: None
        run.advance(60)
        assert run.objects("there") == {"k": b"new"}
        assert run._machine.app.unshipped_objects == run._machine.app.unshipped_bytes == 0
        assert any("takes objects again" in notice for notice in run._machine.notices)


def test_what_is_refused_stays_and_the_rest_goes_on() -> None:
    with harness() as run:
        there = run._machine.elsewhere
        there.refuses = lambda key: BadArgument("not such a key") if key == "bad" else None
        run.feed("do", {"put": b"1", "key": "bad"}, key="k")
        run.feed("do", {"put": b"1", "key": "good"}, key="k")
        run.settle()
        assert run.objects("there") == {"good": b"1"}
        assert run._machine.app.stuck_objects == 1
        assert run._machine.engine.finished
        run.feed("do", {"get": "bad"}, key="k")
        assert outputs(run) == [b"1"]
        there.refuses = lambda key: None
        run.restart()
        run.settle()
        assert run.objects("there") == {"good": b"1", "bad": b"1"}
        assert run._machine.app.stuck_objects == 0


steps = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abc"), st.sampled_from([1, 70_000])),
    st.tuples(st.just("remove"), st.sampled_from("abc"), st.just(0)),
    st.tuples(st.just("fail"), st.sampled_from("abc"), st.just(0)),
    st.tuples(st.sampled_from(["settle", "restart", "away", "back"]), st.just(""), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=25))
def test_in_the_end_there_is_what_was_written_last(todo: list[tuple[str, str, int]]) -> None:
    expected: dict[str, bytes] = {}
    with harness() as run:

        def answers(key: str) -> GrapeError | None:
            return StorageFailed("it is away") if is_away else None

        is_away = False
        run._machine.elsewhere.refuses = answers
        for number, (what, key, size) in enumerate(todo):
            data = b"%d" % number * size
            if what == "put":
                run.feed("do", {"put": data, "key": key}, key="k")
                expected[key] = data
            elif what == "remove":
                run.feed("do", {"remove": key}, key="k")
                expected.pop(key, None)
            elif what == "fail":
                run.feed("do", {"put": b"never", "key": key, "fail": True}, key="k")
            elif what == "restart":
                run.restart()
            elif what == "settle":
                run.advance(1)
            else:
                is_away = what == "away"
        is_away = False
        run.advance(100)
        assert run.objects("there") == expected
        machine = run._machine
        assert machine.app.unshipped_objects == machine.app.unshipped_bytes == 0
        assert not machine.transport.scan(machine.app.objects, "object", b"", 100)
