"""Stored outputs: what cannot be read is named, and a sink that fails goes on with what failed."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape.abc.source import Sink
from grape.client.taking import write_out
from grape.connectors.json_lines import event_lines
from grape.connectors.outputs import parts_of
from grape.engine.outlet import Taken, TakenBatch
from grape.model.address import PartitionId
from grape.model.batch import RunMeta, encode_run, seal
from grape.protocol.door import Batch

ORIGIN = PartitionId(1, 2, 3)
TARGET = PartitionId(1, 5, 4)


def sealed(*runs: bytes, events: int) -> bytes:
    return seal(b"".join(runs), events, ORIGIN, TARGET, 0xABC, 7, 0)


def raw_run(count: int, keys: bytes = b"", data: bytes = b"", meta: bytes | None = None) -> bytes:
    meta = msgspec.msgpack.encode({"names": ["e"]}) if meta is None else meta
    return struct.pack("<IIII", count, len(meta), len(keys), len(data)) + meta + keys + data


DEEP = b"\x91" * 100_000 + b"\x01"


@pytest.mark.parametrize(
    ("run", "events", "lost", "says"),
    [
        (raw_run(2, b"\x92\xc4\x01x\xa1k", b"\x92\x01\x02"), 2, 1, "its key is no text"),
        (raw_run(2, b"\x92\xa1\xff\xa1k", b"\x92\x01\x02"), 2, 1, "its key is no text"),
        (raw_run(2, b"", b"\x92\x01"), 2, 2, "cannot be read"),
        (raw_run(2, b"", b"\x93\x01\x02\x03"), 2, 2, "columns of other lengths"),
        (raw_run(2, b"", b"\x92\x01\xc1"), 2, 2, "cannot be read"),
        (raw_run(1, b"", b"\x91" + DEEP), 1, 1, "cannot be read"),
        (raw_run(20_000_000), 20_000_000, 20_000_000, "says that it holds 20,000,000 events"),
        (raw_run(2_000_000), 5, 5, "says that it holds 2,000,000 events of 5"),
        (raw_run(2), 5, 3, "holds 2"),
        (raw_run(0), 1, 1, "holds 0 events"),
        (raw_run(1)[:20], 1, 1, "longer than its batch"),
        (raw_run(1)[:5], 1, 1, "cut off in its header"),
        (raw_run(1, meta=b"\xc1"), 1, 1, "meta cannot be read"),
        (raw_run(1, meta=msgspec.msgpack.encode({"names": []})), 1, 1, "cannot be read"),
        (raw_run(1, meta=msgspec.msgpack.encode({"names": ["e"], "index": b"\x07"})), 1, 1, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named_and_costs_nothing(run: bytes, events: int, lost: int, says: str) -> None:
    tracemalloc.start()
    parts = list(parts_of(sealed(run, events=events)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
    unreadable = [one for part in parts for one in part.unreadable]
    assert sum(one.events for one in unreadable) == lost
    assert sum(len(part.indexes) for part in parts) == events - lost
    assert parts[-1].end == events
    assert says in unreadable[0].text


def test_the_rest_of_a_batch_is_read_from_any_event_on() -> None:
    batch = sealed(
        encode_run(RunMeta(["e"], ids={4: "own"}), 5_000, [f"k{i}" for i in range(5_000)], list(range(5_000))),
        encode_run(RunMeta(["f"]), 3, None, None),
        events=5_003,
    )
    whole = [json.loads(line) for part in parts_of(batch) for line in event_lines(part)[0]]
    assert whole[4]["id"] == "own"
    for first in (0, 1, 4_095, 4_096, 4_999, 5_001, 5_003):
        parts = list(parts_of(batch, first))
        assert [event.id for part in parts for event in part.events()] == [line["id"] for line in whole[first:]]
        assert all(len(part.indexes) <= 4_096 for part in parts)


class Failing(Sink):
    """Takes events, and raises at those that it is told to, once each."""

    form = "events"
    name = "out=failing"

    def __init__(self, at: set[int]) -> None:
        self.at = at
        self.got: list[int] = []

    def open(self, length: int, tail: bytes) -> tuple[int, bytes]:
        return length, tail

    def write(self, lines: list[Any]) -> tuple[int, bytes]:
        for self.taken, event in enumerate(lines):
            if event.data in self.at:
                self.at.discard(event.data)
                raise GeneratorExit
            self.got.append(event.data)
        return 0, b""


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.sets(st.integers(0, 20), max_size=4))
def test_a_sink_that_fails_goes_on_with_the_event_that_failed(sizes: list[int], at: set[int]) -> None:
    items = []
    count = 0
    for position, size in enumerate(sizes):
        batch = sealed(encode_run(RunMeta(["e"]), size, None, list(range(count, count + size))), events=size)
        items.append(TakenBatch(0, position, batch, size))
        count += size
    sink = Failing(set(at))
    while items:
        taken = Taken(items, frozenset({0}))
        given = [Batch(item.number, item.position, item.batch, item.events, item.first) for item in items]
        written = write_out(sink, given, (0, b""))
        items = taken.split(written.done)[1]
        assert (written.error is None) == (not items)
    assert sink.got == list(range(count))


def test_nil_events_without_keys_take_bytes() -> None:
    assert len(encode_run(RunMeta(["e"]), 1_000, None, None)) > 1_000
    assert len(encode_run(RunMeta(["e"]), 1, None, None)) < 50
