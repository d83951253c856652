"""Every argument of `grape.run` and `grape.open`: it works, or a GrapeError says what is wrong and nothing is left."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import grape
from grape.errors import BadArgument
from grape.host.options import Options, check_options
from grape.model.topology import Limits

t = grape.Topology("plain")
t.add_output("out")


@t.slot("in", emits="out")
def work(data: int) -> int:
    return data


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        ["", "a\0b", "\ud800", "x" * 5000, "/dev/null", "/proc/none/x", "/dev/null/x", "=", "A=B", "in", "out"]
    ),
    st.binary(max_size=5),
    st.builds(object),
    st.builds(Path, st.sampled_from(["/dev/null", "/proc/x", "/"])),
)
ANYTHING = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.lists(SCALARS, max_size=2).map(tuple),
    st.dictionaries(
        st.one_of(st.text(max_size=3), st.integers(), st.sampled_from(["in", "out", "main"])), SCALARS, max_size=3
    ),
    st.builds(
        lambda name, value: Limits(**{name: value}), st.sampled_from(Limits.__struct_fields__), st.integers() | SCALARS
    ),
)
ARGUMENTS = (
    "topology", "data", "workers", "partitions", "config", "inline", "profile", "env", "limits", "max_dead", "max_size",
    "reserve", "storages", "log_level",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_place_for_temporary_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others on this machine use the common one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


def left() -> tuple[list[str], int, int]:
    here = Path(tempfile.gettempdir())
    threads = [one.name for one in threading.enumerate() if one.name.startswith(("grape-engine", "grape-store"))]
    children = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    return sorted(p.name for p in here.glob("grape-*")), len(threads), len(children)


def tried(call: Callable[[], object]) -> None:
    before = left()
    error: grape.GrapeError | None = None
    try:
        call()
    except grape.GrapeError as e:
        error = e
    if error is not None:
        assert str(error)
        assert left() == before
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        assert not [name for name in frames if os.sep + "grape" + os.sep in name]


@given(name=st.sampled_from([*ARGUMENTS, "feed", "take", "wait"]), value=ANYTHING)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_run(tmp_path: Path, name: str, value: Any) -> None:
    given: dict[str, Any] = {"topology": t, "data": tmp_path / "data", "inline": True, name: value}
    if name == "inline" and value is not True:
        given |= {"workers": "none"}  # processes take long, and are tried elsewhere
    if name == "data" and isinstance(value, str):
        given["data"] = str(tmp_path / value) if value and "\0" not in value else value
    topology = given.pop("topology")
    tried(lambda: grape.run(topology, **given))


@given(name=st.sampled_from([*ARGUMENTS, "outputs"]), value=ANYTHING)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_open(tmp_path: Path, name: str, value: Any) -> None:
    given: dict[str, Any] = {"topology": t, "data": tmp_path / "data", "inline": True, name: value}
    if name == "inline" and value is not True:
        given |= {"workers": "none"}
    if name == "data" and isinstance(value, str):
        given["data"] = str(tmp_path / value) if value and "\0" not in value else value
    topology = given.pop("topology")
    tried(lambda: grape.open(topology, **given).close())


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"topology": None}, "topology= is a Topology"),
        ({"topology": ""}, "topology="),
        ({"data": b"x"}, "data= is a path"),
        ({"data": ""}, "data= is a path"),
        ({"data": "a\0b"}, "data= is a path"),
        ({"data": __file__}, "that is no directory"),
        ({"data": __file__ + "/deeper/still"}, "is no directory"),
        ({"workers": 0}, "workers= is a whole number from 1"),
        ({"workers": -1}, "workers= is a whole number"),
        ({"workers": True}, "workers="),
        ({"workers": 1.5}, "workers="),
        ({"workers": 10**9}, "workers="),
        ({"partitions": 0}, "partitions= is a whole number from 1 to 4096"),
        ({"config": [1]}, "config= is a dictionary"),
        ({"config": {1: 2}}, "config= is a dictionary by names"),
        ({"config": {"a": {"b": [1, {2: 3}]}}}, "config['a']['b'][1] are text"),
        ({"config": {"a": object()}}, "config['a']"),
        ({"config": {"a": "\ud800"}}, "not valid Unicode"),
        ({"config": nested(200)}, "nested more than"),
        ({"inline": 1}, "inline= is True or False"),
        ({"profile": 7}, "profile="),
        ({"profile": {"main": 3}}, "one table for each pool"),
        ({"profile": {"main": {"pool-limt": 3}}}, "pool-limit"),
        ({"env": ["A"]}, "env= is a dictionary"),
        ({"env": {"A=B": "x"}}, "cannot be the name of an environment variable"),
        ({"env": {"A": 3}}, "the value of A is text, not 3"),
        ({"env": {"A": "a\0"}}, "cannot be passed"),
        ({"limits": 3}, "limits= is a grape.Limits"),
        ({"limits": Limits(batch_max=-1)}, "batch_max is a number from 1"),
        ({"limits": Limits(batch_target=1000, batch_max=10)}, "batch_target (1000) is at most batch_max"),
        ({"storages": {"n": 3}}, "storages= says the URL of a storage"),
        ({"log_level": "debg"}, "log_level=: debug, info, warning, error, critical, not 'debg'; did you mean 'debug'?"),
        ({"log_level": {"Work": 3}}, "log_level=: debug, info"),
        ({"log_level": {3: "debug"}}, "log_level= is a dictionary by names"),
        ({"log_level": 3}, 'log_level= is a dictionary, such as {"Count": "debug"}, or a level of all, not 3'),
        ({"log_level": {"wrok": "debug"}}, "log_level=: app 'plain' has no node 'wrok'; did you mean"),
        ({"log_level": "debug"}, "with inline=True the logging of this program says"),
        ({"outputs": "out"}, "write ('out',)"),
        ({"outputs": ("otu",)}, "did you mean 'out'?"),
        ({"outputs": (1,)}, "tuple of names"),
        ({"max_dead": -1}, "max_dead="),
        ({"max_size": 5}, "max_size="),
        ({"max_size": 1 << 20, "reserve": 1 << 20}, "reserve= is a part of max_size"),
        ({"feed": "x"}, "feed= is a dictionary"),
        ({"feed": {"inn": "x"}}, "no slot 'inn'; did you mean 'in'?"),
        ({"feed": {"in": 3}}, "give a path, a Source or read(position)"),
        ({"feed": {"in": "a\0b"}}, "cannot be one"),
        ({"take": {"uot": print}}, "did you mean 'out'?"),
        ({"take": {"out": 3}}, "give a path, a Sink or a function"),
        ({"wait": "no", "data": "x"}, "wait= is True or False"),
        ({"wait": False, "data": None}, "say which one with data="),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = left()
    given: dict[str, Any] = {"topology": t, "inline": True, **wrong}
    call = grape.open if "outputs" in wrong else grape.run
    topology = given.pop("topology")
    with pytest.raises(grape.UsageError) as error:
        call(topology, **given)
    assert text in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert left() == before


def test_a_bad_argument_is_what_python_would_raise() -> None:
    for kind in (TypeError, ValueError, grape.UsageError):
        with pytest.raises(kind):
            grape.run(t, workers=-1)
    with pytest.raises(BadArgument):
        check_options(Options(target="app", reserve=-1))


def test_a_run_that_cannot_begin_leaves_no_directory(tmp_path: Path) -> None:
    data = tmp_path / "a" / "b"
    with pytest.raises(grape.UsageError):
        grape.run(t, data=data, inline=True, feed={"in": tmp_path / "none.txt"})
    assert list(tmp_path.iterdir()) == []
    grape.run(t, data=data, inline=True)
    with pytest.raises(grape.UsageError):
        grape.run(t, data=data, inline=True, partitions=7)
    assert (data / "data.mdb").exists()


def test_what_any_argument_brings_is_used(tmp_path: Path) -> None:
    got: list[Any] = []
    options: dict[str, Any] = {
        "data": tmp_path / "deep" / "er",
        "partitions": 1,
        "max_dead": 5,
        "max_size": 1 << 26,
        "reserve": 1 << 20,
        "limits": Limits(max_hops=5),
        "config": {"a": [1, {"b": None}]},
        "env": {"A": "b"},
        "profile": {"main": {"pool-limit": 1}},
    }
    counter = itertools.count()
    feed = {"in": lambda position: ([1, 2], 1) if next(counter) == 0 else ([], position)}
    summary = grape.run(t, feed=feed, take={"out": got.append}, inline=True, **options)
    assert (summary.fed, len(got)) == ({"in": 2}, 2)


def test_a_wrong_topology_is_shown_at_the_users_line(tmp_path: Path) -> None:
    app = tmp_path / "wrong.py"
    app.write_text(
        "import grape\n"
        "t = grape.Topology('wrong')\n"
        "def work(data): pass\n"
        "t.add_slot('in', work, emits='nowhere')\n"
        "if __name__ == '__main__':\n"
        "    with grape.open(t) as engine:\n"
        "        pass\n"
    )
    done = subprocess.run([sys.executable, str(app)], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "wrong.py" in done.stderr
    assert f"{os.sep}grape{os.sep}" not in done.stderr.replace(str(tmp_path), "")
