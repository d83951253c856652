"""What a worker may say, up to its bounds; and that what is beyond is refused. (`test_forged.py`: with an engine.)"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from grape.engine.app import App
from grape.engine.catalog import update_record
from grape.engine.check import (
    MAX_COUNT,
    MAX_HOPS,
    MAX_SECONDS,
    MAX_TIME,
    Checker,
    check_emits,
    check_progress,
    check_topology,
    once,
)
from grape.errors import ProtocolError, TopologyError
from grape.model import batch as codec
from grape.model.batch import RunMeta
from grape.model.cursor import Progress
from grape.model.stored import Catalog
from grape.model.topology import Limits, NodeSpec, PoolSpec, SlotSpec, StateSpec, TopologySpec
from grape.protocol.messages import Call, Emitted, Failure, Reply, StateChanges, Timer, TimerName

TOPOLOGY = TopologySpec(
    "checked",
    nodes=(NodeSpec("Count", states=(StateSpec("seen"),)), NodeSpec("Plain"), NodeSpec("Far", "far")),
    slots=(
        SlotSpec("word", "Count"),
        SlotSpec("word", "Plain"),
        SlotSpec("name", "Count"),
        SlotSpec("name", "Plain"),
        SlotSpec("line", "Plain"),
        SlotSpec("line", "Far"),
    ),
    outputs=("total",),
    pools=(PoolSpec("main"), PoolSpec("far")),
)
LIMITS = Limits(max_event=1000, batch_max=500, max_result=600)
CONTEXTS = 3


@pytest.fixture(scope="module")
def check() -> Checker:
    record = update_record(Catalog(), TOPOLOGY, 4, 1)
    return Checker(App(record, TOPOLOGY, LIMITS), "main")


def emitted(**fields: Any) -> Emitted:
    return Emitted(**{"target": "main", "partition": 0, "events": 1, "body": codec.one("line", None, 1), **fields})


def two(*names: str, **meta: Any) -> Emitted:
    return emitted(events=2, body=codec.encode_run(RunMeta(list(names), **meta), 2, None, [1, 2]))


class TestEmitted:
    @pytest.mark.parametrize(
        "good",
        [
            emitted(),
            emitted(partition=3),
            emitted(target="far"),
            emitted(target=">total", body=codec.one("total", None, 1)),
            emitted(contexts=[0]),
            emitted(contexts=[2, 0], body=codec.one("line", None, 1, contexts=[1])),
            two("word", "name", index=b"\0\1"),  # they have the same listeners
            two("line", hops=[0, MAX_HOPS]),
            two("word", only=["Count"]),
            two("word", only=["Plain", "Count"]),
        ],
    )
    def test_what_is_right(self, check: Checker, good: Emitted) -> None:
        check.emitted(good, CONTEXTS)

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            (emitted(partition=4), "partition 4 of 4"),
            (emitted(contexts=[0, 3]), "a context that this work does not have"),
            (emitted(contexts=[-1, 0]), "a context that this work does not have"),
            (emitted(target="far", body=codec.one("word", None, 1)), "where nothing listens"),
            (two("line", "word", index=b"\0\1"), "the same listeners"),
            (two("word", "line", index=b"\0\1"), "the same listeners"),
            (two("line", hops=[0, MAX_HOPS + 1]), "hops outside"),
            (two("line", hops=[-1, 0]), "hops outside"),
            (two("line", hops=MAX_HOPS + 1), "hops outside"),
            (two("word", only=["Count", "Far"]), "a run only for"),
            (two("word", only=[]), "a run only for"),
        ],
    )
    def test_what_is_not(self, check: Checker, bad: Emitted, why: str) -> None:
        with pytest.raises(ProtocolError, match=why):
            check.emitted(bad, CONTEXTS)

    def test_several_events_have_as_many_bytes_as_a_batch(self, check: Checker) -> None:
        def of(size: int) -> Emitted:
            empty = len(codec.encode_run(RunMeta(["line"]), 2, None, [b"x" * 256, 1]))
            body = codec.encode_run(RunMeta(["line"]), 2, None, [b"x" * (256 + size - empty), 1])
            assert len(body) == size
            return emitted(events=2, body=body)

        check.emitted(of(500), CONTEXTS)
        with pytest.raises(ProtocolError, match="2 events in 501 bytes, over 500"):
            check.emitted(of(501), CONTEXTS)

    def test_one_event_has_as_many_as_an_event_its_key_and_its_names(self, check: Checker) -> None:
        check.emitted(emitted(body=codec.one("line", "k" * 4096, b"x" * 1000)), CONTEXTS)
        with pytest.raises(ProtocolError, match="1 events in"):
            check.emitted(emitted(body=codec.one("line", None, b"x" * (1000 + (128 << 10)))), CONTEXTS)


NAME = TimerName("Count", b"k", "end")


class TestTimers:
    @pytest.mark.parametrize(
        "good",
        [
            Timer(0, emitted()),
            Timer(MAX_TIME, emitted(contexts=[2])),
            Timer(1, emitted(), NAME),
            Timer(0, None, NAME),
            Timer(0, None, TimerName("Plain", b"k" * 4096, "n" * 255)),
        ],
    )
    def test_what_is_right(self, check: Checker, good: Timer) -> None:
        check.timer(good, CONTEXTS)

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            (Timer(MAX_TIME + 1, emitted()), "a delay of"),
            (Timer(0, emitted(contexts=[0, 1])), "it holds one"),
            (Timer(0, two("line")), "it holds one"),
            (Timer(0, None), "without an event and without a name"),
            (Timer(0, emitted(), TimerName("Far", b"k", "end")), "Far"),
            (Timer(0, None, TimerName("Nobody", b"k", "end")), "Nobody"),
            (Timer(0, None, TimerName("Count", b"k", "")), "timer"),
            (Timer(0, None, TimerName("Count", b"k", "n" * 256)), "timer"),
            (Timer(0, None, TimerName("Count", b"k" * 4097, "end")), "key"),
            (Timer(0, None, TimerName("Count", b"", "end")), "key"),
            (Timer(0, None, TimerName("Count", b"\xff", "end")), "whose name cannot be"),
        ],
    )
    def test_what_is_not(self, check: Checker, bad: Timer, why: str) -> None:
        with pytest.raises(ProtocolError, match=why):
            check.timer(bad, CONTEXTS)


SEEN = codec.encode({"seen": 1})


def state(value: bytes | None, due: int | None = None, key: bytes = b"k") -> StateChanges:
    return StateChanges("Count", [key], [value], None if due is None else [due])


class TestStates:
    @pytest.mark.parametrize(
        "good",
        [
            StateChanges("Count", [], []),
            StateChanges("Count", [], [], []),
            StateChanges("Count", [b"a", b"b", b"c"], [SEEN, None, SEEN], [0, 0, MAX_TIME]),
            state(None),
            state(None, 5),
            state(SEEN, key=b"k" * 4096),
            state(b"\x80"),
            state(b"\xde\x00\x01\xa1s\x01"),
            state(b"\xdf\x00\x00\x00\x01\xa1s\x01"),
            state(codec.encode({f"s{i}": i for i in range(15)})),
            state(codec.encode({"s": b"x" * 594})),  # 600 bytes
            state(codec.encode({"": {"s": 5}, "s": 1}), 5),
            state(SEEN, 5),
            state(codec.encode({"": "odd", "s": 1}), 0),  # nobody looks for when it expires
        ],
    )
    def test_what_is_right(self, check: Checker, good: StateChanges) -> None:
        check.state(good)

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            (StateChanges("Count", [b"a"], [SEEN, SEEN]), "different length"),
            (StateChanges("Count", [b"a"], [SEEN], [0, 0]), "different length"),
            (StateChanges("Count", [], [], [0]), "different length"),
            (StateChanges("Count", [b"a", b""], [SEEN, SEEN]), "a key of 0"),
            (state(SEEN, key=b"k" * 4097), "over 4096"),
            (StateChanges("Count", [b"\xc3", b"\xa9"], [SEEN, SEEN]), "not UTF-8"),  # together they would be
            (state(codec.encode({"s": b"x" * 595})), "a state of 601 bytes"),
            (StateChanges("Count", [b"a", b"b"], [codec.encode({"s": b"x" * 600}), SEEN]), "a state of"),
            (StateChanges("Count", [b"a", b"b"], [None, b"\x90"]), "no map of states"),
            (StateChanges("Count", [b"a", b"b"], [SEEN, b""]), "no map of states"),
            (StateChanges("Count", [b"a", b"b"], [SEEN, SEEN[:-1]]), "cannot be read"),
            (state(SEEN, MAX_TIME + 1), "an expiry outside"),
            (StateChanges("Count", [b"a", b"b"], [SEEN, SEEN], [-1, 0]), "an expiry outside"),
            (StateChanges("Count", [b"a", b"b"], [SEEN, SEEN], [0, MAX_TIME + 1]), "an expiry outside"),
            (StateChanges("Count", [b"a", b"b"], [None, b"\x81\xa1\xff\x01"], [5, 5]), "no map of states"),
            (state(codec.encode({"": {"s": "x"}}), 5), "no map of states"),
            (state(codec.encode({"": 7}), 5), "no map of states"),
            (state(b"\x81\x01\x02", 5), "no map of states"),  # its key is no name
        ],
    )
    def test_what_is_not(self, check: Checker, bad: StateChanges, why: str) -> None:
        with pytest.raises(ProtocolError, match=why):
            check.state(bad)


def failure(**fields: Any) -> Failure:
    own = {"node": "Count", "event": "word", "id": "1", "key": "k", "created": 0, "body": codec.one("word", "k", 0)}
    return Failure(**{**own, **fields})


def call(**fields: Any) -> Failure:
    request = emitted(body=codec.one("line", "k", 1, contexts=[0]))
    own: dict[str, Any] = {"event": "line", "digest": b"d", "timeout": 1, "requests": [request]}
    return failure(call=Call(**{**own, **fields}))


REQUEST = emitted(body=codec.one("line", "k", 1, contexts=[0]))
HELD = {7: ("word", "Count")}


class TestFailures:
    @pytest.mark.parametrize(
        "good",
        [
            failure(),
            failure(hold=7),
            failure(context=2),
            failure(key=None),
            failure(key="é" * 2048),
            failure(created=MAX_TIME),
            failure(body=codec.one("word", "k" * 4096, b"x" * 1000)),
            failure(body=codec.one("word", "k", 0, hops=MAX_HOPS)),
            call(),
            call(digest=b"d" * 64, timeout=MAX_TIME // 2),
            call(requests=[REQUEST, replace(REQUEST, target="far", partition=3)]),
        ],
    )
    def test_what_is_right(self, check: Checker, good: Failure) -> None:
        check.failure(good, CONTEXTS, HELD)

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            (failure(node="Far", event="line", body=codec.one("line", "k", 0)), "no slot of pool 'main'"),
            (failure(node="Nobody"), "no slot"),
            (failure(hold=0), "entry 0, which is not in this work"),
            (failure(hold=7, node="Plain"), "entry 7, which is another event"),
            (failure(hold=7, event="name", body=codec.one("name", "k", 0)), "entry 7, which is another event"),
            (failure(event="name"), "whose body is"),
            (failure(context=3), "a context that this work"),
            (failure(context=-2), "a context that this work"),
            (failure(key=""), "a key of 0"),
            (failure(key="é" * 2049), "over 4096"),
            (failure(created=MAX_TIME + 1), "created at"),
            (failure(body=codec.one("word", "k", b"x" * (1000 + (128 << 10)))), "a failed event of"),
            (failure(body=codec.one("word", "k", 0, only=["Count"])), "ids, nodes or hops"),
            (failure(body=codec.one("word", "k", 0, hops=MAX_HOPS + 1)), "ids, nodes or hops"),
            (failure(body=codec.one("word", "k", 0, hops=[-1])), "ids, nodes or hops"),
            (call(timeout=0), "a time-out of 0"),
            (call(timeout=MAX_TIME // 2 + 1), "a time-out of"),
            (call(digest=b""), "a digest of 0"),
            (call(digest=b"d" * 65), "a digest of 65"),
            (call(event="total"), "which nothing listens to"),
            (call(requests=[replace(two("line"), contexts=[])]), "a call is one event"),
            (call(requests=[replace(REQUEST, contexts=[0])]), "a call is one event"),
            (call(requests=[emitted(target=">total", body=codec.one("total", None, 1))]), "a call is one event"),
            (call(requests=[REQUEST, replace(REQUEST, partition=4)]), "partition 4 of 4"),
            (call(requests=[emitted(body=codec.one("line", "k", 1, contexts=[1]))]), "outside of its table of 1"),
        ],
    )
    def test_what_is_not(self, check: Checker, bad: Failure, why: str) -> None:
        with pytest.raises(ProtocolError, match=why):
            check.failure(bad, CONTEXTS, HELD)


def test_replies(check: Checker) -> None:
    for good in (Reply(0, b"\xc0", True), Reply(2, codec.encode(b"x" * 997), False)):  # of 1,000 bytes
        check.reply(good, CONTEXTS)
    for bad, why in (
        (Reply(3, b"\xc0", True), "does not have"),
        (Reply(-1, b"\xc0", True), "does not have"),
        (Reply(0, codec.encode(b"x" * 998), True), "a reply of 1001 bytes, over 1000"),
        (Reply(0, b"", True), "not one msgpack value"),
        (Reply(0, b"\x91" * 999 + b"\xc0", True), "not one msgpack value"),
    ):
        with pytest.raises(ProtocolError, match=why):
            check.reply(bad, CONTEXTS)


def test_counts(check: Checker) -> None:
    check.counts({}, {})
    check.counts({"word>Count": MAX_COUNT, "line>Far": -MAX_COUNT}, {"total": MAX_COUNT, "line": 1})
    for processed, emits, why in (
        ({"word>Count": MAX_COUNT + 1}, {}, "a count over"),
        ({"word>Count": 1, "line>Plain": -MAX_COUNT - 1}, {"line": 1}, "a count over"),
        ({}, {"total": MAX_COUNT + 1}, "a count over"),
        ({"word>Far": 1}, {}, "word>Far"),
        ({"total": 1}, {}, "total"),
        ({}, {"word>Count": 1}, "word>Count"),
    ):
        with pytest.raises(ProtocolError, match=why):
            check.counts(processed, emits)


def test_once() -> None:
    once([], "entry")
    once([1, 2, 0], "entry")
    with pytest.raises(ProtocolError, match="entry 2 twice"):
        once(iter([1, 2, 3, 2]), "entry")


PROGRESS = st.builds(Progress.of, st.integers(0, 5), st.integers(0, 63))


def done(progress: Progress) -> set[int]:
    return {i for i in range(20) if progress.is_done(i)}


@given(PROGRESS, PROGRESS, st.integers(1, 6))
@example(Progress(0), Progress(4), 4)
@example(Progress.of(0, 0b100), Progress.of(1, 0b10), 4)
@example(Progress.of(0, 0b100), Progress.of(1, 0b1), 4)
@example(Progress.of(0, 0b100), Progress(4), 4)
def test_progress_only_grows_and_ends_with_its_batch(before: Progress, now: Progress, events: int) -> None:
    may_be = done(before) <= done(now) <= set(range(events)) and before.first <= now.first
    try:
        check_progress(5, events, before, now)
    except ProtocolError:
        assert not may_be
    else:
        assert may_be


def test_progress_has_no_more_bytes_than_its_batch_needs() -> None:
    check_progress(5, 9, Progress(), Progress(0, b"\xff"))
    check_progress(5, 9, Progress(), Progress(0, b"\xff\x00"))
    check_progress(5, 9, Progress(), Progress(9))
    for now in (Progress(0, b"\xff\x00\x00"), Progress(0, b"\xff\x01"), Progress(9, b"\x01"), Progress(9, b"\x00\x00")):
        with pytest.raises(ProtocolError, match="behind the end of the batch at 5"):
            check_progress(5, 9, Progress(), now)


def slot(**options: Any) -> TopologySpec:
    return replace(TOPOLOGY, slots=(SlotSpec("word", "Count", **options),))


def node(**fields: Any) -> TopologySpec:
    return replace(TOPOLOGY, nodes=(*TOPOLOGY.nodes, NodeSpec(**fields)))


class TestTopologies:
    @pytest.mark.parametrize(
        "good",
        [
            TOPOLOGY,
            replace(TOPOLOGY, name="n"),
            replace(TOPOLOGY, name="n" * 255),
            slot(retries=0, backoff=0.0, backoff_max=MAX_SECONDS, timeout=0.0, concurrency=1, batch=1),
            node(name="Idle", states=(StateSpec("s", 0.5), StateSpec("t"))),
        ],
    )
    def test_what_hangs_together(self, good: TopologySpec) -> None:
        check_topology(good)

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            (replace(TOPOLOGY, name="n" * 256), "name 'nnn"),
            (replace(TOPOLOGY, name=""), "name ''"),
            (replace(TOPOLOGY, name="é" * 128), "name 'é"),
            (node(name="n" * 256), "name 'nnn"),
            (replace(TOPOLOGY, slots=(SlotSpec("", "Count"),)), "name ''"),
            (replace(TOPOLOGY, outputs=("",)), "name ''"),
            (replace(TOPOLOGY, pools=(*TOPOLOGY.pools, PoolSpec(""))), "name ''"),
            *((replace(TOPOLOGY, pools=(*TOPOLOGY.pools, PoolSpec(f"{mark}x"))), "pool '.x'") for mark in "<>=?"),
            (node(name="X", pool="none"), "node 'X' in pool 'none'"),
            (replace(TOPOLOGY, slots=(SlotSpec("word", "None"),)), "slot 'word' of node 'None'"),
            (replace(TOPOLOGY, outputs=("word",)), "output 'word', which is a slot"),
            (node(name="X", states=(StateSpec("s", 0.0),)), "state 's' of 'X'"),
            (slot(retries=-1), "options of slot 'word'"),
            (slot(backoff=-1.0), "options of slot 'word'"),
            (slot(backoff_max=MAX_SECONDS * 1.1), "options of slot 'word'"),
            (slot(timeout=float("nan")), "options of slot 'word'"),
            (slot(concurrency=0), "options of slot 'word'"),
            (slot(batch=0), "options of slot 'word'"),
            (node(name="Plain"), "stands there twice"),
            (replace(TOPOLOGY, slots=TOPOLOGY.slots * 2), "stands there twice"),
            (replace(TOPOLOGY, pools=(*TOPOLOGY.pools, PoolSpec("far"))), "stands there twice"),
            (replace(TOPOLOGY, outputs=("total", "total")), "stands there twice"),
            (replace(TOPOLOGY, slots=()), "no slots"),
        ],
    )
    def test_what_does_not(self, bad: TopologySpec, why: str) -> None:
        with pytest.raises(TopologyError, match=why):
            check_topology(bad)

    def test_what_is_emitted_leads_somewhere(self) -> None:
        check_emits(slot(emits=("word", "total", "event@other")))
        with pytest.raises(TopologyError, match=r"'Count' says that it emits 'totl'.*did you mean 'total'"):
            check_emits(slot(emits=("word", "totl")))
        with pytest.raises(TopologyError, match=r"emits 'xyz'.*known are \['total', 'word'\]"):
            check_emits(slot(emits=("xyz",)))
