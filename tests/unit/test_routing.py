"""Which pairs of nodes chain."""

from __future__ import annotations

from grape.model.routing import Listener, chained_pairs, route
from grape.model.topology import NodeSpec, SlotSpec, TopologySpec


def topology(*slots: SlotSpec, nodes: tuple[NodeSpec, ...] = (), outputs: tuple[str, ...] = ()) -> TopologySpec:
    """A topology; nodes that are not given are plain ones."""
    given = {node.name: node for node in nodes}
    names = dict.fromkeys(slot.node for slot in slots)
    return TopologySpec("app", tuple(given.get(name, NodeSpec(name)) for name in names), slots, outputs)


def slot(event: str, node: str, *emits: str, chain: bool = True) -> SlotSpec:
    return SlotSpec(event, node, emits=emits, chain=chain)


def test_linear_chain() -> None:
    chained = chained_pairs(topology(slot("a", "A", "b"), slot("b", "B", "c"), slot("c", "C", "out"), outputs=("out",)))
    assert chained == {("A", "B"), ("B", "C")}


def test_every_listener_of_a_declared_event_chains() -> None:
    assert chained_pairs(topology(slot("a", "A", "b"), slot("b", "B"), slot("b", "C"))) == {("A", "B"), ("A", "C")}


def test_a_cycle_does_not_chain_but_what_leads_into_it_and_out_of_it_does() -> None:
    chained = chained_pairs(
        topology(slot("a", "A", "b"), slot("b", "B", "c"), slot("c", "C", "b", "d"), slot("d", "D"))
    )
    assert chained == {("A", "B"), ("C", "D")}


def test_two_cycles_joined_by_one_edge() -> None:
    chained = chained_pairs(
        topology(slot("a", "A", "b"), slot("b", "B", "a", "c"), slot("c", "C", "d"), slot("d", "D", "c"))
    )
    assert chained == {("B", "C")}


def test_a_chain_may_lead_into_one_that_was_declared_before() -> None:
    chained = chained_pairs(topology(slot("a", "A", "b"), slot("b", "B"), slot("c", "C", "a")))
    assert chained == {("A", "B"), ("C", "A")}


def test_chains_that_have_nothing_to_do_with_each_other() -> None:
    chained = chained_pairs(
        topology(slot("a", "A", "b"), slot("b", "B", "c"), slot("c", "C"), slot("d", "D", "e"), slot("e", "E"))
    )
    assert chained == {("A", "B"), ("B", "C"), ("D", "E")}


def test_a_node_does_not_chain_to_itself() -> None:
    assert chained_pairs(topology(slot("a", "A", "a"))) == frozenset()


def test_two_slots_of_one_node_are_one_vertex() -> None:
    assert chained_pairs(topology(slot("a", "A", "b"), slot("b", "A"))) == frozenset()


def test_chain_false_on_one_slot_keeps_the_target_apart() -> None:
    assert chained_pairs(topology(slot("a", "A", "b"), slot("b", "B", chain=False))) == frozenset()
    assert chained_pairs(topology(slot("a", "A", "b"), slot("b", "B"), slot("z", "B", chain=False))) == frozenset()


def test_chain_false_on_the_source_says_nothing_about_its_targets() -> None:
    assert chained_pairs(topology(slot("a", "A", "b", chain=False), slot("b", "B"))) == {("A", "B")}


def test_another_pool_does_not_chain() -> None:
    slots = (slot("a", "A", "b"), slot("b", "B"))
    assert chained_pairs(topology(*slots, nodes=(NodeSpec("B", "slow"),))) == frozenset()
    assert chained_pairs(topology(*slots, nodes=(NodeSpec("A", "slow"), NodeSpec("B", "slow")))) == {("A", "B")}


def test_async_nodes_do_not_chain() -> None:
    slots = (slot("a", "A", "b"), slot("b", "B", "c"), slot("c", "C"))
    assert chained_pairs(topology(*slots, nodes=(NodeSpec("B", is_async=True),))) == frozenset()


def test_undeclared_emits_do_not_chain() -> None:
    assert chained_pairs(topology(slot("a", "A"), slot("b", "B"))) == frozenset()


def test_outputs_and_events_of_other_apps_are_no_targets() -> None:
    assert chained_pairs(topology(slot("a", "A", "out", "other@b"), outputs=("out",))) == frozenset()


def test_a_cycle_through_another_pool_is_a_cycle() -> None:
    slots = (slot("a", "A", "b"), slot("b", "B", "c"), slot("c", "C", "a"))
    assert chained_pairs(topology(*slots, nodes=(NodeSpec("C", "slow"),))) == frozenset()


def test_a_chain_of_ten_thousand_nodes_needs_no_recursion() -> None:
    count = 10_000
    slots = tuple(slot(f"e{i}", f"N{i}", f"e{i + 1}") for i in range(count))
    assert len(chained_pairs(topology(*slots, outputs=(f"e{count}",)))) == count - 1


def test_listeners_are_grouped_by_pool_in_order_of_declaration() -> None:
    routing = route(
        topology(slot("a", "B"), slot("a", "S"), slot("a", "A"), nodes=(NodeSpec("S", "slow"),), outputs=("out",))
    )
    assert routing.listeners == {"a": (Listener("main", ("B", "A")), Listener("slow", ("S",)))}
    assert routing.knows("a")
    assert routing.knows("out")
    assert not routing.knows("b")


def test_what_has_to_wait_for_its_turn_does_not_chain() -> None:
    rated = SlotSpec("b", "B", rate=10.0)
    assert chained_pairs(topology(slot("a", "A", "b"), rated)) == frozenset()
    assert chained_pairs(topology(slot("a", "A", "c"), rated, slot("c", "B"))) == frozenset()
    assert chained_pairs(topology(SlotSpec("a", "A", emits=("b",), rate=10.0), slot("b", "B"))) == {("A", "B")}
