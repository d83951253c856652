"""A state that a handler leaves alone is not written, whatever its default."""

from __future__ import annotations

from typing import Any

import pytest

from grape import Node, State, Topology
from grape.testing import Harness


class Two(Node):
    seen = State(int, default=0)
    country = State(str, default="fr")

    def process(self, event: Any) -> None:
        if event.data == "count":
            self.seen += 1
        elif event.data == "forget":
            del self.seen, self.country


def topology() -> Topology:
    t = Topology("two")
    t.add_slot("e", Two())
    return t


@pytest.mark.parametrize(
    ("events", "stored"),
    [(["nothing"], {}), (["forget"], {}), (["count"], {"a": {"seen": 1}}), (["count", "forget"], {})],
)
def test_a_state_that_is_left_alone_is_not_written(events: list[str], stored: dict[str, Any]) -> None:
    with Harness(topology) as h:
        for data in events:
            h.feed("e", data, key="a")
        h.settle()
        assert h.states("Two") == stored
