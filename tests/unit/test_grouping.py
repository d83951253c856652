"""Which events of clients without keys share a partition: by how long their handlers take."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape.engine.grouping import Grouping, Paces


def paces_after(pace: int, overhead: int, results: int = 50) -> Paces:
    """Of a handler that takes so many microseconds for each, beside what a work takes whatever is in it, as long as
    groups are as large as they may be."""
    paces = Paces()
    for _ in range(results):
        n = paces.most("e")
        paces.took({"e>node": n}, overhead + pace * n)
    return paces


@pytest.mark.parametrize(
    ("pace", "overhead", "least", "most"),
    [
        (20, 400, 32, 64),  # a quick handler: a group is worth it
        (20, 2_500, 32, 64),  # also if other things keep the cores busy
        (1_000, 400, 3, 6),
        (5_000, 400, 1, 1),  # a slow one: every other worker could do one meanwhile
        (1_000_000, 400, 1, 1),
    ],
)
def test_as_many_as_are_done_in_a_moment(pace: int, overhead: int, least: int, most: int) -> None:
    assert least <= paces_after(pace, overhead).most("e") <= most


def test_what_is_not_known_goes_alone() -> None:
    paces = paces_after(10, 100)
    assert paces.most("other") == 1
    paces.took({"other>node": 0, "third>node": -1}, 10)
    assert (paces.most("other"), paces.most("third")) == (1, 1)


def test_a_handler_that_becomes_slow_is_noticed() -> None:
    paces = paces_after(10, 100)
    assert paces.most("e") == 64
    paces.took({"e>node": 64}, 64 * 100_000)
    assert paces.most("e") <= 2
    for _ in range(300):
        paces.took({"e>node": 1}, 300)
    assert paces.most("e") > 8


def test_one_of_ten_that_is_slow_counts() -> None:
    paces = Paces()
    for n in range(100):
        paces.took({"e>node": 1}, 100_000 if n % 10 == 0 else 100)
    assert paces.most("e") <= 4  # by the mean


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 3_000)), max_size=200))
def test_no_group_is_larger_or_lasts_longer_than_it_may(arrivals: list[tuple[int, int]]) -> None:
    numbers = count(1)
    grouping = Grouping(lambda: next(numbers))
    now = 0
    groups: dict[int, list[tuple[int, int]]] = {}
    for most, later in arrivals:
        now += later
        groups.setdefault(grouping.next(most, now), []).append((most, now))
    for number, members in groups.items():
        assert number >= 1
        assert len(members) <= members[0][0]
        assert members[-1][1] - members[0][1] < 2_000
    assert list(groups) == sorted(groups)


def test_a_single_one_is_always_the_next() -> None:
    numbers = count(1)
    grouping = Grouping(lambda: next(numbers))
    assert [grouping.next(1, 0) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert [grouping.next(3, 0) for _ in range(5)] == [6, 6, 6, 7, 7]
    assert grouping.next(1, 0) == 7
    assert grouping.next(1, 0) == 8
    assert grouping.next(3, 5_000) == 9
