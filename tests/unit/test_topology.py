"""A topology as plain data."""

from __future__ import annotations

import pytest

from grape.model.topology import NodeSpec, PoolSpec, SlotSpec, StateSpec, TopologySpec, names, with_pool

TOPOLOGY = TopologySpec(
    "app",
    nodes=(NodeSpec("A", states=(StateSpec("seen"),)), NodeSpec("B", "far")),
    slots=(SlotSpec("a", "A", emits=("b", "out")), SlotSpec("b", "B"), SlotSpec("a", "B")),
    outputs=("out",),
    pools=(PoolSpec("main"), PoolSpec("far")),
)


def test_nodes_and_slots_are_found_by_name() -> None:
    assert TOPOLOGY.node("B") is TOPOLOGY.nodes[1]
    assert TOPOLOGY.slot("a", "B") is TOPOLOGY.slots[2]
    assert TOPOLOGY.slot("b", "B") is TOPOLOGY.slots[1]
    with pytest.raises(KeyError):
        TOPOLOGY.node("C")
    with pytest.raises(KeyError):
        TOPOLOGY.slot("b", "A")


def test_events_are_listed_once_in_the_order_of_declaration() -> None:
    assert TOPOLOGY.events == ("a", "b")


def test_everything_that_has_a_name() -> None:
    assert sorted(set(names(TOPOLOGY))) == ["A", "B", "a", "app", "b", "far", "main", "out", "seen"]


def test_the_workers_of_a_pool_describe_a_part() -> None:
    part = TopologySpec("part", nodes=(NodeSpec("C"),), slots=(SlotSpec("c", "C"),))
    whole = with_pool(TOPOLOGY, "far", part)
    assert whole.nodes == (*TOPOLOGY.nodes, NodeSpec("C", "far"))
    assert whole.slots == (*TOPOLOGY.slots, SlotSpec("c", "C"))
    assert (whole.name, whole.outputs, whole.pools) == ("app", ("out",), TOPOLOGY.pools)


@pytest.mark.parametrize(
    ("runtime", "itself"), [("python", False), ("lines", False), ("node", True), ("perl", True), ("exec", True)]
)
def test_workers_in_other_languages_describe_themselves(runtime: str, itself: bool) -> None:
    assert PoolSpec("p", runtime=runtime).describes_itself is itself  # type: ignore[arg-type]
