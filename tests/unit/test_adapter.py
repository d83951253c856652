"""The adapter: what it asks of a base speaker, what it makes of the answers, and which ones it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw, structs

from grape.errors import ProtocolError
from grape.model import batch as codec
from grape.model.cursor import Progress
from grape.model.foreign import Peers
from grape.model.topology import Limits, NodeSpec, SlotSpec, StateSpec, TopologySpec
from grape.protocol.base import Answered, Asked, Emits, Failed, Ran, Run, StateChange
from grape.protocol.messages import Ask, Assign, BatchItem, FromWorker, Result, TimerName, Welcome, Work
from grape.worker.adapter.objects import RunObjects
from grape.worker.adapter.runtime import AdapterRuntime
from grape.worker.adapter.speaker import Progressed

TOPOLOGY = TopologySpec(
    "adapted",
    (NodeSpec("N", states=(StateSpec("count"), StateSpec("brief", 60.0))), NodeSpec("M")),
    (SlotSpec("a", "N"), SlotSpec("b", "N"), SlotSpec("m", "M", ordered=False)),
    ("out",),
)


def raw(value: Any) -> Raw:
    return Raw(msgspec.msgpack.encode(value))


class Script:
    """A speaker that answers as it is told, run by run."""

    is_exact = False

    def __init__(self, *answers: Callable[[Run], list[Ran]]) -> None:
        self.answers = list(answers)
        self.runs: list[Run] = []

    def welcome(self, message: Welcome) -> None:
        pass

    def setup(self) -> None:
        pass

    def change_peers(self, peers: Peers) -> None:
        self.peers = peers

    def run(self, run: Run, progressed: Progressed, objects: RunObjects) -> Iterator[Ran]:
        self.runs.append(run)
        done = 0
        for ran in self.answers.pop(0)(run):
            done += ran.events
            progressed(done)
            yield ran

    def close(self) -> None:
        pass


def adapted(script: Script, stored: dict[bytes, bytes] | None = None) -> AdapterRuntime:
    def ask(question: Ask) -> list[bytes | None]:
        return [(stored or {}).get(key) for key in question.keys]

    said: list[FromWorker] = []
    runtime = AdapterRuntime(script, TOPOLOGY, ask, said.append)
    runtime.welcome(Welcome(1, "main", "main.0", 4, Limits(max_event=1000), frozenset(("out",))))
    runtime.assign(Assign(0, 1, [], not stored))
    return runtime


def work(runtime: AdapterRuntime, *events: tuple[str, str | None, Any]) -> list[Result]:
    """Hand out a batch again and again until it is done."""
    body = b"".join(codec.one(*event) for event in events)
    results: list[Result] = []
    progress = Progress()
    seq = 0
    while progress.first < len(events):
        seq += 1
        item = BatchItem(0, "1-", 0, len(events), body, progress)
        for result in runtime.work(Work(0, 1, seq, [item])):
            results.append(result)
            progress = dict(result.done).get(0, progress)
    return results


def done(events: int, **effects: Any) -> Callable[[Run], list[Ran]]:
    return lambda run: [Ran(events, **effects)]


def test_a_run_has_what_a_handler_needs_and_its_effects_become_a_result() -> None:
    stored = {b"k": msgspec.msgpack.encode({"count": 4})}
    script = Script(
        done(
            1,
            emits=Emits([0, 0], ["a", "out"], [raw(1), raw("x")], ["other", None]),
            states=[StateChange("k", {"count": raw(5), "brief": raw("b")})],
        )
    )
    (result,) = work(adapted(script, stored), ("a", "k", {"x": 1}))
    (run,) = script.runs
    assert (run.node, run.events, run.names, run.keys, run.attempt) == ("N", 1, ["a"], ["k"], 1)
    assert [msgspec.msgpack.decode(value) for value in run.data or []] == [{"x": 1}]
    assert run.id_prefix + str(run.id_first) == "1-0"
    assert {key: dict(states) for key, states in (run.states or {}).items()} == {"k": {"count": raw(4)}}
    assert [(e.target, e.events) for e in result.emitted] == [("main", 1), (">out", 1)]
    (states,) = result.states
    record = msgspec.msgpack.decode(states.values[0] or b"")
    assert {name: record[name] for name in ("count", "brief")} == {"count": 5, "brief": "b"}
    assert "brief" in record[""]


def test_what_stands_behind_a_failure_is_sent_anew_but_for_its_key() -> None:
    fails: Callable[[Run], list[Ran]] = lambda run: [Ran(2, failed=Failed(1, "bad", "it is broken", "where"))]  # noqa: E731
    script = Script(done(1), fails, done(1))
    runtime = adapted(script)
    runtime._chunk["a"] = 100
    body = codec.encode_run(codec.RunMeta(["a"]), 4, ["x", "y", "y", "z"], None)
    script.answers = [fails, done(1)]
    (result,) = runtime.work(Work(0, 1, 1, [BatchItem(0, "1-", 0, 4, body)]))
    assert [(f.key, f.kind, f.behind, f.trace) for f in result.failures] == [
        ("y", "bad", False, "where"),
        ("y", "", True, ""),
    ]
    assert [run.keys for run in script.runs] == [["x", "y", "y", "z"], ["z"]]


def test_replies_and_delays() -> None:
    script = Script(done(1, emits=Emits([0], ["out"], [raw(1)], None, [5]), replies=[Answered(0, raw("r"), False)]))
    (result,) = work(adapted(script), ("a", "k", 1))
    assert [(t.delay, t.emitted.target) for t in result.timers] == [(5, ">out")]
    assert not result.emitted


def test_timers_by_name() -> None:
    emits = Emits([0, 0], ["out", ""], [raw(1), raw(None)], None, [5, -1], ["t", "u"])
    (result,) = work(adapted(Script(done(1, emits=emits))), ("a", "k", 1))
    names = [TimerName("N", b"k", "t"), TimerName("N", b"k", "t"), TimerName("N", b"k", "u")]
    assert [timer.name for timer in result.timers] == names
    assert [timer.emitted is None for timer in result.timers] == [True, False, True]


REFUSED: dict[str, dict[str, Any]] = {
    "timers that differ": {"emits": Emits([0], ["out"], [raw(1)], None, [1], ["t", "u"])},
    "a timer without a delay": {"emits": Emits([0], ["out"], [raw(1)], None, None, ["t"])},
    "a cancel with a delay": {"emits": Emits([0], [""], [raw(1)], None, [1], ["t"])},
    "nothing at all": {"emits": Emits([0], [""], [raw(1)], None, None, [None])},
    "a long timer": {"emits": Emits([0], ["out"], [raw(1)], None, [1], ["t" * 256])},
    "an unknown name": {"emits": Emits([0], ["nowhere"], [raw(1)])},
    "columns that differ": {"emits": Emits([0, 0], ["out"], [raw(1)])},
    "names that differ": {"emits": Emits([0, 0, 0], ["out", "out"], [raw(1)] * 3)},
    "keys that differ": {"emits": Emits([0], ["out"], [raw(1)], ["a", "b"])},
    "delays that differ": {"emits": Emits([0], ["out"], [raw(1)], None, [1, 2])},
    "a delay without end": {"emits": Emits([0], ["out"], [raw(1)], None, [1 << 63])},
    "an origin outside": {"emits": Emits([1], ["out"], [raw(1)])},
    "a negative origin": {"emits": Emits([-1], ["out"], [raw(1)])},
    "an empty key": {"emits": Emits([0], ["a"], [raw(1)], [""])},
    "a long key": {"emits": Emits([0], ["a"], [raw(1)], ["k" * 4097])},
    "a large value": {"emits": Emits([0], ["out"], [raw("x" * 2000)])},
    "a large state": {"states": [StateChange("k", {"count": raw("x" * 2000)})]},
    "a strange state": {"states": [StateChange("k", {"nothing": raw(1)})]},
    "a strange key": {"states": [StateChange("q", {"count": raw(1)})]},
    "a reply of nobody": {"replies": [Answered(7, raw(1))]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        work(adapted(Script(done(1, **REFUSED[name]))), ("a", "k", 1))


texts = st.sampled_from(["", "a", "b", "m", "out", "nowhere", "k", "q", "count", "brief"])
numbers = st.integers(-2, 3) | st.just(1 << 62) | st.just(1 << 63)
values = st.sampled_from([raw(1), raw("x"), raw(None), raw([1, {"a": b"b"}]), raw("x" * 2000)])
emits = st.builds(
    Emits,
    st.lists(numbers, max_size=3),
    st.lists(texts, max_size=3),
    st.lists(values, max_size=3),
    st.none() | st.lists(texts | st.none() | st.booleans(), max_size=3),
    st.none() | st.lists(numbers, max_size=3),
)
rans = st.builds(
    Ran,
    st.just(1),
    emits,
    st.lists(
        st.builds(StateChange, texts, st.dictionaries(texts, values, max_size=2), st.lists(texts, max_size=2)),
        max_size=2,
    ),
    st.lists(st.builds(Answered, numbers, values, st.booleans()), max_size=2),
    st.none() | st.builds(Failed, st.just(0), texts, texts, texts),
)


@settings(max_examples=400, deadline=None)
@given(rans)
def test_whatever_a_speaker_says_is_taken_or_refused(ran: Ran) -> None:
    """F41, for the adapter."""
    runtime = adapted(Script(lambda run: [ran], done(1)))
    try:
        results = work(runtime, ("a", "k", 1))
    except ProtocolError:
        return
    for result in results:
        for emitted in result.emitted:
            codec.check_body(emitted.body, emitted.events, len(emitted.contexts))
        assert structs.asdict(result)


def test_what_goes_to_other_apps() -> None:
    """As they are now: also those that a speaker has been told of later."""
    runtime = adapted(script := Script())
    runtime.change_peers({"shop": ["sold"], "stock": None})
    assert script.peers == {"shop": ["sold"], "stock": None}
    script.answers.append(done(1, emits=Emits([0, 0], ["shop@sold", "stock@any"], [raw(1), raw(2)])))
    (result,) = work(runtime, ("a", "k", 1))
    assert [emitted.target for emitted in result.emitted] == [">@shop", ">@stock"]
    asked = Asked("shop@sold", b"digest", 5_000_000, raw("tea"))
    script.answers.append(done(1, failed=Failed(0, "", "", call=asked)))
    (result,) = work(runtime, ("m", "k", 1))
    (failure,) = result.failures
    assert failure.call is not None
    assert [request.target for request in failure.call.requests] == [">@shop"]
    script.answers.append(done(1, failed=Failed(0, "", "", call=structs.replace(asked, event="shop@lost"))))
    with pytest.raises(ProtocolError, match="app 'shop' has no slot 'lost'"):
        work(runtime, ("m", "k", 1))
