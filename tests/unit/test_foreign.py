"""Names of events of other apps."""

from __future__ import annotations

import pytest

from grape.model.foreign import problem_of


@pytest.mark.parametrize("name", ["b@", "b@" + "x" * 256, "b@\udcff"])
def test_what_no_engine_takes_is_the_failure_of_the_event_also_before_the_other_app_is_known(name: str) -> None:
    """Else it is its worker that dies of it."""
    assert "1 to 255 bytes" in problem_of(name, "a", {"b": None})


def test_what_is_not_known_yet_may_be() -> None:
    assert problem_of("b@x", "a", {"b": None}) == ""
