"""What may have been meant."""

from __future__ import annotations

import pytest

from grape.model.near import did_you_mean, near


def test_the_nearest_come_first_and_what_is_far_not_at_all() -> None:
    assert near("toal", ["total", "totals", "line"]) == ["total", "totals"]
    assert near("toal", ["totals", "line", "total"]) == ["total", "totals"]
    assert near("toal", ["line"]) == []
    assert near("toal", []) == []


def test_there_are_at_most_three_each_once() -> None:
    assert near("word", ["word1", "word2", "word3", "word4"]) == ["word4", "word3", "word2"]
    assert near("word", ["words", "words"]) == ["words"]


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("WORD", ["word", "line"], ["word"]),
        ("word", ["Word", "LINE"], ["Word"]),
        ("line", ["lines", "liner", "linen", "LINE"], ["LINE", "lines", "liner"]),  # only its case differs
        ("line", ["LINE", "Line", "LiNE", "line", "other"], ["line", "Line", "LiNE"]),
        ("line", ["LINE", "line", "lines", "Lines"], ["line", "LINE", "lines"]),
    ],
)
def test_case_counts_least(name: str, known: list[str], found: list[str]) -> None:
    assert near(name, known) == found


def test_what_is_no_text_is_near_to_nothing() -> None:
    assert near(1, ["1"]) == []
    assert did_you_mean(None, ["None"], "there are others") == "there are others"


def test_how_near_it_has_to_be() -> None:
    assert near("max", ["max-event"], 0.5) == ["max-event"]
    assert near("max", ["max-event"], 0.6) == []


def test_it_is_said_as_a_question() -> None:
    assert did_you_mean("wrd", ["word", "line"]) == "did you mean 'word'?"
    assert did_you_mean("wor", ["word", "work"]) == "did you mean 'work' or 'word'?"
    assert did_you_mean("wrd", ["line"], "known are: line") == "known are: line"
    assert did_you_mean("wrd", ["line"]) == ""
