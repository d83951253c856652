"""A run is as confined as its profile says, whatever pools its code has and whatever its configuration asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape import Topology
from grape.abc.isolate import Command
from grape.errors import UsageError
from grape.host.describe import refuse_inline
from grape.host.options import Options
from grape.model.profile import Profile
from grape.model.topology import PoolSpec
from grape.processes.profile_file import load_profiles
from grape.processes.profiles import Profiles, make_isolate
from grape.processes.runtimes import command_of

LEVELS: Final = ("process", "cgroup", "sandbox", "container")
POOLS: Final = ("main", "helper", "other", "named by the code")
LIMITS: Final = ("memory", "pids", "temp", "files", "cpu")


def keys_of(level: str) -> list[str]:
    known = set(make_isolate("main", Profile(isolate={"type": level})).Config.__struct_fields__)
    return [name for name in (*LIMITS, "readable") if name in known]


KEYS: Final = {level: keys_of(level) for level in LEVELS}


@st.composite
def isolates(draw: st.DrawFn) -> dict[str, Any]:
    level = draw(st.sampled_from(LEVELS))
    found: dict[str, Any] = {"type": level}
    for key in KEYS[level]:
        if draw(st.booleans()):
            paths = st.lists(st.sampled_from(["/srv/a", "/srv/b"]), unique=True)
            found[key] = draw(paths if key == "readable" else st.integers(16, 1000))
    return found


TABLES: Final = st.dictionaries(
    st.sampled_from(POOLS),
    st.fixed_dictionaries({}, optional={"isolate": isolates() | st.just({"type": "inline"}), "pool-limit": st.just(2)}),
)


def level(isolate: dict[str, Any]) -> int:
    return LEVELS.index(isolate["type"]) if isolate else 0


def config(isolate: dict[str, Any]) -> Any:
    found = make_isolate("main", Profile(isolate=isolate))
    return found.config  # type: ignore[attr-defined]


def weaker_keys(isolate: dict[str, Any], than: dict[str, Any]) -> list[str]:
    """Of two of one level: what the first allows beyond the second."""
    one, other = config(isolate), config(than)
    found = []
    for key in KEYS[isolate["type"]]:
        mine, its = getattr(one, key), getattr(other, key)
        if key == "readable":
            found += [key] if set(mine) - set(its) else []
        elif its is not None and (mine is None or mine > its):
            found.append(key)
    return found


@given(profile=TABLES, own=TABLES)
def test_no_pool_is_confined_less_than_the_profile_says(profile: dict[str, Any], own: dict[str, Any]) -> None:
    try:
        found = Profiles(load_profiles(profile, {"grape": {"pool": own}}))
    except UsageError as refusal:
        told = str(refusal)
        assert "asks for a stricter level than the profile has" in told
        return
    named = {pool: table["isolate"] for pool, table in profile.items() if "isolate" in table}
    walls = [isolate for isolate in named.values() if isolate["type"] != "inline"]
    for pool in POOLS:
        isolate = found.of(pool).isolate
        if pool in named:
            assert isolate == named[pool]
            continue
        top = max(map(level, walls), default=0)
        if not walls:
            continue  # it does not say anything; the application's own configuration may
        assert level(isolate) >= top, (pool, isolate)
        for other in walls:
            if level(other) == top:
                assert weaker_keys(isolate, other) == []


@given(own=TABLES)
def test_pools_that_a_configuration_does_not_name_get_its_strictest_level(own: dict[str, Any]) -> None:
    found = Profiles(load_profiles(None, {"grape": {"pool": own}}))
    walls = [t["isolate"] for t in own.values() if "isolate" in t and t["isolate"]["type"] != "inline"]
    assert level(found.of("nobody has heard of it").isolate) == max(map(level, walls), default=0)


def test_what_packages_add_is_not_compared() -> None:
    found = Profiles({"a": Profile(isolate={"type": "vm"}), "b": Profile(isolate={"type": "sandbox"})})
    assert found.of("a").isolate == {"type": "vm"}
    with pytest.raises(UsageError, match="the strictest, sandbox, vm, is not known; give it an isolate"):
        found.of("c")


def test_a_user_of_the_profile_counts_where_workers_are_the_engines_user_otherwise() -> None:
    found = Profiles(
        {"a": Profile(isolate={"type": "process"}), "b": Profile(isolate={"type": "process", "uid": 65534})}
    )
    assert found.of("c").isolate["uid"] == 65534


def test_an_app_in_the_engines_process_is_not_what_a_profile_with_walls_means() -> None:
    topology = Topology("t")
    options = Options(target="t", inline=True, topology=topology, profiles={"x": Profile(isolate={"type": "sandbox"})})
    with pytest.raises(UsageError, match=r"--inline .* \[pool.x.isolate\] says how they are to be"):
        refuse_inline(options.inline, Profiles(options.profiles))


@pytest.mark.parametrize("runtime", ["exec", "lines", "node", "perl"])
@pytest.mark.parametrize("entry", ["/bin/sh", "../outside", "link", "below/../../outside", "linked/outside", "."])
def test_what_a_pool_runs_lies_in_the_apps_directory(tmp_path: Path, runtime: str, entry: str) -> None:
    app = tmp_path / "app"
    (app / "below").mkdir(parents=True)
    (app / "app.py").touch()
    (tmp_path / "outside").write_text("#!/bin/sh\n")
    (tmp_path / "outside").chmod(0o755)
    (app / "link").symlink_to(tmp_path / "outside")
    (app / "linked").symlink_to(tmp_path)
    python = Command(argv=("python",), directory=str(app))
    with pytest.raises(UsageError, match=r"leads out of the app's directory|there is no file"):
        command_of(PoolSpec("p", runtime=runtime, entry=(entry,)), f"{app}/app.py", python)  # type: ignore[arg-type]


def test_links_within_the_apps_directory_are_fine(tmp_path: Path) -> None:
    app = tmp_path / "app"
    (app / "build").mkdir(parents=True)
    (app / "build" / "worker").write_text("#!/bin/sh\n")
    (app / "build" / "worker").chmod(0o755)
    (app / "worker").symlink_to("build/worker")
    (app / "app.py").touch()
    (tmp_path / "alias").symlink_to(app)
    python = Command(argv=("python",), directory=str(tmp_path / "alias"))
    found = command_of(PoolSpec("p", runtime="exec", entry=("worker",)), f"{tmp_path}/alias/app.py", python)
    assert found.argv[0] == f"{tmp_path}/alias/worker"
