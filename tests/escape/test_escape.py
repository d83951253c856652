"""Every probe at every level against what expected.toml claims, for real: an expected denial that does not happen
fails, and so does an opening that is denied.

The engine is whoever runs the tests; if that is root, it is also an ordinary user for the levels that one can have.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any, Final

import pytest

from grape import builtins
from grape.errors import Unsupported
from grape.isolates import landlock
from grape.isolates.cgroups import check
from grape.isolates.jail import Jail
from tests.escape.probes import PROBES
from tests.escape.table import LEVELS, claim, expected, in_document, render
from tests.escape.world import OUTSIDE
from tests.jails import NOBODY, PROJECT, ROOT, as_nobody

EXPECTED: Final = expected()
LAYERS: Final = ("namespaces", "seccomp", "landlock")


@cache
def refusal(level: str) -> str:
    """What this host lacks for a level, or ""."""
    kind = builtins.isolate(level)
    fields = {"uid": NOBODY} if level == "cgroup" and ROOT else {}
    isolate = kind("main", kind.Config(**fields))
    try:
        isolate.prepare()
    except Unsupported as e:
        return str(e)
    finally:
        isolate.close()
    return ""


@cache
def run(level: str, without: str = "", as_user: bool = False) -> dict[str, str]:
    """The outcomes, by name; of a program that is the engine."""
    argv = ["-m", "tests.escape.world", level, without]
    if as_user and ROOT:
        done = as_nobody(argv)
    else:
        done = subprocess.run(
            [sys.executable, *argv], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=200
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def compare(found: dict[str, str], level: str, as_root: bool, groups: bool, jailed: bool) -> list[str]:
    """What is not as it is claimed."""
    wrong = []
    for name, outcome in found.items():
        value = claim(EXPECTED[name][level], as_root, groups)
        if outcome == "absent":  # ENOSYS: from the list of system calls, or this kernel does not have it at all
            outcome = "denied" if jailed else value
        if value not in (outcome, "depends"):
            wrong.append(f"F{EXPECTED[name]['row']} {name}: {outcome}, not {value}")
    return wrong


def has_groups(level: str, as_user: bool) -> bool:
    if level in ("process", "cgroup") or (as_user and ROOT):
        return level == "cgroup"
    try:
        check()
    except Unsupported:
        return False
    return True


def layer_alone(row: dict[str, Any]) -> str:
    """The layer of the sandbox that alone stops something with this kernel's Landlock, or ""."""
    abi, layer = row.get("before", (0, ""))
    return str(row.get("alone", layer if landlock.abi() < abi else ""))


def test_the_table_knows_every_probe() -> None:
    assert set(EXPECTED) == set(PROBES) | set(OUTSIDE)
    for name, row in EXPECTED.items():
        assert {*row} <= {"row", "tries", "alone", "before", *LEVELS}, name


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_worker_tries(level: str) -> None:
    if refusal(level):
        kind = builtins.isolate(level)
        fields = {"uid": NOBODY} if level == "cgroup" and ROOT else {}
        with pytest.raises(Unsupported, match=r"\[pool.main.isolate\] ."):
            kind("main", kind.Config(**fields)).prepare()
        return
    found = run(level)
    assert set(found) == set(EXPECTED)
    assert compare(found, level, ROOT, has_groups(level, False), issubclass(builtins.isolate(level), Jail)) == []


@pytest.mark.skipif(not ROOT, reason="the test above is as an ordinary user already")
@pytest.mark.parametrize("level", ["process", "sandbox", "container"])
@pytest.mark.slow
def test_what_a_worker_of_an_ordinary_user_tries(level: str) -> None:
    found = run(level, as_user=True)
    if "unsupported" in found:
        assert refusal(level), f"root has it: {found['unsupported']}"
        return
    assert set(found) == set(EXPECTED)
    assert compare(found, level, False, has_groups(level, True), issubclass(builtins.isolate(level), Jail)) == []


@pytest.mark.parametrize("layer", LAYERS)
def test_without_one_layer_the_others_stop_what_is_not_its_own(layer: str) -> None:
    """The worth of each layer; as an ordinary user, whose right to files does not depend on who else may read them."""
    if refusal("sandbox"):
        pytest.skip(refusal("sandbox"))
    found = run("sandbox", layer, as_user=True)
    claimed = {name for name, row in EXPECTED.items() if claim(row["sandbox"], False, False) != "open"}
    lets_in = {name for name, outcome in found.items() if outcome == "open"} & claimed
    alone = {name for name, row in EXPECTED.items() if layer_alone(row) == layer}
    here = {name for name in alone if claim(EXPECTED[name]["process"], False, False) == "open"}
    absent = {name for name, outcome in found.items() if outcome == "absent"}
    assert lets_in <= alone
    assert here <= lets_in | absent


def test_the_table_in_the_guide_is_this_one() -> None:
    assert in_document() == render(), "python -m tests.escape.table writes it"
