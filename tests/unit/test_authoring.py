"""What an author writes: slots, nodes, functions, and the errors that wrong ones get."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Struct

import grape
from grape import INHERIT, Context, Emitted, Event, Node, Reply, State, Topology, TopologyError
from grape.authoring.handler import Handler
from grape.model.event import Lineage
from grape.model.topology import NodeSpec, PoolSpec, SlotSpec, StateSpec

if TYPE_CHECKING:
    from decimal import Decimal


class Order(Struct):
    id: str
    amount: float


class Split(Node):
    def process(self, event: Event) -> None:
        for word in event.data.split():
            self.emit("word", key=word)


class Count(Node):
    seen = State(int, default=0, ttl=60)

    def process(self, event: Event) -> None:
        self.seen += 1
        self.emit("total", {"word": event.key, "count": self.seen}, key=event.key)


class Foreign:
    pass


def takes_payload(payload: Any) -> None: ...


def wordcount() -> Topology:
    t = Topology("wordcount")
    t.add_slot("line", Split())
    t.add_slot("word", Count())
    t.add_output("total")
    return t


def handler(function: Callable[..., Any], **options: Any) -> Handler:
    """``function`` as the only slot of a topology, compiled."""
    t = Topology("t")
    t.add_slot("event", function, name="n", **options)
    return t.handlers["n"]


def refused(pattern: str) -> Any:
    """A TopologyError that begins with a line of this file and says ``pattern``."""
    return pytest.raises(TopologyError, match=rf"^(\S*/)?test_authoring\.py:\d+: .*{pattern}")


class TestExamplesOfTheReadme:
    def test_nodes(self) -> None:
        namespace: dict[str, Any] = {"__name__": "example"}
        exec(
            """
from grape import Node, State, Topology

class Split(Node):
    def process(self, event):
        for word in event.data.split():
            self.emit("word", key=word)

class Count(Node):
    seen = State(int, default=0)               # durable, one per key
    def process(self, event):
        self.seen += 1
        self.emit("total", {"word": event.key, "count": self.seen}, key=event.key)

def topology(config):
    t = Topology("wordcount")
    t.add_slot("line", Split())
    t.add_slot("word", Count())
    t.add_output("total")
    return t
""",
            namespace,
        )
        spec = namespace["topology"]({}).spec()
        assert [(slot.event, slot.node) for slot in spec.slots] == [("line", "Split"), ("word", "Count")]
        assert spec.node("Count").states == (StateSpec("seen"),)

    def test_functions(self) -> None:
        namespace: dict[str, Any] = {"__name__": "example"}
        exec(
            """
from msgspec import Struct
from grape import Topology

t = Topology("orders")
t.add_output("accepted")

class Order(Struct):
    id: str
    amount: float

@t.slot("order", emits="accepted", retries=3)
def check(order: Order) -> dict | None:        # None: nothing is emitted
    return {"id": order.id} if order.amount < 1000 else None
""",
            namespace,
        )
        t = namespace["t"]
        assert t.spec().slot("order", "check").emits == ("accepted",)
        assert t.handlers["check"].payload_type is namespace["Order"]
        assert namespace["check"](namespace["Order"]("1", 5.0)) == {"id": "1"}


class TestSpec:
    def test_defaults(self) -> None:
        spec = wordcount().spec()
        assert spec.name == "wordcount"
        assert spec.outputs == ("total",)
        assert spec.pools == (PoolSpec("main"),)
        assert spec.nodes == (NodeSpec("Split"), NodeSpec("Count", states=(StateSpec("seen", 60.0),)))
        slot = spec.slot("line", "Split")
        assert slot == SlotSpec("line", "Split", where=slot.where)
        assert "test_authoring.py:" in slot.where

    def test_options(self) -> None:
        t = Topology("t")
        options: dict[str, Any] = {
            "retries": 0,
            "backoff": timedelta(seconds=2),
            "backoff_max": 10,
            "timeout": 0,
            "on_fail": "stop",
            "ordered": False,
            "chain": False,
            "concurrency": 7,
        }
        t.add_slot("a", takes_payload, emits=["a", "a"], **options)
        slot = t.spec().slot("a", "takes_payload")
        assert slot.emits == ("a",)
        assert (slot.backoff, slot.backoff_max, slot.timeout) == (2.0, 10.0, 0.0)
        assert (slot.retries, slot.on_fail, slot.ordered, slot.chain, slot.concurrency) == (0, "stop", False, False, 7)

    def test_emits_of_the_class_and_of_the_slot_add_up(self) -> None:
        class Emitting(Node):
            emits = ("b", "c")

            def process(self, event: Event) -> None: ...

        t = Topology("t")
        t.add_slot("a", Emitting(), emits="d")
        for name in "bcd":
            t.add_output(name)
        assert t.spec().slot("a", "Emitting").emits == ("d", "b", "c")

    def test_emits_may_name_what_is_declared_later(self) -> None:
        t = Topology("t")
        t.add_slot("a", takes_payload, emits="b")
        t.add_output("b")
        assert t.spec().slots[0].emits == ("b",)

    def test_emits_to_another_application_are_not_checked(self) -> None:
        t = Topology("t")
        t.add_slot("a", takes_payload, emits="other@event")
        assert t.spec().slots[0].emits == ("other@event",)

    def test_one_node_owns_many_slots_and_many_nodes_listen_to_one_event(self) -> None:
        t, split = Topology("t"), Split()
        t.add_slot("a", split)
        t.add_slot("b", split, retries=1)
        t.add_slot("a", Split(name="other"))
        t.add_slot("a", takes_payload)
        t.add_slot("b", takes_payload)
        assert [node.name for node in t.spec().nodes] == ["Split", "other", "takes_payload"]
        assert t.spec().slot("b", "Split").retries == 1

    def test_a_second_slot_of_a_named_node_needs_no_name(self) -> None:
        t, split = Topology("t"), Split()
        t.add_slot("a", split, name="x")
        t.add_slot("b", split)
        assert [slot.node for slot in t.spec().slots] == ["x", "x"]

    def test_pools(self) -> None:
        t, split = Topology("t"), Split()
        t.add_pool("spare")
        t.add_slot("a", split)
        t.add_slot("b", split, pool="slow")
        t.add_slot("a", takes_payload)
        spec = t.spec()
        assert [pool.name for pool in spec.pools] == ["main", "spare", "slow"]
        assert (spec.node("Split").pool, spec.node("takes_payload").pool) == ("slow", "main")

    def test_names_of_nodes(self) -> None:
        class Named(Split):
            name = "from-class"

        t = Topology("t")
        t.add_slot("a", Named())
        t.add_slot("a", Named(name="from-constructor"))
        t.add_slot("a", Named(), name="from-slot")
        assert list(t.handlers) == ["from-class", "from-constructor", "from-slot"]

    def test_a_change_after_building_is_seen(self) -> None:
        t = wordcount()
        t.spec()
        t.add_output("more")
        assert t.spec().outputs == ("total", "more")

    def test_the_decorator_returns_the_function(self) -> None:
        t = Topology("t")
        assert t.slot("a", retries=1)(takes_payload) is takes_payload


class TestHandlers:
    def test_node(self) -> None:
        found = wordcount().handlers["Count"]
        assert (found.kind, found.arguments, found.payload_type) == ("sync", ("event",), Any)
        assert isinstance(found.instance, Count)
        assert found.call == found.instance.process
        assert found.states == {"seen": Count.seen}
        assert found.where.endswith(f"test_authoring.py:{Count.process.__code__.co_firstlineno}")

    def test_states_are_inherited_and_overridden(self) -> None:
        class Derived(Count):
            more = State(str)

        class Without(Derived):
            seen = None  # type: ignore[assignment]

        t = Topology("t")
        t.add_slot("a", Derived())
        t.add_slot("a", Without())
        assert list(t.handlers["Derived"].states) == ["seen", "more"]
        assert list(t.handlers["Without"].states) == ["more"]

    def test_function(self) -> None:
        def check(order: Order) -> None: ...

        found = handler(check)
        assert (found.call, found.arguments, found.payload_type) == (check, ("payload",), Order)
        assert found.instance is None

    def test_no_annotation_means_any(self) -> None:
        assert handler(lambda payload: None).payload_type is Any
        assert handler(takes_payload).payload_type is Any

    def test_everything_at_once_in_any_order(self) -> None:
        def f(context: Context, order: Order, event: Event, seen: State[int] = State(int, default=0)) -> None: ...

        found = handler(f)
        assert found.arguments == ("context", "payload", "event", "state:seen")
        assert found.payload_type is Order
        assert found.states["seen"].name == "seen"

    def test_event_only(self) -> None:
        def f(event: Event) -> None: ...

        assert handler(f).arguments == ("event",)

    def test_no_argument_at_all(self) -> None:
        assert handler(lambda: None).arguments == ()

    def test_arguments_with_defaults_are_left_alone(self) -> None:
        def f(order: Order, factor: int = 3, *, seen: State[int] = State(int, default=0), context: Context) -> Any:
            return order, factor, seen.value, context

        found = handler(f)
        assert found.arguments == ("payload", "state:seen", "context")
        order, context = Order("1", 1.0), Context()
        assert found.call(order, State(int, default=5), context) == (order, 3, 5, context)

    def test_a_default_of_the_payload_is_no_reason_to_leave_it_out(self) -> None:
        def f(order: Order | None = None) -> None: ...

        assert handler(f).arguments == ("payload",)

    def test_kinds(self) -> None:
        async def coroutine(payload: int) -> None: ...

        def generator(payload: int) -> Iterator[int]:
            yield payload

        async def asynchronous(payload: int) -> AsyncIterator[int]:
            yield payload

        assert handler(takes_payload).kind == "sync"
        assert handler(generator).kind == "generator"
        assert handler(coroutine).kind == "async"
        assert handler(asynchronous).kind == "async-generator"
        assert handler(asynchronous).is_async

    def test_kind_of_a_node(self) -> None:
        class Async(Node):
            async def process(self, event: Event) -> None: ...

        t = Topology("t")
        t.add_slot("a", Async())
        assert t.handlers["Async"].kind == "async"
        assert t.spec().node("Async").is_async

    def test_types_of_the_declaring_function_are_known(self) -> None:
        class Local(Struct):
            x: int

        def f(payload: Local) -> None: ...

        t = Topology("t")
        t.add_slot("a", f)
        assert t.handlers["f"].payload_type is Local

    def test_wrapped_functions_are_seen_through(self) -> None:
        def check(order: Order) -> str:
            return order.id

        @functools.wraps(check)
        def wrapper(*args: Any, **kwargs: Any) -> str:
            return check(*args, **kwargs)

        assert handler(wrapper).payload_type is Order

    def test_methods_of_other_objects_are_functions(self) -> None:
        class Client:
            def fetch(self, url: str) -> str:
                return url

        t, client = Topology("t"), Client()
        t.add_slot("a", client.fetch)
        t.add_slot("b", client.fetch)
        assert t.handlers["fetch"].payload_type is str
        assert t.handlers["fetch"].arguments == ("payload",)

    def test_dataclasses_and_builtins(self) -> None:
        @dataclass
        class Point:
            x: int

        for payload_type in (Point, int, dict[str, int], Order | None):

            def f(payload: Any) -> None: ...

            f.__annotations__ = {"payload": payload_type}
            assert handler(f).payload_type == payload_type

    def test_batch(self) -> None:
        def payloads(orders: list[Order]) -> list[Any]:
            return []

        def untyped(orders: list) -> list[Any]:  # type: ignore[type-arg]
            return []

        def events(events: list[Event]) -> list[Any]:
            return []

        assert (handler(payloads, batch=10).arguments, handler(payloads, batch=10).payload_type) == (
            ("payload",),
            Order,
        )
        assert handler(untyped, batch=10).payload_type is Any
        assert handler(events, batch=10).arguments == ("event",)
        assert handler(payloads, batch=10).is_batch
        assert handler(payloads).payload_type == list[Order]


class TestErrors:
    def test_undeclared_emits_name_near_misses(self) -> None:
        t = Topology("orders")
        t.add_slot("order", takes_payload, emits="acepted")
        t.add_output("accepted")
        with refused(r"slot 'order' \(takes_payload\) declares emits='acepted'.*Did you mean 'accepted'\?.*add_output"):
            t.spec()

    def test_emits_to_itself_by_full_name(self) -> None:
        t = Topology("t")
        t.add_slot("a", takes_payload, emits="t@a")
        with refused("written without it: 'a'"):
            t.spec()

    @pytest.mark.parametrize("name", ["", "a@b", "x" * 256, "é" * 128, "a\nb", "\ud800", 5, None])
    def test_names(self, name: Any) -> None:
        t = Topology("t")
        for declare in (
            lambda: Topology(name),
            lambda: t.add_slot(name, takes_payload),
            lambda: t.add_output(name),
            lambda: t.add_pool(name),
        ):
            with refused("the name of"):
                declare()
        if name is not None:
            with refused("the name of a node"):
                t.add_slot("a", takes_payload, name=name)
            with refused("the name of a pool"):
                t.add_slot("a", takes_payload, pool=name)

    def test_a_name_of_255_bytes_is_one(self) -> None:
        assert Topology("x" * 255).name == "x" * 255

    @pytest.mark.parametrize("emits", ["", "a@b@c", ["a", ""], 5, [5]])
    def test_names_in_emits(self, emits: Any) -> None:
        with refused("emits="):
            Topology("t").add_slot("a", takes_payload, emits=emits)

    def test_an_output_that_is_also_a_slot(self) -> None:
        t = wordcount()
        t.add_output("word")
        with refused("'word' cannot be an output: node 'Count' listens to it"):
            t.spec()

    def test_outputs_and_pools_are_declared_once(self) -> None:
        t = wordcount()
        with refused("'total' is an output already"):
            t.add_output("total")
        t.add_pool("slow")
        with refused("'slow' is a pool already"):
            t.add_pool("slow")

    def test_the_same_slot_twice(self) -> None:
        t = Topology("t")
        t.add_slot("a", takes_payload)
        with refused("node 'takes_payload' listens to 'a' already"):
            t.add_slot("a", takes_payload)

    def test_two_nodes_of_one_name(self) -> None:
        t = Topology("t")
        t.add_slot("a", Split())
        with refused(r"two nodes are called 'Split'.*Pass name="):
            t.add_slot("b", Split())

    def test_one_instance_of_two_names(self) -> None:
        t, split = Topology("t"), Split()
        t.add_slot("a", split)
        with refused("one instance has one name"):
            t.add_slot("b", split, name="x")

    def test_a_node_in_two_pools(self) -> None:
        t = Topology("t")
        t.add_slot("a", takes_payload, pool="slow")
        with refused("cannot be in two pools: 'slow'"):
            t.add_slot("b", takes_payload, pool="main")

    def test_a_node_of_two_batch_sizes(self) -> None:
        t = Topology("t")
        t.add_slot("a", takes_payload, batch=2)
        with refused("all slots of a node have the same"):
            t.add_slot("b", takes_payload)

    @pytest.mark.parametrize(
        ("option", "values"),
        [
            ("retries", [-1, 1.5, "3", True, None]),
            ("backoff", [-1, float("nan"), "1", None, True]),
            ("backoff_max", [-1, 0.5, timedelta(seconds=-1)]),
            ("timeout", [-1, float("inf"), "1m"]),
            ("on_fail", ["ignore", None, 1]),
            ("ordered", [0, "yes", None]),
            ("chain", [1, None]),
            ("concurrency", [0, -1, 1.0]),
            ("batch", [0, 8193, True]),
        ],
    )
    def test_option_values(self, option: str, values: list[Any]) -> None:
        for value in values:
            options: dict[str, Any] = {option: value}
            with refused(option):
                Topology("t").add_slot("a", takes_payload, **options)

    def test_near_misses_of_an_option_value(self) -> None:
        with refused("on_fail= is 'dead' or 'stop', not 'stopp'. Did you mean 'stop'?"):
            Topology("t").add_slot("a", takes_payload, on_fail="stopp")  # type: ignore[arg-type]

    def test_no_slots(self) -> None:
        with pytest.raises(TopologyError, match="topology 't' has no slots"):
            Topology("t").spec()

    @pytest.mark.parametrize("node", [5, "Split", print, functools.partial(print), None])
    def test_what_is_no_node(self, node: Any) -> None:
        with refused("a node is an instance of a Node class or a function"):
            Topology("t").add_slot("a", node)

    def test_a_class_instead_of_an_instance(self) -> None:
        with refused(r"pass an instance: Split\(\)"):
            Topology("t").add_slot("a", Split)

    def test_the_method_of_a_node(self) -> None:
        with refused("pass the node itself"):
            Topology("t").add_slot("a", Split().process)

    def test_a_lambda_without_name(self) -> None:
        with refused("a lambda has no name"):
            Topology("t").add_slot("a", lambda payload: None)

    def test_a_node_without_process(self) -> None:
        class Empty(Node): ...

        t = Topology("t")
        t.add_slot("a", Empty())
        with refused(r"has no method process\(self, event\)"):
            t.spec()

    def test_process_with_other_arguments(self) -> None:
        class Odd(Node):
            def process(self, event: Event, more: int) -> None: ...  # type: ignore[override]

        t = Topology("t")
        t.add_slot("a", Odd())
        with refused("takes self and one event"):
            t.spec()

    def test_an_argument_that_nothing_can_fill(self) -> None:
        def f(order: Order, client: Foreign) -> None: ...

        with refused(r"f\(\): nothing to pass as 'client'"):
            handler(f)

    def test_only_variadic_arguments(self) -> None:
        with refused("names no argument for the payload"):
            handler(lambda *args, **kwargs: None)

    def test_a_state_without_declaration(self) -> None:
        def f(word: str, seen: State[int]) -> None: ...

        with refused(r"needs its declaration as default value: seen: State\[int\] = State\(int\)"):
            handler(f)

    def test_a_payload_type_that_cannot_be_decoded(self) -> None:
        def f(payload: list[Foreign]) -> None: ...

        with refused("the payload 'payload': values of type Foreign cannot be encoded"):
            handler(f)

    def test_an_annotation_that_exists_for_type_checkers_only(self) -> None:
        def f(payload: Decimal) -> None: ...

        with refused(r"annotation of 'payload', 'Decimal', cannot be evaluated .*not under TYPE_CHECKING"):
            handler(f)

    def test_a_return_annotation_may_be_anything(self) -> None:
        def f(payload: int) -> Decimal: ...  # type: ignore[empty-body]

        assert handler(f).payload_type is int

    def test_state_in_a_batch(self) -> None:
        def f(words: list[str], seen: State[int] = State(int, default=0)) -> None: ...

        with refused("has State, which batch= cannot have"):
            handler(f, batch=2)
        with refused("has State, which batch= cannot have"):
            t = Topology("t")
            t.add_slot("a", Count(), batch=2)
            t.spec()

    def test_shapes_that_a_batch_cannot_have(self) -> None:
        def single(word: str) -> None: ...

        def event(event: Event) -> None: ...

        def context(words: list[str], context: Context) -> None: ...

        def generator(words: list[str]) -> Iterator[str]:
            yield ""

        for function, what in (
            (single, "is a list"),
            (event, r"list\[Event\]"),
            (context, "no Context there"),
            (generator, "cannot yield"),
        ):
            with refused(what):
                handler(function, batch=2)

    def test_state_in_a_method(self) -> None:
        class Late(Node):
            def __init__(self) -> None:
                self.seen = State(int)

            def process(self, event: Event) -> None: ...

        t = Topology("t")
        t.add_slot("a", Late())
        with refused("stands in the class"):
            t.spec()

    def test_one_state_of_two_names(self) -> None:
        class Twice(Node):
            one = two = State(int)

            def process(self, event: Event) -> None: ...

        t = Topology("t")
        t.add_slot("a", Twice())
        with refused("one State object"):
            t.spec()

    def test_a_state_that_hides_a_part_of_the_node(self) -> None:
        class Hiding(Node):
            emits = State(str)  # type: ignore[assignment]

            def process(self, event: Event) -> None: ...

        t = Topology("t")
        with refused("emits"):
            t.add_slot("a", Hiding())
            t.spec()


class TestOutsideAWorker:
    def test_a_node_records(self) -> None:
        split = Split()
        split.process(Event("line", data="a b"))
        assert split.emitted == [Emitted("word", key="a"), Emitted("word", key="b")]

    def test_init_without_super(self) -> None:
        class Own(Split):
            def __init__(self, size: int) -> None:
                self.size = size

        own = Own(3)
        own.process(Event("line", data="a"))
        own.reply(1)
        assert (len(own.emitted), own.replies) == (1, [Reply(1, final=True)])
        t = Topology("t")
        t.add_slot("a", own)
        assert list(t.handlers) == ["Own"]

    def test_emit(self) -> None:
        context = Context()
        context.emit("a")
        context.emit("b", {"x": 1}, key=None, delay=timedelta(minutes=1))
        context.emit("c", key="k", delay=1)
        assert context.emitted == [
            Emitted("a", None, INHERIT, None),
            Emitted("b", {"x": 1}, None, 60.0),
            Emitted("c", None, "k", 1.0),
        ]

    def test_emit_many(self) -> None:
        context = Context()
        context.emit_many("a", keys=["x", None])
        context.emit_many("b", data=iter_of(1))
        context.emit_many("c", keys=["x", "y"], data=[1, 2])
        context.emit_many("d", data=[])
        assert context.emitted == [
            Emitted("a", key="x"),
            Emitted("a", key=None),
            Emitted("b", 1),
            Emitted("c", 1, "x"),
            Emitted("c", 2, "y"),
        ]

    def test_later_changes_are_not_seen(self) -> None:
        context, data = Context(), [1]
        context.emit("a", data)
        context.reply(data)
        data.append(2)
        assert (context.emitted[0].data, context.replies[0].data) == ([1], [1])

    @pytest.mark.parametrize(
        "arguments",
        [
            {"data": Foreign()},
            {"data": 2**63},
            {"key": 5},
            {"key": b"x"},
            {"delay": "soon"},
            {"delay": True},
            {"event": 5},
        ],
    )
    def test_what_cannot_travel_is_refused_at_the_emit(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(TypeError):
            Context().emit(**{"event": "a", **arguments})

    @pytest.mark.parametrize("arguments", [{"key": ""}, {"key": "x" * 4097}, {"delay": -1}])
    def test_what_is_out_of_range_is_refused_at_the_emit(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            Context().emit("a", **arguments)

    def test_columns(self) -> None:
        context = Context()
        with pytest.raises(TypeError, match="needs keys=, data= or both"):
            context.emit_many("a")
        with pytest.raises(TypeError, match="keys= is a list"):
            context.emit_many("a", keys="abc")
        with pytest.raises(ValueError, match="equally many"):
            context.emit_many("a", keys=["a"], data=[])
        assert context.emitted == []

    def test_a_function_is_called_directly(self) -> None:
        def count(word: str, context: Context, seen: State[int] = State(int, default=0)) -> None:
            seen.value += 1
            context.emit("total", seen.value, key=word)

        context, seen = Context(), State(int, default=41)
        count("a", context, seen)
        assert context.emitted == [Emitted("total", 42, "a")]


def iter_of(*items: Any) -> Any:
    """A collection that is no sequence."""
    return dict.fromkeys(items).keys()


class TestEvent:
    def test_without_lineage(self) -> None:
        event = Event("word", key="a", data=1)
        event.progress()
        assert (event.id, event.time, event.attempt, event.hops, event.trace) == ("test", 0.0, 1, 0, None)

    def test_with_lineage(self) -> None:
        class Fixed(Lineage):
            told = 0

            def id_of(self, index: int) -> str:
                return f"id{index}"

            def time_of(self, index: int) -> float:
                return 1.5

            def attempt_of(self, index: int) -> int:
                return 2

            def hops_of(self, index: int) -> int:
                return 3

            def trace_of(self, index: int) -> str | None:
                return "trace"

            def progress(self) -> None:
                self.told += 1

        lineage = Fixed()
        event = Event("word", "a", 1, lineage, 7)
        event.progress()
        assert (event.id, event.time, event.attempt, event.hops, event.trace) == ("id7", 1.5, 2, 3, "trace")
        assert lineage.told == 1


class TestPackage:
    def test_exports(self) -> None:
        assert all(hasattr(grape, name) for name in grape.__all__)
        assert {"run", "open", "Client", "AsyncClient"} <= set(dir(grape))
        assert all(hasattr(grape, name) for name in dir(grape))
        assert grape.__version__

    def test_an_unknown_name(self) -> None:
        with pytest.raises(AttributeError, match="nope"):
            grape.nope  # type: ignore[attr-defined]  # noqa: B018
