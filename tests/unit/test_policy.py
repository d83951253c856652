"""What becomes of a failed event: the whole table."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape.model.policy import after_failure, backoff, locks_key
from grape.model.topology import SlotSpec


@given(st.integers(0, 5), st.integers(1, 8), st.integers(0, 6), st.integers(1, 5), st.sampled_from(["dead", "stop"]))
def test_attempts_and_deaths_have_limits_of_their_own(
    retries: int, attempt: int, deaths: int, limit: int, on_fail: str
) -> None:
    slot = SlotSpec("e", "n", retries=retries, on_fail=on_fail)
    again = deaths < limit if deaths else attempt <= retries
    assert after_failure(slot, attempt, deaths, limit) == ("retry" if again else on_fail)


def test_three_named_deaths_are_the_limit_unless_said_otherwise() -> None:
    slot = SlotSpec("e", "n", retries=0)
    assert after_failure(slot, 1) == "dead"
    assert [after_failure(slot, 1, deaths) for deaths in (1, 2, 3)] == ["retry", "retry", "dead"]


@pytest.mark.parametrize("verdict", ["retry", "stop", "dead"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("key", ["k", None])
def test_later_events_of_the_key_wait_unless_it_is_dead(verdict: str, ordered: bool, key: str | None) -> None:
    slot = SlotSpec("e", "n", ordered=ordered)
    assert locks_key(slot, key, verdict) is (key is not None and ordered and verdict != "dead")  # type: ignore[arg-type]


class Most(random.Random):
    """Gives the most that is asked for."""

    def uniform(self, a: float, b: float) -> float:
        assert a == 0.0
        return b


def test_the_back_off_doubles_up_to_its_cap() -> None:
    slot = SlotSpec("e", "n", backoff=1.5, backoff_max=60.0)
    waits = [backoff(slot, attempt, Most()) for attempt in range(1, 9)]
    assert waits == [1.5, 3.0, 6.0, 12.0, 24.0, 48.0, 60.0, 60.0]
    assert backoff(slot, 10**9, Most()) == 60.0  # and no number is too large for it
    assert backoff(SlotSpec("e", "n", backoff=1e-18, backoff_max=1e9), 10**9, Most()) == 1e-18 * 2.0**60
