"""`grape._hot` does what `grape.hot.pure` does, on any input, and breaks in no other way.

``GRAPE_HOT_MODULE``: a file to load it from (`make test-hot` builds one with sanitizers).
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import inspect
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from operator import attrgetter, is_
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grape import hot
from grape.authoring.emitter import INHERIT, Context
from grape.client.collecting import rarely_collected
from grape.errors import EventOver
from grape.hot import pure
from grape.model.address import Partitions, partition_of
from grape.model.event import Event
from grape.worker import emits
from grape.worker.emits import EmitColumns, Emitting, Names

PARTITIONS: Final = 5
thorough: Final = settings(max_examples=int(os.environ.get("GRAPE_EXAMPLES", "100")), deadline=None)


def built() -> ModuleType:
    path = os.environ.get("GRAPE_HOT_MODULE")
    if path is None:
        import grape._hot  # type: ignore[import-not-found]

        return grape._hot  # type: ignore[no-any-return]
    spec = importlib.util.spec_from_file_location("grape._hot", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


C: Final = built()
Outcome = tuple[str, Any]


def outcome(call: Callable[[], Any]) -> Outcome:
    try:
        return "returned", call()
    except Exception as e:
        return "raised", type(e)


class Text(str):
    """Text, but not quite."""


class Number(int):
    pass


texts = st.text(max_size=8) | st.sampled_from(["", "x" * 31, "x" * 32, "é" * 20, "\ud800", "日本" * 90, "x" * 70_000])
plain = st.one_of(
    texts,
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, -32, -33, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1, 2**63, -(2**63)]),
    st.sampled_from([-128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63) - 1]),
    st.floats(),
    st.binary(max_size=5) | st.sampled_from([b"x" * 255, b"x" * 256, b"x" * 66_000]),
)
values = st.one_of(plain, st.sampled_from([Text("a"), Number(3), [1], {"a": 1}, msgspec.Raw(b"\x01"), ()]))
keys = st.text(min_size=1, max_size=6) | st.sampled_from(["k", "é" * 9, "", "x" * 4096, "x" * 4097, "\ud800"])


# ------------------------------------------------------------------ functions


@thorough
@given(
    st.lists(values, max_size=12),
    st.lists(values | st.just(KeyError("k")) | st.just(StopIteration()), min_size=12, max_size=12),
    st.integers(0, 70_000),
    st.none() | st.integers(0, 11),
)
def test_functions(column: list[Any], results: list[Any], largest: int, shorter: int | None) -> None:
    found = []
    for module in (C, pure):
        given_column, out = [*column], ["before"]
        todo = iter(results)

        def function(value: Any, todo: Any = todo, given_column: Any = given_column, out: Any = out) -> Any:
            result = next(todo)
            if isinstance(result, Exception):
                raise result
            if shorter == len(out):
                given_column.clear()
            return result

        ended = outcome(lambda m=module, f=function, c=given_column, o=out: m.map_texts(f, c, o, largest))  # type: ignore[misc]
        if shorter is not None and ended == ("raised", StopIteration):
            ended = ("returned", None)  # who clears the column is a child, in which nothing goes on
        found.append((ended if shorter is None else None, list(map(id, out[1:]))))
    assert found[0] == found[1]


# ------------------------------------------------------------------ events


class Seen:
    """A handler that does what a test says, event by event."""

    def __init__(self, deeds: list[str], emitted: list[Any], indexes: list[int], attributes: dict[str, Any]) -> None:
        self.deeds = iter(deeds)
        self.emitted = emitted
        self.indexes = indexes
        self.attributes = attributes
        self.seen: list[Any] = []
        self.kept: list[Event] = []

    def process(self, event: Event) -> Any:
        self.seen.append((event.name, event.key, event.data, event.index, event.lineage, self.attributes.get("state")))
        match next(self.deeds):
            case "emit":
                self.emitted += ["an", "emit"]
            case "keep":
                self.kept.append(event)
            case "change":
                event.data = event.key = event.name = "changed"
            case "return":
                return [event.data]
            case "raise":
                raise KeyError(event.index)
            case "fork":
                self.indexes.clear()
            case "count":
                self.attributes["state"] = (self.attributes["state"] or 0) + 1
            case "large":
                self.attributes["state"] = 2**64
            case "text":
                self.attributes["state"] = "text"
            case "delete":
                del self.attributes["state"]
        return None


deeds = st.sampled_from(
    ["", "", "emit", "keep", "change", "return", "raise", "fork", "count", "large", "text", "delete"]
)


@thorough
@given(st.data(), st.lists(deeds, max_size=12), st.booleans())
def test_events(data: st.DataObject, todo: list[str], counts: bool) -> None:
    count = len(todo)
    names: Any = data.draw(st.just("name") | st.lists(st.sampled_from(["a", "b"]), min_size=count, max_size=count))
    its_keys: Any = data.draw(st.lists(st.sampled_from("klm"), min_size=count, max_size=count))
    if not counts:
        its_keys = data.draw(st.sampled_from([None, its_keys]))
    its_data = data.draw(st.none() | st.lists(plain, min_size=count, max_size=count))
    stored = {"k": 1, "l": "missing", "m": msgspec.Raw(b"\x07")}
    checks = data.draw(st.booleans())
    stage = SimpleNamespace(names=names, keys=its_keys)
    found = []
    for module in (C, pure):
        indexes, marks, emitted, returned = list(range(count)), [], ["one"], []
        attributes: dict[str, Any] = {}
        handler = Seen(todo, emitted, indexes, attributes)

        def give_back(name: str, value: Any, returned: Any = returned) -> None:
            returned.append((name, value))

        def checked(value: Any) -> Any:
            if checks:
                return ("checked", value)
            raise ValueError("it cannot be")

        arguments: list[Any] = [handler.process, Event, stage, its_data, indexes, marks, emitted, give_back]
        cells = pure.Cells(
            attributes, "state", dict(stored), {}, "missing", 0, msgspec.Raw, lambda raw: raw[0], checked
        )
        if counts:
            ended = outcome(lambda m=module, a=arguments, c=cells: m.count_events(*a, c))  # type: ignore[misc]
        else:
            ended = outcome(lambda m=module, a=arguments: m.run_events(*a))  # type: ignore[misc]
        found.append((ended, handler.seen, handler.kept, marks, emitted, returned, cells.values, cells.dirty))
    assert found[0] == found[1] or repr(found[0]) == repr(found[1])  # nan


def test_an_event_that_is_kept_stays_what_it_was() -> None:
    kept: list[Event] = []
    stage = SimpleNamespace(names="n", keys=None)
    C.run_events(kept.append, Event, stage, ["a", "b", "c"], [0, 1, 2], [], [], print)
    assert [(event.data, event.index) for event in kept] == [("a", 0), ("b", 1), ("c", 2)]


def test_a_key_without_a_value_is_an_error() -> None:
    cells = pure.Cells({}, "state", {}, {}, None, 0, bytes, print, print)
    for module in (C, pure):
        with pytest.raises(KeyError):
            module.count_events(print, Event, SimpleNamespace(names="n", keys=["k"]), None, [0], [], [], print, cells)


# ------------------------------------------------------------------ emits


class Running:
    def own_key(self) -> str | None:
        return "own"

    def answers(self) -> tuple[()]:
        return ()

    def place(self) -> object:
        return 0

    def is_left(self) -> None:
        pass

    def objects(self) -> None:
        pass


def emitting(short: Any, many: Any) -> tuple[Context, EmitColumns]:
    """``short``, ``many``: what makes the functions of the slow ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emits, "make_emit", short)
        patch.setattr(emits, "make_emit_many", many)
        context, columns = Context(), EmitColumns(1 << 16)
        names = Names("app", ["a", "b"], ["out"])
        Emitting(context, columns, "node", names, Partitions(PARTITIONS), 2_000, Running()).begin()  # type: ignore[arg-type]
    return context, columns


emit_calls = st.tuples(
    st.just("emit"),
    st.sampled_from(["a", "a", "b", "none", 3]),
    st.lists(values | st.just("x" * 257) | st.just("é" * 200), max_size=2),
    st.dictionaries(
        st.sampled_from(["key", "key", "delay", "timer", "data", "odd"]),
        keys | st.none() | st.just(INHERIT) | st.just(Text("k")) | st.integers(-1, 1),
        max_size=2,
    ),
)
many_calls = st.tuples(
    st.just("emit_many"),
    st.sampled_from(["a", "b", "none"]),
    st.just([]),
    st.dictionaries(
        st.sampled_from(["keys", "keys", "data", "odd"]),
        st.lists(keys | st.none(), max_size=5) | st.lists(keys, max_size=5).map(tuple) | st.just("text") | st.none(),
        max_size=2,
    ),
)
other_calls = st.sampled_from([("reply", 1, [], {}), ("cancel_timer", "t", [], {}), ("cut", 2, [], {})])


@thorough
@given(st.lists(emit_calls | many_calls | other_calls, max_size=25))
def test_emits(calls: list[Any]) -> None:
    ways: list[tuple[Any, Any]] = [
        (lambda tip, slow, *rest: slow, lambda tip, slow, *rest: slow),
        (pure.make_emit, pure.make_emit_many),
    ]
    if hot.IS_C:
        ways.append((hot.make_emit, hot.make_emit_many))
    found = []
    for way in ways:
        context, columns = emitting(*way)
        ends = []
        for name, first, rest, named in calls:
            if name == "cut":
                columns.cut(min(first, len(columns.data)))
                continue
            ends.append(outcome(lambda f=getattr(context, name), a=(first, *rest), n=named: f(*a, **n)))  # type: ignore[misc]
        found.append((ends, columns.size, columns.runs, columns.name, columns.take() if columns.data else None))
    assert all(one == found[0] or repr(one) == repr(found[0]) for one in found)


@pytest.mark.skipif(not hot.IS_C, reason="of C")
def test_it_is_measured_when_there_is_much() -> None:
    context, columns = emitting(hot.make_emit, hot.make_emit_many)
    for _ in range(pure.MEASURE_EMITS - 1):
        context.emit("a", "x" * 200)
    with pytest.raises(emits.TooMuch):
        context.emit("a", "x" * 200)
    assert len(columns.data) == pure.MEASURE_EMITS


# ------------------------------------------------------------------ columns


def joined(parts: list[tuple[int, int, bytes, bytes]]) -> dict[int, list[tuple[Any, Any]]]:
    found: dict[int, list[tuple[Any, Any]]] = {}
    for number, count, packed_keys, packed_values in parts:
        its_keys, its_values = msgspec.msgpack.decode(packed_keys), msgspec.msgpack.decode(packed_values)
        assert len(its_keys) == len(its_values) == count
        assert all(partition_of(key, PARTITIONS) == number for key in its_keys)
        found.setdefault(number, []).extend(zip(its_keys, its_values, strict=True))
    return dict(sorted(found.items()))


pairs = st.lists(st.tuples(keys, plain), max_size=40)
strange = st.lists(st.tuples(keys, values) | st.tuples(st.sampled_from([None, 1, Text("k"), []]), plain) | values)


@thorough
@given(pairs | strange, st.integers(0, 70_000), st.integers(0, 200))
def test_pairs(items: list[Any], largest: int, most: int) -> None:
    found = [module.Sorter(PARTITIONS).sort(items, largest, most) for module in (C, pure)]
    if found[1] is None or found[0] is None:
        assert found[0] is found[1]
        return
    for parts in found:
        assert all(count == 1 or len(k) + len(v) <= most for _, count, k, v in parts)
    assert repr(joined(found[0])) == repr(joined(found[1]))
    whole = [module.Sorter(PARTITIONS).sort(items, largest, 1 << 30) for module in (C, pure)]
    assert whole[0] == whole[1]  # to the byte


@thorough
@given(st.lists(plain | values, max_size=60), st.integers(0, 70_000), st.integers(0, 100), st.integers(1, 40))
def test_values(items: list[Any], largest: int, most: int, events: int) -> None:
    found = [module.slice_values(items, largest, most, events) for module in (C, pure)]
    if found[1] is None or found[0] is None:
        assert found[0] is found[1]
        return
    for parts in found:
        assert all(1 <= count <= events and (count == 1 or len(packed) <= most) for count, packed in parts)
    apart = [[value for _, packed in parts for value in msgspec.msgpack.decode(packed)] for parts in found]
    assert repr(apart[0]) == repr(apart[1])
    whole = [module.slice_values(items, largest, 1 << 30, 1 << 30) for module in (C, pure)]
    assert whole[0] == whole[1]


@thorough
@given(st.lists(st.tuples(keys | st.none(), values), max_size=30), st.booleans(), st.integers(0, PARTITIONS - 1))
def test_keys_by_partition(items: list[tuple[Any, Any]], has_data: bool, own: int) -> None:
    its_keys = [key for key, _ in items]
    its_data = [value for _, value in items] if has_data else None
    found = [
        outcome(lambda m=module: m.scatter([*its_keys], its_data, Partitions(PARTITIONS), own))  # type: ignore[misc]
        for module in (C, pure)
    ]
    assert found[0] == found[1] or repr(found[0]) == repr(found[1])


opens = st.sampled_from(
    [b"\x91", b"\x92\1", b"\x81\xc0", b"\x81", b"\xdc\0\1", b"\xdd\0\0\0\1", b"\xde\0\1\xa1k", b"\xdf\0\0\0\1"]
)
fits = st.sampled_from(
    [None, 1, -(2**40), 2**40, 1.5, "", "k" * 9, "k" * 300, b"", b"\x91" * 300, [1, [2]], {"k": {1: []}}]
).map(msgspec.msgpack.encode) | st.binary(max_size=9).map(
    lambda data: msgspec.msgpack.encode(msgspec.msgpack.Ext(5, data))
)


@thorough
@given(
    st.lists(st.tuples(opens, st.integers(0, 20)), max_size=6),
    fits | st.binary(max_size=30),
    st.binary(max_size=6),
    st.integers(-1, 60),
)
def test_how_deep_a_value_is(around: list[tuple[bytes, int]], inner: bytes, after: bytes, most: int) -> None:
    packed = b"".join(mark * times for mark, times in around) + inner + after
    for end in range(max(0, len(packed) - 12), len(packed) + 1):
        assert C.is_deeper(packed[:end], most) == pure.is_deeper(packed[:end], most)


def test_nothing_is_not_deep() -> None:
    for most in (-1, 0, 1):
        assert C.is_deeper(b"", most) is pure.is_deeper(b"", most) is False


def test_every_mark_is_as_long_as_it_is() -> None:
    """Behind what it says is a list, which counts if it is seen as one."""
    for mark in range(256):
        for said in (b"", b"\0", b"\5", b"\0\5", b"\0\0\0\5"):
            for size in (0, 1, 2, 4, 5, 6, 8, 9, 16, 17, mark & 0x1F):
                packed = b"\x92" + bytes([mark]) + said + bytes(size) + b"\x91" * 40
                for most in (1, 39, 40, 41, 42):
                    assert C.is_deeper(packed, most) == pure.is_deeper(packed, most)


@pytest.mark.parametrize("count", [15, 16, 65_535, 65_536])
def test_long_columns(count: int) -> None:
    items = [("k", None)] * count
    assert C.Sorter(1).sort(items, 1, 1 << 30) == pure.Sorter(1).sort(items, 1, 1 << 30)


# ------------------------------------------------------------------ wrong use, memory, interpreters


def uses() -> dict[str, Callable[[], Any]]:
    """Each function in its usual way."""
    stage = SimpleNamespace(names="n", keys=["k", "l"] * 8)
    texts = [f"text {i}" for i in range(16)]

    def events() -> None:
        C.run_events(lambda event: event.data, Event, stage, texts, list(range(16)), [], [], lambda name, value: None)

    def counting() -> None:
        attributes: dict[str, Any] = {}
        cells = pure.Cells(attributes, "n", {"k": 1_000, "l": None}, {}, None, 0, bytes, len, str)

        def process(event: Event) -> None:
            attributes["n"] += 1

        C.count_events(process, Event, stage, texts, list(range(16)), [], [], print, cells)

    def emit() -> None:
        tip = C.Tip()
        emit = C.make_emit(tip, lambda *args, **named: None, INHERIT, {"k": 1}, 100)
        many = C.make_emit_many(tip, lambda *args, **named: None, {"k": 1})
        tip.name = "a"
        for text in texts:
            emit("a", text)
        emit("b", 1, delay=3)
        tip.keys.extend([None] * len(tip.data))
        emit("a", 1_000_000, key="k")
        many("a", keys=["k"] * 8)
        assert len(tip.data) == len(tip.keys) == 25

    return {
        "map": lambda: C.map_texts(str.upper, texts, [], 100),
        "run": events,
        "count": counting,
        "emit": emit,
        "sort": lambda: C.Sorter(3).sort([(text, text) for text in texts], 100, 20),
        "slice": lambda: C.slice_values([*texts, 1, 2.5, None, b"x"], 100, 30, 5),
        "scatter": lambda: C.scatter(texts, texts, Partitions(3), 0),
        "depth": lambda: C.is_deeper(b"\x91" * 100, 99),
    }


@pytest.mark.parametrize("name", uses())
@pytest.mark.slow
def test_nothing_is_left_behind(name: str) -> None:
    use = uses()[name]
    counts = []
    for _ in range(6):
        for _ in range(200):
            use()
        gc.collect()
        counts.append(sys.getallocatedblocks())
    assert counts[-1] - counts[1] < 200, counts  # 800 uses


def one_call(name: str) -> Callable[[], object]:
    """One of a function in C, with nothing but C below it: Python itself does not survive everywhere without memory."""
    texts = [f"text {i}" for i in range(16)]
    stage = SimpleNamespace(names="n", keys=["k", "l"] * 8)
    events = [Event, stage, texts, list(range(16)), [], [], is_]
    attributes: dict[str, Any] = {}
    tip = C.Tip()
    tip.name = "a"
    match name:
        case "map":
            return partial(C.map_texts, str.upper, texts, [], 100)
        case "run":
            return partial(C.run_events, attrgetter("data"), *events)
        case "count":
            cells = pure.Cells(attributes, "n", {"k": 1_000, "l": None}, {}, None, 0, bytes, len, id)
            return partial(C.count_events, partial(attributes.__setitem__, "n"), *events, cells)
        case "emit":
            return partial(C.make_emit(tip, print, INHERIT, {"k": 1}, 100), "a", 1_000_000, key="k")
        case "many":
            return partial(C.make_emit_many(tip, print, {"k": 1}), "a", keys=["k"] * 80)
        case "make":
            return partial(C.make_emit, tip, print, INHERIT, {"k": 1}, 100)
        case "tip":
            return partial(C.Tip)
        case "sorter":
            return partial(C.Sorter, 3)
        case "sort":
            return partial(C.Sorter(3).sort, [(text, text) for text in texts], 100, 20)
        case "slice":
            return partial(C.slice_values, [*texts, 1, 2.5, None, b"x"], 100, 30, 5)
        case "depth":
            return partial(C.is_deeper, b"\x91" * 100, 99)
        case _:
            return partial(C.scatter, texts, texts, dict.fromkeys(texts, 3), 0)


@pytest.mark.parametrize(
    "name", ["map", "run", "count", "emit", "many", "make", "tip", "sorter", "sort", "slice", "scatter", "depth"]
)
def test_when_there_is_no_memory(name: str) -> None:
    testcapi = pytest.importorskip("_testcapi")
    one_call(name)()
    gc.collect()
    gc.disable()
    try:
        enough, start = 0, -1
        while enough < 20:
            start += 1
            call = one_call(name)
            testcapi.set_nomemory(start, start + 1)
            try:
                call()
                enough += 1
            except MemoryError:
                enough = 0
            finally:
                testcapi.remove_mem_hooks()
    finally:
        gc.enable()
    assert start >= 20, "it has allocated something"
    one_call(name)()


@pytest.mark.parametrize(
    "name",
    ["map_texts", "run_events", "count_events", "make_emit", "make_emit_many", "scatter", "slice_values", "is_deeper"],
)
def test_wrong_arguments_are_errors(name: str) -> None:
    function = getattr(C, name)
    for count in range(12):
        for value in (None, 1, [], {}, "x", print, C.Tip()):
            with pytest.raises((TypeError, ValueError, AttributeError)) if count else pytest.raises(TypeError):
                function(*[value] * count)
                raise TypeError  # one that there is not, or that does nothing
    with pytest.raises(ValueError, match="partitions"):
        C.Sorter(0)
    with pytest.raises(TypeError):
        C.Sorter(3).sort((), 1, 1)


def test_every_interpreter_has_its_own() -> None:
    inside = f"""if True:
        from importlib.util import module_from_spec, spec_from_file_location
        spec = spec_from_file_location("grape._hot", {C.__file__!r})
        hot = module_from_spec(spec)
        spec.loader.exec_module(hot)
        assert hot.Tip().data == []
        assert hot.map_texts(str.upper, ["a"], [], 9) == 1
        assert hot.Sorter(3).sort([("k", "v")], 9, 99)
    """
    code = f"""if True:
        import _testcapi
        for _ in range(3):
            assert not _testcapi.run_in_subinterp({inside!r})
        exec({inside!r})
    """
    pytest.importorskip("_testcapi")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_environment_chooses() -> None:
    code = "from grape import hot; print(hot.IS_C, hot.describe())"

    def said(**env: str) -> str:
        kept = {name: value for name, value in os.environ.items() if name != hot.PURE}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**kept, **env}, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert said() == "True in C (grape._hot)"
    assert said(GRAPE_PURE="1") == "False in Python (GRAPE_PURE is set)"


# ------------------------------------------------------------------ what runs in between


class Interrupting(dict[str, int]):
    """Partitions at whose first look at a key something else happens, as on another thread."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self.happens = happens

    def __missing__(self, key: str) -> int:
        self.happens()
        self[key] = 0
        return 0


def test_a_list_of_keys_that_changes_meanwhile() -> None:
    tip, given_keys = C.Tip(), [f"key {i}" for i in range(50)]
    tip.name = "a"
    many = C.make_emit_many(tip, print, Interrupting(given_keys.clear))
    many("a", keys=given_keys)
    assert (given_keys, len(tip.keys), len(tip.data)) == ([], 50, 50)


def test_who_emits_while_keys_are_looked_at_comes_first() -> None:
    tip, slow = C.Tip(), []
    tip.name = "a"

    def happens() -> None:
        tip.data.append("other")

    many = C.make_emit_many(tip, lambda *args, **named: slow.append((args, named)), Interrupting(happens))
    many("a", keys=["k", "l"])
    assert tip.keys == []
    assert slow == [(("a",), {"keys": ["k", "l"]})]


def test_what_a_handler_has_put_into_an_event_may_end_as_it_likes() -> None:
    texts = [f"text {i}" for i in range(300)]
    indexes = list(range(1_000, 1_300))
    seen = []

    class Last:
        def __del__(self) -> None:
            texts.clear()
            indexes.clear()

    def process(event: Event) -> None:
        seen.append((event.data, event.index))
        if event.index == 1_100:
            event.name = Last()  # type: ignore[assignment]

    C.run_events(process, Event, SimpleNamespace(names="n", keys=None), texts, indexes, [], [], print)
    assert seen == [(f"text {i}", 1_000 + i) for i in range(102)]


def test_an_emit_is_like_a_function() -> None:
    context, _ = emitting(hot.make_emit, hot.make_emit_many)
    for name in ("emit", "emit_many"):
        function = getattr(context, name)
        assert copy.deepcopy(function) is copy.copy(function) is function
        assert function.__name__ == name
        assert weakref.ref(function)() is function
        assert "data" in inspect.signature(function).parameters


def test_whose_attributes_are_replaced_still_emits() -> None:
    context, columns = Context(), EmitColumns(1 << 16)
    names = Names("app", ["a"], [])
    binding = Emitting(context, columns, "node", names, Partitions(PARTITIONS), 2_000, Running())
    context.__dict__ = {"own": 1}
    binding.begin()
    context.emit("a", "x")
    assert columns.data == ["x"]
    binding.end()
    with pytest.raises(EventOver):
        context.emit("a", "x")


def test_runs_that_overlap_leave_the_collector_as_it_was() -> None:
    before = gc.get_threshold()
    first, second = rarely_collected(), rarely_collected()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold()[0] == 20_000
    second.__exit__(None, None, None)
    assert gc.get_threshold() == before
    try:
        with rarely_collected():
            gc.set_threshold(12_345)
        assert gc.get_threshold()[0] == 12_345
    finally:
        gc.set_threshold(*before)
