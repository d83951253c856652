"""A worker that lies about objects, or asks for too much of them: nothing of it is taken, and it is replaced (F41)."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grape import Event, Node, Topology
from grape.abc.blobs import MemoryBlobs
from grape.errors import BadArgument
from grape.model.cursor import Progress
from grape.model.objects import ALWAYS, SHIPPED, ObjectWrite, Wanted
from grape.protocol.messages import Fetch, Fetched, Keep
from grape.store.blobs import FileBlobs
from grape.testing import Harness
from grape.testing.elsewhere import MemoryElsewhere
from unit.lying import EVENTS, Rig, result

DIGEST = hashlib.sha256(b"x").digest()


@pytest.fixture
def rig() -> Rig:
    found = Rig(blobs=(blobs := MemoryBlobs()), elsewhere=MemoryElsewhere(["there"], blobs))
    found.app.namespaces = {"forged": "write", "there": "write", "seen": "read"}
    found.app.elsewhere = frozenset({"there"})
    return found


def fetch(rig: Rig, what: Any, namespace: str = "forged", key: str = "k", **more: Any) -> Fetch:
    return Fetch(rig.work.partition, rig.work.epoch, 1, what, namespace, key, **more)


def refused(rig: Rig, says: str) -> None:
    assert rig.worker.killed
    assert rig.engine is not None
    assert says in rig.engine.gone("main", 0, rig.worker, "it was killed")
    assert rig.failure is None


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (lambda rig: fetch(rig, "stat", ">there"), "not granted"),
        (lambda rig: fetch(rig, "read", "other"), "not granted"),
        (lambda rig: fetch(rig, "read", key="../k"), "key of an object"),
        (lambda rig: fetch(rig, "stat", "there", key="x\0y"), "control characters"),
        (lambda rig: fetch(rig, "page", key="p" * 901), "at most 900 bytes"),
        (lambda rig: fetch(rig, "page", "there", key="p" * 901), "at most 900 bytes"),
        (lambda rig: fetch(rig, "read", "there", position="no digest"), "digest that is none"),
        (lambda rig: fetch(rig, "many", keys=["k"] * 1001), "at most 1000"),
        (lambda rig: fetch(rig, "many", keys=["a/../b"]), "key of an object"),
    ],
)
def test_questions_that_nobody_may_ask(rig: Rig, question: Callable[[Rig], Fetch], says: str) -> None:
    rig.say(question(rig))
    refused(rig, says)


@pytest.mark.parametrize(
    "write",
    [
        ObjectWrite(">there", "k", 1, DIGEST, data=b"x"),
        ObjectWrite(">there", "k", SHIPPED),
        ObjectWrite("forged", "k", SHIPPED),
        ObjectWrite("there", "k", SHIPPED, DIGEST),
        ObjectWrite("seen", "k", 1, DIGEST, data=b"x"),
        ObjectWrite("forged", "k", 2, DIGEST, data=b"x"),
        ObjectWrite("forged", "k", 70_000, DIGEST, data=b"x" * 70_000),
        ObjectWrite("forged", "k", 100_000, DIGEST, blob=True),
        ObjectWrite("forged", "k", SHIPPED, DIGEST, blob=True),
        ObjectWrite("forged", "../k", 1, DIGEST, data=b"x"),
        ObjectWrite("forged", "k", 1, DIGEST, data=b"x", tags=("b", "a")),
        ObjectWrite("forged", "k", 1, DIGEST, data=b"x", time=-1),
    ],
)
def test_writes_that_cannot_be(rig: Rig, write: ObjectWrite) -> None:
    before = rig.committed()
    rig.say(result(rig, done=[(rig.position, Progress(EVENTS))], objects=[write]))
    refused(rig, "an object")
    assert rig.committed() == before


def test_more_questions_than_anybody_has(rig: Rig) -> None:
    """Sixteen are asked at a time, also if the storage never answers."""
    there = rig.engine.objects._elsewhere  # type: ignore[union-attr]
    assert isinstance(there, MemoryElsewhere)
    for _ in range(10_016):
        rig.say(fetch(rig, "read", "there"))
    assert len(there.pending) == 16
    assert not rig.worker.killed
    rig.say(fetch(rig, "read", "there"))
    refused(rig, "before the first ones were answered")


def test_who_does_not_read_gets_no_more(rig: Rig) -> None:
    there = rig.engine.objects._elsewhere  # type: ignore[union-attr]
    assert isinstance(there, MemoryElsewhere)
    rig.worker.unread = 64 << 20
    rig.say(fetch(rig, "read", "there"))
    assert not there.pending
    rig.worker.unread = 0
    assert rig.engine is not None
    rig.engine.tick()
    there.step()
    assert isinstance(rig.worker.sent[-1], Fetched)


class Loop:
    """The engine's thread: what is posted waits."""

    def __init__(self) -> None:
        self.posted: queue.Queue[Callable[[], None]] = queue.Queue()

    def run(self) -> None:
        while True:
            try:
                self.posted.get(timeout=0.2)()
            except queue.Empty:
                return


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[Loop, FileBlobs]]:
    loop = Loop()
    blobs = FileBlobs(tmp_path, loop.posted.put)
    yield loop, blobs
    blobs.close()


def keep(rig: Rig, upload: int, data: bytes = b"x", *, last: bool = False, given_up: bool = False) -> Keep:
    return Keep(rig.work.partition, rig.work.epoch, 1, data, last, upload, given_up)


def test_a_part_before_the_last_one_was_answered(files: tuple[Loop, FileBlobs], tmp_path: Path) -> None:
    """Two threads would write into one file, whose name would not be its digest."""
    loop, blobs = files
    rig = Rig(blobs=blobs)
    rig.say(keep(rig, 1))
    rig.say(keep(rig, 2))  # of another one it may
    assert not rig.worker.killed
    loop.run()
    rig.say(keep(rig, 1))
    rig.say(keep(rig, 1, last=True))
    refused(rig, "before the last one was answered")
    loop.run()
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def test_more_objects_at_a_time_than_it_may_bring(rig: Rig) -> None:
    for upload in range(65):
        rig.say(keep(rig, upload))
    refused(rig, "over 64 objects at a time")


def test_what_is_given_up_while_a_part_is_under_way_leaves_nothing(
    files: tuple[Loop, FileBlobs], tmp_path: Path
) -> None:
    loop, blobs = files
    before = len(list(Path("/proc/self/fd").iterdir()))
    for n in range(100):
        blobs.part(n, b"x" * 300_000, False, lambda _: None)
        blobs.forget(n)
    loop.run()
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


# ------------------------------------------------------------------ what honest ones leave behind


class Large(Node):
    def process(self, event: Event) -> None:
        self.storage.put(event.key, event.data.encode() * 100_000)
        if event.data != "kept":
            raise ValueError("it fails after it has brought it")


def test_bytes_that_no_object_has_go_while_the_engine_runs() -> None:
    """Of events that failed, of writes whose condition was not so: not only at the next start."""
    t = Topology("shop")
    t.add_slot("do", Large(), retries=0)
    with Harness(t) as run:
        for data in ("kept", "lost", "gone"):
            run.feed("do", data, key="k")
        run.settle()
        engine, blobs = run._machine.engine, run._machine.blobs.blobs
        other = b"o" * 100_000
        digest = hashlib.sha256(other).digest()
        blobs[digest] = other
        write = ObjectWrite("shop", "k", len(other), digest, blob=True)
        done: list[Any] = []
        engine.objects.write([(write, Wanted(absent=True))], done.append)
        run.settle()
        assert not done[0][0].holds
        assert len(blobs) == 4
        for _ in range(3):
            run.advance(301)
        assert set(blobs.values()) == {b"kept" * 100_000}
        assert run.objects() == {"k": b"kept" * 100_000}


def test_bytes_that_failed_and_then_did_not_stay() -> None:
    t = Topology("shop")
    t.add_slot("do", Large(), retries=0)
    with Harness(t) as run:
        run.feed("do", "lost", key="k")
        run.advance(301)
        data = b"lost" * 100_000
        write = ObjectWrite("shop", "x", len(data), hashlib.sha256(data).digest(), blob=True)
        run._machine.engine.objects.write([(write, ALWAYS)], lambda _: None)
        for _ in range(3):
            run.advance(301)
        assert run.objects() == {"x": data}


def test_what_was_refused_and_is_then_taken_is_not_stuck_any_more() -> None:
    t = Topology("shop")
    t.add_slot("do", Copy(), retries=0)
    with Harness(t, namespaces={"there": "write"}, elsewhere=["there"]) as run:
        run._machine.elsewhere.refuses = lambda key: BadArgument("no")
        run.feed("do", "1", key="k")
        run.settle()
        assert run._machine.app.stuck_objects == 1
        run._machine.elsewhere.refuses = lambda key: None
        shipping = run._machine.engine.objects.shipping
        assert shipping is not None
        shipping.start()  # as after a commit of unknown outcome
        run.settle()
        assert run.objects("there") == {"k": b"1"}
        assert run._machine.app.stuck_objects == 0


class Copy(Node):
    def process(self, event: Event) -> None:
        self.storage["there"].put(event.key, event.data)
