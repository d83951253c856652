"""Rates of slots: what only decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape import Topology
from grape.engine.rates import Bucket
from grape.errors import TopologyError
from grape.model.rate import rate_of


@given(
    st.floats(0.01, 1e5),
    st.integers(1, 1_000),
    st.lists(st.tuples(st.integers(-50_000, 5_000_000), st.integers(1, 500)), max_size=60),
)
def test_a_bucket_never_gives_more_than_its_rate(rate: float, burst: int, moves: list[tuple[int, int]]) -> None:
    """In any window, whatever the clock does: at most ``burst`` and what came meanwhile."""
    bucket = Bucket(rate, burst, 0)
    now = even = given = 0
    for step, wanted in moves:
        now += step
        even += max(0, step)
        given += bucket.take(wanted, now)
        assert given <= 1 + burst + rate * even / 1e6


@given(st.floats(0.01, 1e5), st.integers(1, 50))
def test_what_is_due_is_there_then_and_not_before(rate: float, burst: int) -> None:
    bucket = Bucket(rate, burst, 0)
    assert bucket.take(1, 0) == 1
    due = bucket.due()
    assert bucket.take(1, due) == 1
    assert due <= 1e6 / rate + 2


@pytest.mark.parametrize(
    ("text", "rate"), [("100/s", 100), ("30/min", 0.5), ("7200 / h", 2), ("86400/day", 1), (2.5, 2.5), ("1.5/sec", 1.5)]
)
def test_how_rates_are_written(text: object, rate: float) -> None:
    assert rate_of(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["100", "/s", "-1/s", "0/s", "5/fortnight", 0, -2, True, None, "nan/s", float("inf")])
def test_what_is_no_rate(text: object) -> None:
    with pytest.raises(ValueError, match="events a second"):
        rate_of(text)
    if text is not None:
        with pytest.raises(TopologyError, match=r"rate=: a rate is"):
            Topology("a").add_slot("e", lambda data: None, name="n", rate=text)  # type: ignore[arg-type]


def test_a_burst_belongs_to_a_rate() -> None:
    with pytest.raises(TopologyError, match="belongs to a rate"):
        Topology("a").add_slot("e", lambda data: None, name="n", burst=3)
