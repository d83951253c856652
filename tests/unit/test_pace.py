"""Who writes: the engine's thread only what is quick and rare."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from grape.store.pace import Pace


def paced(*writes: tuple[float, float]) -> Pace:
    """``writes``: each so long after the end of the one before, and so long (seconds)."""
    pace, now = Pace(), 100.0
    for rest, took in writes:
        pace.wrote(now + rest, now + rest + took)
        now += rest + took
    return pace


def test_the_first_writes_are_not_trusted() -> None:
    assert not paced().is_light
    assert not paced((0.01, 0.001)).is_light
    assert paced(*[(0.01, 0.001)] * 10).is_light


def test_one_that_took_long_is_remembered_for_a_while() -> None:
    quick = [(0.01, 0.001)] * 10
    assert not paced(*quick, (0.01, 10.0)).is_light
    assert not paced(*quick, (0.01, 10.0), *quick).is_light
    assert paced(*quick, (0.01, 0.005), *quick).is_light


def test_what_is_written_all_the_time_is_written_beside() -> None:
    assert not paced(*[(0.0001, 0.001)] * 100).is_light
    assert paced(*[(0.0001, 0.001)] * 100, *[(0.01, 0.001)] * 100).is_light


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=50))
def test_a_write_over_the_limit_is_never_followed_by_one_of_the_engines_own(writes: list[tuple[float, float]]) -> None:
    assert not paced(*writes, (1.0, 0.0041)).is_light
