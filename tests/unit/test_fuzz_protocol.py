"""F41: whatever bytes or messages a worker sends, the engine answers with a typed error or takes them; it never breaks.

Bytes go into the frame reader, messages into a real engine (see `unit.lying`), which afterwards has to get through all
of its work with an honest worker.
"""

from __future__ import annotations

import os
import resource
import time
import types
import typing
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from grape.errors import ProtocolError, TopologyError
from grape.model import batch as codec
from grape.model.cursor import Progress
from grape.model.topology import TopologySpec
from grape.protocol.framing import frame, worker_frames
from grape.protocol.messages import (
    VERSION,
    Announce,
    Ask,
    Beat,
    Fetch,
    FromWorker,
    Hello,
    Keep,
    Refusal,
    Reply,
    Result,
    Stuck,
    Timer,
)
from unit.lying import CAPABILITIES, TOPOLOGY, Rig, emitted, failure, result, run, states

SECONDS: Final = float(os.environ.get("GRAPE_FUZZ_SECONDS", "5"))
"""Of each of the four tests: a minute in all; `make test-fuzz` takes an hour."""
MEMORY: Final = 400 << 20

# ------------------------------------------------------------------ what is sent

NAMES: Final = [
    "",
    "word",
    "line",
    "word2",
    "away",
    "total",
    "main",
    "far",
    ">total",
    "?",
    "<test",
    "Count",
    "Plain",
    "Far",
]
NUMBERS: Final = [-(1 << 63), -1, 0, 1, 2, 9, 10, 11, 1 << 20, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]
BYTES: Final = [
    b"",
    b"k0",
    b"\xff",
    b"\xc0",
    b"\xc1",
    b"k" * 4097,
    codec.encode({"seen": 1}),
    codec.encode({"fresh": 1, "": {"fresh": 5}}),
    codec.one("line", None, 1),
    codec.one("word", "k0", 0),
    codec.one("line", "k", 1, contexts=[0]),
    codec.one("total", "k", 1),
    run(2, b"", b""),
    run(2, b"", b"", names=["word"], hops=[1, 2]),
    run((1 << 31) - 1, b"", b""),
    run(1, b"", b"", names=["line"], only=["Plain"]),
]

ints: Final = st.one_of(st.sampled_from(NUMBERS), st.integers(-2, 12))
texts: Final = st.one_of(st.sampled_from([*NAMES, "word>Count"]), st.text(max_size=8))
blobs: Final = st.one_of(st.sampled_from(BYTES), st.binary(max_size=64))


def values_of(kind: Any) -> SearchStrategy[Any]:
    """Values that a frame may hold where ``kind`` is declared: many of them nearly right."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is int:
        return ints
    if kind is str:
        return texts
    if kind is bytes:
        return blobs
    if kind is bool:
        return st.booleans()
    if kind is type(None):
        return st.none()
    if kind is TopologySpec:
        return st.just(TOPOLOGY)
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=3)
    if origin is tuple and arguments[-1:] == (...,):
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=2)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values_of, arguments))
    if origin is typing.Literal:
        return st.one_of(st.sampled_from(arguments), texts)
    fields = typing.get_type_hints(kind)
    return st.builds(kind, **{name: values_of(fields[name]) for name in kind.__struct_fields__})


words: Final = st.one_of(*map(values_of, (Ask, Announce, Stuck, Beat, Refusal, Hello, Fetch, Keep)))


def right(rig: Rig) -> list[Any]:
    """Messages that an honest worker could send now."""
    work = rig.work
    return [
        Hello(VERSION, 1, "test", TOPOLOGY, CAPABILITIES),
        Ask(0, work.epoch, "Count", [b"k0", b"k1"]),
        Announce(0, work.epoch, "1-0", "Count"),
        Stuck(0, work.epoch, "1-0", "Count", "slow"),
        Beat(),
        Refusal("start", "no"),
        result(
            rig,
            done=[(0, Progress.of(3, 0b101))],
            emitted=[emitted(), emitted(target=">total", body=codec.one("total", "k", {"a": [1, None]}), contexts=[3])],
            states=[states(), states(expires=[rig.clock.now() + 1])],
            timers=[Timer(1, emitted())],
            failures=[failure()],
            replies=[Reply(0, b"\xc0", True)],
            counts={"word>Count": 3},
            emits={"line": 1},
        ),
    ]


# ------------------------------------------------------------------ what must hold


def deliver(rig: Rig, message: FromWorker) -> None:
    """It is taken, or the worker is ended, or (hello and refusal of one that starts) the engine stops, typed."""
    assert rig.engine is not None
    starts = rig.engine.pools["main"].workers[0].comes
    rig.say(message)
    if rig.failure is not None:
        assert starts
        assert isinstance(rig.failure, TopologyError)
        assert isinstance(message, Hello | Refusal)


def gets_done(rig: Rig) -> None:
    """An honest worker takes over, and everything is worked off; timers fire, state expires."""
    engine = rig.engine
    assert engine is not None
    if rig.failure is not None:
        return
    engine.gone("main", 0, rig.worker, "it ended")
    for _ in range(30):
        rig.clock.advance(120)
        engine.tick()
        rig.transport.pump()
        if engine.pools["main"].workers[0].comes:
            rig.say(Hello(VERSION, 1, "test", TOPOLOGY, CAPABILITIES))
            rig.say(Beat())
        for number, seq in list(engine.pools["main"].workers[0].outstanding):
            work = rig.work
            assert (number, seq) == (work.partition, work.seq)
            done = [(b.position, Progress(b.events)) for b in work.batches]
            rig.say(Result(number, work.epoch, [seq], done, [item.hold for item in work.retries]))
            assert not rig.worker.killed, rig.engine and rig.engine.pools["main"].workers[0].explained
        assert rig.failure is None
    partition = engine.partition("main", 0)
    assert partition.backlog.events == 0
    assert partition.holds.stopped == len(partition.holds)


def random_bytes(data: bytes) -> None:
    try:
        worker_frames().feed(data)
    except ProtocolError:
        pass


def a_frame_that_was_changed(data: st.DataObject) -> None:
    rig = Rig()
    sent = bytearray(
        b"".join(frame(m) for m in data.draw(st.lists(st.sampled_from(right(rig)), min_size=1, max_size=3)))
    )
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(sent) - 1))
        what = data.draw(st.sampled_from(["flip", "cut", "insert", "number"]))
        if what == "flip":
            sent[at] ^= 1 << data.draw(st.integers(0, 7))
        elif what == "cut":
            del sent[at : at + data.draw(st.integers(0, 3))]
        elif what == "insert":
            sent[at:at] = data.draw(st.binary(max_size=4))
        else:
            sent[at : at + 1] = msgspec.msgpack.encode(data.draw(ints))
        if not sent:
            return
    frames, step = worker_frames(), data.draw(st.integers(1, len(sent)))
    try:
        for start in range(0, len(sent), step):
            for message in frames.feed(bytes(sent[start : start + step])):
                deliver(rig, message)
    except ProtocolError:
        pass
    gets_done(rig)


def changed(data: st.DataObject, value: Any, kind: Any) -> Any:
    """``value``, with one thing in it that is not what it was."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, msgspec.Struct):
        name = data.draw(st.sampled_from(value.__struct_fields__))
        field = typing.get_type_hints(type(value))[name]
        return msgspec.structs.replace(value, **{name: changed(data, getattr(value, name), field)})
    if origin is tuple and arguments[-1:] == (...,):
        return tuple(changed(data, list(value), list[arguments[0]]))  # type: ignore[valid-type]
    if origin is tuple and value:
        at = data.draw(st.integers(0, len(value) - 1))
        return (*value[:at], changed(data, value[at], arguments[at]), *value[at + 1 :])
    if isinstance(value, list) and origin is list:
        at = data.draw(st.integers(0, max(0, len(value) - 1)))
        what = data.draw(st.sampled_from(["change", "twice", "drop", "new"]))
        if what == "new" or not value:
            return [*value, data.draw(values_of(arguments[0]))]
        middle = {"change": [changed(data, value[at], arguments[0])], "twice": [value[at]] * 2, "drop": []}[what]
        return [*value[:at], *middle, *value[at + 1 :]]
    return data.draw(values_of(kind))


def a_result_that_was_changed(data: st.DataObject) -> None:
    rig = Rig()
    if data.draw(st.booleans()):
        rig.fail_one()
        good = result(rig, retried=[item.hold for item in rig.work.retries])
        if data.draw(st.booleans()):
            good = result(rig, failures=[failure(hold=0)])
    else:
        good = right(rig)[-1]
        rig.say(result(rig, ended=[], done=[(0, Progress.of(1, 0b1))]))
    for _ in range(data.draw(st.integers(1, 3))):
        good = changed(data, good, Result)
    deliver(rig, good)
    gets_done(rig)


def words_of_anything(data: st.DataObject) -> None:
    rig = Rig()
    epoch = rig.work.epoch
    if data.draw(st.booleans()):  # to one that has just started
        assert rig.engine is not None
        rig.engine.gone("main", 0, rig.worker, "it ended")
    for message in data.draw(st.lists(words, min_size=1, max_size=4)):
        if hasattr(message, "epoch") and data.draw(st.booleans()):
            message = msgspec.structs.replace(message, partition=0, epoch=epoch)
        deliver(rig, message)
        if rig.failure is not None:
            return
    gets_done(rig)


TESTS: Final[list[tuple[SearchStrategy[Any], Callable[[Any], None]]]] = [
    (st.binary(max_size=200), random_bytes),
    (st.data(), a_frame_that_was_changed),
    (st.data(), a_result_that_was_changed),
    (st.data(), words_of_anything),
]


def fuzz(strategy: SearchStrategy[Any], body: Callable[[Any], None], seconds: float) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    end, number = time.monotonic() + seconds, int(time.time())
    while time.monotonic() < end:
        number += 1
        options = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
        options(seed(number)(given(strategy)(body)))()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before < MEMORY


@pytest.mark.parametrize(("strategy", "body"), TESTS, ids=lambda value: getattr(value, "__name__", ""))
def test_some_seconds(strategy: SearchStrategy[Any], body: Callable[[Any], None]) -> None:
    """F41"""
    fuzz(strategy, body, SECONDS)


def test_what_stands_before_garbage_arrives_before_it() -> None:
    """The announcement before the death tells what it was of."""
    reader = worker_frames()
    last_words = Announce(1, 2, "id", "node")
    assert reader.feed(frame(last_words) + b"\xff\xff\xff\x00 garbage") == [last_words]
    with pytest.raises(ProtocolError):
        reader.check()
    with pytest.raises(ProtocolError):
        reader.feed(b"more")
