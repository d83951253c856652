"""Who is suspected, who was named, and when there is no way on."""

from __future__ import annotations

from grape.engine.partition.careful import Careful, Root
from grape.protocol.messages import Named

ROOT = Root(5, 1)


def named(event: str, node: str = "n") -> Named:
    return Named(event, node, "worker-died", "it died", True)


def test_what_is_suspected_is_done_carefully_until_it_is_over() -> None:
    careful = Careful(3)
    assert not careful
    assert not careful.is_needed
    careful.suspect([1, 2], [7])
    assert careful.is_needed
    careful.batch_is_over(1)
    careful.batch_is_over(99)
    careful.held_is_over([7, 8])
    assert careful
    careful.batch_is_over(2)
    assert not careful
    assert not careful.is_needed


def test_a_held_one_is_suspected_as_well_as_a_batch() -> None:
    careful = Careful(3)
    careful.suspect([], [7])
    assert careful
    careful.name(named("a"))
    careful.work_is_over()
    assert careful.named  # it may come again
    careful.held_is_over([7])
    careful.work_is_over()
    assert not careful.is_needed


def test_who_was_named_is_remembered_while_anything_is_suspected() -> None:
    careful = Careful(3)
    careful.suspect([1], [])
    careful.name(named("a"))
    careful.name(named("a", "other"))
    careful.work_is_over()
    assert set(careful.named) == {("a", "n"), ("a", "other")}
    careful.handed_in("a", "n")
    careful.handed_in("b", "n")
    assert set(careful.named) == {("a", "other")}
    careful.batch_is_over(1)
    assert careful.is_needed
    careful.work_is_over()
    assert not careful.is_needed


def test_a_root_is_given_up_after_as_many_deaths_as_a_named_event_may_cost_and_two() -> None:
    careful = Careful(3)
    assert [careful.died_over(ROOT) for _ in range(5)] == [False, False, False, False, True]
    careful.forget(ROOT)
    assert not careful.died_over(ROOT)


def test_deaths_are_counted_by_root_and_anew_once_somebody_moved_on() -> None:
    careful = Careful(1)
    assert not careful.died_over(ROOT)
    assert not careful.died_over(Root(5, 2))
    assert not careful.died_over(Root(number=5))
    careful.moved_on()
    assert [careful.died_over(ROOT) for _ in range(3)] == [False, False, True]


def test_an_event_that_is_named_for_the_first_time_is_a_step() -> None:
    careful = Careful(1)
    careful.died_over(ROOT)
    careful.died_over(ROOT)
    careful.name(named("a"))
    assert not careful.died_over(ROOT)
    careful.name(named("a"))  # again: no step
    assert not careful.died_over(ROOT)
    assert careful.died_over(ROOT)


def test_a_dump_says_what_is_suspected() -> None:
    careful = Careful(3)
    careful.suspect([2, 1], [7])
    assert careful.describe() == "suspected batches [1, 2], held [7]"
