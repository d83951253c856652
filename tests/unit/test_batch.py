"""Runs of several names, when these no longer lead to the same nodes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from grape.model import batch as codec
from grape.model.batch import Run, RunMeta


@st.composite
def runs(draw: st.DrawFn) -> tuple[Run, dict[str, int]]:
    count = draw(st.integers(1, 12))
    names = draw(st.lists(st.sampled_from("abcd"), min_size=2, max_size=4, unique=True))
    index = bytes(draw(st.lists(st.integers(0, len(names) - 1), min_size=count, max_size=count)))
    keys = draw(st.none() | st.lists(st.none() | st.sampled_from(["k", "ü"]), min_size=count, max_size=count))
    data = draw(
        st.none()
        | st.lists(
            st.integers().filter(lambda n: -(2**63) <= n < 2**63) | st.text("xyz"), min_size=count, max_size=count
        )
    )
    hops = draw(st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=count, max_size=count))
    ids = draw(st.none() | st.dictionaries(st.integers(0, count - 1), st.text("id")))
    contexts = draw(st.none() | st.lists(st.integers(-1, 3), min_size=count, max_size=count))
    meta = RunMeta(names, index, hops, draw(st.none() | st.just(["n"])), ids, contexts)
    body = codec.encode_run(meta, count, keys, data)
    (run,) = codec.runs_of(body)
    return run, {name: draw(st.integers(0, 2)) for name in names}


def events(run: Run) -> list[tuple[Any, ...]]:
    keys, data = codec.keys_of(run) or [None] * run.count, codec.data_of(run) or [None] * run.count
    ids, contexts = run.meta.ids or {}, run.meta.contexts or [-1] * run.count
    names = codec.names_of(run)
    return [
        (names[i], keys[i], data[i], codec.hops_of(run.meta, i), ids.get(i), contexts[i], run.meta.only)
        for i in range(run.count)
    ]


@given(runs())
def test_splitting_keeps_events_and_their_order(given_run: tuple[Run, dict[str, int]]) -> None:
    run, leads_to = given_run
    parts = codec.split_run(run, leads_to.__getitem__)
    assert [event for part in parts for event in events(part)] == events(run)
    for part in parts:
        assert len({leads_to[name] for name in part.meta.names}) == 1
        assert set(part.meta.names) == set(codec.names_of(part)) or part is run


def test_a_run_whose_names_lead_to_the_same_is_left_alone() -> None:
    (run,) = codec.runs_of(codec.encode_run(RunMeta(["a", "b"], b"\0\1"), 2, None, [1, 2]))
    assert codec.split_run(run, lambda name: "same") == [run]
