"""docs/bounds.md names every bound, with its value and a test that pushes it; some of these are here."""

from __future__ import annotations

import importlib
import re
import time
import tracemalloc
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from grape import Context, Event, Node, State, Topology
from grape.engine.check import MAX_EDGES, check_topology
from grape.engine.clock import FakeClock
from grape.errors import ProtocolError, TopologyError
from grape.model.address import PartitionId
from grape.model.topology import MAX_NAMES, MAX_POOLS, Limits, NodeSpec, PoolSpec, SlotSpec, TopologySpec
from grape.processes.output import OUTPUT_RATE, _Allowance
from grape.protocol.framing import LENGTH, worker_frames
from grape.protocol.messages import MAX_ITEMS, MAX_PARTS, MAX_ROWS
from grape.testing.machine import Machine
from grape.transports.embedded import RECENT_BYTES, _Recent
from grape.transports.memory import MemoryBroker

TESTS: Final = Path(__file__).parents[1]
TEXT: Final = (TESTS.parent / "docs" / "bounds.md").read_text()
ROWS: Final = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in TEXT.splitlines() if line[:2] == "| "]
UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "MB": 1_000_000}


def value_of(place: str) -> Any:
    module, _, name = place.partition(":")
    found: Any = importlib.import_module(f"grape.{module}")
    for part in name.split("."):
        if isinstance(found, type) and issubclass(found, msgspec.Struct):
            return getattr(found(), part)
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("row", ROWS[1:], ids=lambda row: row[0])
def test_the_table_says_what_the_code_does(row: tuple[str, ...]) -> None:
    _, bound, place, _, pushed = row
    value = value_of(place)
    if isinstance(value, int | float):
        number, unit = re.match(r"([\d,]+)\s*(\w*)", bound).groups()  # type: ignore[union-attr]
        assert value == int(number.replace(",", "")) * UNITS.get(unit, 1)
    file, _, test = pushed.partition("::")
    assert re.search(rf"^ *(async )?def {test}\(", (TESTS / file).read_text(), re.MULTILINE), pushed


def frame_of(message: bytes) -> bytes:
    return LENGTH.pack(len(message)) + message


def array(count: int, element: bytes) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + element * count


@pytest.mark.parametrize(
    ("name", "count", "make"),
    [
        ("done", MAX_PARTS, lambda n: b"\x95\x26\0\0\x90" + array(n, b"\x92\0\x90")),
        ("ended", MAX_PARTS, lambda n: b"\x95\x26\0\0" + array(n, b"\0") + b"\x90"),
        ("timers", MAX_ITEMS, lambda n: b"\x9a\x26\0\0\x90\x90\x90\x90\x90" + array(n, b"\x92\0\x94\xa0\0\0\xc4\0")),
        ("failures", MAX_ITEMS, lambda n: b"\x9b\x26\0\0\x90\x90\x90\x90\x90\x90" + array(n, b"\xa0")),
        ("keys", MAX_ROWS, lambda n: b"\x95\x22\0\0\xa1n" + array(n, b"\xc4\0")),
    ],
)
def test_lists_are_bounded_before_they_are_decoded(name: str, count: int, make: Any) -> None:
    message = frame_of(make(count + 1))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="length <="):
            worker_frames().feed(message)
        assert tracemalloc.get_traced_memory()[1] < len(message) * 2 + 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("field", "most", "element"),
    [
        ("slots", MAX_NAMES, SlotSpec("e", "n")),
        ("nodes", MAX_NAMES, NodeSpec("n")),
        ("pools", MAX_POOLS, PoolSpec("p")),
    ],
)
def test_topologies_are_bounded_before_they_are_decoded(field: str, most: int, element: Any) -> None:
    spec = msgspec.structs.replace(TopologySpec("big"), **{field: (element,) * (most + 1)})
    hello = msgspec.msgpack.encode([32, 1, 1, "x", spec, []])
    with pytest.raises(ProtocolError, match="length <="):
        worker_frames().feed(frame_of(hello))


def test_edges_are_bounded() -> None:
    count = int(MAX_EDGES**0.5) + 1
    nodes = tuple(NodeSpec(f"n{i}") for i in range(count))
    slots = tuple(SlotSpec("e", node.name, emits=("e",)) for node in nodes)
    began = time.process_time()
    with pytest.raises(TopologyError, match="declared edges"):
        check_topology(TopologySpec("dense", nodes, slots))
    assert time.process_time() - began < 30


def test_a_full_hold_list_stops_new_work_of_its_partition_not_its_retries() -> None:
    class Fails(Node):
        seen = State(int, default=0)

        def process(self, event: Event) -> None:
            if event.attempt == 1:
                raise ValueError("not yet")
            self.seen += 1

    def build() -> Topology:
        t = Topology("holds")
        t.add_slot("x", Fails())
        return t

    limits = Limits(hold_events=3, dispatch_events=4)
    machine = Machine(build, FakeClock(), MemoryBroker(), partitions=1, limits=limits)
    for i in range(50):
        machine.add("x", i, f"k{i}")
    most = 0
    while not machine.is_finished:
        if moves := machine.moves():
            moves[0]()
        elif (wake := machine.tick()) is not None:
            machine.clock.advance_to(wake)
        most = max(most, machine.app.holds)
    assert most <= 3 + 4  # what was out when it became full
    rows = machine.transport.scan(machine.engine.partition("main", 0).id, "state", b"", 100)
    assert len(rows) == 50
    machine.stop()


def test_a_worker_has_three_works() -> None:
    def build() -> Topology:
        t = Topology("works")

        @t.slot("x")
        def handle(data: int, context: Context) -> None: ...

        return t

    machine = Machine(build, FakeClock(), MemoryBroker(), partitions=16)
    for i in range(100):
        machine.add("x", i, f"k{i}")
    most = 0
    while moves := machine.moves():
        moves[-1]()  # what is urgent waits: works pile up if they can
        most = max(most, *(len(w.outstanding) for p in machine.engine.pools.values() for w in p.workers.values()), 0)
    assert most == 3
    machine.stop()


def test_recent_batches_are_bounded() -> None:
    recent, log, size = _Recent(RECENT_BYTES), PartitionId(1, 1, 0), 1 << 20
    for position in range(40):
        recent.add(log, position, bytes(size))
    kept = recent.read(log, 40 - 1, 1) or []
    held = sum(len(stored.batch) for stored in recent._logs.get(log, ()))
    assert held <= RECENT_BYTES
    assert recent.read(log, 0, 1 << 30) is None  # it has to be read from the store
    assert all(stored.position == 39 for stored in kept)


def test_what_a_worker_prints_is_cut() -> None:
    allowance = _Allowance()
    now = time.monotonic()
    shown = sum(allowance.take(1_000, now)[0] for _ in range(5_000))
    assert shown * 1_000 <= OUTPUT_RATE
    assert allowance.cut == 5_000 - shown
