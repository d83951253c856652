"""Rates of slots: what decides, without processes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from grape import Topology
from grape.engine.rates import Bucket
from grape.errors import TopologyError
from grape.model import batch as codec
from grape.model.rate import rate_of
from grape.model.topology import Limits
from grape.protocol.messages import (
    Announce,
    Assign,
    BatchItem,
    Drain,
    FromWorker,
    Lease,
    Leased,
    Result,
    RetryItem,
    Revoke,
    ToWorker,
    Welcome,
    Work,
)
from grape.worker.dispatcher import Dispatcher
from grape.worker.pacing import Pacer
from grape.worker.runtime import Runtime
from unit import lying
from unit.lying import Rig


@given(
    st.floats(0.01, 1e5),
    st.integers(1, 1_000),
    st.lists(st.tuples(st.integers(-50_000, 5_000_000), st.integers(1, 500)), max_size=60),
)
def test_a_bucket_never_gives_more_than_its_rate(rate: float, burst: int, moves: list[tuple[int, int]]) -> None:
    """In any window, whatever the clock does: at most ``burst`` and what came meanwhile."""
    bucket = Bucket(rate, burst, 0)
    now = even = given = 0
    for step, wanted in moves:
        now += step
        even += max(0, step)
        given += bucket.take(wanted, now)
        assert given <= 1 + burst + rate * even / 1e6


@given(st.floats(0.01, 1e5), st.integers(1, 50))
def test_what_is_due_is_there_then_and_not_before(rate: float, burst: int) -> None:
    bucket = Bucket(rate, burst, 0)
    assert bucket.take(1, 0) == 1
    due = bucket.due()
    assert bucket.take(1, due) == 1
    assert due <= 1e6 / rate + 2


@pytest.mark.parametrize(
    ("text", "rate"), [("100/s", 100), ("30/min", 0.5), ("7200 / h", 2), ("86400/day", 1), (2.5, 2.5), ("1.5/sec", 1.5)]
)
def test_how_rates_are_written(text: object, rate: float) -> None:
    assert rate_of(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["100", "/s", "-1/s", "0/s", "5/fortnight", 0, -2, True, None, "nan/s", float("inf")])
def test_what_is_no_rate(text: object) -> None:
    with pytest.raises(ValueError, match="events a second"):
        rate_of(text)
    if text is not None:
        with pytest.raises(TopologyError, match=r"rate=: a rate is"):
            Topology("a").add_slot("e", lambda data: None, name="n", rate=text)  # type: ignore[arg-type]


def test_a_burst_belongs_to_a_rate() -> None:
    with pytest.raises(TopologyError, match="belongs to a rate"):
        Topology("a").add_slot("e", lambda data: None, name="n", burst=3)


# ------------------------------------------------------------------ the engine


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Its slot ``word`` has a rate: one event at once, and then none for long."""
    (word, *others) = lying.TOPOLOGY.slots
    rated = structs.replace(lying.TOPOLOGY, slots=(structs.replace(word, rate=0.001), *others))
    monkeypatch.setattr(lying, "TOPOLOGY", rated)
    monkeypatch.setattr(lying, "CAPABILITIES", [*lying.CAPABILITIES, "rates"])
    return Rig()


LEASE = Lease("word", "Count", 5)


def test_an_engine_that_ends_lets_go_who_waits_for_a_turn(rig: Rig) -> None:
    assert rig.engine is not None
    rig.say(LEASE)
    assert rig.worker.sent[-1] == Leased("word", "Count", 1)
    rig.say(LEASE)
    rig.engine.drain()
    assert rig.worker.sent[-1] == Drain()
    rig.engine.gone("main", 0, rig.worker, "it exited with code 0")
    rig.transport.pump()
    assert not rig.engine.in_flight
    assert not rig.notices


def test_whoever_asks_for_a_turn_while_the_engine_ends_is_let_go(rig: Rig) -> None:
    assert rig.engine is not None
    rig.engine.drain()
    rig.say(LEASE)
    assert rig.worker.sent[-1] == Leased("word", "Count", 1)
    rig.say(LEASE)
    assert rig.worker.sent[-1] == Drain()
    rig.engine.tick()
    assert rig.worker.sent[-1] == Drain()


# ------------------------------------------------------------------ a worker


class Worker:
    """A synchronous one. What the engine says comes when the worker waits: ``coming``, one after the other."""

    def __init__(self, topology: Topology) -> None:
        self.said: list[FromWorker] = []
        self.coming: deque[ToWorker] = deque()
        spec = topology.spec()
        self.dispatcher = Dispatcher(self.said.append, lambda step: None, self._wait)
        self.runtime = Runtime(topology.handlers, spec, self.dispatcher.ask, self.said.append)
        self.runtime.pacer = Pacer(self.said.append, self._wait, self.dispatcher.is_unwanted)
        self.dispatcher.serve(self.runtime)
        self.hear(Welcome(1, "main", "main.0", 4, Limits(), frozenset(("out",)), topology=spec))
        self.hear(Assign(0, 1), Assign(1, 1))
        self.said.clear()

    def _wait(self) -> None:
        self.dispatcher.take(self.coming.popleft())

    def hear(self, *messages: ToWorker) -> None:
        for message in messages:
            self.dispatcher.take(message)
        while self.dispatcher.has_messages and not self.dispatcher.has_ended:
            self.dispatcher.step()

    @property
    def results(self) -> list[Result]:
        return [message for message in self.said if isinstance(message, Result)]

    @property
    def asked(self) -> int:
        return sum(isinstance(message, Lease) for message in self.said)


def rated() -> tuple[Worker, list[int]]:
    seen: list[int] = []
    t = Topology("rated")
    t.add_output("out")
    t.add_slot("mail", lambda data: seen.append(int(data)), name="Mail", rate=1)
    t.add_slot("mail", lambda data: seen.append(-data), name="Free")
    t.add_slot("other", lambda data: seen.append(100 + data), name="Other")
    return Worker(t), seen


def work(seq: int, *data: int, event: str = "mail", partition: int = 0) -> Work:
    body = codec.encode_run(codec.RunMeta([event]), len(data), [f"k{n}" for n in data], list(data))
    return Work(partition, 1, seq, [BatchItem(seq, f"{seq}-", 0, len(data), body)])


LEASED = Leased("mail", "Mail", 1)


def test_an_event_begins_at_none_of_its_nodes_before_its_turn() -> None:
    worker, seen = rated()
    worker.coming.append(LEASED)
    before: Callable[[], None] = worker._wait
    found: list[list[int]] = []

    def wait() -> None:
        found.append(list(seen))
        before()

    assert worker.runtime.pacer is not None
    worker.runtime.pacer._wait = wait
    worker.hear(work(1, 1))
    assert found == [[]]
    assert sorted(seen) == [-1, 1]


def test_a_worker_that_is_to_end_gives_back_what_waits_for_its_turn() -> None:
    worker, seen = rated()
    worker.coming += [LEASED, Drain()]
    worker.hear(work(1, 1, 2, 3), work(2, 4, partition=1), work(3, 5, event="other", partition=1))
    assert worker.dispatcher.has_ended
    assert sorted(seen) == [-1, 1, 105]  # what need not wait is done, as it was handed out
    assert [[progress.first for _, progress in result.done] for result in worker.results] == [[1], [1]]
    assert [result.ended for result in worker.results] == [[], [3]]


def test_a_partition_that_is_taken_away_takes_along_what_waits() -> None:
    worker, seen = rated()
    worker.coming += [LEASED, Revoke(0, 1)]
    worker.hear(work(1, 1, 2, 3))
    assert [result.ended for result in worker.results] == [[]]
    worker.coming.append(LEASED)
    worker.hear(work(2, 4, partition=1))
    assert sorted(seen) == [-4, -1, 1, 4]
    assert worker.results[-1].ended == [2]
    assert worker.asked == 2  # the answer to the second question is that of the last event


def test_works_without_rated_events_are_done_as_a_whole() -> None:
    worker, _ = rated()
    worker.hear(work(1, *range(1, 50), event="other"))
    assert len(worker.results) == 1
    assert not worker.asked


def test_what_keeps_an_event_from_running_keeps_it_from_asking() -> None:
    worker, seen = rated()
    worker.hear(Assign(2, 1, [("Mail", "k1")]))
    body = codec.encode_run(codec.RunMeta(["mail"]), 2, ["k1", "k2"], [1, 2])
    worker.coming.append(LEASED)
    worker.hear(Work(2, 1, 1, [BatchItem(1, "1-", 0, 2, body)]))
    assert worker.asked == 1
    assert sorted(seen) == [-2, -1, 2]
    item = RetryItem(7, "Mail", "1-0", 2, 0, 0, codec.one("mail", "k1", 1))
    worker.coming.append(LEASED)
    worker.hear(Work(2, 1, 2, [], [item]))
    assert worker.asked == 2
    assert seen[-1] == 1


# ------------------------------------------------------------------ a worker with async nodes


class Pool:
    """What runs on a loop: a synchronous slot and an async one with a rate, and one without."""

    def __init__(self) -> None:
        self.said: list[FromWorker] = []
        self.seen: list[str] = []
        self.goes_on = asyncio.Event()
        t = Topology("beside")
        t.add_output("out")
        t.add_slot("mail", lambda data: self.seen.append(f"mail {data}"), name="Mail", rate=1)
        t.add_slot("letter", self.letter, name="Letter", rate=1)
        t.add_slot("other", self.other, name="Other")
        spec = t.spec()
        self.dispatcher = Dispatcher(self.said.append, asyncio.get_running_loop().call_soon, never)
        self.runtime = Runtime(t.handlers, spec, self.dispatcher.ask, self.said.append)
        self.runtime.pacer = Pacer(self.said.append, never, self.dispatcher.is_unwanted)
        self.dispatcher.serve(self.runtime)
        self.hear(Welcome(1, "main", "main.0", 4, Limits(), frozenset(("out",)), topology=spec), Assign(0, 1))
        self.hear(Assign(1, 1))

    async def letter(self, data: int) -> None:
        self.seen.append(f"letter {data}")

    async def other(self, data: int) -> None:
        self.seen.append(f"begins {data}")
        await self.goes_on.wait()
        self.seen.append(f"ends {data}")

    def hear(self, *messages: ToWorker) -> None:
        for message in messages:
            self.dispatcher.take(message)

    async def until(self, is_so: Callable[[], object]) -> None:
        while not is_so():
            await asyncio.sleep(0.001)

    @property
    def asked(self) -> list[Lease]:
        return [message for message in self.said if isinstance(message, Lease)]


def never() -> None:
    raise AssertionError("a pool on a loop does not wait for the engine")


def test_a_synchronous_event_that_waits_keeps_no_loop() -> None:
    async def go() -> None:
        pool = Pool()
        pool.goes_on.set()
        pool.hear(work(1, 1, 2), work(2, 3, event="other", partition=1))
        await pool.until(lambda: "ends 3" in pool.seen)
        assert pool.asked[0] == Lease("mail", "Mail", 1)
        assert not any(seen.startswith("mail") for seen in pool.seen)
        assert pool.runtime.is_running()
        for number in (1, 2):
            pool.hear(LEASED)
            await pool.until(lambda number=number: f"mail {number}" in pool.seen)
        await pool.until(lambda: any(1 in m.ended for m in pool.said if isinstance(m, Result)))

    asyncio.run(go())


@pytest.mark.parametrize("event", ["mail", "letter"])
def test_what_waits_for_its_turn_goes_with_its_partition(event: str) -> None:
    async def go() -> None:
        pool = Pool()
        pool.hear(work(1, 1, 2, event=event))
        await pool.until(lambda: pool.asked)
        pool.hear(Revoke(0, 1), work(2, 3, event=event, partition=1))
        await asyncio.sleep(0.01)
        pool.hear(structs.replace(LEASED, event=event, node=event.title()))
        await pool.until(lambda: pool.seen)
        assert pool.seen == [f"{event} 3"]  # no turn is lost

    asyncio.run(go())


@pytest.mark.parametrize("event", ["mail", "letter"])
def test_a_pool_that_is_to_end_finishes_what_has_begun_and_gives_back_the_rest(event: str) -> None:
    async def go() -> None:
        pool = Pool()
        pool.hear(work(1, 1, event=event), work(2, 2, event="other", partition=1))
        await pool.until(lambda: pool.asked and pool.seen)
        pool.hear(Drain())
        await asyncio.sleep(0.05)
        assert not pool.dispatcher.has_ended
        pool.goes_on.set()
        await pool.until(lambda: pool.dispatcher.has_ended)
        assert pool.seen == ["begins 2", "ends 2"]
        (result,) = [message for message in pool.said if isinstance(message, Result) and message.is_progress]
        assert (result.ended, [at for at, _ in result.done]) == ([2], [2])

    asyncio.run(go())


def test_careful_mode_announces_what_has_had_its_turn() -> None:
    async def go() -> None:
        pool = Pool()
        both = [work(n, n, event=event, partition=n - 1) for n, event in ((1, "mail"), (2, "letter"))]
        pool.hear(*(structs.replace(one, careful=True) for one in both))
        for count, event in ((1, "mail"), (2, "letter")):
            await pool.until(lambda count=count: len(pool.asked) == count)
            await asyncio.sleep(0.01)
            assert len(announced(pool)) == count - 1
            pool.hear(structs.replace(LEASED, event=event, node=event.title()))
            await pool.until(lambda count=count: len(announced(pool)) == count)
        await pool.until(lambda: len(pool.seen) == 2)

    asyncio.run(go())


def announced(pool: Pool) -> list[Announce]:
    return [message for message in pool.said if isinstance(message, Announce)]
