"""The table of a worker's life: what it has to hold, and that the docs show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from grape.engine.life import COMES, LEAVES, MEANING, SERVES, STEPS, after, diagram
from grape.errors import ProtocolError

DOCS = Path(__file__).parents[2] / "docs" / "pools.md"


def test_every_life_ends_and_can_be_ended() -> None:
    for life in MEANING:
        if life != "gone":
            assert after(life, "end") == "gone"
        if life not in ("broken", "gone"):
            assert after(life, "cut") == "broken"


def test_every_life_is_reached() -> None:
    reached = {"starting"}
    for _ in MEANING:
        reached |= {then for (life, _), then in STEPS.items() if life in reached}
    assert reached == set(MEANING)


def test_no_way_leads_back() -> None:
    """A worker that has gone on never comes back to where it was: whoever waits for its end sees it."""
    seen: set[tuple[str, str]] = {(life, then) for (life, _), then in STEPS.items() if life != then}
    for _ in MEANING:
        seen |= {(a, d) for a, b in seen for c, d in seen if b == c}
    assert not [life for life in MEANING if (life, life) in seen]


def test_groups_are_apart() -> None:
    assert not COMES & SERVES
    assert not SERVES & LEAVES
    assert not COMES & LEAVES


@pytest.mark.parametrize(("life", "step"), [("gone", "end"), ("ready", "hello"), ("starting", "set up")])
def test_what_is_not_in_the_table_is_refused(life: str, step: str) -> None:
    with pytest.raises(ProtocolError, match=f"{step!r} from a worker that is {life}"):
        after(life, step)  # type: ignore[arg-type]


def test_the_docs_show_the_diagram() -> None:
    text = DOCS.read_text()
    assert f"```mermaid\n{diagram()}\n```" in text
    for life, meaning in MEANING.items():
        assert f"| {life} | {meaning} |" in text
