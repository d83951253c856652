"""Every forged field refused (F41): a real engine on a real transport, and a worker that lies.

The worker says hello, is given partitions and work, and then sends something that cannot be true. The engine has to end
it with an explanation, take nothing of the message, and hand the work out again to the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from grape.engine.catalog import update_record
from grape.errors import ProtocolError, TopologyError
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.batch import RunMeta
from grape.model.cursor import Progress
from grape.model.stored import Catalog
from grape.model.topology import Limits, NodeSpec, PoolSpec, SlotSpec
from grape.protocol.framing import LENGTH, MAX_FRAME, worker_frames
from grape.protocol.messages import (
    VERSION,
    Announce,
    Ask,
    Assign,
    Beat,
    FromWorker,
    Hello,
    Refusal,
    Reply,
    Result,
    Stuck,
    Timer,
    Values,
    Welcome,
    Work,
)
from unit.lying import CAPABILITIES, EVENTS, TOPOLOGY, Rig, emitted, failure, result, run, states

Forge = Callable[[Rig], FromWorker]


def emits(**fields: Any) -> dict[str, Any]:
    return {"emitted": [emitted(**fields)]}


def timer(delay: int, **fields: Any) -> dict[str, Any]:
    return {"timers": [Timer(delay, emitted(**fields))]}


def state(**fields: Any) -> dict[str, Any]:
    return {"states": [states(**fields)]}


def fails(**fields: Any) -> dict[str, Any]:
    return {"failures": [failure(**fields)]}


DEEPEST: Final = b"\x91" * 512 + b"\xc0"


def reply(context: int, data: bytes) -> dict[str, Any]:
    return {"replies": [Reply(context, data, True)]}


IN_A_RESULT: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "a work that is not out": ("the end of work 77", {"ended": [77]}),
    "a work ended twice": ("the end of work 1 twice", {"ended": [1, 1]}),
    "a foreign position": ("progress of batch 5, which is not in work", {"done": [(5, Progress(1))]}),
    "a negative position": ("progress of batch -1", {"done": [(-1, Progress(1))]}),
    "a position twice": ("progress of batch 0 twice", {"done": [(0, Progress(1)), (0, Progress(10))]}),
    "progress beyond the end": ("progress 11 of 10", {"done": [(0, Progress(11))]}),
    "negative progress": ("progress -1 of 10", {"done": [(0, Progress(-1))]}),
    "progress behind the end": ("behind the end", {"done": [(0, Progress.of(0, 1 << 9))]}),
    "behind a whole batch": ("behind the end", {"done": [(0, Progress(EVENTS, b"\1"))]}),
    "a huge bitmap": ("behind the end", {"done": [(0, Progress(0, bytes(1 << 20)))]}),
    "an entry that is not held": ("retried entry 3", {"retried": [3]}),
    "an unknown target": ("'nowhere', which is neither", emits(target="nowhere")),
    "the home of replies": ("'?', which is neither", emits(target="?")),
    "a source": ("'<test', which is neither", emits(target="<test")),
    "an unknown output": ("'>nothing', which is neither", emits(target=">nothing")),
    "a partition too high": ("partition 1 of 1", emits(partition=1)),
    "a negative partition": ("partition -1 of 1", emits(partition=-1)),
    "a name of another pool": ("['away'] to 'main', where nothing listens", emits(body=codec.one("away", None, 1))),
    "a name in an output": ("['line'] to '>total', where nothing listens", emits(target=">total")),
    "fewer events than said": ("said to hold 2 events holds 1", emits(events=2)),
    "no events": ("said to hold 0 events", emits(events=0, body=b"")),
    "too many events": ("events in", emits(events=(1 << 32) - 2, body=run((1 << 31) - 1, b"", b"") * 2)),
    "more events than bytes": (
        "said to hold 20000000 events in",
        emits(events=20_000_000, body=run(20_000_000, b"", b"")),
    ),
    "a key that is no text": ("that cannot be read", emits(body=run(1, b"\x91\xc4\x01x", b"\x91\x01"))),
    "a key of no text": ("that cannot be read", emits(body=run(1, b"\x91\xa0", b""))),
    "a key too long": ("that cannot be read", emits(body=codec.one("line", "k" * 4097, 1))),
    "a key of too many bytes": ("a key of over 4096 bytes", emits(body=codec.one("line", "\u00e9" * 2049, 1))),
    "an event's key that is not UTF-8": ("that cannot be read", emits(body=run(1, b"\x91\xa1\xff", b""))),
    "keys cut off": ("that cannot be read", emits(body=run(1, b"\x91\xa5k", b""))),
    "values cut off": ("that cannot be read", emits(body=run(1, b"", b"\x91\xa5k"))),
    "a value that is none": ("that cannot be read", emits(body=run(1, b"", b"\x91\xc1"))),
    "a value nested too deep": ("that cannot be read", emits(body=run(1, b"", b"\x91" * 90_000 + b"\xc0"))),
    "a value nested a level too deep": ("over 600 levels", emits(body=run(1, b"", b"\x91" * 601 + b"\xc0"))),
    "a failed event nested too deep": (
        "over 600 levels",
        fails(body=run(1, b"", b"\x91" * 601 + b"\xc0", names=["word"])),
    ),
    "a value in an output cut off": (
        "that cannot be read",
        emits(target=">total", body=run(1, b"", b"\x91\xa5k", names=["total"])),
    ),
    "a failed event cut off": ("that cannot be read", fails(body=run(1, b"", b"\x91\xa5k", names=["word"]))),
    "a state that is no map": ("no map of states", state(values=[b"\x01"])),
    "a state of nothing": ("no map of states", state(values=[b""])),
    "a state cut off": ("that cannot be read", state(values=[b"\x81\xa4seen\xa5k"])),
    "a state nested too deep": ("that cannot be read", state(values=[b"\x81\xa4seen" + b"\x91" * 90_000 + b"\xc0"])),
    "a state nested a level too deep": ("over 600 levels", state(values=[b"\x81\xa4seen" + b"\x91" * 600 + b"\xc0"])),
    "endless counts": ("a count over", {"counts": {"word>Count": 1 << 63}}),
    "endless negative counts": ("a count over", {"emits": {"total": -(1 << 40)}}),
    "a body too long": (
        "over 100000",
        emits(events=2, body=codec.encode_run(RunMeta(["line"]), 2, None, ["x" * 200_000, 1])),
    ),
    "an event too long": ("over", emits(body=codec.one("line", None, "x" * 400_000))),
    "a run cut off": ("cut off", emits(body=b"\1\0\0\0")),
    "a run longer than its body": ("longer than", emits(body=run(1, b"", b"")[:-1])),
    "a meta that is none": ("meta cannot be read", emits(body=run(1, b"", b"", names="line"))),
    "a meta that is not UTF-8": (
        "meta cannot be read",
        emits(body=run(1, b"", b"").replace(b"line", b"\xff\xff\xff\xff")),
    ),
    "a meta of a thousand maps": (
        "meta cannot be read",
        emits(body=run(1, b"", b"", x=msgspec.Raw(b"\x91" * 50_000 + b"\xc0"))),
    ),
    "a run without names": ("without events or names", emits(body=run(1, b"", b"", names=[]))),
    "a run without events": ("without events or names", emits(body=run(0, b"", b""))),
    "too few keys": ("number of keys", emits(events=2, body=run(2, b"\x91\xc0", b""))),
    "keys that are no array": ("number of keys", emits(body=run(1, b"\xa1k", b""))),
    "too many values": ("number of values", emits(body=run(1, b"", b"\x92\1\2"))),
    "too few hops": ("number of hops", emits(events=2, body=run(2, b"", b"", hops=[1]))),
    "negative hops": ("hops outside", emits(body=run(1, b"", b"", hops=-1))),
    "endless hops": ("hops outside", emits(body=run(1, b"", b"", hops=1 << 60))),
    "names without an index": ("without an index", emits(body=run(1, b"", b"", names=["line", "word"]))),
    "an index beyond the names": ("index does not fit", emits(body=run(1, b"", b"", index=b"\1"))),
    "a short index": ("index does not fit", emits(events=2, body=run(2, b"", b"", index=b"\0"))),
    "names of other listeners": (
        "do not have the same listeners",
        emits(body=run(1, b"", b"", names=["line", "word"], index=b"\0")),
    ),
    "for a node that does not listen": ("a run only for ['Count']", emits(body=run(1, b"", b"", only=["Count"]))),
    "for no node": ("a run only for []", emits(body=run(1, b"", b"", only=[]))),
    "ids of its own": ("its own ids", emits(body=run(1, b"", b"", ids={0: "x"}))),
    "a context that is not there": ("a context that this work", emits(contexts=[EVENTS])),
    "a negative context": ("a context that this work", emits(contexts=[-1])),
    "too few contexts": ("number of contexts", emits(contexts=[0], events=2, body=run(2, b"", b"", contexts=[0]))),
    "a context outside of the table": (
        "outside of its table of 1",
        emits(contexts=[0], body=run(1, b"", b"", contexts=[1])),
    ),
    "a context without a table": ("outside of its table of 0", emits(body=run(1, b"", b"", contexts=[0]))),
    "a timer of two events": ("it holds one", timer(1, events=2, body=run(2, b"", b""))),
    "a timer whose body has two events": ("said to hold 1 events holds 2", timer(1, body=run(2, b"", b""))),
    "a timer in the past": ("a delay of -1", timer(-1)),
    "a timer in eternity": ("a delay of", timer((1 << 64) - 1)),
    "a timer for nobody": ("'nowhere', which is neither", timer(1, target="nowhere")),
    "a timer of a foreign context": ("a context that this work", timer(1, contexts=[99])),
    "state of a node without any": ("state of 'Plain', which has none", state(node="Plain")),
    "state of another pool": ("state of 'Far', which has none in pool 'main'", state(node="Far")),
    "state of nobody": ("state of 'X', which has none", state(node="X")),
    "an empty key": ("a key of 0", state(keys=[b""])),
    "a long key": ("over 4096", state(keys=[b"k" * 4097])),
    "a key that is not UTF-8": ("not UTF-8", state(keys=[b"\xff"])),
    "too few values": ("columns of different length", state(values=[])),
    "too many expiries": ("columns of different length", state(expires=[1, 2])),
    "an expiry before time": ("an expiry outside", state(expires=[-1])),
    "an expiry after time": ("an expiry outside", state(expires=[(1 << 64) - 1])),
    "an expiring state of garbage": ("no map of states", state(values=[b"\xc1"], expires=[5])),
    "an expiring state of odd times": (
        "no map of states",
        state(values=[codec.encode({"": {"seen": "x"}})], expires=[5]),
    ),
    "a failure of no slot": ("'line' at 'Count', which is no slot", fails(event="line")),
    "a failure of another pool": (
        "which is no slot of pool 'main'",
        fails(node="Far", event="away", body=codec.one("away", "k", 1)),
    ),
    "a failure of an entry not held": ("entry 4, which is not in this work", fails(hold=4)),
    "a failure of a foreign context": ("a context that this work", fails(context=EVENTS)),
    "a failure with another body": ("whose body is ['line']", fails(body=codec.one("line", "k0", 0))),
    "a failure of two events": ("said to hold 1", fails(body=run(2, b"", b"", names=["word"]))),
    "a failure without a body": ("said to hold 1", fails(body=b"")),
    "a failure too long": ("bytes, over", fails(body=codec.one("word", "k0", "x" * 400_000))),
    "a failure with an empty key": ("a key of 0", fails(key="")),
    "a failure with a long key": ("over 4096", fails(key="k" * 4097)),
    "a failure of no time": ("created at -1", fails(created=-1)),
    "a failure with ids": ("ids, nodes or hops", fails(body=run(1, b"", b"", names=["word"], ids={0: "x"}))),
    "a reply to a foreign context": ("a reply to a context", reply(EVENTS, b"\xc0")),
    "a reply to context -1": ("a reply to a context", reply(-1, b"\xc0")),
    "a reply of garbage": ("not one msgpack value", reply(0, b"\xc1")),
    "a reply of two values": ("not one msgpack value", reply(0, b"\1\2")),
    "a reply nested too deep": ("of at most 600 levels", reply(0, b"\x91" * 601 + b"\xc0")),
    "a reply too long": ("a reply of", reply(0, codec.encode("x" * 200_001))),
    "counts of no slot": ("counts of ['a>b']", {"counts": {"a>b": 1}}),
    "counts of no event": ("counts of ['x']", {"emits": {"x": 1}}),
}

ALONE: Final[dict[str, tuple[str, Forge]]] = {
    "a second hello": (
        "'hello' from a worker that is ready",
        lambda r: Hello(VERSION, 1, "test", TOPOLOGY, CAPABILITIES),
    ),
    "a question for no state": ("'Plain', which has none", lambda r: Ask(0, r.work.epoch, "Plain", [b"k"])),
    "a question for another pool": ("node 'Far'", lambda r: Ask(0, r.work.epoch, "Far", [b"k"])),
    "a question for nobody": ("node 'X'", lambda r: Ask(0, r.work.epoch, "X", [b"k"])),
    "a question for an empty key": ("a key of 0", lambda r: Ask(0, r.work.epoch, "Count", [b""])),
    "a question for a long key": ("over 4096", lambda r: Ask(0, r.work.epoch, "Count", [b"k" * 4097])),
    "an announcement of nobody": ("node 'X'", lambda r: Announce(0, r.work.epoch, "1-0", "X")),
    "an event stuck at nobody": ("node 'X'", lambda r: Stuck(0, r.work.epoch, "1-0", "X", "slow")),
}


def refused(rig: Rig, forged: FromWorker, why: str) -> None:
    before, commits, backlog = rig.committed(), len(rig.commits), rig.app.backlog_events
    handed_out = rig.work
    rig.say(forged)
    assert rig.worker.killed
    assert rig.failure is None
    assert rig.committed() == before
    assert len(rig.commits) == commits
    assert rig.app.backlog_events == backlog
    rig.replace_worker()
    (notice,) = rig.notices
    assert notice.startswith("worker main.0 is replaced: it broke the protocol: ")
    assert why in notice
    again = rig.work
    assert again.epoch > handed_out.epoch
    assert rig.engine is not None
    cursor = rig.engine.partition("main", 0).head.cursor
    assert [(b.position, b.done) for b in again.batches] == [
        (b.position, cursor.progress(b.position)) for b in handed_out.batches
    ]
    rig.say(
        result(
            rig, done=[(b.position, Progress(b.events)) for b in again.batches], retried=[i.hold for i in again.retries]
        )
    )
    assert not rig.worker.killed
    assert rig.app.backlog_events == 0


@pytest.mark.parametrize("name", [*IN_A_RESULT, *ALONE])
def test_a_forged_field_is_refused(name: str) -> None:
    rig = Rig()
    if name in ALONE:
        why, forge = ALONE[name]
        refused(rig, forge(rig), why)
    else:
        why, fields = IN_A_RESULT[name]
        refused(rig, result(rig, **fields), why)


@pytest.mark.parametrize(
    "fields",
    [
        emits(body=run(1, b"", b"\x91" + DEEPEST)),
        state(values=[b"\x81\xa4seen" + DEEPEST]),
        reply(0, DEEPEST),
    ],
)
def test_what_an_sdk_sends_is_not_too_deep(fields: dict[str, Any]) -> None:
    rig = Rig()
    rig.say(result(rig, **fields))
    assert not rig.worker.killed


def test_a_worker_that_broke_the_protocol_is_listened_to_no_more() -> None:
    """What it says until it is dead is as little worth."""
    rig = Rig()
    before = rig.committed()
    epoch = rig.work.epoch
    rig.say(Ask(0, epoch, "X", [b"k"]))
    rig.say(result(rig, done=[(0, Progress(EVENTS))]))
    assert rig.worker.killed
    assert rig.committed() == before
    assert rig.app.backlog_events


def test_nothing_of_a_result_is_taken_if_one_part_is_forged() -> None:
    rig = Rig()
    good = {
        "done": [(0, Progress(EVENTS))],
        "emitted": [emitted()],
        "states": [states(expires=[rig.clock.now() + 1])],
        "timers": [Timer(1, emitted())],
        "failures": [failure()],
        "replies": [Reply(0, b"\xc0", True)],
    }
    refused(rig, result(rig, **good, emits={"x": 1}), "counts of ['x']")
    taken = Rig()
    taken.say(result(taken, **good))  # the same without the forged part
    assert not taken.worker.killed
    assert taken.commits


HELD: Final[dict[str, tuple[str, Forge]]] = {
    "retried twice": ("entry 0 twice", lambda r: result(r, retried=[0, 0])),
    "retried and failed": ("entry 0 twice", lambda r: result(r, retried=[0], failures=[failure(hold=0)])),
    "failed twice": ("entry 0 twice", lambda r: result(r, failures=[failure(hold=0), failure(hold=0)])),
    "another node's": (
        "entry 0, which is another event",
        lambda r: result(r, failures=[failure(hold=0, node="Plain", event="line", body=codec.one("line", "k0", 0))]),
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_a_forged_retry_is_refused(name: str) -> None:
    why, forge = HELD[name]
    rig = Rig()
    rig.fail_one()
    before = rig.committed()
    rig.say(forge(rig))
    assert rig.worker.killed
    assert rig.committed() == before
    rig.replace_worker()
    assert why in rig.notices[0]
    assert [r.hold for r in rig.work.retries] == [0]
    rig.say(result(rig, retried=[0]))
    assert not rig.worker.killed
    assert rig.app.holds == 0


@pytest.mark.parametrize("back", [Progress(2), Progress(3), Progress.of(3, 0b1), Progress.of(4, 0)])
def test_progress_does_not_go_back(back: Progress) -> None:
    rig = Rig()
    rig.say(result(rig, ended=[], done=[(0, Progress.of(3, 0b101))]))
    assert not rig.worker.killed
    refused(rig, result(rig, done=[(0, back)]), "progress")


def test_progress_of_a_finished_batch() -> None:
    rig = Rig()
    rig.say(result(rig, ended=[], done=[(0, Progress(EVENTS))]))
    rig.say(result(rig, done=[(0, Progress(EVENTS))]))
    assert rig.worker.killed


def test_two_questions_at_once_while_a_commit_is_under_way() -> None:
    rig = Rig()
    assert rig.engine is not None
    epoch = rig.work.epoch
    rig.engine.received("main", 0, rig.worker, result(rig, ended=[], done=[(0, Progress(1))]))  # not yet committed
    rig.engine.received("main", 0, rig.worker, Ask(0, epoch, "Count", [b"k"]))
    assert not rig.worker.killed
    rig.engine.received("main", 0, rig.worker, Ask(0, epoch, "Count", [b"k"]))
    assert rig.worker.killed


def test_questions_whose_answers_are_not_read() -> None:
    rig = Rig()
    rig.say(Ask(0, rig.work.epoch, "Count", [b"k"]))
    assert not rig.worker.killed
    rig.worker.unread = 33 << 20
    rig.say(Ask(0, rig.work.epoch, "Count", [b"k"]))
    assert rig.worker.killed


def test_work_waits_for_a_worker_that_does_not_read() -> None:
    rig = Rig(says_hello=False)
    rig.worker.unread = 33 << 20
    rig.say(Hello(VERSION, 1, "test", TOPOLOGY, CAPABILITIES))
    rig.say(Beat())
    assert not any(isinstance(message, Work) for message in rig.worker.sent)
    rig.worker.unread = 0
    assert rig.engine is not None
    rig.engine.pump()
    assert rig.worker.last(Work)


def test_an_old_epoch_is_dropped_and_counted() -> None:
    rig = Rig()
    before = rig.committed()
    old = rig.work.epoch - 1
    rig.say(result(rig, epoch=old, done=[(0, Progress(EVENTS))]))
    rig.say(result(rig, partition=9, done=[(0, Progress(EVENTS))]))
    rig.say(Announce(0, old, "1-0", "Count"))
    rig.say(Stuck(0, old, "1-0", "Count", "slow"))
    rig.say(Ask(0, old, "Count", [b"k"]))
    assert rig.worker.sent[-1] == Values([None])
    assert rig.app.stats.stale_frames == 5
    assert not rig.worker.killed
    assert rig.committed() == before


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("version", VERSION + 1, f"speaks protocol {VERSION + 1}; this engine speaks {VERSION}"),
        ("topology", replace(TOPOLOGY, outputs=()), "built another topology"),
        ("capabilities", ["partition"], "lacks what this engine needs: cache"),
    ],
)
def test_a_hello_that_no_restart_would_mend_stops_the_engine(field: str, value: Any, why: str) -> None:
    """F96: of another version, or of other code."""
    rig = Rig(says_hello=False)
    rig.say(replace(Hello(VERSION, 1, "test", TOPOLOGY, CAPABILITIES), **{field: value}))
    assert isinstance(rig.failure, TopologyError)
    assert why in str(rig.failure)
    assert not rig.worker.sent


@pytest.mark.parametrize(
    "words",
    [
        replace(Hello(VERSION, 1, "test", TOPOLOGY, CAPABILITIES), version=VERSION + 1),
        replace(Hello(VERSION, 1, "test", TOPOLOGY, CAPABILITIES), topology=replace(TOPOLOGY, outputs=())),
        Refusal("topology", "I do not like it any more"),
    ],
)
def test_a_later_worker_cannot_stop_the_engine_of_all_others(words: Any) -> None:
    rig = Rig()
    assert rig.engine is not None
    rig.engine.gone("main", 0, rig.worker, "it exited")
    sent = len(rig.worker.sent)
    rig.say(words)
    assert rig.failure is None
    assert len(rig.worker.sent) == sent
    assert rig.worker.killed or isinstance(words, Refusal)


def test_a_worker_that_runs_cannot_refuse_the_app() -> None:
    rig = Rig()
    rig.say(Refusal("topology", "I do not like it"))
    assert rig.failure is None


def test_before_its_hello_a_worker_has_nothing_to_say() -> None:
    rig = Rig()
    epoch = rig.work.epoch
    assert rig.engine is not None
    rig.engine.gone("main", 0, rig.worker, "it exited")
    before = rig.committed()
    rig.say(Result(0, epoch + 1, [2], [(0, Progress(EVENTS))]))
    assert rig.app.stats.stale_frames == 1
    assert rig.committed() == before


TOPOLOGIES: Final = {
    "a slot of no node": replace(TOPOLOGY, nodes=()),
    "a node of no pool": replace(TOPOLOGY, pools=(PoolSpec("main"),)),
    "a node twice": replace(TOPOLOGY, nodes=(*TOPOLOGY.nodes, NodeSpec("Plain"))),
    "a slot twice": replace(TOPOLOGY, slots=(*TOPOLOGY.slots, SlotSpec("line", "Plain"))),
    "an output that is a slot": replace(TOPOLOGY, outputs=("word",)),
    "a pool like an output": replace(TOPOLOGY, pools=(*TOPOLOGY.pools, PoolSpec(">total"))),
    "no slots": replace(TOPOLOGY, slots=()),
    "an empty name": replace(TOPOLOGY, name=""),
    "a long name": replace(TOPOLOGY, outputs=("x" * 256,)),
    "an endless back-off": replace(TOPOLOGY, slots=(SlotSpec("line", "Plain", backoff_max=float("inf")),)),
    "a back-off of NaN": replace(TOPOLOGY, slots=(SlotSpec("line", "Plain", backoff=float("nan")),)),
    "negative retries": replace(TOPOLOGY, slots=(SlotSpec("line", "Plain", retries=-1),)),
    "no concurrency": replace(TOPOLOGY, slots=(SlotSpec("line", "Plain", concurrency=0),)),
}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_topology_that_does_not_hang_together(name: str) -> None:
    with pytest.raises(TopologyError, match="that cannot be"):
        update_record(Catalog(), TOPOLOGIES[name], 1, 1)


# ------------------------------------------------------------------ frames


def test_a_frame_of_garbage() -> None:
    with pytest.raises(ProtocolError, match="is not a message"):
        worker_frames().feed(LENGTH.pack(3) + b"\xc1\xc1\xc1")


def test_a_frame_of_the_other_side() -> None:
    with pytest.raises(ProtocolError, match="is not a message"):
        worker_frames().feed(LENGTH.pack(5) + codec.encode([3, 0, 0])[:5].ljust(5, b"\0"))


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match=f"the limit is {MAX_FRAME}"):
        worker_frames().feed(LENGTH.pack(MAX_FRAME + 1))


def test_a_frame_that_drips_in_costs_its_bytes() -> None:
    frames = worker_frames()
    frames.feed(LENGTH.pack(MAX_FRAME))
    for _ in range(10_000):
        assert frames.feed(b"\xc0") == []
    assert len(frames._chunks) <= 2


# ------------------------------------------------------------------ what is right


def test_an_answer_comes_in_parts_if_it_is_large() -> None:
    rig = Rig(Limits())
    keys = [b"k%d" % i for i in range(5)]
    big = codec.encode({"seen": "x" * (7 << 20)})
    rig.say(result(rig, ended=[], states=[states(keys=keys, values=[big] * 5)]))
    rig.say(Ask(0, rig.work.epoch, "Count", keys))
    answer = rig.worker.last(Values)
    assert answer.values == [big] * 2


def test_the_engine_has_told_what_the_worker_needs() -> None:
    rig = Rig()
    assert isinstance(rig.worker.sent[0], Welcome)
    assert isinstance(rig.worker.sent[1], Assign)
    assert rig.work.batches[0].calls
    assert PartitionId(*rig.app.log("main", 0)).number == 0
