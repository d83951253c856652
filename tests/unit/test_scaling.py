"""How many workers, and which has what: decisions without I/O."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from grape.engine.balance import balance
from grape.engine.scaling import LONGEST_BACKOFF, Backoff, Load, Scaler

S = 1_000_000

owner_maps = st.dictionaries(st.integers(0, 40), st.one_of(st.none(), st.integers(0, 7)), max_size=40)


def loads(owners: dict[int, int | None], members: list[int]) -> list[int]:
    return [sum(owner == member for owner in owners.values()) for member in members]


@given(owner_maps, st.lists(st.integers(0, 7), unique=True, min_size=1))
def test_every_partition_gets_a_member_and_all_have_as_many_give_or_take_one(
    owners: dict[int, int | None], members: list[int]
) -> None:
    moves = balance(owners, members, lambda partition: True)
    after = {**owners, **moves}
    assert set(after.values()) <= set(members)
    counts = loads(after, members)
    assert max(counts) - min(counts) <= 1
    assert balance(after, members, lambda partition: True) == {}
    homeless = sum(owner not in members for owner in owners.values())
    surplus = sum(max(0, count - (len(owners) // len(members))) for count in loads(owners, members))
    assert len(moves) <= homeless + surplus


@given(owner_maps, st.lists(st.integers(0, 7), unique=True, min_size=1), st.sets(st.integers(0, 40)))
def test_what_may_not_move_stays(owners: dict[int, int | None], members: list[int], fixed: set[int]) -> None:
    moves = balance(owners, members, lambda partition: partition not in fixed)
    for partition in moves:
        assert partition not in fixed or owners[partition] not in members
    assert set({**owners, **moves}.values()) <= set(members)


def test_without_members_nothing_moves() -> None:
    assert balance({0: 1, 1: None}, [], lambda partition: True) == {}


def test_a_pool_grows_by_doubling_while_events_wait_too_long() -> None:
    scaler = Scaler(0, 16, 1 * S, 0)
    assert scaler.grow(0, Load(0, 0, 1, 0)) == 1
    assert scaler.grow(1 * S, Load(1, 1, 9, 5 * S)) == 1, "one is on its way"
    assert scaler.grow(2 * S, Load(1, 0, 9, S // 2)) == 1, "nothing waits for long"
    assert scaler.grow(2 * S, Load(1, 0, 9, 2 * S)) == 2
    assert scaler.grow(2 * S + 1, Load(2, 0, 9, 2 * S)) == 2, "it has just grown"
    assert scaler.grow(3 * S, Load(2, 0, 9, 2 * S)) == 4
    assert scaler.grow(4 * S, Load(4, 0, 5, 2 * S)) == 5, "not more than have something to do"
    assert scaler.grow(9 * S, Load(9, 0, 40, 2 * S)) == 16, "its limit"


def test_idle_workers_leave_one_by_one_down_to_the_least() -> None:
    scaler = Scaler(1, 4, S, 10 * S)
    assert not scaler.may_leave(9 * S, 3, 0)
    assert scaler.may_leave(10 * S, 3, 0)
    assert not scaler.may_leave(10 * S, 3, None), "it works"
    assert not scaler.may_leave(10 * S, 1, 0), "it is the last one"
    assert not Scaler(0, 4, S, 0).may_leave(10**9 * S, 3, 0), "idle-timeout = 0"


def test_a_pool_below_its_least_is_filled_up() -> None:
    assert Scaler(3, 4, S, S).grow(0, Load(1, 0, 0, 0)) == 3


def test_crash_loops_back_off_and_what_works_resets_it() -> None:
    """F59, F69 of the original: 1, 2, 4 .. 32 s."""
    backoff = Backoff()
    waits = [backoff.crashed(0, "why") // S for _ in range(9)]
    assert waits == [0, 1, 2, 4, 8, 16, 32, 32, 32]
    assert backoff.is_degraded
    assert backoff.reason == "why"
    assert backoff.until == LONGEST_BACKOFF
    backoff.recovered()
    assert not backoff.is_degraded
    assert backoff.crashed(0, "again") == 0


def test_workers_that_died_together_count_once_and_only_a_later_one_shows_that_it_works_again() -> None:
    backoff = Backoff()
    assert backoff.crashed(10 * S, "a", born=0) == 0
    backoff.crashed(11 * S, "b", born=0)
    assert backoff.crashes == 1
    assert backoff.crashed(20 * S, "c", born=12 * S) == 1 * S
    backoff.recovered(born=0)
    assert backoff.is_degraded, "it had worked all the time"
    backoff.recovered(born=21 * S)
    assert not backoff.is_degraded
