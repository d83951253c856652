"""The hold list beside a plain model: what is due, what it holds, and what of it waits for answers."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from grape.engine.partition.hold import HoldList
from grape.model.stored import HeldCall, HoldEntry

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["hold", "ask", "behind", "fail", "answer", "stop", "remove", "take", "give up"]),
        st.integers(0, 9),
        st.integers(1, 5),
    ),
    max_size=50,
)


def entry(
    key: str | None, *, asks: bool = False, behind: bool = False, stopped: bool = False, due: int = 0
) -> HoldEntry:
    locks = key is not None and not behind
    calls = [HeldCall("e", b"d")] if asks else []
    return HoldEntry("n", "e", "id", key, 0, b"", due=due, locks=locks, behind=behind, stopped=stopped, calls=calls)


@given(STEPS)
def test_sums_are_those_of_the_entries(steps: list[tuple[str, int, int]]) -> None:
    held = HoldList()
    model: dict[int, tuple[HoldEntry, int]] = {}
    numbers = 0

    def line(number: int) -> list[int]:
        of = model[number][0].key
        return [number] if of is None else [n for n in model if model[n][0].key == of]

    for what, pick, size in steps:
        key = None if pick == 9 else f"k{pick % 3}"
        new: Any = None
        if what in ("hold", "ask"):
            new = entry(key, asks=what == "ask", due=numbers)
        elif what == "behind" and key is not None and any(e.key == key for e, _ in model.values()):
            new = entry(key, behind=True)
        if new is not None:
            model[numbers] = (new, size)
            held.add(numbers, new, size)
            numbers += 1
        elif model and what in ("fail", "answer", "stop", "remove", "give up"):
            number = list(model)[pick % len(model)]
            if line(number)[0] != number:
                continue
            if what == "remove":
                del model[number]
                held.remove(number, 100)
            elif what == "give up":
                if not model[number][0].is_suspended:
                    continue
                model[number] = (entry(model[number][0].key), size)
                held.gave_up(number, size)
            else:
                changed = entry(model[number][0].key, asks=what == "fail", stopped=what == "stop", due=50)
                model[number] = (changed, size)
                held.change(number, changed, size)
        elif what == "take":
            taken = held.take_due(10**6, size, 3)
            sizes = [each.size for each, _ in taken]
            assert sum(sizes[:-1]) < 3 or len(sizes) <= 1
            held.give_back([each.number for each, _ in taken])
        asking = [n for n in model if model[line(n)[0]][0].is_suspended]
        assert len(held) == len(model)
        assert held.size == sum(s for _, s in model.values())
        assert held.stopped == sum(e.stopped for e, _ in model.values())
        assert (held.asking, held.asking_size) == (len(asking), sum(model[n][1] for n in asking))
    for number in list(model):
        held.remove(number, 100)
    assert (len(held), held.size, held.asking, held.asking_size, held._sizes, held._lines) == (0, 0, 0, 0, {}, {})


def lists(*entries: HoldEntry, size: int = 10) -> HoldList:
    """These entries, under the numbers 0, 1, ..."""
    held = HoldList()
    for number, each in enumerate(entries):
        held.add(number, each, size)
    return held


def take(held: HoldList, now: int = 1000, limit: int = 100, most: int = 10_000) -> list[tuple[int, bool]]:
    """(number, whether more of its line stay)"""
    return [(each.number, more) for each, more in held.take_due(now, limit, most)]


def careful(entry: HoldEntry) -> HoldEntry:
    return msgspec.structs.replace(entry, careful=True)


class TestWhatIsDue:
    def test_each_at_its_time_in_the_order_of_time(self) -> None:
        held = lists(entry(None, due=30), entry(None, due=10), entry(None, due=20))
        assert held.next_due() == 10
        assert take(held, now=9) == []
        assert take(held, now=20) == [(1, False), (2, False)]
        assert held.next_due() == 30
        assert take(held, now=30) == [(0, False)]
        assert held.next_due() is None

    def test_what_is_in_work_only_when_it_is_given_back(self) -> None:
        held = lists(entry(None, due=10))
        assert take(held) == [(0, False)]
        assert take(held) == []
        held.give_back([0, 99])
        held.give_back([0])
        assert held.next_due() == 10
        assert take(held) == [(0, False)]
        assert take(held) == []

    def test_what_failed_again_at_its_new_time(self) -> None:
        held = lists(entry(None, due=10), entry("k", due=15))
        take(held)
        held.change(0, entry(None, due=50), 20)
        held.change(1, entry("k", due=40), 20)
        assert held.next_due() == 40
        assert take(held, now=45) == [(1, False)]
        assert take(held, now=50) == [(0, False)]

    def test_what_became_due_later_before_it_was_taken_is_not_due_at_the_time_before(self) -> None:
        held = lists(entry(None, due=10))
        held.change(0, entry(None, due=50), 10)
        assert held.next_due() == 50
        assert take(held, now=49) == []

    def test_what_was_stopped_never_until_it_is_started_again(self) -> None:
        held = lists(entry(None, stopped=True), entry(None, due=1))
        assert held.next_due() == 1
        held.change(1, entry(None, stopped=True, due=1), 10)
        assert held.next_due() is None
        assert held.stopped == 2
        held.change(0, entry(None, due=70), 10)
        assert held.next_due() == 70
        assert held.stopped == 1

    def test_what_is_gone_not(self) -> None:
        held = lists(entry(None, due=10), entry(None, due=20))
        held.remove(0, 5)
        assert 0 not in held
        assert held.held(0) is None
        assert held.numbers() == [1]
        assert held.next_due() == 20

    def test_what_gives_up_waiting_stays_in_work(self) -> None:
        held = lists(entry(None, asks=True, due=10))
        ((each, _),) = held.take_due(10, 1, 1)
        assert each.suspended
        held.gave_up(0, 30)
        assert not each.suspended
        assert held.size == 30
        assert held.next_due() is None


def test_what_asks_and_is_gone_asks_no_more() -> None:
    held = lists(entry(None, asks=True), entry("k", asks=True), entry("k", behind=True))
    assert (held.asking, held.asking_size) == (3, 30)
    held.remove(0, 0)
    assert (held.asking, held.asking_size) == (2, 20)
    held.remove(1, 0)
    assert (held.asking, held.asking_size) == (0, 0)
    held.change(2, entry("k", asks=True), 15)
    assert (held.asking, held.asking_size) == (1, 15)


class TestLines:
    """Entries of one (node, key)."""

    def test_only_its_head_is_ever_due_and_the_rest_comes_right_behind_it(self) -> None:
        held = lists(entry("k", due=30), entry("k", behind=True, due=0), entry("other", due=20))
        assert held.locked() == [("n", "k"), ("n", "other")]
        assert held.next_due() == 20
        assert take(held, now=29) == [(2, False)]
        assert take(held, now=30) == [(0, False), (1, False)]

    def test_what_neither_locks_nor_waits_behind_another_one_is_in_none(self) -> None:
        unordered = msgspec.structs.replace(entry("k", due=5), locks=False)
        held = lists(unordered, unordered)
        assert held.locked() == []
        assert take(held) == [(0, False), (1, False)]

    def test_nodes_have_lines_of_their_own(self) -> None:
        held = lists(entry("k", due=5), msgspec.structs.replace(entry("k", due=5), node="m"))
        assert held.locked() == [("n", "k"), ("m", "k")]
        held.remove(0, 0)
        assert held.locked() == [("m", "k")]

    def test_it_is_said_of_all_that_were_taken_whether_more_stay(self) -> None:
        held = lists(entry("a", due=1), *[entry("k", due=2, behind=i > 0) for i in range(4)])
        assert take(held, limit=4) == [(0, False), (1, True), (2, True), (3, True)]
        held = lists(entry("a", due=1), *[entry("k", due=2, behind=i > 0) for i in range(3)])
        assert take(held, limit=4) == [(0, False), (1, False), (2, False), (3, False)]

    def test_no_more_bytes_are_taken_than_said_but_for_the_last_one(self) -> None:
        line = [entry("k", due=1, behind=i > 0) for i in range(4)]
        assert take(lists(*line), most=20) == [(0, True), (1, True)]
        assert take(lists(*line), most=21) == [(0, True), (1, True), (2, True)]
        assert take(lists(*line), most=1) == [(0, True)]
        alone = [entry(None, due=i) for i in range(4)]
        assert [number for number, _ in take(lists(*alone), most=20)] == [0, 1]
        assert [number for number, _ in take(lists(*alone), most=0)] == [0]
        assert [number for number, _ in take(lists(*alone), limit=3)] == [0, 1, 2]

    def test_behind_its_head_the_next_is_due_at_once(self) -> None:
        held = lists(entry("k", due=50), entry("k", behind=True, due=90), entry("k", behind=True, due=3))
        held.remove(0, 40)
        assert held.next_due() == 40
        held.remove(1, 45)
        assert held.next_due() == 3  # or was before

    def test_who_leaves_from_the_middle_changes_nothing_of_when_the_head_is_due(self) -> None:
        held = lists(entry("k", due=50), entry("k", behind=True), entry("k", behind=True))
        held.remove(1, 0)
        assert held.next_due() == 50
        assert take(held) == [(0, False), (2, False)]

    def test_behind_a_stopped_head_nothing_is_due(self) -> None:
        held = lists(entry("k", stopped=True), entry("k", behind=True))
        assert held.next_due() is None
        held.remove(0, 7)
        assert held.next_due() == 0

    def test_a_stopped_one_ends_what_is_taken_and_is_not_due_as_the_head(self) -> None:
        held = lists(entry("k", due=1), entry("k", behind=True, stopped=True), entry("k", behind=True))
        assert take(held) == [(0, True)]
        held.remove(0, 5)
        assert held.next_due() is None
        held.change(1, entry("k", due=9), 10)  # an operator lets it go on
        assert take(held) == [(1, False), (2, False)]

    def test_what_is_still_in_work_is_not_due_when_its_head_is_gone(self) -> None:
        held = lists(entry("k", due=1), entry("k", behind=True), entry("k", behind=True))
        assert take(held, limit=2) == [(0, True), (1, True)]
        held.remove(0, 5)
        assert held.next_due() is None
        held.give_back([1])
        assert held.next_due() == 0
        assert take(held) == [(1, False), (2, False)]

    def test_a_follower_in_work_ends_what_is_taken(self) -> None:
        held = lists(entry("k", due=1), entry("k", behind=True), entry("k", behind=True))
        assert len(take(held)) == 3
        held.give_back([0])
        assert take(held) == [(0, True)]

    def test_a_follower_that_is_given_back_waits_for_its_head(self) -> None:
        held = lists(entry("k", due=1), entry("k", behind=True))
        take(held)
        held.give_back([1])
        assert held.next_due() is None
        held.change(0, entry("k", due=80), 10)
        assert held.next_due() == 80

    def test_who_is_careful_is_taken_alone(self) -> None:
        first, second = entry("k", due=1), entry("k", behind=True)
        assert take(lists(careful(first), second)) == [(0, True)]
        assert take(lists(first, careful(second), second)) == [(0, True)]
        assert take(lists(careful(first))) == [(0, False)]
        held = lists(entry(None, due=0), careful(first))
        assert take(held) == [(0, False), (1, False)]
        held.change(1, first, 10)
        held.add(2, second, 10)
        assert take(held) == [(1, False), (2, False)]
