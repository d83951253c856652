"""Progress and cursor beside plain sets."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grape.model.cursor import Cursor, Progress


@given(st.lists(st.integers(0, 40), max_size=60))
@example([4, 1, 2, 0, 3])  # the gap in front of what is finished is closed, twice
def test_progress_is_a_set_of_indexes(indexes: list[int]) -> None:
    progress, done = Progress(), set[int]()
    for index in indexes:
        before = progress
        progress = progress.with_done(index)
        assert progress.finished() - before.finished() == (index not in done)
        done.add(index)
        first = next(i for i in range(50) if i not in done)
        assert progress.first == first
        assert [progress.is_done(i) for i in range(50)] == [i in done for i in range(50)]
        assert progress.finished() == len(done)
        assert progress.bits == sum(1 << (i - first - 1) for i in done if i > first)
        assert Progress.of(progress.first, progress.bits) == progress
        assert not progress.behind or progress.behind[-1]  # no byte more than it needs
        decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(progress), type=Progress)
        assert decoded == progress


@pytest.mark.parametrize(
    ("index", "done"), [(0, True), (2, True), (3, False), (4, True), (5, False), (11, True), (12, False), (999, False)]
)
def test_the_bitmap_begins_behind_the_first_unfinished_event(index: int, done: bool) -> None:
    progress = Progress(3, bytes([0b1000_0001]))  # events 4 and 11
    assert progress.is_done(index) is done
    assert progress.finished() == 5


STEPS = st.lists(st.tuples(st.sampled_from(["finish", "begin", "advance"]), st.integers(0, 15)), max_size=40)


@given(STEPS)
def test_a_cursor_knows_what_is_finished(steps: list[tuple[str, int]]) -> None:
    cursor, finished, below = Cursor(), set[int](), 0
    for what, position in steps:
        if what == "finish":
            cursor.finish(position)
            finished.add(position)
            assert position not in cursor.partial
        elif what == "begin" and not cursor.is_finished(position):
            cursor.partial[position] = Progress(1)
            assert cursor.progress(position) == Progress(1)
        elif what == "advance":
            cursor.advance(position)
            below = max(below, position)
            while below in finished:
                below += 1
        assert cursor.position == below
        assert [cursor.is_finished(p) for p in range(20)] == [p < below or p in finished for p in range(20)]
        assert cursor.finished == {p for p in finished if p >= below}
    assert cursor.progress(99) == Progress()
