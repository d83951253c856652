"""Feeding: pairs that nobody has looked at become the same batches as those that were looked at one by one."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from grape import Topology
from grape.abc.source import Chunk, Pairs
from grape.abc.transport import Callbacks, Claim
from grape.client.packing import Packer
from grape.connectors.callables import CallableSource
from grape.engine.app import App
from grape.engine.catalog import update_record, with_logs
from grape.engine.clock import FakeClock
from grape.engine.committer import Committer
from grape.engine.feed import Feed, Prepared
from grape.engine.ids import Ids
from grape.model import batch as codec
from grape.model.address import partition_of
from grape.model.stored import SOURCE, Catalog, decode_dead
from grape.model.topology import Limits
from grape.protocol.door import Append, Opened, StreamOpened
from grape.transports.memory import MemoryTransport

PARTITIONS = 5


class Fed:
    """A packer and the feed that takes what it has packed."""

    def __init__(self, source: CallableSource, app: App) -> None:
        transport, clock = MemoryTransport(Callbacks(print, print, print, print)), FakeClock()
        committer = Committer(transport, app.log(SOURCE + "mine", 0), "it", Claim(1, 0, b""))
        self.feed = Feed(app, "mine", transport, committer, Ids(app, transport, clock), in_order=False, calls=False)
        opened = Opened(PARTITIONS, app.record.incarnation, app.limits)
        self.packer = Packer(source, opened, StreamOpened(0, 0, b"", 0, 0, None, False, False), frozenset())
        self.number = 0

    def prepare(self, chunk: Chunk) -> Prepared:
        packed = self.packer.pack(chunk)
        self.number += 1
        prepared = self.feed.prepare(Append(0, self.number, packed.position, packed.parts, packed.bad))
        assert prepared is not None
        return prepared


def feed(read: Any) -> tuple[CallableSource, Fed]:
    t = Topology("fed")
    t.add_slot("in", lambda: None, name="node")
    spec = t.spec()
    source = CallableSource("in", read, "mine", 200)
    record = with_logs(update_record(Catalog(), spec, PARTITIONS, PARTITIONS), [SOURCE + "mine"])
    return source, Fed(source, App(record, spec, Limits(batch_target=300, batch_max=500)))


def events_of(prepared: Prepared) -> list[tuple[int, str | None, Any]]:
    found = []
    for send in prepared.sends:
        header = codec.check(send.batch)
        for run in codec.runs_of(codec.body_of(send.batch, header)):
            keys = codec.keys_of(run) or [None] * run.count
            for key, value in zip(keys, codec.data_of(run) or [None] * run.count, strict=True):
                found.append((send.target.number, key, value))
    return found


def by_home(prepared: Prepared) -> list[list[Any]]:
    """Keyed events of each partition in their order; keyless ones, which may go anywhere, in any."""
    events = events_of(prepared)
    homes: list[list[Any]] = [[] for _ in range(PARTITIONS)]
    for number, key, value in events:
        if key is not None:
            assert number == partition_of(key, PARTITIONS)
            homes[number].append((key, value))
    return [*homes, sorted(repr(value) for _, key, value in events if key is None)]


class Text(str):
    """Text, but not quite: it is no key."""


keys = st.one_of(st.text(min_size=1, max_size=5), st.none(), st.sampled_from(["", 1, b"k", Text("a"), "\ud800"]))
values = st.one_of(
    st.text(max_size=5), st.integers(-(2**70), 2**70), st.binary(max_size=3), st.sampled_from([{"a": 1}, "x" * 300])
)
plain = st.tuples(st.text(min_size=1, max_size=5), st.text(max_size=40))
strange = st.one_of(st.tuples(keys, values), st.text(max_size=3), plain)


@given(st.lists(plain, min_size=1, max_size=60) | st.lists(strange, min_size=1, max_size=30))
def test_pairs_become_what_they_would_have_become_one_by_one(items: list[Any]) -> None:
    source, quick = feed(lambda position: (items, 1) if position is None else None)
    _, slow = feed(lambda position: None)
    chunk = source.read(b"")
    assert chunk is not None
    prepared = quick.prepare(chunk)
    columns, bad = source._sift(items)
    expected = slow.prepare(Chunk(columns, chunk.position, bad, 0))
    for found, wanted in zip(by_home(prepared), by_home(expected), strict=True):
        assert found == wanted
    assert [decode_dead(row).text for _, row in prepared.dead] == [decode_dead(row).text for _, row in expected.dead]
    assert prepared.counts == expected.counts
    assert prepared.head.fed == expected.head.fed
    assert prepared.head.next_dead == expected.head.next_dead


def test_plain_pairs_are_not_looked_at_one_by_one() -> None:
    source, quick = feed(lambda position: ([("a", "x"), ("b", "y")], 1))
    chunk = source.read(b"")
    assert chunk is not None
    (part,) = chunk.columns
    assert isinstance(part, Pairs)

    def never() -> Any:
        raise AssertionError("sifted")

    chunk = msgspec.structs.replace(chunk, columns=[msgspec.structs.replace(part, sift=never)])
    assert len(events_of(quick.prepare(chunk))) == 2
