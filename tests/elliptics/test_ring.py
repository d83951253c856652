"""Who has what, and what happens when somebody goes; where heads lie; how many groups it takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape.abc.storage import Place
from grape.errors import Corrupt
from grape.storage.elliptics import heads, marks
from grape.storage.elliptics.groups import asked, needed
from grape.storage.elliptics.heads import Head, Smallest
from grape.storage.elliptics.marks import Kind
from grape.storage.elliptics.ring import NO_ROUTES, Owner, Routes
from grape.storage.elliptics.wire import Address, Backend, Stamp

A, B, C = (Address("10.0.0.1", port) for port in (1, 2, 3))
SHORT = st.binary(min_size=2, max_size=2)


def one(number: int, group: int, *ids: bytes) -> Backend:
    return Backend(number, group, False, ids)


@given(st.dictionaries(SHORT, st.integers(0, 5), min_size=1), st.lists(SHORT))
def test_the_owner_is_the_greatest_not_above(claims: dict[bytes, int], wanted: list[bytes]) -> None:
    """Against the rule as it is said: below the smallest it is the last."""
    routes = NO_ROUTES
    for address in (A, B):
        routes = routes.greeted(
            address,
            [
                one(number, 1, *(id for id, n in claims.items() if n == number + 3 * (address == B)))
                for number in range(3)
            ],
            0.0,
        )
    ring = routes.ring()
    for id in [*wanted, *claims]:
        below = [each for each in claims if each <= id]
        chosen = claims[max(below) if below else max(claims)]
        owner = ring.owner(1, id)
        assert owner == Owner((A, B)[chosen // 3], chosen % 3)
    assert ring.owner(2, b"\0\0") is None
    assert ring.groups == [1]


def test_who_goes_keeps_its_part_for_a_while() -> None:
    routes = NO_ROUTES.greeted(A, [one(1, 1, b"a")], 0.0).greeted(B, [one(1, 1, b"m")], 0.0)
    away = routes.lost(B, 10.0)
    assert away.ring().owner(1, b"x") == Owner(B, 1, True)
    assert away.ring().owner(1, b"b") == Owner(A, 1)
    assert away.lost(B, 20.0).away == {B: 10.0}
    assert away.forgotten(69.0, 60.0) is away
    assert away.forgotten(70.0, 60.0).ring().owner(1, b"x") == Owner(A, 1)
    assert away.greeted(B, [one(1, 1, b"m")], 30.0).ring().owner(1, b"x") == Owner(B, 1)


def test_a_backend_that_is_switched_off_keeps_its_part_for_a_while() -> None:
    routes = NO_ROUTES.greeted(A, [one(1, 1, b"a"), one(2, 1, b"m")], 0.0)
    off = routes.updated(A, [Backend(2, 0, True, ())], 10.0)
    assert off.ring().owner(1, b"x") == Owner(A, 2, True)
    assert off.updated(A, [one(2, 1, b"m", b"n")], 20.0).ring().owner(1, b"x") == Owner(A, 2)
    assert off.forgotten(70.0, 60.0).ring().owner(1, b"x") == Owner(A, 1)
    # One that says hello again without it, as after a restart, has switched it off as well.
    assert routes.greeted(A, [one(1, 1, b"a")], 10.0).ring().owner(1, b"x") == Owner(A, 2, True)
    # Other ids are other ids: that is not a loss.
    moved = routes.updated(A, [one(2, 1, b"z")], 10.0)
    assert moved.ring().owner(1, b"x") == Owner(A, 1)


def test_who_is_there_goes_before_who_has_gone() -> None:
    """A node that has moved to another address brings its ids along."""
    routes = NO_ROUTES.greeted(A, [one(1, 1, b"a")], 0.0).lost(A, 1.0).greeted(C, [one(7, 1, b"a")], 2.0)
    assert routes.ring().owner(1, b"b") == Owner(C, 7)
    assert routes.ring().backends(1) == [Owner(C, 7)]


@given(st.lists(st.tuples(st.sampled_from("gulf"), st.sampled_from([A, B]), st.integers(0, 2), SHORT), max_size=30))
def test_routes_stand_any_order_of_news(news: list[tuple[str, Address, int, bytes]]) -> None:
    routes: Routes = NO_ROUTES
    for now, (kind, address, number, id) in enumerate(news):
        if kind == "g":
            routes = routes.greeted(address, [one(number, 1, id)], now)
            owner = routes.ring().owner(1, id)
            assert owner is not None
            assert not owner.is_gone
        elif kind == "u":
            routes = routes.updated(address, [Backend(number, 1, id[0] < 128, (id,))], now)
        elif kind == "l":
            routes = routes.lost(address, now)
        else:
            routes = routes.forgotten(now, 3.0)
        for owner in routes.ring().backends(1):
            assert (owner.address, owner.backend) in routes.off or owner.address in routes.away or not owner.is_gone


# ---------------------------------------------------------------------- heads

KEYS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=60)
NAMESPACES = st.sampled_from(["a", "b", "photos", "x.y-z"])


@given(NAMESPACES, KEYS, KEYS, NAMESPACES, st.integers(0, (1 << 64) - 1))
def test_ids_of_heads_lie_in_the_ranges_of_their_prefixes(
    namespace: str, key: str, other: str, elsewhere: str, nonce: int
) -> None:
    place = Place(namespace, key)
    id = heads.head_id(place)
    assert len(id) == 64
    assert heads.head_of_data(heads.data_id(place, nonce)) == id
    assert heads.nonce_of_data(heads.data_id(place, nonce)) == nonce

    def holds(ranges: list[tuple[bytes, bytes]]) -> bool:
        return any(low <= id <= high for low, high in ranges)

    for cut in range(len(key) + 1):
        assert holds(heads.ranges(namespace, key[:cut], ""))
    if other.encode() < key.encode():
        assert holds(heads.ranges(namespace, "", other))
    if not key.startswith(other) and len(other.encode()) <= 32:
        assert not holds(heads.ranges(namespace, other, ""))
    if elsewhere != namespace:
        assert not holds(heads.ranges(elsewhere, "", ""))
    for low, high in heads.ranges(namespace, other, key):
        assert low <= high


def test_heads_of_a_namespace_are_spread_around_the_ring() -> None:
    firsts = {heads.head_id(Place("photos", f"2026/{i}"))[0] for i in range(2000)}
    assert len(firsts) == heads.SHARDS
    assert {first >> 2 for first in firsts} == set(range(64))


def test_heads_there_and_back() -> None:
    head = Head("ns", "key", 1_700_000_000_000_001, 7, 3, b"d" * 64, 5, "a/b", ("x",), {"u": "v"}, 9, True, b"abc")
    assert heads.decode(heads.encode(head), Place("ns", "key")) == head
    about = head.about
    assert about is not None
    assert (about.size, about.tags, about.user, about.time, about.expires) == (3, ("x",), {"u": "v"}, 5, 9)
    assert Head("ns", "key", 1, 2).about is None
    with pytest.raises(Corrupt, match="another object has its id"):
        heads.decode(heads.encode(head), Place("ns", "other"))
    for data in (b"", b"\x93\x01\x02\x03", b"hello", heads.encode(head)[:-1]):
        with pytest.raises(Corrupt, match="who else writes there"):
            heads.decode(data)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5))), st.integers(1, 10))
def test_the_smallest_are_kept_and_memory_is_bounded(added: list[tuple[int, int]], most: int) -> None:
    smallest: Smallest[tuple[int, int]] = Smallest(most)
    newest: dict[int, int] = {}
    for key, order in added:
        smallest.add(bytes([key]), (order, 0), (key, order))
        newest[key] = max(order, newest.get(key, 0))
        assert len(smallest._found) <= 2 * most
    found = smallest.items()
    assert [key for key, _ in found] == sorted(newest)[:most]
    assert all(order == newest[key] for key, order in found)
    assert smallest.is_cut == (len(newest) > most) or (smallest.is_cut and len(newest) >= most)


# ---------------------------------------------------------------------- marks and groups


@given(st.integers(1_600_000_000_000_000, 3_000_000_000_000_000), st.sampled_from(list(Kind)))
def test_the_moment_of_a_record(moment: int, kind: Kind) -> None:
    flags = marks.flags_of(moment, kind)
    assert 0 <= flags < 1 << 64
    assert marks.kind_of(flags) is kind
    assert marks.moment_of(flags, Stamp(1, 0)) == moment


@pytest.mark.parametrize("flags", [0, 1, 10, 0xFF, 0xDEADBEEFCAFE, 0xDEADBEEFCAFA])
def test_flags_of_others_are_not_ours(flags: int) -> None:
    assert marks.kind_of(flags) is None
    assert marks.moment_of(flags, Stamp(5, 7000)) == 5_000_007


def test_moments_are_each_another_one() -> None:
    clock = iter([10, 10, 9, 50, 50])
    moments = marks.Moments(lambda: next(clock))
    assert [moments.next(), moments.next(), moments.next(), moments.next(100), moments.next()] == [10, 11, 12, 101, 51]


@given(st.binary(max_size=40))
def test_marks(data: bytes) -> None:
    for stored in (data, marks.BEGINS + data, marks.GONE + data):
        packed = marks.marked(stored)
        shift = marks.MARK if marks.is_marked(packed) else 0
        assert packed
        assert packed[shift:] == stored
        assert not marks.is_gone(packed, len(packed))
    assert marks.is_gone(marks.GONE, 32)
    assert not marks.is_gone(marks.GONE, 33)


@given(st.sampled_from(["any", "quorum", "all"]), st.integers(1, 9))
def test_a_read_meets_every_write(success: str, groups: int) -> None:
    assert needed(success, groups) + asked(success, groups) > groups  # type: ignore[arg-type]
    assert 1 <= needed(success, groups) <= groups  # type: ignore[arg-type]
    assert 1 <= asked(success, groups) <= groups  # type: ignore[arg-type]
