"""Objects in handlers: written with what else an event does, once, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grape import Context, Event, Node, State, Topology
from grape.abc.source import Columns
from grape.model import objects as model
from grape.model.objects import MOST_REMOVED, ObjectWrite, Wanted, apply, decode_stored, place_key
from grape.testing import Harness


class Keep(Node):
    count: int = State(int, default=0)

    def process(self, event: Event) -> None:
        self.count += 1
        what = event.data
        if what.get("put") is not None:
            self.storage.put(what.get("key", event.key), what["put"], tags=what.get("tags", ()))
        if what.get("remove"):
            self.storage.remove(what["remove"])
        if what.get("fail"):
            raise ValueError("it fails after it has written")
        if "get" in what:
            self.emit("got", self.storage.get(what["get"]))
        if "stat" in what:
            about = self.storage.stat(what["stat"])
            self.emit("got", None if about is None else [about.size, list(about.tags), about.checksum[:10]])
        if "list" in what:
            self.emit("got", [about.key for about in self.storage.list(what["list"])])


def topology(**options: Any) -> Topology:
    t = Topology("shop")
    t.add_slot("do", Keep(), retries=0, **options)
    t.add_output("got")
    return t


def outputs(run: Harness) -> list[Any]:
    """What has come since the last time."""
    run.settle()
    return [event.data for event in run.outputs("got")]


@pytest.mark.parametrize("size", [0, 5, 64 << 10, (64 << 10) + 1, 3_000_000])
def test_what_a_handler_writes_another_reads(size: int) -> None:
    with Harness(topology()) as run:
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        run.feed("do", {"put": data, "tags": ["b", "a"]}, key="k")
        run.settle()
        run.feed("do", {"get": "k"}, key="other")
        run.feed("do", {"stat": "k"}, key="third")
        run.settle()
        assert outputs(run) == [data, [size, ["a", "b"], "sha256:" + hashlib.sha256(data).hexdigest()[:3]]]
        run.feed("do", {"remove": "k"}, key="k")
        run.settle()
        run.feed("do", {"get": "k"}, key="other")
        assert outputs(run) == [None]


def test_of_an_event_that_fails_nothing_is_written() -> None:
    with Harness(topology()) as run:
        run.feed("do", {"put": b"1"}, key="k")
        run.feed("do", {"put": b"2", "fail": True}, key="k")
        run.feed("do", {"put": b"3", "key": "new", "fail": True}, key="k")
        for key in ("k", "new"):
            run.feed("do", {"get": key}, key="k")
        assert outputs(run) == [b"1", None]


def test_what_was_written_before_is_read_also_before_it_is_committed() -> None:
    """All in one work: by columns, by effects, by what the engine has not committed."""
    with Harness(topology()) as run:
        todo = []
        for i in range(200):
            todo += [{"put": f"{i}".encode(), "key": "same"}, {"get": "same"}]
        for each in todo:
            run.feed("do", each, key="k")
        assert outputs(run) == [f"{i}".encode() for i in range(200)]


def test_what_failed_is_not_read_by_those_behind_it() -> None:
    with Harness(topology(ordered=False)) as run:
        todo = [{"put": b"1"}, {"put": b"2", "fail": True}, {"get": "k"}, {"put": b"3"}, {"get": "k"}]
        for each in todo:
            run.feed("do", each, key="k")
        assert outputs(run) == [b"1", b"3"]


def test_lists() -> None:
    with Harness(topology()) as run:
        for i in range(5):
            run.feed("do", {"put": b"1"}, key=f"a/{i}")
        run.settle()
        run.feed("do", {"put": b"1", "key": "b"}, key="x")
        run.settle()
        run.feed("do", {"list": "a/"}, key="x")
        assert outputs(run) == [[f"a/{i}" for i in range(5)]]


def test_a_namespace_that_is_not_granted() -> None:
    t = Topology("shop")
    t.add_output("got")

    @t.slot("do", emits="got", retries=0)
    def do(namespace: str, context: Context) -> str:
        context.storage[namespace].put("k", b"1")
        return "done"

    with Harness(t) as run:
        run.feed("do", "shop")
        run.feed("do", "shp")
        assert outputs(run) == ["done"]
        (letter,) = run.dead()
        assert "not granted" in letter.text
        assert "did you mean 'shop'" in letter.text


def test_coroutines_have_objects_too() -> None:
    t = Topology("shop")
    t.add_output("got")

    class Later(Node):
        async def process(self, event: Event) -> None:
            if event.data == "put":
                await self.storage.aio.put(event.key, b"z" * 200_000)
                await asyncio.sleep(0)
                return
            data = await self.storage.aio.get(event.key)
            about = await self.storage.aio.stat(event.key)
            keys = [about.key async for about in self.storage.aio.list()]
            self.emit("got", [None if data is None else len(data), about is not None and about.size, keys])

    t.add_slot("do", Later(), retries=0)
    with Harness(t) as run:
        run.feed("do", "put", key="k")
        run.settle()
        run.feed("do", "get", key="k")
        run.feed("do", "get", key="l")
        assert outputs(run) == [[200_000, 200_000, ["k"]], [None, False, ["k"]]]


def test_storage_outside_of_an_event_is_refused() -> None:
    kept: list[Any] = []

    class Keeps(Node):
        def process(self, event: Event) -> None:
            kept.append(self.storage)
            self.storage.put("k", b"1")

        def teardown(self) -> None:
            kept.append(self.storage)

    t = Topology("shop")
    t.add_slot("do", Keeps())
    with Harness(t) as run:
        run.feed("do", 1)
        run.settle()
    with pytest.raises(Exception, match="outside of the handling"):
        kept[-1].get("k")


def test_a_handler_that_is_called_by_a_test_writes_into_memory() -> None:
    node = Keep()
    node.process(Event("do", "k", {"put": "text"}))
    assert node.storage.get("k") == b"text"
    assert node.recorded_objects.objects[("app", "k")][1] == b"text"


# ---------------------------------------------------------------------- the rows


class Rows:
    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {"object": {}, "change": {}, "blob": {}}

    def get(self, table: str, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return [self.tables[table].get(key) for key in keys]

    def put(self, table: str, rows: Mapping[bytes, bytes | None]) -> None:
        for key, value in rows.items():
            if value is None:
                self.tables[table].pop(key, None)
            else:
                self.tables[table][key] = value

    def first(self, table: str, begin: bytes) -> bytes | None:
        return min((key for key in self.tables[table] if key >= begin), default=None)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from([None, 0, 1, 2]),
        st.sampled_from(["always", "absent", "right", "wrong"]),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS)
def test_rows_say_what_a_dictionary_does(operations: list[tuple[str, int | None, str]]) -> None:
    rows = Rows()
    expected: dict[str, tuple[int, int]] = {}
    for key, content, wanted in operations:
        there = expected.get(key)
        wants = {
            "always": Wanted(),
            "absent": Wanted(absent=True),
            "right": Wanted(number=there[0] if there else 999),
            "wrong": Wanted(number=998),
        }[wanted]
        holds = (
            wanted == "always" or (wanted == "absent" and there is None) or (wanted == "right" and there is not None)
        )
        if content is None:
            write = ObjectWrite("n", key, -1)
        else:
            write = ObjectWrite("n", key, 70_000 + content, bytes([content]) * 32, blob=True)
        done = apply(rows, write, wants)
        assert (done.holds, done.was_there) == (holds, there is not None)
        if holds and content is None:
            expected.pop(key, None)
        elif holds:
            assert done.now is not None
            assert content is not None
            expected[key] = done.now.number, content
    stored = {key: decode_stored(row) for key, row in rows.tables["object"].items()}
    there = {key: each.number for key, each in stored.items() if each.is_there}
    assert there == {place_key("n", key): number for key, (number, _) in expected.items()}
    counts = {digest: model._count(packed) for digest, packed in rows.tables["blob"].items()}
    for content in (0, 1, 2):
        assert counts.get(bytes([content]) * 32, 0) == sum(1 for _, has in expected.values() if has == content)
    changes = {key for key in rows.tables["change"] if key}
    assert changes == {
        model.written(each.number) if each.is_there else model.gone(each.number) for each in stored.values()
    }


def test_of_removed_objects_so_many_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_REMOVED == 100_000
    monkeypatch.setattr(model, "MOST_REMOVED", 3)
    rows = Rows()
    for i in range(10):
        apply(rows, ObjectWrite("n", f"{i}", 0, b"1" * 32))
        apply(rows, ObjectWrite("n", f"{i}", -1))
    ledger = model.decode_ledger(rows.tables["change"][b""])
    assert ledger.removed == 3
    assert ledger.forgotten == 14
    assert len(rows.tables["object"]) == 3
    assert len(rows.tables["change"]) == 4


def test_what_breaks_off_while_it_is_brought_is_in_no_other_object() -> None:
    class Bring(Node):
        def process(self, event: Event) -> None:
            def chunks() -> Any:
                yield event.data.encode() * 1_750_000
                yield event.data.encode() * 1_750_000
                if event.data == "x":
                    raise ValueError("it breaks off")

            self.storage.put(event.data, chunks())
            self.emit("got", event.data)

    t = Topology("shop")
    t.add_output("got")
    t.add_slot("do", Bring(), retries=0)
    t.add_slot("read", Keep(), retries=0)
    with Harness(t) as run:
        run.feed("do", "x", key="k")
        run.feed("do", "y", key="k")
        assert outputs(run) == ["y"]
        run.feed("read", {"get": "y"}, key="k")
        run.feed("read", {"get": "x"}, key="k")
        assert outputs(run) == [b"y" * 3_500_000, None]


def test_several_bring_at_once_also_those_that_block() -> None:
    class Slow(Node):
        async def process(self, event: Event) -> None:
            await self.storage.aio.put(event.key, event.key.encode() * 3_000_000)

    class Quick(Node):
        def process(self, event: Event) -> None:
            self.storage.put(event.key, event.key.encode() * 3_000_000)

    t = Topology("shop")
    t.add_output("got")
    t.add_slot("slow", Slow(), retries=0)
    t.add_slot("quick", Quick(), retries=0)
    t.add_slot("read", Keep(), retries=0)
    with Harness(t) as run:
        keys = "abcdefgh"
        for i, key in enumerate(keys):
            run.feed("quick" if i % 2 else "slow", None, key=key)
        run.settle()
        for key in keys:
            run.feed("read", {"get": key}, key=key)
        got = outputs(run)
        assert sorted(data[:1] for data in got) == [key.encode() for key in keys]
        assert all(len(set(data)) == 1 and len(data) == 3_000_000 for data in got)


class Named(Node):
    """Reads what is named by the keys of its events, and writes there."""

    count: int = State(int, default=0)

    def process(self, event: Event) -> None:
        old = self.storage.get(f"by/{event.key}.txt")
        self.emit("got", [event.key, old])
        if event.data == "remove":
            self.storage.remove(f"by/{event.key}.txt")
        elif event.data is not None:
            self.storage.put(f"by/{event.key}.txt", event.data)
        if event.data == b"fail":
            raise ValueError("it fails")


def feed_batch(run: Harness, keys: list[str], data: list[Any]) -> None:
    """As a source reads many at once."""
    run._machine.source.chunks.append([Columns("do", keys, data)])
    run._machine.read()


many = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "x/../y", "by"]),
        st.sampled_from([b"1", b"22", b"x" * 70_000, b"fail", "remove", None]),
    ),
    max_size=30,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(many, st.booleans()), max_size=8))
def test_what_is_asked_for_ahead_is_what_would_be_found(works: list[tuple[list[tuple[str, Any]], bool]]) -> None:
    """Of one batch, or of several that are handed out as one work."""
    t = Topology("shop")
    t.add_slot("do", Named(), retries=0)
    t.add_output("got")
    there: dict[str, Any] = {}
    expected: list[Any] = []
    with Harness(t, partitions=1) as run:
        for work, is_settled in works:
            if work:
                feed_batch(run, [key for key, _ in work], [data for _, data in work])
            for key, data in work:
                if ".." in key:
                    continue
                if data != b"fail":
                    expected.append([key, there.get(key)])
                    if data is not None:
                        there[key] = None if data == "remove" else data
            if is_settled:
                run.settle()
        run.settle()
        assert [event.data for event in run.outputs("got")] == expected
        assert run.objects() == {f"by/{key}.txt": data for key, data in there.items() if data is not None}


def questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked for from now on."""
    from grape.worker.objects import Access

    asked: list[str] = []
    before = Access.ask

    def ask(self: Access, question: Any) -> Any:
        asked.append(question(0).what)
        return before(self, question)

    monkeypatch.setattr(Access, "ask", ask)
    return asked


def test_a_stage_asks_once_for_all_that_it_reads_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = questions(monkeypatch)
    t = Topology("shop")
    t.add_slot("do", Named(), retries=0)
    t.add_output("got")
    with Harness(t, partitions=1) as run:
        for _ in range(2):
            feed_batch(run, [f"k{n}" for n in range(900)], [b"1"] * 900)
        assert len(outputs(run)) == 1800
    assert asked.count("many") >= 1
    assert len(asked) < 40


def test_a_work_of_many_batches_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = questions(monkeypatch)
    t = Topology("shop")
    t.add_slot("do", Named(), retries=0)
    t.add_output("got")
    with Harness(t, partitions=1) as run:
        chunks = [[Columns("do", [f"k{n}" for n in range(i, i + 20)], [b"1"] * 20)] for i in range(0, 600, 20)]
        run._machine.source.chunks += chunks
        run._machine.read()
        assert len(outputs(run)) == 600
    assert asked.count("many") < 8


@pytest.mark.parametrize(("size", "every"), [(60_000, 1), (60_000, 2), (10, 2), (10, 3)])
def test_large_objects_among_those_that_are_asked_for_ahead(
    monkeypatch: pytest.MonkeyPatch, size: int, every: int
) -> None:
    """What does not come so is asked for alone, once; and the others are not read again and again for it."""
    t = Topology("shop")
    t.add_slot("do", Named(), retries=0)
    t.add_output("got")
    there = {f"k{n}": b"x" * (70_000 if every > 1 and n % every else size) for n in range(300)}
    with Harness(t, partitions=1) as run:
        for key, data in there.items():
            run.put_object(f"by/{key}.txt", data)
        asked = questions(monkeypatch)
        feed_batch(run, list(there), [None] * len(there))
        assert outputs(run) == [[key, data] for key, data in there.items()]
    large = sum(len(data) > 65_536 for data in there.values())
    assert asked.count("many") <= 300 * size // 1_000_000 + 10
    assert large <= asked.count("read") <= large + 10
