"""The simulator: random topologies, input and faults from a seed, against the sequential reference.

`GRAPE_SIM_SEEDS` says how many seeds (100), `GRAPE_SIM_CYCLES` how many of those with async nodes in cycles (100),
`GRAPE_SIM_CHANGES` how many whose code changes (100), `GRAPE_SIM_SHARED` how many on several engines (50),
`GRAPE_SIM_ORDERED` how many beside orders (60). `GRAPE_SIM_SEED` names a single one, of `GRAPE_SIM_KIND`, on
`GRAPE_SIM_ENGINES`, with `GRAPE_SIM_ORDERS` (a probability).
"""

from __future__ import annotations

import os

import pytest

from tests.sim.check import run_seed
from tests.sim.regressions import CHANGED, CYCLES, SEEDS

_BLOCK = 25
_ONE = os.environ.get("GRAPE_SIM_SEED")
_KIND = os.environ.get("GRAPE_SIM_KIND", "any")
_COUNT = int(os.environ.get("GRAPE_SIM_SEEDS", "100"))
_CHANGES = int(os.environ.get("GRAPE_SIM_CHANGES", "100"))
_SHARED = int(os.environ.get("GRAPE_SIM_SHARED", "50"))
_ENGINES = int(os.environ.get("GRAPE_SIM_ENGINES", "1"))
_ORDERED = int(os.environ.get("GRAPE_SIM_ORDERED", "60"))
_ORDERS = float(os.environ.get("GRAPE_SIM_ORDERS", "0"))
_CYCLES = int(os.environ.get("GRAPE_SIM_CYCLES", "100"))


@pytest.mark.skipif(_ONE is not None, reason="GRAPE_SIM_SEED names one seed")
@pytest.mark.parametrize("start", range(0, _COUNT, _BLOCK))
def test_seeds(start: int) -> None:
    """F4, F5, F6, F37 (kills of workers and engines at random moments), F80 (commits that are lost, or end unknown)"""
    for seed in range(start, min(start + _BLOCK, _COUNT)):
        run_seed(seed)


@pytest.mark.skipif(_ONE is not None, reason="GRAPE_SIM_SEED names one seed")
@pytest.mark.parametrize("start", range(0, _CYCLES, _BLOCK))
def test_async_nodes_with_state_in_cycles_on_a_slow_machine(start: int) -> None:
    """Nothing stands still while work is left."""
    for seed in range(start, min(start + _BLOCK, _CYCLES)):
        run_seed(seed, "cycles")


@pytest.mark.skipif(_ONE is not None, reason="GRAPE_SIM_SEED names one seed")
@pytest.mark.parametrize("start", range(0, _CHANGES, _BLOCK))
def test_code_that_changes_while_events_wait(start: int) -> None:
    """Order and exactly-once hold over it."""
    for seed in range(start, min(start + _BLOCK, _CHANGES)):
        run_seed(seed, "changes")


@pytest.mark.skipif(_ONE is not None, reason="GRAPE_SIM_SEED names one seed")
@pytest.mark.parametrize("start", range(0, _SHARED, _BLOCK))
def test_engines_that_share_the_partitions_of_an_app(start: int) -> None:
    """Each serves its own; together they do everything once, whichever of them dies."""
    for seed in range(start, min(start + _BLOCK, _SHARED)):
        run_seed(seed, ("any", "cycles", "changes")[seed % 3], engines=2 + seed % 2)


@pytest.mark.skipif(_ONE is not None, reason="GRAPE_SIM_SEED names one seed")
@pytest.mark.parametrize("start", range(0, _ORDERED, _BLOCK))
def test_orders_beside_everything_else(start: int) -> None:
    """Failed events are tried again, waiting ones buried and put back, workers made to forget: all is done once."""
    for seed in range(start, min(start + _BLOCK, _ORDERED)):
        run_seed(seed, ("any", "cycles")[seed % 2], 1 + (seed % 3 == 2), orders=(0.005, 0.02, 0.1)[seed % 5 % 3])


@pytest.mark.skipif(_ONE is not None, reason="GRAPE_SIM_SEED names one seed")
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed}")
def test_seeds_that_found_something(seed: int) -> None:
    run_seed(seed)


@pytest.mark.skipif(_ONE is not None, reason="GRAPE_SIM_SEED names one seed")
@pytest.mark.parametrize("seed", CYCLES, ids=lambda seed: f"{seed}")
def test_seeds_of_cycles_that_found_something(seed: int) -> None:
    run_seed(seed, "cycles")


@pytest.mark.parametrize("seed", CHANGED, ids=lambda seed: f"{seed}")
def test_seeds_of_changing_code_that_found_something(seed: int) -> None:
    run_seed(seed, "changes")


@pytest.mark.skipif(_ONE is None, reason="for one seed: GRAPE_SIM_SEED=1234")
def test_one_seed() -> None:
    run_seed(int(_ONE or "0"), _KIND, _ENGINES, _ORDERS)
