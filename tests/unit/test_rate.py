"""How often a worker may speak."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from grape.processes.link import Rate


def test_as_many_at_once_as_in_a_second() -> None:
    rate = Rate(100)
    assert rate.take(100, 5.0) == 0
    assert rate.take(50, 5.0) == 0.5
    assert rate.take(0, 5.5) == 0


@given(st.lists(st.tuples(st.integers(0, 5_000), st.floats(0, 2)), max_size=50))
def test_whoever_pauses_as_told_stays_below_the_rate(steps: list[tuple[int, float]]) -> None:
    rate, now, total = Rate(100), 10.0, 0
    for count, wait in steps:
        now += wait
        pause = rate.take(count, now)
        total += count
        now += pause
        assert total <= 100 * (now - 10.0) + 100 + 1e-6
