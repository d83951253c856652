"""The record batch: sealed and read, split, and checked when a worker has made it."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape.errors import Corrupt, ProtocolError
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.batch import Context, Run, RunMeta


@st.composite
def runs(draw: st.DrawFn) -> tuple[Run, dict[str, int]]:
    count = draw(st.integers(1, 12))
    names = draw(st.lists(st.sampled_from("abcd"), min_size=2, max_size=4, unique=True))
    index = bytes(draw(st.lists(st.integers(0, len(names) - 1), min_size=count, max_size=count)))
    keys = draw(st.none() | st.lists(st.none() | st.sampled_from(["k", "ü"]), min_size=count, max_size=count))
    data = draw(
        st.none()
        | st.lists(
            st.integers().filter(lambda n: -(2**63) <= n < 2**63) | st.text("xyz"), min_size=count, max_size=count
        )
    )
    hops = draw(st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=count, max_size=count))
    ids = draw(st.none() | st.dictionaries(st.integers(0, count - 1), st.text("id")))
    contexts = draw(st.none() | st.lists(st.integers(-1, 3), min_size=count, max_size=count))
    meta = RunMeta(names, index, hops, draw(st.none() | st.just(["n"])), ids, contexts)
    body = codec.encode_run(meta, count, keys, data)
    (run,) = codec.runs_of(body)
    return run, {name: draw(st.integers(0, 2)) for name in names}


def events(run: Run) -> list[tuple[Any, ...]]:
    keys, data = codec.keys_of(run) or [None] * run.count, codec.data_of(run) or [None] * run.count
    ids, contexts = run.meta.ids or {}, run.meta.contexts or [-1] * run.count
    names = codec.names_of(run)
    return [
        (names[i], keys[i], data[i], codec.hops_of(run.meta, i), ids.get(i), contexts[i], run.meta.only)
        for i in range(run.count)
    ]


@given(runs())
def test_splitting_keeps_events_and_their_order(given_run: tuple[Run, dict[str, int]]) -> None:
    run, leads_to = given_run
    parts = codec.split_run(run, leads_to.__getitem__)
    assert [event for part in parts for event in events(part)] == events(run)
    for part in parts:
        assert len({leads_to[name] for name in part.meta.names}) == 1
        assert set(part.meta.names) == set(codec.names_of(part)) or part is run


def test_a_run_whose_names_lead_to_the_same_is_left_alone() -> None:
    (run,) = codec.runs_of(codec.encode_run(RunMeta(["a", "b"], b"\0\1"), 2, None, [1, 2]))
    assert codec.split_run(run, lambda name: "same") == [run]


def test_a_part_of_a_run_has_what_belongs_to_its_events() -> None:
    meta = RunMeta(["a", "b"], b"\0\0\1\0", [1, 2, 3, 4], ["n"], {0: "x", 2: "y", 3: "z"}, [-1, 0, 1, 2])
    (run,) = codec.runs_of(codec.encode_run(meta, 4, ["k", None, "l", "m"], [1, 2, 3, 4]))
    assert [(part.meta, codec.keys_of(part), codec.data_of(part)) for part in codec.split_run(run, str)] == [
        (RunMeta(["a"], None, [1, 2], ["n"], {0: "x"}, [-1, 0]), ["k", None], [1, 2]),
        (RunMeta(["b"], None, [3], ["n"], {0: "y"}, [1]), ["l"], [3]),
        (RunMeta(["a"], None, [4], ["n"], {0: "z"}, [2]), ["m"], [4]),
    ]


def test_a_run_of_one_name_leads_to_one_place() -> None:
    (run,) = codec.runs_of(codec.one("a", "k", 1))
    assert codec.split_run(run, str) == [run]


def test_the_name_of_a_body_is_that_of_its_first_event() -> None:
    assert codec.name_of(codec.one("a", "k", 1) + codec.one("b", "k", 1)) == "a"


def test_consecutive_events_that_lead_to_the_same_stay_one_run() -> None:
    (run,) = codec.runs_of(codec.encode_run(RunMeta(["a", "b", "c"], b"\0\1\2\2\0"), 5, None, [1, 2, 3, 4, 5]))
    parts = codec.split_run(run, {"a": 1, "b": 1, "c": 2}.__getitem__)
    assert [(part.count, part.meta.names, part.meta.index) for part in parts] == [
        (2, ["a", "b"], b"\0\1"),
        (2, ["c"], None),
        (1, ["a"], None),
    ]


ORIGIN, TARGET = PartitionId(1, 2, 3), PartitionId(1, 4, 5)


def sealed(body: bytes, events: int, contexts: tuple[Context, ...] = (), flags: int = 0) -> bytes:
    return codec.seal(body, events, ORIGIN, TARGET, 0xABC, 6, 7, contexts, flags)


class TestSealing:
    def test_what_was_sealed_is_read_again(self) -> None:
        body = codec.one("word", "k", 1)
        contexts = (Context("request", 3, "trace", 9, "main"), Context())
        batch = sealed(body, 1, contexts, codec.SELF_REPLY)
        header = codec.check(batch)
        assert header == codec.header_of(batch)
        assert header[:7] == (ORIGIN, TARGET, 0xABC, 6, 7, 1, codec.SELF_REPLY)
        assert codec.contexts_of(batch, header) == list(contexts)
        assert codec.body_of(batch, header) == body

    def test_without_contexts_it_is_a_header_longer_than_its_body(self) -> None:
        batch = sealed(b"body", 1)
        header = codec.check(batch)
        assert len(batch) == codec.HEADER_SIZE + 4
        assert codec.contexts_of(batch, header) == []
        assert codec.body_of(batch, header) == b"body"

    def test_any_flipped_bit_is_found(self) -> None:
        batch = sealed(codec.one("word", "k", 1), 1, (Context("r"),))
        for bit in range(len(batch) * 8):
            damaged = bytearray(batch)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Corrupt):
                codec.check(bytes(damaged))

    def test_what_is_shorter_than_a_header_is_no_batch(self) -> None:
        batch = sealed(b"", 0)
        assert codec.check(batch).events == 0
        for size in (0, 1, codec.HEADER_SIZE - 1):
            with pytest.raises(Corrupt, match=f"{size} bytes is shorter"):
                codec.header_of(batch[:size])

    def test_another_version_is_told(self) -> None:
        batch = bytearray(sealed(b"", 0))
        batch[4] = 2
        with pytest.raises(Corrupt, match="version 2; this Grape reads version 1"):
            codec.header_of(bytes(batch))

    def test_ids_are_given_or_say_origin_target_and_place(self) -> None:
        first = codec.encode_run(RunMeta(["a"], ids={1: "own"}), 2, None, [1, 2])
        batch = sealed(first + codec.one("b", None, 3), 3)
        header = codec.header_of(batch)
        assert codec.ids_of(header, codec.body_of(batch, header)) == [
            "00000abc-2.3-4.5-6-0",
            "own",
            "00000abc-2.3-4.5-6-2",
        ]


class TestRuns:
    def test_what_was_encoded_is_read_again(self) -> None:
        runs = list(codec.runs_of(codec.one("a", "k", 1) + codec.encode_run(RunMeta(["b"]), 2, None, [2, None])))
        assert [codec.names_of(run) for run in runs] == [["a"], ["b", "b"]]
        assert [codec.keys_of(run) for run in runs] == [["k"], None]
        assert [codec.data_of(run) for run in runs] == [[1], [2, None]]

    def test_one_event_of_nothing_has_no_columns_and_many_have_a_byte_each(self) -> None:
        (run,) = codec.runs_of(codec.one("tick", None, None))
        assert (run.keys, run.data) == (b"", b"")
        (run,) = codec.runs_of(codec.encode_run(RunMeta(["tick"]), 100, None, None))
        assert codec.data_of(run) == [None] * 100
        codec.check_body(codec.encode_run(RunMeta(["tick"]), 100, None, None), 100)

    def test_wherever_a_body_is_cut_off_it_is_said(self) -> None:
        one, two = codec.one("a", "key", "data"), codec.one("b", "key", "data")
        for cut in range(1, len(two)):
            with pytest.raises(ProtocolError, match=r"cut off in its header|longer than its batch"):
                list(codec.runs_of(one + two[:cut]))

    def test_a_meta_that_cannot_be_read_is_said(self) -> None:
        for meta in (b"\xc0", b"\x81\xa5names\x91\xa1\xff", b"\x81\xa7unknown" + b"\x91" * 100_000 + b"\xc0"):
            with pytest.raises(ProtocolError, match="meta cannot be read"):
                list(codec.runs_of(struct.pack("<IIII", 1, len(meta), 0, 0) + meta))

    def test_the_name_and_hops_of_an_event(self) -> None:
        (run,) = codec.runs_of(codec.encode_run(RunMeta(["a", "b"], b"\1\0", [3, 4]), 2, None, [1, 2]))
        assert codec.names_of(run) == ["b", "a"]
        assert [codec.hops_of(run.meta, i) for i in range(2)] == [3, 4]
        assert codec.hops_of(RunMeta(["a"], hops=5), 7) == 5


class TestSplitting:
    """Events of ten bytes."""

    @staticmethod
    def encode(start: int, end: int) -> bytes:
        return b"".join(b"%10d" % i for i in range(start, end))

    def test_what_fits_stays_whole(self) -> None:
        assert codec.split(self.encode, 3, 13, 50, 100) == [(self.encode(3, 13), 10)]

    def test_pieces_are_near_the_target(self) -> None:
        pieces = codec.split(self.encode, 3, 14, 50, 100)  # 110 bytes: three pieces
        assert [count for _, count in pieces] == [4, 4, 3]
        assert b"".join(body for body, _ in pieces) == self.encode(3, 14)

    def test_an_event_alone_may_be_too_large(self) -> None:
        assert codec.split(self.encode, 0, 3, 5, 5) == [(self.encode(i, i + 1), 1) for i in range(3)]

    def test_no_piece_is_over_the_limit_however_unlike_the_events_are(self) -> None:
        sizes = [1, 1, 1, 1, 1, 1, 70, 60, 50, 1]
        pieces = codec.split(lambda start, end: b"x" * sum(sizes[start:end]), 0, 10, 90, 100)
        assert sum(count for _, count in pieces) == 10
        assert all(len(body) <= 100 for body, _ in pieces)
        assert sum(len(body) for body, _ in pieces) == sum(sizes)


def body(count: int = 2, keys: bytes = b"", data: bytes = b"\x92\x01\x02", **meta: Any) -> bytes:
    packed = codec.encode(RunMeta(**{"names": ["a"], **meta}))
    return struct.pack("<IIII", count, len(packed), len(keys), len(data)) + packed + keys + data


class TestChecking:
    @pytest.mark.parametrize(
        ("count", "mark"),
        [(1, b"\x91"), (15, b"\x9f"), (16, b"\xdc\x00\x10"), (300, b"\xdc\x01\x2c"), (70_000, b"\xdd\x00\x01\x11\x70")],
    )
    def test_however_the_length_of_a_column_is_written(self, count: int, mark: bytes) -> None:
        column = mark + b"\xc0" * count
        codec.check_body(body(count=count, keys=column, data=column), count)
        with pytest.raises(ProtocolError, match="number of"):
            codec.check_body(body(count=count + 1, keys=column, data=column), count + 1)

    def test_a_column_of_none_is_no_column(self) -> None:
        none = [b"\x90", b"\xdc\x00\x00", b"\xdd\x00\x00\x00\x00"]
        texts = [b"\xda\x00\x02ab", b"\xc6\x00\x00\x00\x02ab"]
        cut_off = [b"\xdc\x02", b"\xdd\x02", b"\xdd\x00\x00\x02"]
        for keys in none + texts + cut_off:
            with pytest.raises(ProtocolError, match="number of keys"):
                codec.check_body(body(keys=keys), 2)

    def test_one_event_and_one_context(self) -> None:
        (meta,) = codec.check_body(codec.one("a", None, 1, contexts=[0]), 1, 1)
        assert meta.contexts == [0]

    @pytest.mark.parametrize(
        "good",
        [
            body(),
            body(keys=b"\x92\xa1k\xc0"),
            body(keys=b"\xdc\x00\x02\xa1k\xc0", data=b"\xdd\x00\x00\x00\x02\x01\x02"),  # any array of that length
            body(keys=codec.encode(["k" * 4096, "é" * 2048])),
            body(names=["a", "b"], index=b"\1\0"),
            body(names=["a", "b"], index=b"\1\1"),
            body(hops=[1, 2]),
            body(contexts=[-1, 2]),
            codec.one("a", None, 1) + codec.one("b", "k", None),
        ],
    )
    def test_what_is_right(self, good: bytes) -> None:
        metas = codec.check_body(good, 2, 3)
        assert metas == [run.meta for run in codec.runs_of(good)]
        assert codec.check_body(good, 2, 3, stored=True) == metas

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            (body(count=0, data=b""), "without events or names"),
            (body(names=[]), "without events or names"),
            (body(keys=b"\x91\xa1k"), "number of keys"),
            (body(keys=b"\x93\xa1k\xc0\xc0"), "number of keys"),
            (body(keys=b"\xa2kk"), "number of keys"),  # no array
            (body(keys=b"\xdc\x00"), "number of keys"),
            (body(keys=b"\xdd\x00\x00\x00"), "number of keys"),
            (body(data=b"\x91\x01"), "number of values"),
            (body(data=b"\xdc\x00\x03\x01\x02\x03"), "number of values"),
            (body(data=b"\x82\x01\x02\x03\x04"), "number of values"),  # a map
            (body(hops=[1]), "number of hops"),
            (body(contexts=[0]), "number of contexts"),
            (body(contexts=[0, 3]), "context outside"),
            (body(contexts=[0, -2]), "context outside"),
            (body(names=["a", "b"]), "without an index"),
            (body(index=b"\0"), "does not fit its names"),
            (body(names=["a", "b"], index=b"\0\2"), "does not fit its names"),
            (codec.one("a", None, 1), "said to hold 2 events holds 1"),
            (body() + codec.one("a", None, 1), "said to hold 2 events holds 3"),
        ],
    )
    def test_what_is_not(self, bad: bytes, why: str) -> None:
        for stored in (False, True):
            with pytest.raises(ProtocolError, match=why):
                codec.check_body(bad, 2, 3, stored=stored)

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            (body(keys=b"\x92\xa0\xa1k"), "cannot be read"),  # an empty key
            (body(keys=codec.encode([None, "k" * 4097])), "cannot be read"),
            (body(keys=codec.encode([None, "é" * 2049])), "a key of over 4096 bytes"),
            (body(keys=b"\x92\xa1\xff\xc0"), "cannot be read"),
            (body(data=b"\x92\x01"), "cannot be read"),
            (body(data=b"\x92\x01\x02\x03"), "cannot be read"),
            (body(data=b"\x92\x01" + b"\x91" * 100_000 + b"\xc0"), "cannot be read"),
        ],
    )
    def test_columns_that_lie_in_a_log_are_not_looked_at(self, bad: bytes, why: str) -> None:
        with pytest.raises(ProtocolError, match=why):
            codec.check_body(bad, 2)
        codec.check_body(bad, 2, stored=True)

    def test_an_event_has_at_least_a_byte_but_for_what_older_code_stored(self) -> None:
        nils = body(count=1000, data=b"")
        with pytest.raises(ProtocolError, match="1000 events in"):
            codec.check_body(nils, 1000)
        assert codec.check_body(nils, 1000, stored=True)[0].names == ["a"]
        with pytest.raises(ProtocolError, match=f"{(1 << 20) + 1} events in"):
            codec.check_body(body(count=(1 << 20) + 1, data=b""), (1 << 20) + 1, stored=True)

    def test_nothing_at_all_is_no_body(self) -> None:
        with pytest.raises(ProtocolError, match="said to hold 0 events holds 0"):
            codec.check_body(b"", 0)
