"""The hold list beside a plain model: what is due, what it holds, and what of it waits for answers."""

from __future__ import annotations

from typing import Any

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
