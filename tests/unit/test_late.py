"""Changes of state that wait in memory and in ``changes`` until they are merged: read as if they were in their tree,
whatever has been merged of them, and whenever everything ends."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue, SimpleQueue
from shutil import copytree
from typing import Any

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grape.abc.transport import Rows
from grape.errors import Corrupt, UsageError
from grape.model.address import PartitionId
from grape.store import late as lateness
from grape.store import writing as write_module
from grape.store.late import LATE_BYTES, SLICE_BYTES, Change, Late, overlaid
from grape.store.mending import Changes, Mending
from grape.store.pace import Pace
from grape.store.reader import Reader
from grape.store.rows import CHANGES, LATE, META_FORMAT, change_row, is_whole, sealed_format, stored_rows
from grape.store.store import Store
from grape.store.writing import Writing

P = [PartitionId(1, 1, n) for n in range(3)]
Model = dict[PartitionId, dict[bytes, bytes]]


def opened(directory: Path, late_bytes: int = 0) -> Store:
    return Store(directory, lambda function: function(), late_bytes=late_bytes)


def write(store: Store, apply: Callable[[Writing, Any], Any], argument: Any) -> None:
    """Durable when it returns."""
    results: Queue[list[Any]] = Queue()
    store.submit(apply, argument, results.put)
    results.get(timeout=30)


def put(store: Store, partition: PartitionId, *rows: tuple[bytes, bytes | None]) -> None:
    write(store, lambda writing, _: writing.put(partition, "state", rows), None)


def rest(store: Store) -> None:
    """A transaction in which nothing is changed."""
    write(store, lambda writing, _: None, None)


def settle(store: Store) -> None:
    while store._known.late.is_due:
        rest(store)


def change(model: Model, partition: PartitionId, rows: Rows) -> None:
    mine = model.setdefault(partition, {})
    for key, value in rows:
        if value is None:
            mine.pop(key, None)
        else:
            mine[key] = value


def assert_reads(reader: Reader, model: Model) -> None:
    """By key and in order, all and parts."""
    for partition in P:
        mine = sorted(model.get(partition, {}).items())
        keys = sorted({*KEYS, *dict(mine)})
        assert reader.get(partition, "state", keys) == [dict(mine).get(key) for key in keys]
        assert reader.scan(partition, "state", b"", 1000) == mine
        for low, high in ((0, 3), (1, -1), (2, 5)):
            after, before = KEYS[low], KEYS[high]
            part = [row for row in mine if after <= row[0] < before]
            for limit in (1, 2, 1000):
                assert reader.scan(partition, "state", after, limit, before) == part[:limit]


def rows_in(reader: Reader, database: str) -> int:
    with reader._reading() as txn:
        return int(txn.stat(reader.databases[database])["entries"])


KEYS = sorted([b"", b"a", b"b", b"bb", b"k" * 488, b"k" * 489, b"k" * 490, b"k" * 600, b"k" * 599 + b"z", b"z"])
some_rows = st.lists(st.tuples(st.sampled_from(KEYS), st.none() | st.binary(max_size=300)), max_size=6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(P), some_rows),
        st.tuples(st.sampled_from(["rest", "reopen", "crash", "repair"])),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.sampled_from([0, 600, 2500, LATE_BYTES]), st.sampled_from([1, 800, SLICE_BYTES]))
def test_it_reads_as_a_dictionary_does(walk: list[tuple[Any, ...]], late_bytes: int, at_once: int) -> None:
    """Puts, merges of ``at_once`` bytes, ends, crashes (the directory as it is at that moment), repairs."""
    root = Path(tempfile.mkdtemp(prefix="grape-late-"))
    places = (root / str(n) for n in range(1000))
    place = next(places)
    model: Model = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lateness, "SLICE_BYTES", at_once)
        patch.setattr(write_module, "SLICE_BYTES", at_once)
        store = opened(place, late_bytes)
        try:
            for step, *arguments in walk:
                if step == "put":
                    put(store, arguments[0], *arguments[1])
                    change(model, *arguments)
                elif step == "rest":
                    rest(store)
                elif step == "crash":
                    before, place = place, next(places)
                    copytree(before, place)
                    store.close()
                    store = opened(place, late_bytes)
                else:
                    store.close()
                    if step == "repair":
                        with Mending(place) as mending:
                            mending.write(lambda changes: None)
                    store = opened(place, late_bytes)
                    assert step != "repair" or not rows_in(store, CHANGES)
                assert_reads(store, model)
                assert list(store.verify()) == []
            copytree(place, root / "read")
            reader = Reader(root / "read")
            assert_reads(reader, model)
            reader.close()
            settle(store)
            assert_reads(store, model)
        finally:
            store.close()
            shutil.rmtree(root)


def test_a_merge_that_is_cut_off_anywhere_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F10: after every transaction of it, what lies there is all that was committed."""
    monkeypatch.setattr(lateness, "SLICE_BYTES", 1_500)
    monkeypatch.setattr(write_module, "SLICE_BYTES", 1)
    model: Model = {}
    store = opened(tmp_path / "whole", 40_000)
    for n in range(40):
        for partition in P:
            rows = [(b"%d" % (n * 7 % 50 + i), None if (n + i) % 11 == 0 else b"%d" % n * 10) for i in range(4)]
            put(store, partition, *rows)
            change(model, partition, rows)
    store.close()
    store = opened(tmp_path / "whole", 0)
    ends = 0
    late = store._known.late
    while late.weight or late.merged:
        late._limit = late.weight - 1  # as little at once as can be
        rest(store)
        ends += 1
        copytree(tmp_path / "whole", tmp_path / str(ends))
        for late_bytes in (LATE_BYTES, 0):
            copy = opened(tmp_path / str(ends), late_bytes)
            assert_reads(copy, model)
            rest(copy)
            assert_reads(copy, model)
            copy.close()
        assert_reads(store, model)
    assert ends > 30
    assert not rows_in(store, CHANGES)
    store.close()


def test_what_fits_is_never_merged(tmp_path: Path) -> None:
    store = opened(tmp_path, LATE_BYTES)
    for n in range(100):
        put(store, P[0], (b"count", b"%d" % n), (b"%d" % n, b""))
    assert store.get(P[0], "state", [b"count", b"7"]) == [b"99", b""]
    assert rows_in(store, LATE) == 0
    assert rows_in(store, CHANGES) == 100
    store.close()


def test_memory_is_bounded_and_rows_that_come_late_are_merged_at_once(tmp_path: Path) -> None:
    """However much comes, and however little of it each time: what is beyond goes with the next transaction."""
    limit = 100_000
    store = opened(tmp_path, limit)
    late = store._known.late
    for n in range(300):
        put(store, P[n % 3], *((b"%d" % (n * 7919 % 10_007 + i), b"x" * 20) for i in range(50)))
        assert late.weight <= limit + 50 * 260
    rest(store)
    assert late.weight <= limit
    assert rows_in(store, CHANGES) < 200
    store.close()


def test_a_place_in_which_the_same_is_written_again_and_again(tmp_path: Path) -> None:
    """What is merged is the last of each; the rows of ``changes`` go, a bounded number at a time."""
    store = opened(tmp_path, 1_000_000)
    most = 0

    def many(writing: Writing, numbers: range) -> None:
        for n in numbers:
            writing.put(P[0], "state", [(b"count", b"%d" % n)])

    for n in range(600):
        write(store, many, range(n * 10, n * 10 + 10))
        most = max(most, rows_in(store, CHANGES))
    assert 4000 < most < 6000
    assert store.get(P[0], "state", [b"count"]) == [b"5999"]
    assert rows_in(store, LATE) == 1
    store.close()


def test_the_partition_that_has_waited_longest_is_merged_first(tmp_path: Path) -> None:
    store = opened(tmp_path, 6_000)
    put(store, P[2], (b"first", b""))
    for partition in (P[0], P[1], P[0], P[1]):
        put(store, partition, *((b"%d" % n, b"") for n in range(10)))
    rest(store)
    with store._reading() as txn:
        lying = {key[:6] for key in txn.cursor(store.databases[LATE]).iternext(values=False)}
    store.close()
    assert lying == {P[2].packed(), P[0].packed()}


def test_the_engines_thread_leaves_merging_to_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "is_light", True)
    posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
    store = Store(tmp_path, posted.put, soon=posted.put, late_bytes=2_000)
    late = store._known.late
    seen: list[tuple[bool, str]] = []
    for n in range(40):
        due = late.is_due

        def apply(writing: Writing, n: int) -> str:
            writing.put(P[0], "state", [(b"%d" % n, b"")])
            return threading.current_thread().name

        answers: list[str] = []
        store.submit(apply, n, answers.extend, 1)
        while not answers:
            posted.get(timeout=30)()
        seen.append((due, answers[0]))
    store.close()
    assert {(False, "MainThread"), (True, "grape-store")} == set(seen)
    assert [due for due, _ in seen].count(True) < 10


def test_a_transaction_that_is_done_again_has_merged_once(tmp_path: Path) -> None:
    """The map is full in the middle of a merge."""
    store = Store(tmp_path, lambda function: function(), late_bytes=0, map_size=1 << 20)
    model: Model = {}
    for n in range(12):
        rows = [(b"%d" % (n * 1000 + i), bytes(100)) for i in range(1000)]
        put(store, P[n % 2], *rows)
        change(model, P[n % 2], rows)
    settle(store)
    for partition in P[:2]:
        assert dict(store.scan(partition, "state", b"", 1 << 20)) == model[partition]
    assert store._map_size > 1 << 20
    assert list(store.verify()) == []
    store.close()


# Damage


def _flipped(whole: Path, tmp_path: Path, pattern: bytes) -> Iterator[Path]:
    data = (whole / "data.mdb").read_bytes()
    places = [n for n in range(len(data)) if data.startswith(pattern, n)]  # older pages as well
    for offset in range(len(pattern)):
        copy = tmp_path / str(offset)
        copytree(whole, copy)
        flipped = bytearray(data)
        for place in places:
            flipped[place + offset] ^= 1 << offset % 8
        (copy / "data.mdb").write_bytes(flipped)
        yield copy


def test_f23_a_flipped_bit_in_a_change_is_never_served(tmp_path: Path) -> None:
    """F23: each byte of key, value and checksum. An engine does not start; a repair takes the row out, and puts it
    aside."""
    whole = tmp_path / "whole"
    store = opened(whole, LATE_BYTES)
    for n in range(3):
        for partition in P:
            put(store, partition, (b"key%d" % n, b"value%d" % n))
    store.close()
    key, value = change_row(P[1].packed(), 1, [(b"key1", b"value1")])
    for copy in _flipped(whole, tmp_path, key + value):
        reader = Reader(copy)
        with pytest.raises(Corrupt, match=r"changes of partition .*grape doctor"):
            reader.get(P[1], "state", [b"key1"])
        with pytest.raises(Corrupt, match="grape doctor"):
            reader.scan(P[1], "state", b"", 10)
        assert [finding.database for finding in reader.verify()][:1] == [CHANGES]
        reader.close()
        with pytest.raises(Corrupt, match="grape doctor"):
            opened(copy)
        before = (copy / "data.mdb").read_bytes()
        with Mending(copy) as mending:
            rows = list(mending.rows("state"))
            damaged = [row for row in rows if not is_whole(row.database, row.key, row.value)]
            assert [row.database for row in damaged] == [CHANGES]
            assert len(rows) == 1 + 8
            assert (copy / "data.mdb").read_bytes() == before
            mending.put_aside([(damaged[0], "damaged")])
            mending.write(lambda changes, row=damaged[0]: changes.remove(row))  # type: ignore[misc]
        store = opened(copy)
        assert store.scan(P[1], "state", b"", 10) == [(b"key0", b"value0"), (b"key2", b"value2")]
        store.close()


def test_a_repair_takes_out_what_is_bad_and_leaves_what_came_after(tmp_path: Path) -> None:
    """In the tree and in the changes over it."""
    store = opened(tmp_path, 0)
    put(store, P[0], *((key, b"bad") for key in (b"kept", b"mended", b"gone")))
    settle(store)
    store._known.late._limit = LATE_BYTES
    put(store, P[0], (b"mended", b"good"), (b"gone", None), (b"new", b"bad"))
    store.close()

    def repair(changes: Changes) -> None:
        for row in bad:
            changes.remove(row)

    with Mending(tmp_path) as mending:
        bad = [row for row in mending.rows("state") if row.value[:-4] == b"bad"]
        assert len(bad) == 4
        mending.write(repair)
        assert [(row.key[6:], row.value[:-4]) for row in mending.rows("state")] == [(b"mended", b"good")]


def test_what_is_in_changes_is_looked_at_as_it_will_be_in_its_tree(tmp_path: Path) -> None:
    store = opened(tmp_path, LATE_BYTES)
    put(store, P[0], (b"good", b"1"), (b"bad", b"2"), (b"gone", None), (b"bad" * 200, b"3"))
    looked: list[tuple[str, bytes, bytes]] = []

    def look(table: str, key: bytes, value: bytes) -> str | None:
        looked.append((table, key, value))
        return "bad" if b"bad" in key else None

    late = list(store.verify(check_row=look))
    store.close()
    store = opened(tmp_path, 0)
    settle(store)
    seen, looked = looked, []
    assert list(store.verify(check_row=look)) == late
    assert [row for row in looked if row[0] == LATE] == seen
    assert [(f.database, f.problem) for f in late] == [("state", "bad")] * 2
    store.close()


# Older directories


@contextmanager
def _raw(directory: Path) -> Iterator[lmdb.Transaction[bytes]]:
    with lmdb.open(str(directory), max_dbs=16) as env, env.begin(write=True) as txn:
        yield txn


def _of_format_1(directory: Path) -> None:
    """As the Grape before wrote it: all rows in their trees, and no ``changes``."""
    store = opened(directory, 0)
    put(store, P[0], (b"key", b"value"))
    settle(store)
    store.close()
    with lmdb.open(str(directory), max_dbs=16) as env:
        changes, meta = env.open_db(CHANGES.encode()), env.open_db(b"meta")
        with env.begin(write=True) as txn:
            txn.drop(changes)
            txn.put(META_FORMAT, sealed_format(1), db=meta)
    (directory / "format").write_text("grape-data 1\n")


def test_an_older_directory_is_read_as_it_is_and_written_as_a_newer(tmp_path: Path) -> None:
    _of_format_1(tmp_path)
    reader = Reader(tmp_path)
    assert reader.get(P[0], "state", [b"key"]) == [b"value"]
    assert reader.scan(P[0], "state", b"", 10) == [(b"key", b"value")]
    assert list(reader.verify()) == []
    reader.close()
    with Mending(tmp_path) as mending:
        assert mending.meta_is_whole
        assert not mending.format_missing
        assert [row.key for row in mending.rows("state")] == [P[0].packed() + b"key"]
    assert (tmp_path / "format").read_text() == "grape-data 1\n"
    store = opened(tmp_path, LATE_BYTES)
    put(store, P[0], (b"more", b"2"))
    store.close()
    assert (tmp_path / "format").read_text() == "grape-data 3\n"
    reader = Reader(tmp_path)
    assert reader.scan(P[0], "state", b"", 10) == [(b"key", b"value"), (b"more", b"2")]
    reader.close()


def test_one_that_is_half_way_to_the_newer_is_finished(tmp_path: Path) -> None:
    _of_format_1(tmp_path)
    store = opened(tmp_path)
    store.close()
    (tmp_path / "format").write_text("grape-data 1\n")  # killed before this was written
    store = opened(tmp_path)
    assert store.get(P[0], "state", [b"key"]) == [b"value"]
    store.close()
    assert (tmp_path / "format").read_text() == "grape-data 3\n"


def test_a_newer_one_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "format").write_text("grape-data 4\n")
    for opening in (lambda: opened(tmp_path), lambda: Reader(tmp_path), lambda: Mending(tmp_path)):
        with pytest.raises(UsageError, match=r"'grape-data 4'.*'grape-data 3'"):
            opening()


# Pure


def test_what_is_due_is_what_is_too_much() -> None:
    late = Late(1000)
    for n, partition in enumerate(P):
        late.add(Change(partition.packed(), n, [(b"%d" % i, b"") for i in range(1000)], 0))
    assert late.weight == 3 * 200_000
    due = list(late.due(10_000))
    assert [(done.merge.packed, done.taken) for done in due] == [
        (P[0].packed(), 1000),
        (P[1].packed(), 1000),
        (P[2].packed(), 995),
    ]
    assert [done.taken for done in late.due(700)] == [700]  # nothing of that was done
    for done in due:
        late.finish(done)
    assert late.weight == 1000
    assert list(late.due(10_000)) == []
    assert list(late.merged) == [(P[0].packed(), 0), (P[1].packed(), 1)]
    assert late.layers(P[0].packed()) == []


def test_a_partition_that_is_being_merged_has_two_layers() -> None:
    late = Late(0)
    packed = P[0].packed()
    late.add(Change(packed, 0, [(b"a", b"1"), (b"b", b"1")], 0))
    (done,) = late.due(1)
    late.finish(done)
    late.add(Change(packed, 1, [(b"a", None)], 0))
    assert late.layers(packed) == [{b"a": None}, {b"a": b"1", b"b": b"1"}]
    (done,) = late.due(500)  # the newer ones come when the older are there
    assert done.merge.left(done.taken) == [(b"b", b"1")]
    late.finish(done)
    assert late.layers(packed) == [{b"a": None}]
    assert late.next_number(packed) == 2


pairs = st.dictionaries(st.binary(max_size=2), st.binary(max_size=2))
changes = st.dictionaries(st.binary(max_size=2), st.none() | st.binary(max_size=2))


@given(pairs, changes)
def test_rows_with_changes_over_them(rows: dict[bytes, bytes], over: dict[bytes, bytes | None]) -> None:
    expected = {key: value for key, value in (rows | over).items() if value is not None}
    assert list(overlaid(sorted(rows.items()), sorted(over.items()))) == sorted(expected.items())


def test_stored_rows_are_in_order() -> None:
    changes = {b"b": b"1", b"a": b"2", b"k" * 600: b"3", b"gone": None, b"l" * 600: None}
    puts, gone = stored_rows("state", P[0].packed(), changes.items())
    assert [key for key, _ in puts] == sorted(key for key, _ in puts)
    assert len(puts) == 3
    assert len(gone) == 2
    assert all(is_whole("state", key, value) for key, value in puts)
