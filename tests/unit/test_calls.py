"""Calls of handlers: an event that asks, waits for the answer, and goes on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from grape import CallFailed, Context, Event, NoAnswer, Node, State, Topology
from grape.engine.partition.dispatch import Dispatch
from grape.model.topology import Limits
from grape.protocol.messages import Work
from grape.testing import Harness
from grape.worker import calls

RUNS: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _anew() -> None:
    RUNS.clear()


class Shop(Node):
    """Asks for a price, then for the tax on it."""

    emits = ("sold",)
    sold = State(int, default=0)

    def process(self, event: Event) -> None:
        RUNS["shop"] += 1
        self.sold += 1
        self.emit("sold", [event.key, "tried"])  # undone while it waits
        price = self.call("price", event.data)
        tax = self.call("tax", price, key=None, timeout=5)
        self.emit("sold", [event.key, event.data, price, tax, self.sold])


class AsyncShop(Shop):
    async def process(self, event: Event) -> None:  # type: ignore[override]
        Shop.process(self, event)


def shop(node: type[Node] = Shop, pool: str = "main") -> Topology:
    t = Topology("shop")
    t.add_output("sold")
    t.add_slot("order", node(name="Shop"), retries=2)

    @t.slot("price", pool=pool)
    def price(data: Any, context: Context) -> None:
        RUNS["price"] += 1
        context.reply("wait", final=False)
        context.reply(len(data))

    @t.slot("tax")
    def tax(data: Any, context: Context) -> None:
        RUNS["tax"] += 1
        context.reply(data * 10)

    return t


@pytest.mark.parametrize("node", [Shop, AsyncShop])
@pytest.mark.parametrize("pool", ["main", "other"])
def test_an_event_waits_for_its_answers(node: type[Node], pool: str) -> None:
    with Harness(lambda: shop(node, pool)) as run:
        for key, what in (("ann", "tea"), ("bob", "coffee"), ("ann", "milk")):
            run.feed("order", what, key=key)
        run.settle()
        sold = [event.data for event in run.outputs("sold")]
        ours = ["tried"]
        assert sorted(row for row in sold if row[1] not in ours) == [
            ["ann", "milk", 4, 40, 2],
            ["ann", "tea", 3, 30, 1],
            ["bob", "coffee", 6, 60, 1],
        ]
        assert [row for row in sold if row[0] == "ann" and row[1] not in ours] == [
            ["ann", "tea", 3, 30, 1],
            ["ann", "milk", 4, 40, 2],
        ]
        assert len([row for row in sold if row[1] in ours]) == 3  # those of the runs that came through
        assert RUNS == {"shop": 9, "price": 3, "tax": 3}
        assert run.state("Shop", "ann") == {"sold": 2}
        assert (run.dead(), run.held()) == ([], [])


def one(handle: Any, **slots: Any) -> Topology:
    """``ask`` is handled by a function, the others as said."""
    t = Topology("one")
    t.add_output("out")
    t.add_slot("ask", handle, name="asker", emits="out", retries=1, backoff=1.0)
    for event, handler in slots.items():
        t.add_slot(event, handler, name=event, retries=0)
    return t


def test_no_answer_is_an_error_in_time() -> None:
    def ask(data: Any, context: Context) -> str:
        try:
            context.call("silence", timeout=20)
        except NoAnswer as e:
            return f"{e}"
        return "answered"

    with Harness(lambda: one(ask, silence=lambda data: None)) as run:
        run.feed("ask", key="k")
        run.settle()
        assert [(held.node, held.event, held.kind, held.text) for held in run.held()] == [
            ("asker", "ask", "call", "waits for the answer to 'silence'")
        ]
        run.advance(19)
        assert run.outputs("out") == []
        run.advance(2)
        assert [event.data for event in run.outputs("out")] == ["no answer to 'silence' in time"]


def test_whoever_should_answer_fails() -> None:
    def ask(data: Any, context: Context) -> list[str]:
        try:
            context.call("broken")
        except CallFailed as e:
            return [e.code, e.node, e.text]
        return []

    def broken(data: Any) -> None:
        raise ValueError("out of order")

    with Harness(lambda: one(ask, broken=broken)) as run:
        run.feed("ask", key="k")
        run.settle()
        (event,) = run.outputs("out")
        assert event.data[1] == "broken"
        assert "out of order" in event.data[2]


def test_a_failed_attempt_keeps_its_answers_and_asks_again_where_there_was_none() -> None:
    def ask(data: Any, context: Context) -> Any:
        RUNS["ask"] += 1
        first = context.call("good", 1)
        second = context.call("bad", 2)
        return [first, second]

    def good(data: Any, context: Context) -> None:
        RUNS["good"] += 1
        context.reply("good")

    def bad(data: Any, context: Context) -> None:
        RUNS["bad"] += 1
        if RUNS["bad"] == 1:
            raise ValueError("no")
        context.reply("better")

    with Harness(lambda: one(ask, good=good, bad=bad)) as run:
        run.feed("ask", key="k")
        run.settle()
        run.advance(10)
        assert [event.data for event in run.outputs("out")] == [["good", "better"]]
        assert (RUNS["good"], RUNS["bad"]) == (1, 2)


def test_who_asks_something_else_the_next_time_is_told() -> None:
    def ask(data: Any, context: Context) -> Any:
        RUNS["ask"] += 1
        return context.call("good", RUNS["ask"])

    with Harness(lambda: one(ask, good=reply)) as run:
        run.feed("ask")
        run.settle()
        run.finish()
        (letter,) = run.dead()
        assert "was another one when its event ran before" in letter.text


def reply(data: Any, context: Context) -> None:
    context.reply(data)


def careless(data: Any, context: Context) -> Any:
    try:
        return context.call("good")
    except BaseException:
        return "caught"


async def async_careless(data: Any, context: Context) -> Any:
    return careless(data, context)


class Careless(Node):
    emits = ("out",)

    def process(self, event: Event) -> Any:
        return careless(event.data, self)  # type: ignore[arg-type]


class Counting(Careless):
    count = State(int, default=0)

    def process(self, event: Event) -> Any:
        self.count += 1
        out = careless(event.data, self)  # type: ignore[arg-type]
        self.count += 1
        return out


class General(Counting):
    other = State(list)


def test_who_calls_again_is_left_at_the_first_call_all_the_same() -> None:
    def ask(data: Any, context: Context) -> Any:
        try:
            first = context.call("good", 1)
        except BaseException:
            first = "caught"
        return [first, context.call("good", 2)]

    with Harness(lambda: one(ask, good=reply)) as run:
        for _ in range(3):
            run.feed("ask")
        run.settle()
        assert [event.data for event in run.outputs("out")] == [[1, 2]] * 3


def test_what_a_careless_handler_changed_is_undone() -> None:
    with Harness(lambda: one(Counting(), good=reply)) as run:
        for n in range(5):
            run.feed("ask", n, key=f"k{n % 2}")
        run.finish()
        assert run.outputs("out") == []
        assert run.states("asker") == {}


@pytest.mark.parametrize("handle", [careless, async_careless, Careless(), Counting(), General()])
def test_who_catches_what_ends_the_handler_is_told(handle: Any) -> None:
    with Harness(lambda: one(handle, good=reply)) as run:
        for n in range(3):
            run.feed("ask", key=f"k{n}")
        run.finish()
        assert run.outputs("out") == []
        assert ["caught what ends its handler" in letter.text for letter in run.dead()] == [True] * 3


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (lambda c: c.call("nobody"), "neither a slot nor an output"),
        (lambda c: c.call("out"), "which is an output: nothing answers there"),
        (lambda c: c.call("good", timeout=0), "timeout=0"),
        (lambda c: c.call("good", timeout=-1), "timeout"),
        (lambda c: c.call("good", timeout=float("nan")), "timeout"),
        (lambda c: c.call("good", key=""), "a key"),
        (lambda c: c.call("good", object()), "cannot travel"),
    ],
)
def test_an_argument_that_cannot_be_fails_the_event_alone(use: Any, what: str) -> None:
    def ask(data: Any, context: Context) -> None:
        use(context)

    with Harness(lambda: one(ask, good=reply)) as run:
        run.feed("ask")
        run.finish()
        (letter,) = run.dead()
        assert what in letter.text


class Price(msgspec.Struct):
    cents: int


def test_an_answer_is_of_the_type_that_is_asked_for() -> None:
    def ask(data: Any, context: Context) -> Any:
        price = context.call("good", {"cents": 5}, type=Price)
        assert isinstance(price, Price)
        return price.cents

    with Harness(lambda: one(ask, good=reply)) as run:
        run.feed("ask")
        run.settle()
        assert [event.data for event in run.outputs("out")] == [5]


def test_who_was_called_may_call() -> None:
    def ask(data: Any, context: Context) -> Any:
        return ["asked", context.call("first", data)]

    def first(data: Any, context: Context) -> None:
        context.reply(["first", context.call("second", data)])

    with Harness(lambda: one(ask, first=first, second=reply)) as run:
        run.feed("ask", 7, key="k")
        run.settle()
        assert [event.data for event in run.outputs("out")] == [["asked", ["first", 7]]]


def test_a_call_to_oneself_does_not_wait_for_ever() -> None:
    """It lines up behind the event that waits for it."""

    def ask(data: Any, context: Context) -> Any:
        if data == "inner":
            context.reply("never")
            return None
        try:
            return context.call("ask", "inner", timeout=5)
        except NoAnswer:
            return "gave up"

    with Harness(lambda: one(ask)) as run:
        run.feed("ask", "outer", key="k")
        run.finish()
        assert [event.data for event in run.outputs("out")] == ["gave up"]


def test_what_waits_for_answers_does_not_fill_the_hold_list() -> None:
    def ask(data: Any, context: Context) -> Any:
        return context.call("good", data)

    with Harness(lambda: one(ask, good=reply), limits=Limits(hold_events=2)) as run:
        for n in range(50):
            run.feed("ask", n, key=f"k{n}")
        run.settle()
        assert sorted(event.data for event in run.outputs("out")) == list(range(50))


def test_a_unit_test_says_what_calls_return() -> None:
    node = Shop()
    node.call_answers.extend([3, CallFailed("error", "no", "tax")])
    assert node.call("price", "tea") == 3
    with pytest.raises(CallFailed):
        node.call("tax", 3)
    assert [(call.event, call.data) for call in node.calls_made] == [("price", "tea"), ("tax", 3)]
    with pytest.raises(LookupError, match="say first what it returns"):
        node.call("price", "milk")


def test_calls_of_one_event_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_MOST", 5)

    def ask(data: Any, context: Context) -> Any:
        return [context.call("good", n) for n in range(data)]

    with Harness(lambda: one(ask, good=reply)) as run:
        run.feed("ask", 5)
        run.feed("ask", 6)
        run.finish()
        assert [event.data for event in run.outputs("out")] == [[0, 1, 2, 3, 4]]
        (letter,) = run.dead()
        assert "has made 5 calls for one event" in letter.text


def test_answers_for_one_event_are_bounded() -> None:
    def ask(data: Any, context: Context) -> Any:
        answers = [context.call("good", "x" * 400) for _ in range(2)]
        try:
            context.call("good", "x" * 400)
        except CallFailed as e:
            return [e.code, len(answers)]

    with Harness(lambda: one(ask, good=reply), limits=Limits(max_event=1_000)) as run:
        run.feed("ask")
        run.settle()
        assert [event.data for event in run.outputs("out")] == [["too-large", 2]]


def test_events_with_their_answers_go_out_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for answers is not bounded by the hold list, so what is handed out together has to be."""
    works: list[int] = []
    make = Dispatch.make

    def measured(self: Dispatch, epoch: int, now: int, *, eager: bool) -> Work | None:
        work = make(self, epoch, now, eager=eager)
        if work is not None:
            works.append(sum(len(item.body) + sum(len(a.data) for a in item.answers) for item in work.retries))
        return work

    monkeypatch.setattr(Dispatch, "make", measured)

    def ask(data: Any, context: Context) -> Any:
        try:
            context.call("silence", timeout=5)
        except NoAnswer:
            return len(data)

    with Harness(lambda: one(ask, silence=lambda data: None), partitions=1, limits=Limits(dispatch_bytes=5_000)) as run:
        for n in range(60):
            run.feed("ask", "x" * 1_000, key=f"k{n}")
        run.settle()
        run.advance(6)
        assert [event.data for event in run.outputs("out")] == [1_000] * 60
    assert 1_000 < max(works) < 7_000
