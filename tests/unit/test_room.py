"""How much of the reserve may be used."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from grape.engine.room import RoomWatch


def test_half_of_the_reserve_may_be_eaten() -> None:
    watch = RoomWatch(1000)
    assert not watch.is_eaten(5000)
    assert not watch.is_eaten(500)
    assert watch.is_eaten(499)


def test_a_start_with_less_goes_on_while_it_does_not_eat() -> None:
    watch = RoomWatch(1000)
    assert not watch.is_eaten(400)
    assert not watch.is_eaten(300)
    assert watch.is_eaten(299)


def test_what_has_been_made_free_counts_again() -> None:
    watch = RoomWatch(1000)
    assert not watch.is_eaten(400)
    assert not watch.is_eaten(600)
    assert watch.is_eaten(450)


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**12), max_size=30))
def test_no_start_is_refused_at_once_and_none_eats_all(reserve: int, rooms: list[int]) -> None:
    watch = RoomWatch(reserve)
    if rooms:
        assert not watch.is_eaten(rooms[0])
    for room in rooms[1:]:
        if not watch.is_eaten(room):
            assert room >= min(reserve // 2, rooms[0] - rooms[0] // 4)


def test_intake_ends_at_the_reserve() -> None:
    assert RoomWatch(1000).is_full(1000)
    assert not RoomWatch(1000).is_full(1001)
    assert not RoomWatch(0).is_eaten(0)
