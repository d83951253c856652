"""The heap of what becomes due, beside a walk over everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from grape.engine.dues import Dues

ITEMS = st.integers(0, 4)
TIMES = st.integers(0, 50)
CHANGES = st.lists(st.one_of(st.tuples(ITEMS, st.none() | TIMES), st.tuples(st.just("take"), TIMES)), max_size=60)


@given(CHANGES)
def test_what_is_due_is_found_once_for_every_change(changes: list[tuple[object, int | None]]) -> None:
    at: dict[object, int] = {}
    told: dict[object, int] = {}
    """Until when it has been taken since it was touched."""

    def when(item: object, after: int) -> int | None:
        found = at.get(item)
        return found if found is not None and found > after else None

    dues: Dues[object] = Dues(when)
    now = 0
    for what, time in changes:
        if what == "take":
            assert time is not None
            now = max(now, time)
            due = {item for item, found in at.items() if told.get(item, -1) < found <= now}
            assert set(dues.take(now)) == due
            told.update(dict.fromkeys(due, now))
        else:
            at.pop(what, None)
            if time is not None:
                at[what] = time
            told.pop(what, None)
            dues.touch(what)
        left = [found for item, found in at.items() if found > told.get(item, -1)]
        assert dues.next() == min(left, default=None)


def test_the_heap_does_not_grow_with_changes() -> None:
    at = {"a": 1}
    dues: Dues[str] = Dues(lambda item, after: at[item])
    for n in range(1_000):
        at["a"] = 1_000 - n
        dues.touch("a")
        dues.next()
    assert len(dues._heap) <= 20
